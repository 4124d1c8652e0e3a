//! MSR policy: what neither the kernel passes through nor the local APIC owns.
//!
//! Shown is what the guest's CPUID announces, and what systems read at boot without expecting a fault. Everything else
//! raises #GP, as on a processor that does not have it. Numbers: Intel SDM vol. 4; AMD APM vol. 2, appendix A, and the
//! families' BKDGs for 0xC001_xxxx.

mod index;
mod mtrr;

use super::{GeneralProtection, Policy};
use index as msr;
use ipc_schema::abi::vm::{Groups, VcpuState};
use mtrr::Mtrrs;

/// CR0.PG.
const CR0_PG: u64 = 1 << 31;
const EFER_SCE: u64 = 1 << 0;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
/// HWCR.TscFreqSel: the TSC counts at the P0 frequency.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// VM_CR: SVM is disabled (SVMDIS), and locked so.
const VM_CR_DISABLED: u64 = 1 << 4 | 1 << 3;
/// IA32_FEATURE_CONTROL: locked, with VMX off.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// IA32_MISC_ENABLE: fast strings; no BTS, no PEBS.
const MISC_ENABLE_RESET: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// Its bits that a guest may change: fast strings, CPUID limit, XD disable (cleared by systems that find it set).
const MISC_ENABLE_WRITABLE: u64 = 1 << 0 | 1 << 22 | 1 << 34;
/// DE_CFG: LFENCE serialises.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// Microcode revision that is shown, in the half where the vendor has it.
const MICROCODE: u64 = 0x0100_0000;
/// PAT at reset (Intel SDM vol. 3, 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// What the VMM has to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum WriteEffect {
    /// Nothing.
    None,
    /// These state groups of the state page have changed ([`ipc_schema::abi::vm::Groups`]).
    Groups(u64),
    /// The local APIC is to take this value of IA32_APIC_BASE, or refuse it.
    ApicBase(u64),
}

/// The model-specific registers of one vCPU.
///
/// The local APIC's own (x2APIC range and TSC-deadline) do not come here. PAT, EFER, TSC offset and TSC_AUX live in the
/// state page too; the values of PAT and TSC_AUX are kept here, so that reading them needs no group.
#[derive(Clone, Debug)]
pub struct Msrs {
    amd: bool,
    nx: bool,
    long_mode: bool,
    rdtscp: bool,
    platform_ratio: u64,
    mtrrs: Mtrrs,
    pat: u64,
    tsc_adjust: u64,
    tsc_aux: u64,
    misc_enable: u64,
    microcode: u64,
    hwcr: u64,
    syscfg: u64,
    /// EFER.LME, which the state page need not have while paging is off.
    lme: u64,
}

impl Msrs {
    /// The registers at reset.
    pub fn new(policy: &Policy) -> Self {
        /// Leaf 0x8000_0001, edx.
        const NX: u32 = 20;
        const RDTSCP: u32 = 27;
        const LONG_MODE: u32 = 29;
        /// Leaf 7, ecx: RDPID reads TSC_AUX too.
        const RDPID: u32 = 22;
        let extended = |bit| policy.shows(0x8000_0001, 3, bit);
        Self {
            amd: policy.is_amd(),
            nx: extended(NX),
            long_mode: extended(LONG_MODE),
            rdtscp: extended(RDTSCP) || policy.shows(7, 2, RDPID),
            platform_ratio: (policy.tsc_hz() / 100_000_000).min(0xFF),
            mtrrs: Mtrrs::new(policy.physical_bits()),
            pat: PAT_RESET,
            tsc_adjust: 0,
            tsc_aux: 0,
            misc_enable: MISC_ENABLE_RESET,
            microcode: if policy.is_amd() {
                MICROCODE
            } else {
                MICROCODE << 32
            },
            hwcr: HWCR_TSC_FREQ_SEL,
            syscfg: 0,
            lme: 0,
        }
    }

    /// The guest begins with this EFER.
    pub fn begin(&mut self, efer: u64) {
        self.lme = efer & EFER_LME;
    }

    /// EFER.LME, whether the state page has it or not.
    pub fn lme(&self) -> bool {
        self.lme != 0
    }

