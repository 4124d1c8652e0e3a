//! The MSR policy.

use super::*;
use crate::emulate::testing::state;
use core::arch::x86_64::CpuidResult;
use proptest::prelude::*;

fn msrs(vendor: &[u8; 12]) -> Msrs {
    let word = |i: usize| u32::from_le_bytes(vendor[i..i + 4].try_into().unwrap());
    let (b, d, c) = (word(0), word(4), word(8));
    let host = move |leaf: u32, _: u32| match leaf {
        0 => CpuidResult {
            eax: 0x16,
            ebx: b,
            ecx: c,
            edx: d,
        },
        0x8000_0000 => CpuidResult {
            eax: 0x8000_0008,
            ebx: 0,
            ecx: 0,
            edx: 0,
        },
        0x8000_0001 => CpuidResult {
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: 1 << 20 | 1 << 27 | 1 << 29,
        },
        0x8000_0008 => CpuidResult {
            eax: 40,
            ebx: 0,
            ecx: 0,
            edx: 0,
        },
        _ => CpuidResult {
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: 0,
        },
    };
    Msrs::new(&Policy::new(&host, 1, 2_400_000_000, 1_000_000_000))
}

fn intel() -> Msrs {
    msrs(b"GenuineIntel")
}

fn amd() -> Msrs {
    msrs(b"AuthenticAMD")
}

const GP: GeneralProtection = GeneralProtection;

#[test]
fn tsc_and_its_adjustment_move_together() {
    let (mut m, mut s) = (intel(), state());
    s.tsc_offset = 0u64.wrapping_sub(1000);
    assert_eq!(m.read(0x10, &s, 5000, 0), Ok(4000));
    assert_eq!(
        m.write(0x10, 10_000, &mut s, 5000),
        Ok(WriteEffect::Groups(Groups::TSC))
    );
    assert_eq!(m.read(0x10, &s, 5001, 0), Ok(10_001));
    assert_eq!(m.read(0x3B, &s, 0, 0), Ok(6000));
    assert_eq!(
        m.write(0x3B, 0, &mut s, 5000),
        Ok(WriteEffect::Groups(Groups::TSC))
    );
    assert_eq!(m.read(0x10, &s, 5000, 0), Ok(4000));
}

#[test]
fn efer_has_legal_bits_only_and_keeps_lma() {
    let (mut m, mut s) = (amd(), state());
    assert_eq!(
        m.write(msr::EFER, 0x901, &mut s, 0),
        Ok(WriteEffect::Groups(Groups::CR))
    );
    assert_eq!(s.efer, 0x901);
    // SVME, LMSLE, FFXSR, TCE, and a reserved bit.
    for bit in [12, 13, 14, 15, 1, 63] {
        assert_eq!(
            m.write(msr::EFER, 0x901 | 1 << bit, &mut s, 0),
            Err(GP),
            "{bit}"
        );
    }
    s.cr0 = CR0_PG;
    s.efer |= EFER_LMA;
    assert_eq!(
        m.write(msr::EFER, 0x801, &mut s, 0),
        Err(GP),
        "LME while paging"
    );
    assert_eq!(
        m.write(msr::EFER, 0x100, &mut s, 0),
        Ok(WriteEffect::Groups(Groups::CR))
    );
    assert_eq!(s.efer, 0x500);
}

#[test]
fn pat_and_tsc_aux_are_checked() {
    let (mut m, mut s) = (intel(), state());
    assert_eq!(m.read(msr::PAT, &s, 0, 0), Ok(PAT_RESET));
    assert_eq!(
        m.write(msr::PAT, 0x0007_0406_0005_0106, &mut s, 0),
        Ok(WriteEffect::Groups(Groups::PAT))
    );
    assert_eq!(s.pat, 0x0007_0406_0005_0106);
    for bad in [2, 3, 8, 0xFF] {
        assert_eq!(m.write(msr::PAT, bad << 56, &mut s, 0), Err(GP));
    }
    assert_eq!(m.write(msr::TSC_AUX, 0x1_0000_0000, &mut s, 0), Err(GP));
    assert_eq!(
        m.write(msr::TSC_AUX, 7, &mut s, 0),
        Ok(WriteEffect::Groups(Groups::XCR))
    );
    assert_eq!((m.read(msr::TSC_AUX, &s, 0, 0), s.tsc_aux), (Ok(7), 7));
}

