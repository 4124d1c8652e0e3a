//! The processor of the host tests: remembers what it is told.

use crate::arch::{Cpu, MAX_CPUS};
use crate::mem::Obj;
use crate::object::Thread;
use ipc_schema::abi::{Status, cpu_state};
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

std::thread_local! {
    static CPUS: Cell<&'static [Cpu; MAX_CPUS]> = Cell::new(new_cpus());
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    static NOW: Cell<u64> = const { Cell::new(1) };
    static IDLED: Cell<u64> = const { Cell::new(0) };
    /// Number of the processor that was told of what was posted to its guest.
    pub static TOLD: Cell<Option<u32>> = const { Cell::new(None) };
    /// The last interrupt that a guest's exit has brought.
    pub static TAKEN: Cell<Option<u8>> = const { Cell::new(None) };
    static MEANWHILE: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
}

fn new_cpus() -> &'static [Cpu; MAX_CPUS] {
    Box::leak(Box::new(core::array::from_fn(|i| Cpu::new(i as u32))))
}

impl Cpu {
    /// The processor that this test plays now.
    #[must_use]
    pub fn current() -> &'static Self {
        &Self::all()[CURRENT.with(Cell::get)]
    }

    /// All of them.
    #[must_use]
    pub fn all() -> &'static [Self; MAX_CPUS] {
        CPUS.with(Cell::get)
    }

    /// Plays processor `number` from now on, which goes on if it has been stopped.
    pub fn play(number: usize) -> &'static Self {
        CURRENT.with(|c| c.set(number % MAX_CPUS));
        let cpu = Self::current();
        if cpu.retime.take() {
            crate::sched::retime(cpu);
        }
        cpu
    }

    /// New ones, for the next test case of this thread; one of them is online.
    pub fn renew() {
        CPUS.with(|c| c.set(new_cpus()));
        Self::play(0);
        crate::sync::check::renew();
        #[cfg(any(test, feature = "checker"))]
        crate::checker::tlb::renew();
    }
}

/// The test's time.
#[must_use]
pub fn now() -> u64 {
    NOW.with(|n| {
        n.set(n.get() + 1);
        n.get()
    })
}
/// Moves the test's time on.
pub fn advance(cycles: u64) {
    NOW.with(|n| n.set(n.get() + cycles));
}
/// "Physical" memory is a buffer of the test's, whose address this is.
pub static HOST_PHYS_BASE: AtomicU64 = AtomicU64::new(0);
/// See [`HOST_PHYS_BASE`].
pub fn phys_base() -> u64 {
    HOST_PHYS_BASE.load(Relaxed)
}
/// Nothing to load.
pub fn load_root(_: u64) {}
/// No TLB.
pub fn invpcid(_: u64, _: u64) {}
/// Remembers when the timer is to come.
pub fn timer_at_most(cpu: &Cpu, at: u64) {
    if at < cpu.programmed.get() {
        cpu.programmed.set(at);
        cpu.retime.set(cpu.number != Cpu::current().number);
    }
}
/// Time passes until the next deadline.
///
/// # Panics
/// When nothing would ever happen again.
pub fn idle(cpu: &Cpu) {
    let at = cpu.timers.next();
    assert!(at != u64::MAX, "deadlock: idle without a deadline");
    NOW.with(|n| n.set(n.get().max(at)));
    IDLED.with(|i| i.set(i.get() + 1));
    crate::sched::woken(cpu);
    crate::sched::tick(cpu);
}
/// No hardware interrupts.
pub fn take_interrupts(_: &Cpu) {}
/// The others see it when they are next played.
pub fn call_others() {}
/// The others see it when they are next played.
pub fn call(_: &Cpu) {}
/// Remembers whom.
pub fn tell_of_posted(cpu: &Cpu) {
    TOLD.set(Some(cpu.number));
}
/// Remembers which.
pub fn interrupt(_: &Cpu, vector: u8) {
    TAKEN.set(Some(vector));
}
/// Does the part of `cpu`, which is asked for something, up to where it would wait for the end of the stop.
pub fn wait_until(cpu: &Cpu, done: impl Fn() -> bool) {
    let number = cpu
        .stop
        .wanted()
        .inspect(|_| cpu.stops.set(cpu.stops.get() + 1));
    let number = number.unwrap_or_else(crate::sync::check::number);
    cpu.stop
        .join(number, &AtomicU32::new(number), || cpu.fpu_owner.set(None));
    assert!(done(), "a processor does not do its part");
}
/// What another processor does while the one that is played waits: once.
pub fn meanwhile(what: Option<Box<dyn FnOnce()>>) -> bool {
    MEANWHILE.replace(what).is_some()
}
/// Somebody waits: the others go on.
///
/// # Panics
/// When there is nothing to wait for.
pub fn spin_loop() {
    let Some(what) = MEANWHILE.take() else {
        panic!("it waits for ever");
    };
    let waits = Cpu::current().number as usize;
    what();
    Cpu::play(waits);
}
/// None.
#[must_use]
pub fn kernel_root() -> u64 {
    0
}
/// No TLB.
pub fn leave_space(_: u64) {}
/// No kernel half.
pub fn share_kernel_half(_: u64) {}
/// No stub.
#[must_use]
pub fn stub_page() -> u64 {
    0
}
/// It starts at once.
///
/// # Errors
/// `InvalidArg`.
pub fn start_step(cpu: &'static Cpu, _: u32, step: u64) -> Result<u64, Status> {
    match step {
        0 | 1 => Ok(step + 1),
        2 => {
            crate::sync::admit(cpu);
            Ok(cpu_state::ONLINE)
        }
        _ => Err(Status::InvalidArg),
    }
}
/// None.
pub fn guest_machine_check() -> bool {
    false
}
/// No ports.
#[must_use]
pub fn port_in(_: u16, _: u8) -> u64 {
    0
}
/// No ports.
pub fn port_out(_: u16, _: u8, _: u64) {}
/// No console.
pub fn debug_bytes(_: impl Iterator<Item = u8>) {}
/// The thread stops, and that is all.
pub fn orphan_fault(_: Obj<Thread>, _: u64, _: u64, _: u64) {}

/// No state to switch.
pub mod extended {
    /// As SSE and AVX.
    pub fn supported() -> u64 {
        7
    }
    /// None.
    pub fn xcr0() -> Option<u64> {
        None
    }
    /// None.
    pub fn dr() -> [u64; 4] {
        [0; 4]
    }
    /// Nothing.
    pub fn save(_: u64) {}
    /// Nothing.
    pub fn restore(_: u64, _: u64, _: [u64; 4]) {}
    /// None.
    pub fn set_tsc_aux(_: u32) {}
    /// Seen by tests alone.
    pub fn set_msr(msr: u32, value: u64) {
        WRITTEN.set((msr, value));
    }
    std::thread_local! {
        /// The last MSR that has been written, and its value.
        pub static WRITTEN: std::cell::Cell<(u32, u64)> = const { std::cell::Cell::new((0, 0)) };
    }
    /// None.
    pub fn set_cr2(_: u64) {}
    /// No breakpoints.
    pub fn arm_breakpoints(_: u64) {}
    /// No breakpoints.
    pub fn disarm_breakpoints(_: u64) {}
}
