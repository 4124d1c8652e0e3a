//! The processor of the host tests: remembers what it is told.

use super::Cpu;
use crate::mem::Obj;
use crate::object::Thread;
use std::cell::Cell;

std::thread_local! {
    static CPU: Cell<&'static Cpu> = Cell::new(Box::leak(Box::new(Cpu::new(0))));
    static NOW: Cell<u64> = const { Cell::new(1) };
    static IDLED: Cell<u64> = const { Cell::new(0) };
}

impl Cpu {
    /// This test's processor.
    #[must_use]
    pub fn current() -> &'static Self {
        CPU.with(Cell::get)
    }

    /// A new one, for the next test case of this thread.
    pub fn renew() {
        CPU.with(|c| c.set(Box::leak(Box::new(Self::new(0)))));
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
/// Nothing to load.
pub fn load_root(_: u64) {}
/// Nothing to program.
pub fn timer_at_most(cpu: &Cpu, at: u64) {
    cpu.programmed.set(cpu.programmed.get().min(at));
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
    crate::sched::tick(cpu);
}
/// No hardware interrupts.
pub fn take_interrupts() {}
/// No TLB.
pub fn flush_space(_: u64) {}
/// No TLB.
pub fn leave_space(_: u64) {}
/// No kernel half.
pub fn share_kernel_half(_: u64) {}
/// No stub.
#[must_use]
pub fn stub_page() -> u64 {
    0
}
/// None.
#[must_use]
pub fn apic_id() -> u32 {
    0
}
/// No guests on the host.
#[must_use]
pub fn can_virtualise() -> bool {
    true
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
/// Told to the test.
///
/// # Panics
/// Always: a test gives every thread a supervisor.
pub fn orphan_fault(_: Obj<Thread>, vector: u64, error: u64, address: u64) {
    panic!("fault {vector} {error:#x} {address:#x} without a supervisor");
}
