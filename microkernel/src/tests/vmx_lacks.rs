//! Intel processors that lack what VMX needs here, or have it switched off.

use super::vmx::{ALL, RICH};
use crate::virt::vmx::control::{Capabilities, choose, usable};

#[test]
fn what_a_processor_lacks_is_named() {
    assert!(choose(&RICH).is_ok());
    let secondary = |bit: u32| Capabilities {
        secondary: ALL & !(1 << (32 + bit)),
        ..RICH
    };
    let set = |n: usize, bit: u32| {
        let mut sets = RICH.sets;
        sets[n] &= !(1 << (32 + bit));
        Capabilities { sets, ..RICH }
    };
    for (has, name) in [
        (secondary(1), "(EPT)"),
        (secondary(7), "unrestricted guests"),
        (secondary(5), "(VPID)"),
        (secondary(6), "WBINVD"),
        (
            Capabilities {
                ept: !(1 << 14),
                ..RICH
            },
            "write-back",
        ),
        (Capabilities { basic: 0, ..RICH }, "true control"),
        (set(0, 5), "virtual NMIs"),
        (set(1, 21), "TPR shadow"),
        (set(2, 21), "PAT and EFER"),
        (set(3, 15), "PAT and EFER"),
    ] {
        let why = choose(&has).unwrap_err();
        assert!(why.contains(name), "{why}");
    }
    // What must be on is on.
    let strict = Capabilities {
        sets: [ALL | 0x16; 4],
        ..RICH
    };
    assert!(choose(&strict).is_ok());
    assert_ne!(choose(&strict), choose(&RICH));
    let small = Capabilities {
        ept: !(1 << 17),
        ..RICH
    };
    assert!(choose(&RICH).unwrap().gigabyte && !choose(&small).unwrap().gigabyte);
    // What is optional is left out.
    assert!(choose(&secondary(12)).is_ok() && choose(&secondary(3)).is_ok());
}

#[test]
fn what_firmware_has_switched_off_is_named() {
    let msr = |control: u64| {
        move |msr| match msr {
            0x3a => control,
            0x480 => RICH.basic,
            0x485 => RICH.misc,
            0x489 => RICH.cr4,
            0x48b => RICH.secondary,
            0x48c => RICH.ept,
            0x482 => ALL,
            0x48d..=0x490 => RICH.sets[msr as usize - 0x48d],
            _ => panic!("MSR {msr:#x} is not known to be there"),
        }
    };
    let nothing = |msr| panic!("MSR {msr:#x} is not known to be there");
    let why = usable([!(1 << 5), !0], nothing).unwrap_err();
    assert!(why.contains("(VMX)") && why.contains("VT-x"), "{why}");
    // Locked without VMXON; locked with it within SMX only.
    for control in [1, 3] {
        let why = usable([!0; 2], msr(control)).unwrap_err();
        assert!(why.contains("locked by the firmware"), "{why}");
    }
    let why = usable([!0, 0], msr(5)).unwrap_err();
    assert!(why.contains("FSGSBASE"), "{why}");
    // Not locked: `enable` locks it. Locked with VMXON.
    for control in [0, 4, 5] {
        assert_eq!(usable([!0; 2], msr(control)), choose(&RICH));
    }
    // Without secondary controls, and with those but neither EPT nor VPID, what they would say is not asked for.
    let poor = |primary: u64, secondary: u64| {
        usable([!0; 2], move |m| match m {
            0x482 => primary,
            0x48b if primary >> 63 != 0 => secondary,
            0x48b | 0x48c => panic!("MSR {m:#x} is not there"),
            _ => msr(5)(m),
        })
    };
    for (primary, secondary) in [(ALL >> 1, ALL), (ALL, ALL & !((1 << 1 | 1 << 5) << 32))] {
        assert!(poor(primary, secondary).unwrap_err().contains("(EPT)"));
    }
}
