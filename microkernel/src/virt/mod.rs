//! The two hardware back ends behind one trait; the same files with the same names in each.

pub mod svm;

use crate::arch::Cpu;
use crate::object::{Thread, Vcpu};
use ipc_schema::abi::vm::{Exit, PortAccess};

/// Why the processor left the guest, before policy.
pub enum Left {
    /// A physical interrupt is pending.
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
    /// Copies state groups from the state page into the control structure, validating.
    fn load(&self, v: &Vcpu, groups: u64);
    /// Sets the posted interrupt and the event to inject.
    fn arm(&self, v: &Vcpu, post: u64, event: u64);
    /// Makes `v`'s FPU, extended state and debug registers the processor's.
    fn switch_extended(&self, cpu: &Cpu, v: &Vcpu);
    /// Runs the guest until it leaves, and hands on why.
    fn enter<T: Then>(&self, cpu: &Cpu, v: &Vcpu, then: T) -> T::Answer;
    /// On the way to the VMM: copies state groups to the state page; answers the exit word's upper part and the undelivered event.
    fn left(&self, v: &Vcpu, groups: u64) -> (u64, u64);
    /// Completes an instruction that the kernel carried out: moves on to `next`.
    fn advance(&self, v: &Vcpu, next: u64);
}

/// Saves the extended state that `cpu`, this processor, holds; it is nobody's then.
pub fn release_extended(cpu: &Cpu) {
    svm::extended::release(cpu);
}

/// The back end of this processor.
#[inline(always)]
pub fn virt() -> &'static svm::Svm {
    &svm::Svm
}
