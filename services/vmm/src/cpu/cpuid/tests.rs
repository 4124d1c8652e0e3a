//! The policy against made-up hosts that claim to have everything.

use super::*;
use proptest::prelude::*;

/// Says that it has every feature, and a plausible XSAVE.
fn generous(vendor: &'static [u8; 12]) -> impl Fn(u32, u32) -> CpuidResult {
    let r = |eax, ebx, ecx, edx| CpuidResult { eax, ebx, ecx, edx };
    let word = |i: usize| u32::from_le_bytes(vendor[i..i + 4].try_into().unwrap());
    move |leaf, subleaf| match (leaf, subleaf) {
        (0, _) => r(0x20, word(0), word(8), word(4)),
        (0x8000_0000, _) => r(0x8000_0028, word(0), word(8), word(4)),
        (4 | 0x8000_001D, 0..=3) => r(0xFFFF_C001 | (subleaf + 1).min(3) << 5, 0x3F, 63, 0),
        (4 | 0x8000_001D, _) => r(0, 0, 0, 0),
        (0xD, 0) => r(0xFFFF_FFFF, 0, 0xFFFF, 0xFFFF_FFFF),
        (0xD, 1) => r(0xFFFF_FFFF, 0, 0xFFFF_FFFF, 0),
        (0xD, 2) => r(256, 576, 0, 0),
        (0xD, 5) => r(64, 1088, 0, 0),
        (0xD, 6) => r(512, 1152, 2, 0),
        (0xD, 7) => r(1024, 1664, 0, 0),
        (0xD, _) => r(64, 4096, 3, 0),
        (0x8000_0008, _) => r(0x0030_392E, !0, !0, !0),
        _ => r(!0, !0, !0, !0),
    }
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

fn policy(vendor: &'static [u8; 12], vcpus: u32) -> Policy {
    Policy::new(&generous(vendor), vcpus, 2_400_000_000, 1_000_000_000)
}

fn dynamic() -> Dynamic {
    Dynamic {
        apic_id: 2,
        cr4: 1 << 18,
        xcr0: 7,
    }
}

#[test]
fn what_must_be_hidden_is_hidden() {
    for vendor in [INTEL, AMD] {
        let p = policy(vendor, 4);
        let at = |leaf, sub| p.answer(leaf, sub, &dynamic());
        let [_, _, ecx, edx] = at(1, 0);
        // MONITOR, VMX, SMX, PDCM; DS, thermal, PBE.
        assert_eq!(ecx & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 15), 0);
        assert_eq!(edx & (1 << 21 | 1 << 22 | 1 << 31), 0);
        let [max, ebx, ecx, edx] = at(7, 0);
        assert_eq!(max, 1);
        // SGX, HLE, RTM, MPX, PT; PKU, OSPKE, WAITPKG, CET_SS, LA57; CET_IBT, AMX, SPEC_CTRL and on.
        assert_eq!(ebx & (1 << 2 | 1 << 4 | 1 << 11 | 1 << 14 | 1 << 25), 0);
        assert_eq!(ecx & (1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16), 0);
        assert_eq!(
            edx & (1 << 20 | 1 << 22 | 1 << 24 | 1 << 25 | 0xFC00_0000),
            0
        );
        assert_eq!(at(5, 0), [0; 4]);
        assert_eq!(at(0xA, 0), [0; 4]);
        // XSAVES and XFD; PKRU and AMX components.
        assert_eq!(at(0xD, 1)[0], 7);
        assert_eq!(at(0xD, 0)[0], 0xE7);
        for component in [3, 4, 8, 9, 17, 18, 62, 63, 64, u32::MAX] {
            assert_eq!(at(0xD, component), [0; 4], "{component}");
        }
        // SVM; its leaf; IBS; SEV.
        assert_eq!(at(0x8000_0001, 0)[2] & (1 << 2 | 1 << 10 | 1 << 29), 0);
        for leaf in [
            0x8000_000A,
            0x8000_001B,
            0x8000_001C,
            0x8000_001F,
            0x8000_0026,
            0x8FFF_FFFF,
        ] {
            assert_eq!(at(leaf, 0), [0; 4], "{leaf:#x}");
        }
        assert_eq!(at(0x8000_0000, 0)[0], 0x8000_0021);
        for leaf in [
            0x17,
            0x1F,
            0x20,
            0x1_0000,
            0x4000_0011,
            0x4001_0000,
            0xC000_0000,
            u32::MAX,
        ] {
            assert_eq!(at(leaf, 0), [0; 4], "{leaf:#x}");
        }
    }
}

