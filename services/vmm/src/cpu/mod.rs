//! What processor the guest sees: CPUID, model-specific registers and XCR0.
//!
//! Job: decide each answer once, so that an exit is a look-up. Place: the VMM's exit loop asks; nothing here touches a
//! processor (the host's CPUID is handed in). Trust: leaf, index and value come from the guest; an answer shows no more
//! of the host than the guest needs.

pub mod cpuid;
pub mod cr0;
pub mod msr;
pub mod xcr;

pub use cpuid::{Dynamic, Policy};
pub use msr::{Msrs, WriteEffect};

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;
