//! Which feature bits a guest may see. A bit that is missing here is hidden: because it needs the VMM (MONITOR, RDPMC's
//! counters), because its state is not switched with the vCPU (PKU, CET, AMX, speculation control), or because it is
//! virtualisation itself.

/// Bits by number.
const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

/// SSE3, PCLMULQDQ, SSSE3, FMA, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
pub(super) const LEAF_1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// x2APIC and TSC-deadline (the VMM's own local APIC has them), hypervisor.
pub(super) const LEAF_1_ECX_ALWAYS: u32 = bits(&[21, 24, 31]);
/// FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, SEP, PGE, MCA, CMOV, PSE36, CLFSH, MMX, FXSR, SSE, SSE2, SS.
pub(super) const LEAF_1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 15, 17, 19, 23, 24, 25, 26, 27,
]);
/// APIC, MTRR, PAT.
pub(super) const LEAF_1_EDX_ALWAYS: u32 = bits(&[9, 12, 16]);
/// More than one logical processor in the package.
pub(super) const HTT: u32 = bits(&[28]);

/// FSGSBASE, BMI1, AVX2, FDP_EXCPTN_ONLY, SMEP, BMI2, ERMS, INVPCID, no FPU CS/DS, AVX512F, AVX512DQ, RDSEED, ADX, SMAP,
/// AVX512_IFMA, CLFLUSHOPT, CLWB, AVX512PF, AVX512ER, AVX512CD, SHA, AVX512BW, AVX512VL. Not: TSX, MPX, PT, RDT, SGX.
pub(super) const LEAF_7_EBX: u32 = bits(&[
    0, 3, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 19, 20, 21, 23, 24, 26, 27, 28, 29, 30, 31,
]);
/// IA32_TSC_ADJUST: the VMM's own.
pub(super) const TSC_ADJUST: u32 = bits(&[1]);
/// PREFETCHWT1, AVX512_VBMI, UMIP, AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_VNNI, AVX512_BITALG, AVX512_VPOPCNTDQ,
/// RDPID. Not: PKU, WAITPKG, CET, LA57, key locker, ENQCMD, MOVDIR64B.
pub(super) const LEAF_7_ECX: u32 = bits(&[0, 1, 2, 6, 8, 9, 10, 11, 12, 14, 22]);
/// AVX512_4VNNIW, AVX512_4FMAPS, FSRM, AVX512_VP2INTERSECT, MD_CLEAR, SERIALIZE, AVX512_FP16. Not: AMX, user interrupts, CET,
/// and nothing that is an MSR (SPEC_CTRL and its kin).
pub(super) const LEAF_7_EDX: u32 = bits(&[2, 3, 4, 8, 10, 14, 23]);
/// AVX_VNNI, AVX512_BF16, fast short REP MOVSB, STOSB and CMPSB, AVX_IFMA.
pub(super) const LEAF_7_1_EAX: u32 = bits(&[4, 5, 10, 11, 12, 23]);
/// AVX_VNNI_INT8, AVX_NE_CONVERT.
pub(super) const LEAF_7_1_EDX: u32 = bits(&[4, 5]);

/// LAHF, AltMovCr8, ABM, SSE4A, misaligned SSE, PREFETCHW, XOP, FMA4, TBM, topology extensions.
/// Not: SVM, IBS, SKINIT, watchdog, performance counters, MONITORX.
pub(super) const EXTENDED_1_ECX: u32 = bits(&[0, 4, 5, 6, 7, 8, 11, 16, 21, 22]);
/// Cores, not threads, on AMD's.
pub(super) const CMP_LEGACY: u32 = bits(&[1]);
/// SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
pub(super) const EXTENDED_1_EDX_INTEL: u32 = bits(&[11, 20, 26, 27, 29]);
/// The same, MMXEXT, 3DNow!, and the copy of leaf 1. Not: FFXSR.
pub(super) const EXTENDED_1_EDX: u32 = EXTENDED_1_EDX_INTEL
    | bits(&[
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 22, 23, 24, 30, 31,
    ]);
/// CLZERO, error pointers always restored, WBNOINVD.
pub(super) const EXTENDED_8_EBX: u32 = bits(&[0, 2, 9]);
/// No nested data breakpoints, LFENCE serialises, null selectors clear the base.
pub(super) const EXTENDED_21_EAX: u32 = bits(&[0, 2, 6]);