    /// RDMSR of `index`. `host_tsc`: the host's TSC now; `apic_base`: IA32_APIC_BASE as the local APIC has it. Of the
    /// state page it reads EFER (group CR) and the TSC offset.
    ///
    /// # Errors
    /// The guest has no such register.
    pub fn read(
        &self,
        index: u32,
        state: &VcpuState,
        host_tsc: u64,
        apic_base: u64,
    ) -> Result<u64, GeneralProtection> {
        Ok(match index {
            msr::TSC => host_tsc.wrapping_add(state.tsc_offset),
            msr::TSC_ADJUST => self.tsc_adjust,
            msr::APIC_BASE => apic_base,
            msr::EFER => state.efer | self.lme,
            msr::PAT => self.pat,
            msr::TSC_AUX if self.rdtscp => self.tsc_aux,
            msr::MICROCODE => self.microcode,
            // No banks, no control register.
            msr::MCG_CAP | msr::MCG_STATUS => 0,
            msr::DEBUGCTL | msr::PLATFORM_ID | msr::EBL_CR_POWERON => 0,
            // The old counters and their selectors count nothing.
            msr::P6_PERFCTR0..=msr::P6_PERFCTR1 | msr::P6_EVNTSEL0..=msr::P6_EVNTSEL1 => 0,
            _ if self.mtrrs.owns(index) => return self.mtrrs.read(index),
            _ if self.amd => return self.read_amd(index),
            _ => return self.read_intel(index),
        })
    }

    fn read_intel(&self, index: u32) -> Result<u64, GeneralProtection> {
        Ok(match index {
            msr::FEATURE_CONTROL => FEATURE_CONTROL_LOCKED,
            msr::PLATFORM_INFO => self.platform_ratio << 8,
            msr::PERF_STATUS => self.platform_ratio << 8,
            msr::MISC_ENABLE => self.misc_enable,
            _ => return Err(GeneralProtection),
        })
    }

    fn read_amd(&self, index: u32) -> Result<u64, GeneralProtection> {
        Ok(match index {
            msr::HWCR => self.hwcr,
            msr::SYSCFG => self.syscfg,
            msr::VM_CR => VM_CR_DISABLED,
            msr::DE_CFG => DE_CFG_LFENCE,
            msr::K7_EVNTSEL0..=msr::K7_PERFCTR3
            | msr::TOP_MEM
            | msr::TOP_MEM2
            | msr::IORR_FIRST..=msr::IORR_LAST
            | msr::K7_CLK_CTL
            | msr::NB_CFG
            | msr::INT_PENDING
            | msr::MMIO_CONF_BASE
            | msr::PSTATE_LIMIT..=msr::PSTATE_LAST
            | msr::SMM_MASK
            | msr::LS_CFG..=msr::CU_CFG3 => 0,
            _ => return Err(GeneralProtection),
        })
    }

    /// WRMSR of `index`. May change EFER, PAT, TSC offset and TSC_AUX in the state page, and then says so. EFER.LMA is
    /// the processor's: it is left as it is.
    ///
    /// # Errors
    /// The guest has no such register, or may not write this value.
    pub fn write(
        &mut self,
        index: u32,
        value: u64,
        state: &mut VcpuState,
        host_tsc: u64,
    ) -> Result<WriteEffect, GeneralProtection> {
        match index {
            msr::TSC => {
                let delta = value.wrapping_sub(host_tsc.wrapping_add(state.tsc_offset));
                Ok(self.move_tsc(state, delta))
            }
            msr::TSC_ADJUST => {
                let delta = value.wrapping_sub(self.tsc_adjust);
                Ok(self.move_tsc(state, delta))
            }
            msr::APIC_BASE => Ok(WriteEffect::ApicBase(value)),
            msr::EFER => self.write_efer(value, state),
            msr::PAT => {
                legal(value.to_le_bytes().iter().all(|&t| mtrr::is_pat_type(t)))?;
                self.pat = value;
                state.pat = value;
                Ok(WriteEffect::Groups(Groups::PAT))
            }
            msr::TSC_AUX if self.rdtscp => {
                legal(value >> 32 == 0)?;
                self.tsc_aux = value;
                state.tsc_aux = value;
                Ok(WriteEffect::Groups(Groups::XCR))
            }
            // Systems write 0 before they ask CPUID for the revision; there is nothing to load.
            msr::MICROCODE => Ok(WriteEffect::None),
            msr::MCG_STATUS | msr::DEBUGCTL => only_zero(value),
            msr::P6_PERFCTR0..=msr::P6_PERFCTR1 | msr::P6_EVNTSEL0..=msr::P6_EVNTSEL1 => {
                only_zero(value)
            }
            _ if self.mtrrs.owns(index) => {
                self.mtrrs.write(index, value)?;
                Ok(WriteEffect::None)
            }
            _ if self.amd => self.write_amd(index, value),
            msr::MISC_ENABLE => {
                legal((value ^ self.misc_enable) & !MISC_ENABLE_WRITABLE == 0)?;
                self.misc_enable = value;
                Ok(WriteEffect::None)
            }
            msr::MICROCODE_LOAD_INTEL => Ok(WriteEffect::None),
            _ => Err(GeneralProtection),
        }
    }

