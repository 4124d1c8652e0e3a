//! Intel VMX (SDM vol. 3, chapters 24 to 34).
//!
//! The VMCS that is current on a processor is that of the owner of its extended state: both come and go together (`extended`). What the
//! kernel has read of the guest's rip, flags and interruptibility since the exit, and what is to be written before the entry, is
//! remembered in [`Soft`], so that a frequent exit takes few accesses.

pub mod control;
mod enter;
pub mod exit;
pub mod extended;
pub mod newer;
pub mod speculation;
#[cfg(target_os = "none")]
pub mod start;
pub mod state;

use super::{Then, Virt, unusual};
use crate::arch::{Cpu, measure};
use crate::mem;
use crate::object::Vcpu;
use crate::object::thread::Resume;
use control::{read, write};
use core::cell::Cell;
use enter::{bound, enter_prepared, launch};
use ipc_schema::abi::vm::ExitWord;
use x86::vmx::vmcs::guest as g;

/// The back end.
pub struct BackEnd;

/// Whether it is this machine's; SVM's is otherwise. Written at boot alone; in the host's tests each has its own.
#[cfg(target_os = "none")]
pub static HERE: mem::Global<Cell<bool>> = mem::Global(Cell::new(false));
#[cfg(not(target_os = "none"))]
std::thread_local! {
    /// Whether it is this test's.
    pub static HERE: Cell<bool> = const { Cell::new(false) };
}

/// What the kernel keeps of a vCPU beside its VMCS: in the page of the extended state, whose beginning the processor uses as the
/// virtual-APIC page. That is the page that a vCPU has for its control structure: the VMCS, which is not memory to software, is in the
/// other.
#[repr(C)]
pub struct Soft {
    /// CR2, which neither entry nor exit switches.
    cr2: Cell<u64>,
    /// Kernel GS base, while the host runs.
    kernel_gs: Cell<u64>,
    /// Whether the VMCS has been launched since it became current.
    launched: Cell<u64>,
    /// Fields of [`HOT`] whose value is known (bits 0 to 2); those that the VMCS does not have yet (8 to 10); [`NO_SHADOW`].
    marks: Cell<u64>,
    /// Their values.
    hot: [Cell<u64>; 3],
    /// The event to inject ([`ipc_schema::abi::vm::Event`]), and afterwards the one whose delivery the exit interrupted.
    event: Cell<u64>,
    /// The vector to deliver ([`ipc_schema::abi::vm::Post`]).
    post: Cell<u64>,
    /// The primary controls that the VMCS has.
    controls: Cell<u32>,
    /// The TPR threshold that it has.
    threshold: Cell<u32>,
    /// Of [`newer::choose`]'s controls, those that it has.
    newer: Cell<u32>,
    /// Whether the guest runs, or is about to: what is posted to it reaches it without an exit.
    #[cfg(any(test, feature = "unproven"))]
    inside: Cell<u64>,
    /// 1 + number of the processor whose host state it has; 0: it has never been loaded.
    host: Cell<u64>,
    /// The host's CR3 that it has.
    root: Cell<u64>,
    /// STAR, LSTAR, CSTAR, SFMASK while another vCPU has the processor's.
    syscall: [Cell<u64>; 4],
    /// The same of DR6.
    dr6: Cell<u64>,
}

/// Where it is in its page: behind the area for XSAVE, which AVX-512 has 2,696 bytes long.
const SOFT: u64 = 0xf00;
const _: () = assert!(extended::AREA + 2696 <= SOFT && SOFT as usize + size_of::<Soft>() <= 4096);
/// TPR in the virtual-APIC page (SDM vol. 3, 30.1.1), a word here.
const TPR: usize = 0x80 / 8;

/// Fields that every exit needs.
const HOT: [u32; 3] = [g::RIP, g::RFLAGS, g::INTERRUPTIBILITY_STATE];
const RIP: usize = 0;
const RFLAGS: usize = 1;
const BLOCKING: usize = 2;
/// [`Soft::marks`]: what the frequent exits find out.
const KNOWN: u64 = 1 << RIP | 1 << RFLAGS;
/// The guest has left the interrupt shadow, if it was in one, by an instruction that was carried out for it. The VMCS is only looked at
/// if something is to be delivered: nothing else tells the difference, and the next instruction ends it anyway.
const NO_SHADOW: u64 = 1 << 16;
const fn dirty(i: usize) -> u64 {
    0x100 << i
}
/// Interruptibility (25.4.2): by STI or MOV SS; by NMI.
const SHADOW: u64 = 3;
const NMI_BLOCKED: u64 = 8;
/// RFLAGS.
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const RF: u64 = 1 << 16;

/// An event or posted vector is valid.
const VALID: u64 = 1 << 31;
/// Type of an event; NMI.
const KIND: u64 = 7 << 8;
const NMI: u64 = 2 << 8;

impl Soft {
    /// That of `v`.
    #[inline(always)]
    fn of(v: &Vcpu) -> &Self {
        // SAFETY: in a page of the vCPU's own, for as long as it lives; only cells, for which any bytes will do.
        unsafe { &*((v.control_virt + SOFT) as *const Self) }
    }

    /// After an exit: rip and flags, which whoever deals with an instruction needs.
    #[inline(always)]
    fn look(&self) -> u64 {
        let rip = read(g::RIP);
        self.hot[RIP].set(rip);
        self.hot[RFLAGS].set(read(g::RFLAGS));
        self.marks.set(KNOWN);
        rip
    }