#[test]
fn what_the_vmm_provides_is_shown_on_a_poor_host() {
    let host = |leaf: u32, _: u32| match leaf {
        0 => generous(AMD)(0, 0),
        0x8000_0000 => CpuidResult {
            eax: 0x8000_0008,
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
    let p = Policy::new(&host, 1, 1_000_000_000, 1_000_000_000);
    let [_, ebx, ecx, edx] = p.answer(
        1,
        0,
        &Dynamic {
            cr4: 0,
            ..dynamic()
        },
    );
    assert_eq!(ebx >> 24, 2);
    assert_eq!(ecx, 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(edx, 1 << 9 | 1 << 12 | 1 << 16);
    assert_eq!(p.answer(7, 0, &dynamic())[1], 2);
    assert_eq!(
        (p.answer(0xD, 0, &dynamic()), p.xcr0_supported()),
        ([0; 4], 0)
    );
    assert_eq!(p.answer(0x8000_0007, 0, &dynamic())[3], 1 << 8);
}

#[test]
fn hypervisor_leaves() {
    let p = policy(AMD, 1);
    let [max, b, c, d] = p.answer(0x4000_0000, 0, &dynamic());
    assert_eq!(max, 0x4000_0010);
    assert_eq!([b, c, d].map(u32::to_le_bytes).concat(), b"VireoVireoVi");
    assert_eq!(
        p.answer(0x4000_0010, 0, &dynamic()),
        [2_400_000, 1_000_000, 0, 0]
    );
    assert_eq!(p.answer(0x4000_0001, 0, &dynamic()), [0; 4]);
    // The interface that Linux looks for, to stay in x2APIC mode, at the next base.
    let [max, b, c, d] = p.answer(0x4000_0100, 0, &dynamic());
    assert_eq!(max, 0x4000_0101);
    assert_eq!([b, c, d].map(u32::to_le_bytes).concat(), b"KVMKVMKVM\0\0\0");
    assert_eq!(p.answer(0x4000_0101, 0, &dynamic()), [1 << 1, 0, 0, 0]);
    assert_eq!(p.answer(0x4000_0102, 0, &dynamic()), [0; 4]);
}

#[test]
fn osxsave_and_sizes_follow_the_vcpu() {
    let p = policy(INTEL, 1);
    let mut d = dynamic();
    assert_ne!(p.answer(1, 0, &d)[2] & 1 << 27, 0);
    d.cr4 = 0;
    assert_eq!(p.answer(1, 0, &d)[2] & 1 << 27, 0);
    for (xcr0, standard, compacted) in [
        (1, 576, 576),
        (3, 576, 576),
        (7, 832, 832),
        (0xE7, 2688, 576 + 256 + 64 + 512 + 1024),
    ] {
        d.xcr0 = xcr0;
        let [_, now, most, _] = p.answer(0xD, 0, &d);
        assert_eq!((now, most), (standard, 2688));
        assert_eq!(p.answer(0xD, 1, &d)[1], compacted);
    }
    assert_eq!(p.answer(0xD, 2, &d), [256, 576, 0, 0]);
    assert_eq!(p.answer(0xD, 6, &d), [512, 1152, 2, 0]);
}

#[test]
fn topology_is_one_package_of_single_threaded_cores() {
    for (vendor, vcpus, bits) in [(INTEL, 1, 0), (INTEL, 3, 2), (AMD, 4, 2), (AMD, 200, 8)] {
        let p = policy(vendor, vcpus);
        let at = |leaf, sub| p.answer(leaf, sub, &dynamic());
        assert_eq!(at(0xB, 0), [0, 1, 0x100, 2]);
        assert_eq!(at(0xB, 1), [bits, vcpus, 0x201, 2]);
        assert_eq!(at(0xB, 2), [0, 0, 2, 2]);
        assert_eq!(at(0xB, 0x300), [0, 0, 0, 2]);
        let [_, ebx, _, edx] = at(1, 0);
        assert_eq!(ebx >> 16, 2 << 8 | (1 << bits).min(255));
        assert_eq!(edx >> 28 & 1, u32::from(vcpus > 1));
        if vendor == AMD {
            assert_eq!(at(0x8000_0008, 0)[2], bits << 12 | (vcpus - 1));
            assert_eq!(at(0x8000_001E, 0), [2, 2, 0, 0]);
            assert_eq!(at(0x8000_001D, 3)[0] >> 14, (1 << bits) - 1);
            assert_eq!(at(4, 0), [0; 4]);
        } else {
            assert_eq!(at(0x8000_0008, 0)[2], 0);
            assert_eq!(at(4, 0)[0], (((1u32 << bits) - 1) << 26) | 0x21);
            assert_eq!(at(4, 3)[0] >> 14 & 0xFFF, (1 << bits) - 1);
        }
        assert_eq!(at(0x8000_0008, 0)[0], 0x302E);
        assert_eq!(at(if vendor == AMD { 0x8000_001D } else { 4 }, 4), [0; 4]);
    }
}

#[test]
fn intel_guests_learn_the_tsc_frequency() {
    let p = policy(INTEL, 1);
    assert_eq!(p.answer(0, 0, &dynamic())[0], 0x16);
    assert_eq!(p.answer(0x15, 0, &dynamic()), [5, 12, 1_000_000_000, 0]);
    assert_eq!(p.answer(0x16, 0, &dynamic()), [2400, 2400, 1000, 0]);
    assert_eq!(policy(AMD, 1).answer(0x15, 0, &dynamic()), [0; 4]);
    assert_eq!(crystal(1, 0), [0; 4]);
    assert_eq!(crystal(0, 1_000_000), [0; 4]);
}

proptest! {
    #[test]
    fn crystal_fraction_is_close_and_does_not_overflow(tsc in 500_000_000u64..6_000_000_000, apic in 1_000_000u64..2_000_000_000) {
        let [den, num, hz, _] = crystal(tsc, apic);
        prop_assert!(den != 0 && num != 0);
        prop_assert!(u64::from(hz / 1000) * u64::from(num) <= u64::from(u32::MAX));
        let got = u128::from(hz) * u128::from(num) / u128::from(den);
        let off = got.abs_diff(u128::from(tsc));
        prop_assert!(off * 1_000 < u128::from(tsc), "{got} for {tsc}");
    }

    #[test]
    fn no_leaf_and_no_host_panics(
        answers in prop::collection::vec(any::<[u32; 4]>(), 1..8), leaf in any::<u32>(), subleaf in any::<u32>(),
        vcpus in 0u32..255, low in 0u32..0x30,
    ) {
        let host = |l: u32, s: u32| {
            let r = answers[(l.wrapping_mul(31).wrapping_add(s)) as usize % answers.len()];
            CpuidResult { eax: r[0], ebx: r[1], ecx: r[2], edx: r[3] }
        };
        let p = Policy::new(&host, vcpus, 1_000_000_000, 1_000_000_000);
        for leaf in [leaf, low, 0x8000_0000 + low, 0x4000_0000 + low] {
            for subleaf in [subleaf, subleaf % 80] {
                p.answer(leaf, subleaf, &dynamic());
            }
        }
    }
}