#[test]
fn mtrrs_look_like_firmware_left_them() {
    let (mut m, mut s) = (intel(), state());
    let read = |m: &Msrs, i| m.read(i, &state(), 0, 0);
    assert_eq!(read(&m, 0xFE), Ok(0x508));
    assert_eq!(read(&m, 0x2FF), Ok(0xC06));
    assert_eq!(
        (read(&m, 0x200), read(&m, 0x201)),
        (Ok(0xC000_0000), Ok(0xFF_C000_0800))
    );
    assert_eq!((read(&m, 0x258), read(&m, 0x259)), (Ok(FIXED_WB), Ok(0)));
    assert_eq!(m.write(0xFE, 0x508, &mut s, 0), Err(GP));
    assert_eq!(
        m.write(0x20E, 0xFF_0000_0006, &mut s, 0),
        Ok(WriteEffect::None)
    );
    assert_eq!(read(&m, 0x20E), Ok(0xFF_0000_0006));
    for (index, bad) in [
        (0x2FF, 2),
        (0x2FF, 1 << 12),
        (0x200, 3),
        (0x200, 1 << 40),
        (0x201, 1),
        (0x250, 7),
        (0x26F, 2 << 56),
    ] {
        assert_eq!(m.write(index, bad, &mut s, 0), Err(GP), "{index:#x}");
    }
    assert_eq!(read(&m, 0x210), Err(GP));
    const FIXED_WB: u64 = 0x0606_0606_0606_0606;
}

#[test]
fn each_vendor_has_its_own() {
    let s = state();
    for (index, on_intel, on_amd) in [
        (0x3A, Ok(1), Err(GP)),
        (0x1A0, Ok(0x1801), Err(GP)),
        (0xCE, Ok(24 << 8), Err(GP)),
        (0x8B, Ok(MICROCODE << 32), Ok(MICROCODE)),
        (0xC001_0015, Err(GP), Ok(1 << 24)),
        (0xC001_0010, Err(GP), Ok(0)),
        (0xC001_001F, Err(GP), Ok(0)),
        (0xC001_0055, Err(GP), Ok(0)),
        (0xC001_0114, Err(GP), Ok(0x18)),
        (0xC001_1029, Err(GP), Ok(2)),
        (0x1B, Ok(0xFEE0_0900), Ok(0xFEE0_0900)),
        (0x179, Ok(0), Ok(0)),
    ] {
        assert_eq!(
            intel().read(index, &s, 0, 0xFEE0_0900),
            on_intel,
            "{index:#x}"
        );
        assert_eq!(amd().read(index, &s, 0, 0xFEE0_0900), on_amd, "{index:#x}");
    }
}

#[test]
fn hidden_features_have_no_registers() {
    let (mut i, mut a, mut s) = (intel(), amd(), state());
    // SPEC_CTRL, PRED_CMD, APERF, ARCH_CAPABILITIES, MC0_CTL, VMX, XSS, MISC_FEATURES, PKRS, KVM's, Hyper-V's, HSAVE_PA, SMM base,
    // performance counters.
    for index in [
        0x48,
        0x49,
        0xE8,
        0x10A,
        0x400,
        0x480,
        0xDA0,
        0x140,
        0x6E1,
        0x4B56_4D00,
        0x4000_0000,
        0xC001_0117,
        0xC001_0111,
        0xC001_0200,
        0x38F,
        0x345,
        0,
        0xFFFF_FFFF,
    ] {
        assert_eq!(i.read(index, &s, 0, 0), Err(GP), "{index:#x}");
        assert_eq!(a.read(index, &s, 0, 0), Err(GP), "{index:#x}");
        assert_eq!(i.write(index, 0, &mut s, 0), Err(GP), "{index:#x}");
        assert_eq!(a.write(index, 0, &mut s, 0), Err(GP), "{index:#x}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_or_refused(
        index in prop_oneof![0u32..0x300, 0xC000_0080u32..0xC000_0110, 0xC001_0000u32..0xC001_0120, 0xC001_1000u32..0xC001_1030, any::<u32>()],
        value in prop_oneof![any::<u64>(), 0u64..0x1000], is_amd in any::<bool>(),
    ) {
        let (mut m, mut s) = (if is_amd { amd() } else { intel() }, state());
        let before = m.read(index, &s, 0, 0);
        let wrote = m.write(index, value, &mut s, 0);
        let after = m.read(index, &s, 0, 0);
        match wrote {
            Err(_) => prop_assert_eq!(before, after),
            // EFER.LMA, HWCR's fixed bit and ignored writes aside, it sticks.
            Ok(WriteEffect::Groups(_)) if index != msr::EFER => prop_assert_eq!(after, Ok(value)),
            Ok(_) => {}
        }
        prop_assert_eq!(before.is_ok(), after.is_ok());
    }
}