    /// A hot field of the guest's. Its VMCS is current, unless the field is known.
    fn get(&self, i: usize) -> u64 {
        if self.marks.get() & 1 << i == 0 {
            let mut value = read(HOT[i]);
            if i == BLOCKING && self.marks.get() & NO_SHADOW != 0 && value & SHADOW != 0 {
                value &= !SHADOW;
                self.marks.set(self.marks.get() | dirty(BLOCKING));
            }
            self.hot[i].set(value);
            self.marks.set(self.marks.get() | 1 << i);
        }
        self.hot[i].get()
    }

    /// Sets one, if it is another; the entry writes it.
    fn set(&self, v: &Vcpu, i: usize, value: u64) {
        if self.marks.get() & 1 << i != 0 && self.hot[i].get() == value {
            return;
        }
        self.hot[i].set(value);
        self.marks.set(self.marks.get() | 1 << i | dirty(i));
        if i != RIP {
            unusual(v);
        }
    }

    /// Moves on to `rip`, out of any shadow, where nothing but that has to be written: if the flags, less RF, are to be `flags`. Answers
    /// whether it did.
    #[inline(always)]
    fn step(&self, rip: u64, flags: u64) -> bool {
        let quick = self.marks.get() == KNOWN && self.hot[RFLAGS].get() == flags & !RF;
        if quick {
            self.hot[RIP].set(rip);
            self.marks.set(KNOWN | dirty(RIP) | NO_SHADOW);
        }
        quick
    }

    /// Whether the guest is known to single-step.
    fn steps(&self) -> bool {
        self.marks.get() & 1 << RFLAGS != 0 && self.hot[RFLAGS].get() & TF != 0
    }

    /// The guest's, after reset.
    fn reset_guest(&self) {
        for cell in [&self.cr2, &self.kernel_gs, &self.event, &self.post] {
            cell.set(0);
        }
        self.syscall.iter().for_each(|m| m.set(0));
        self.dr6.set(0xffff_0ff0);
        for (i, value) in [(RIP, 0xfff0), (RFLAGS, 2), (BLOCKING, 0)] {
            self.hot[i].set(value);
        }
        self.marks.set(0x707);
    }
}

/// Makes the VMCS of `v` current, if it is not.
#[inline(always)]
pub fn need(v: &Vcpu) {
    let cpu = Cpu::current();
    if cpu
        .fpu_owner
        .get()
        .map_or(core::ptr::null_mut(), |o| o.ptr())
        != mem::Obj::of(v).ptr()
    {
        extended::switch(cpu, v);
    }
}

impl Virt for BackEnd {
    const RESUME: Resume = Resume::GuestVmx;

    #[inline(always)]
    fn load(v: &Vcpu, groups: u64) {
        if groups != 0 {
            state::load(v, groups);
        }
    }

    #[inline(always)]
    fn arm(v: &Vcpu, post: u64, event: u64) {
        let s = Soft::of(v);
        if post & 1 << 44 != 0 {
            tpr(v).set((post >> 40 & 15) << 4);
            unusual(v);
        }
        s.post.set(post);
        s.event.set(event);
        if (post | event) & VALID != 0 {
            unusual(v);
        }
    }

    fn switch_extended(cpu: &Cpu, v: &Vcpu) {
        extended::switch(cpu, v);
    }

    #[inline(always)]
    fn enter<T: Then>(cpu: &Cpu, v: &Vcpu, then: T) -> T::Answer {
        let s = Soft::of(v);
        measure::end(cpu);
        if cpu.until.get() != cpu.programmed.get() {
            bound(cpu);
        }
        #[cfg(any(test, feature = "unproven"))]
        newer::posted::enters(v);
        let (who, failed) = if v.flushes.get() != v.guest.flushes.get() {
            enter_prepared(cpu, v)
        } else {
            if s.marks.get() & dirty(RIP) != 0 {
                // Whatever else is dirty is unusual.
                write(g::RIP, s.hot[RIP].get());
            }
            launch(cpu, v)
        };
        #[cfg(any(test, feature = "unproven"))]
        newer::posted::has_left(who);
        exit::decode(who, failed, then)
    }

    #[inline(never)]
    fn left(v: &Vcpu, groups: u64) -> (u64, u64) {
        state::save(v, groups);
        let s = Soft::of(v);
        const _: () = assert!(ExitWord::POST_PENDING == 1 << 40 && ExitWord::CR8_SHIFT == 32);
        let pending = s.post.get() & VALID;
        // Left in place: `arm` writes it before the next entry.
        let event = s.event.get();
        (
            pending << 9 | (tpr(v).get() >> 4 & 15) << 32,
            if event & VALID != 0 { event } else { 0 },
        )
    }

    #[inline(always)]
    fn advance(v: &Vcpu, next: u64) {
        let s = Soft::of(v);
        if s.hot[RFLAGS].get() & TF != 0 || !s.step(next, s.hot[RFLAGS].get()) {
            advance_slowly(v, next);
        }
    }
}

/// With a trap to come, RF to clear, or not right after the exit.
#[cold]
#[inline(never)]
fn advance_slowly(v: &Vcpu, next: u64) {
    need(v);
    let s = Soft::of(v);
    s.set(v, RIP, next);
    s.set(v, BLOCKING, s.get(BLOCKING) & !SHADOW);
    let flags = s.get(RFLAGS);
    s.set(v, RFLAGS, flags & !RF);
    if flags & TF != 0 {
        // As on SVM: the trap comes after the instruction that was carried out.
        control::set_dr6(control::dr6() | 1 << 14);
        s.event.set(1 | 3 << 8 | VALID);
        unusual(v);
    }
}

/// The guest's TPR, whose upper half is its CR8.
#[inline(always)]
fn tpr(v: &Vcpu) -> &Cell<u64> {
    &newer::page(v).0[TPR]
}
