//! The two hardware back ends behind one trait; the same files with the same names in each.

pub mod svm;

use crate::arch::Cpu;
use crate::object::Vcpu;
use ipc_schema::abi::vm::Exit;

/// Why the processor left the guest, before policy.
pub enum Left {
    /// A physical interrupt is pending.
    Interrupt,
    /// A plain IN or OUT: [`ipc_schema::abi::vm::PortAccess`], value of an OUT, address of the next instruction.
    Port {
        /// Packed access.
        access: u64,
        /// Value of an OUT.
        value: u64,
        /// Next instruction.
        next: u64,
    },
    /// For the VMM.
    Exit(Exit, [u64; 4]),
}

/// What is done about a guest's exit. Not an answer of [`Virt::enter`]'s: so each frequent reason has its own copy of what follows, and
/// none of it goes through memory.
pub trait Then {
    /// What comes of it.
    type Answer;
    /// Does it.
    fn then(self, left: Left) -> Self::Answer;
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
