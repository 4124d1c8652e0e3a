//! Several processors: who has an APIC page, start-up, interrupts among them and from the lines.

use super::*;

#[test]
fn the_register_page_is_there_only_in_xapic_mode() {
    let mut platform = platform(2);
    assert_eq!(platform.mmio_read(1, LAPIC + 0x20, 4, 0), Some(1 << 24));
    platform.x2apic(1);
    assert_eq!(platform.mmio_read(1, LAPIC + 0x20, 4, 0), None);
    assert_eq!(platform.mmio_write(1, LAPIC + 0xB0, 4, 0, 0), None);
    assert_eq!(platform.mmio_read(0, LAPIC + 0x20, 4, 0), Some(0));
    assert!(platform.apic_enabled(0));
    platform.msr(0, 0x1B, 0xFEE0_0100, 0);
    assert!(!platform.apic_enabled(0));
    assert_eq!(platform.mmio_read(0, LAPIC + 0x20, 4, 0), None);
}

#[test]
fn msrs_of_others_and_processors_that_are_not_there() {
    let mut platform = platform(1);
    for (msr, own) in [
        (0x10, false),
        (0x1B, true),
        (0x6E0, true),
        (0x7FF, false),
        (0x800, true),
        (0x900, false),
    ] {
        assert_eq!(Chipset::owns_msr(msr), own);
        assert!(own || platform.rdmsr(0, msr, 0) == Err(Gp));
    }
    assert_eq!(platform.rdmsr(1, 0x1B, 0), Err(Gp));
    assert_eq!(platform.wrmsr(1, 0x1B, 0, 0), Err(Gp));
    assert_eq!((platform.pending(1), platform.tpr(1)), (None, 0));
    assert_eq!(platform.mmio_read(7, LAPIC, 4, 0), None);
    platform.set_tpr(9, 1);
    platform.accept(9, 0x40, false);
}

/// Linux's `smp_boot`: INIT to all but itself, then start-up IPIs; and the effects come one by one.
#[test]
fn application_processors_start() {
    let mut platform = platform(3);
    platform.x2apic(0);
    assert_eq!(
        platform.wrmsr(0, 0x830, 0xC_4500, 0),
        Ok(Effect::InitCpu { cpu: 1 })
    );
    assert_eq!(platform.next_effect(), Effect::InitCpu { cpu: 2 });
    assert_eq!(platform.next_effect(), Effect::None);
    assert_eq!(
        platform.wrmsr(0, 0x830, 2 << 32 | 0x4699, 0),
        Ok(Effect::StartCpu {
            cpu: 2,
            vector: 0x99
        })
    );
    assert_eq!(
        platform.wrmsr(0, 0x830, 2 << 32 | 0x4699, 0),
        Ok(Effect::None)
    );
    assert_eq!(
        platform.wrmsr(0, 0x830, 2 << 32 | 0x4400, 0),
        Ok(Effect::Nmi { cpu: 2 })
    );
    assert!(platform.take_kicks().contains(2));
}

#[test]
fn interrupts_between_processors() {
    let mut platform = platform(4);
    for cpu in 0..4 {
        platform.x2apic(cpu);
    }
    platform.take_kicks();
    platform.msr(0, 0x830, 3 << 32 | 0x41, 0);
    assert_eq!(platform.take(3), Some(0x41));
    assert!(platform.take_kicks().contains(3));
    platform.msr(0, 0x830, 0x6 << 32 | 0x842, 0); // logical: 1 and 2
    assert_eq!(
        [0, 1, 2, 3].map(|cpu| platform.take(cpu)),
        [None, Some(0x42), Some(0x42), None]
    );
    platform.msr(2, 0x830, 0xC_0053, 0);
    assert_eq!(
        [0, 1, 2, 3].map(|cpu| platform.take(cpu)),
        [Some(0x53), Some(0x53), None, Some(0x53)]
    );
    platform.msr(1, 0x83F, 0x64, 0);
    assert_eq!(
        [0, 1, 2, 3].map(|cpu| platform.take(cpu)),
        [None, Some(0x64), None, None]
    );
    // Lowest priority: vCPU 2, which serves 0x42; the others serve higher ones.
    platform.msi(0xFEEF_F00C, 0x70);
    assert_eq!(
        [0, 1, 2, 3].map(|cpu| platform.take(cpu)),
        [None, None, Some(0x70), None]
    );
}

#[test]
fn lines_reach_both_controllers() {
    let mut platform = platform(1);
    platform.x2apic(0);
    platform.start_pic(0xEF);
    platform.redirect(4, 0x44, 0);
    platform.set_line(4, true);
    platform.set_line(4, false);
    assert_eq!(platform.take(0), Some(0x44));
    platform.eoi(0, 0);
    platform.msr(0, 0x835, 0x700, 0);
    assert_eq!(platform.take(0), Some(0x34));
    for gsi in [2, 24, 31, 32, u32::MAX] {
        platform.set_line(gsi, true);
        assert_eq!(platform.pending(0), None);
    }
    platform.redirect(20, 0x8064, 0);
    platform.set_line(20, true);
    assert_eq!(platform.take(0), Some(0x64));
    platform.set_line(20, false);
    platform.eoi(0, 0);
    assert_eq!(platform.pending(0), None);
}

#[test]
fn a_level_asserted_before_the_apic_is_enabled_is_not_lost() {
    let mut platform = platform(1);
    platform.redirect(16, 0x8066, 0);
    platform.set_line(16, true);
    assert_eq!(platform.pending(0), None);
    assert_eq!(
        platform.mmio_write(0, LAPIC + 0xF0, 4, 0x1FF, 0),
        Some(Effect::None)
    );
    assert_eq!(platform.take(0), Some(0x66));
}

#[test]
fn cpu_sets() {
    let mut set = CpuSet::default();
    assert!(set.is_empty());
    for cpu in [0, 63, 64, 253, 256, u32::MAX] {
        set.insert(cpu);
    }
    assert_eq!(
        (0..600)
            .filter(|&cpu| set.contains(cpu))
            .collect::<Vec<_>>(),
        [0, 63, 64, 253]
    );
}
