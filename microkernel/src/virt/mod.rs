//! The two hardware back ends behind one trait; the same files with the same names in each.
//!
//! Which one a processor has is decided at boot, once. What enters and leaves guests is compiled once for each ([`Virt`] is a type
//! parameter all the way from the system call's entry, of which there is one for each too), so the frequent paths ask nothing.

mod apic;
pub mod svm;
pub mod vmx;

use crate::arch::Cpu;
use crate::object::thread::Resume;
use crate::object::{Thread, Vcpu};
use core::cell::Cell;
use core::mem::offset_of;
use ipc_schema::abi::vm::{Exit, Groups, PortAccess, VcpuState as S};

/// Why the processor left the guest, before policy.
pub enum Left {
    /// A physical interrupt is pending, or the kernel has done what there was to do: the guest goes on.
    Interrupt,
    /// IN or OUT.
    Port(Plain),
    /// For the VMM.
    Exit(Exit, [u64; 4]),
}

/// An IN or OUT: neither of a string nor repeated. The value of an OUT is in the guest's rax.
#[derive(Clone, Copy)]
pub struct Plain {
    /// The port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub width: u32,
    /// It is an IN.
    pub input: bool,
    /// Address of the next instruction.
    pub next: u64,
}

impl Plain {
    /// As the ABI has it: [`PortAccess`].
    #[inline(always)]
    #[must_use]
    pub const fn access(&self) -> u64 {
        PortAccess::new(self.port, self.width as u8, self.input).0
    }
}

/// The processor, the thread, and the vCPU that has left.
pub type Who<'a> = (&'a Cpu, &'a Thread, &'a Vcpu);

/// What is done about a guest's exit. Not an answer of [`Virt::enter`]'s: so each frequent reason has its own copy of what follows, and
/// none of it goes through memory.
pub trait Then {
    /// What comes of it.
    type Answer;
    /// Does it.
    fn then(self, who: Who, left: Left) -> Self::Answer;
}

/// What a hardware back end does.
pub trait Virt {
    /// How a thread goes on whose next step is its guest.
    const RESUME: Resume;
    /// Copies state groups from the state page into the control structure, validating.
    fn load(v: &Vcpu, groups: u64);
    /// Sets the posted interrupt and the event to inject.
    fn arm(v: &Vcpu, post: u64, event: u64);
    /// Makes `v`'s FPU, extended state and debug registers the processor's.
    fn switch_extended(cpu: &Cpu, v: &Vcpu);
    /// Runs the guest until it leaves, and hands on why.
    fn enter<T: Then>(cpu: &Cpu, v: &Vcpu, then: T) -> T::Answer;
    /// On the way to the VMM: copies state groups to the state page; answers the exit word's upper part and the undelivered event.
    fn left(v: &Vcpu, groups: u64) -> (u64, u64);
    /// Completes an instruction that the kernel carried out: moves on to `next`.
    fn advance(v: &Vcpu, next: u64);
}

/// #DB, #AC and #MC make an exit: the first two can otherwise loop in microcode for ever (CVE-2015-5307, CVE-2015-8104).
const EXCEPTIONS: u64 = 1 << 1 | 1 << 17 | 1 << 18;
/// Debug control bits of DR7 that do something; bit 10 is always 1, the upper half must be 0.
const DR7_ALLOWED: u64 = 0xffff_2bff;

/// Bit of [`Vcpu::flushes`]: the next entry takes `enter_prepared`, which looks at what is rare.
const UNUSUAL: u64 = 1 << 63;

/// Has the next entry look at everything.
pub fn unusual(v: &Vcpu) {
    v.flushes.set(v.flushes.get() | UNUSUAL);
}

/// Gives `v` an address space identifier of this round; answers whether a round begins, with translations cached under all of them.
/// Otherwise each is given once.
fn identify(cpu: &Cpu, v: &Vcpu) -> bool {
    let next = cpu.next_asid.get();
    let begins = next >= cpu.asids.get();
    cpu.asid_round.set(cpu.asid_round.get() + u64::from(begins));
    let asid = if begins { 1 } else { next };
    cpu.next_asid.set(asid + 1);
    v.asid.set(asid);
    v.asid_round.set(cpu.asid_round.get());
    begins
}

/// What neither entry nor exit switches and the vCPU keeps: `copy(kept, in the state page)`.
fn each_extended(v: &Vcpu, groups: u64, copy: impl Fn(&Cell<u64>, &Cell<u64>)) {
    let word = |at: usize| &v.state().0[at / 8 % 512];
    if groups & Groups::XCR != 0 {
        copy(&v.xcr0, word(offset_of!(S, xcr0)));
        copy(&v.tsc_aux, word(offset_of!(S, tsc_aux)));
    }
    if groups & Groups::DR != 0 {
        for (i, d) in v.dr.iter().enumerate() {
            copy(d, word(offset_of!(S, dr) + 8 * i));
        }
    }
}

/// State page to vCPU.
#[inline]
fn load_extended(v: &Vcpu, groups: u64) {
    each_extended(v, groups, |kept, page| kept.set(page.get()));
    v.xcr0.set(valid_xcr0(v.xcr0.get()));
    v.tsc_aux.set(v.tsc_aux.get() & 0xffff_ffff);
}

/// Carries out an expression with `v` as the module of this machine's back end.
macro_rules! with_virt {
    ($v:ident => $what:expr) => {
        if $crate::virt::vmx::HERE.get() {
            use $crate::virt::vmx as $v;
            $what
        } else {
            use $crate::virt::svm as $v;
            $what
        }
    };
}
pub(crate) use with_virt;

/// XCR0 from a VMM: x87 always; AVX only with SSE; the AVX-512 trio together. Anything else would make XSETBV fault in the kernel.
fn valid_xcr0(wanted: u64) -> u64 {
    let x = wanted & crate::arch::extended::supported() | 1;
    let x = if x & 2 == 0 { x & !4 } else { x };
    let avx512 = x & 4 != 0 && x & 0xe0 == 0xe0;
    if avx512 { x } else { x & !0xe0 }
}

/// Saves the extended state that `cpu`, this processor, holds; it is nobody's then.
pub fn release_extended(cpu: &Cpu) {
    with_virt!(v => v::extended::release(cpu));
}
