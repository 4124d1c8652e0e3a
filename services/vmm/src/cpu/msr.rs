//! MSR policy: what neither the kernel passes through nor the local APIC owns.

use super::{GeneralProtection, Policy};
use ipc_schema::abi::vm::VcpuState;

/// What the VMM has to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum WriteEffect {
    /// Nothing.
    None,
    /// These state groups of the state page have changed ([`ipc_schema::abi::vm::Groups`]).
    Groups(u64),
    /// The local APIC's base register is to be set to this value (IA32_APIC_BASE).
    ApicBase(u64),
}

/// The model-specific registers of one vCPU.
pub struct Msrs {}

impl Msrs {
    /// The registers at reset. `host_tsc_offset`: what the guest's TSC is ahead of the host's, as in the state page.
    pub fn new(policy: &Policy) -> Self {
        let _ = policy;
        Self {}
    }

    /// RDMSR of `index`. `host_tsc`: the host's TSC now; `apic_base`: IA32_APIC_BASE as the local APIC has it.
    pub fn read(
        &self,
        index: u32,
        state: &VcpuState,
        host_tsc: u64,
        apic_base: u64,
    ) -> Result<u64, GeneralProtection> {
        let _ = (index, state, host_tsc, apic_base);
        Err(GeneralProtection)
    }

    /// WRMSR of `index`.
    pub fn write(
        &mut self,
        index: u32,
        value: u64,
        state: &mut VcpuState,
        host_tsc: u64,
    ) -> Result<WriteEffect, GeneralProtection> {
        let _ = (index, value, state, host_tsc);
        Err(GeneralProtection)
    }
}