    fn write_amd(&mut self, index: u32, value: u64) -> Result<WriteEffect, GeneralProtection> {
        /// SYSCFG: MtrrFixDramEn, MtrrFixDramModEn, MtrrVarDramEn, MtrrTom2En, Tom2ForceMemTypeWB.
        const SYSCFG_WRITABLE: u64 = 0x1F << 18;
        match index {
            // What the bits would change does not exist here; systems read them back at most.
            msr::HWCR => {
                legal(value >> 32 == 0)?;
                self.hwcr = value | HWCR_TSC_FREQ_SEL;
                Ok(WriteEffect::None)
            }
            msr::SYSCFG => {
                legal(value & !SYSCFG_WRITABLE == 0)?;
                self.syscfg = value;
                Ok(WriteEffect::None)
            }
            // Locked: the value stays, whatever is written (AMD APM vol. 2, 15.30.1).
            msr::VM_CR => Ok(WriteEffect::None),
            msr::K7_EVNTSEL0..=msr::K7_PERFCTR3 => only_zero(value),
            msr::PATCH_LOADER
            | msr::TOP_MEM
            | msr::TOP_MEM2
            | msr::NB_CFG
            | msr::INT_PENDING
            | msr::PSTATE_CONTROL
            | msr::K7_CLK_CTL
            | msr::LS_CFG..=msr::CU_CFG3 => Ok(WriteEffect::None),
            _ => Err(GeneralProtection),
        }
    }

    /// Moves the guest's TSC: both ways of writing it show in both registers (Intel SDM vol. 3, 18.17.3).
    fn move_tsc(&mut self, state: &mut VcpuState, delta: u64) -> WriteEffect {
        state.tsc_offset = state.tsc_offset.wrapping_add(delta);
        self.tsc_adjust = self.tsc_adjust.wrapping_add(delta);
        WriteEffect::Groups(Groups::TSC)
    }

    fn write_efer(
        &mut self,
        value: u64,
        state: &mut VcpuState,
    ) -> Result<WriteEffect, GeneralProtection> {
        let mut allowed = EFER_SCE | EFER_LMA;
        if self.long_mode {
            allowed |= EFER_LME;
        }
        if self.nx {
            allowed |= EFER_NXE;
        }
        legal(value & !allowed == 0)?;
        let changes_mode = (value ^ self.lme) & EFER_LME != 0;
        legal(!changes_mode || state.cr0 & CR0_PG == 0)?;
        state.efer = value & !EFER_LMA | state.efer & EFER_LMA;
        self.lme = value & EFER_LME;
        Ok(WriteEffect::Groups(Groups::CR))
    }
}

/// #GP unless `condition`.
fn legal(condition: bool) -> Result<(), GeneralProtection> {
    if condition {
        Ok(())
    } else {
        Err(GeneralProtection)
    }
}

fn only_zero(value: u64) -> Result<WriteEffect, GeneralProtection> {
    legal(value == 0)?;
    Ok(WriteEffect::None)
}

#[cfg(test)]
mod tests;
