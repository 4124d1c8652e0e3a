//! Numbers of the MSRs that the policy knows.
#![allow(missing_docs, reason = "they are the manuals' names")]

pub const TSC: u32 = 0x10;
pub const PLATFORM_ID: u32 = 0x17;
pub const APIC_BASE: u32 = 0x1B;
pub const EBL_CR_POWERON: u32 = 0x2A;
pub const FEATURE_CONTROL: u32 = 0x3A;
pub const TSC_ADJUST: u32 = 0x3B;
/// IA32_BIOS_UPDT_TRIG.
pub const MICROCODE_LOAD_INTEL: u32 = 0x79;
/// IA32_BIOS_SIGN_ID; AMD's PATCH_LEVEL.
pub const MICROCODE: u32 = 0x8B;
pub const P6_PERFCTR0: u32 = 0xC1;
pub const P6_PERFCTR1: u32 = 0xC2;
pub const PLATFORM_INFO: u32 = 0xCE;
pub const MTRR_CAP: u32 = 0xFE;
pub const MCG_CAP: u32 = 0x179;
pub const MCG_STATUS: u32 = 0x17A;
pub const P6_EVNTSEL0: u32 = 0x186;
pub const P6_EVNTSEL1: u32 = 0x187;
pub const PERF_STATUS: u32 = 0x198;
pub const MISC_ENABLE: u32 = 0x1A0;
pub const DEBUGCTL: u32 = 0x1D9;
/// MTRR_PHYSBASE0; masks at odd numbers.
pub const MTRR_VARIABLE_FIRST: u32 = 0x200;
pub const MTRR_VARIABLE_LAST: u32 = 0x20F;
pub const MTRR_FIX64K: u32 = 0x250;
pub const MTRR_FIX16K_FIRST: u32 = 0x258;
pub const MTRR_FIX16K_LAST: u32 = 0x259;
pub const MTRR_FIX4K_FIRST: u32 = 0x268;
pub const MTRR_FIX4K_LAST: u32 = 0x26F;
pub const PAT: u32 = 0x277;
pub const MTRR_DEF_TYPE: u32 = 0x2FF;

pub const EFER: u32 = 0xC000_0080;
pub const TSC_AUX: u32 = 0xC000_0103;

/// Four event selectors, then four counters.
pub const K7_EVNTSEL0: u32 = 0xC001_0000;
pub const K7_PERFCTR3: u32 = 0xC001_0007;
pub const SYSCFG: u32 = 0xC001_0010;
pub const HWCR: u32 = 0xC001_0015;
pub const IORR_FIRST: u32 = 0xC001_0016;
pub const IORR_LAST: u32 = 0xC001_0019;
pub const TOP_MEM: u32 = 0xC001_001A;
pub const K7_CLK_CTL: u32 = 0xC001_001B;
pub const TOP_MEM2: u32 = 0xC001_001D;
pub const NB_CFG: u32 = 0xC001_001F;
pub const PATCH_LOADER: u32 = 0xC001_0020;
/// Also C1E control.
pub const INT_PENDING: u32 = 0xC001_0055;
pub const MMIO_CONF_BASE: u32 = 0xC001_0058;
pub const PSTATE_LIMIT: u32 = 0xC001_0061;
pub const PSTATE_CONTROL: u32 = 0xC001_0062;
pub const PSTATE_LAST: u32 = 0xC001_006B;
pub const SMM_MASK: u32 = 0xC001_0113;
pub const VM_CR: u32 = 0xC001_0114;
/// LS_CFG, IC_CFG, DC_CFG, BU_CFG, FP_CFG, DE_CFG, BU_CFG2, CU_CFG2, CU_CFG3: chicken bits.
pub const LS_CFG: u32 = 0xC001_1020;
pub const DE_CFG: u32 = 0xC001_1029;
pub const CU_CFG3: u32 = 0xC001_102B;
