//! One local APIC against the Intel SDM, volume 3, chapter 11.

mod messages;

use super::super::Gp;
use super::*;

const GHZ: u64 = 1_000_000_000;
const ENABLED: u32 = 0x1FF;

/// vCPU 0's APIC in xAPIC mode, software-enabled.
fn xapic() -> Lapic {
    let mut lapic = Lapic::new(0, GHZ, GHZ);
    assert_eq!(lapic.store(0xF0, ENABLED), Outcome::Enabled);
    lapic
}

/// vCPU `id`'s APIC in x2APIC mode, software-enabled.
fn x2apic(id: u32) -> Lapic {
    let mut lapic = Lapic::new(id, GHZ, GHZ);
    let base = lapic.base | BASE_X2APIC;
    assert_eq!(lapic.wrmsr(0x1B, base, 0), Ok(Outcome::Rerouted));
    assert_eq!(
        lapic.wrmsr(0x80F, u64::from(ENABLED), 0),
        Ok(Outcome::Enabled)
    );
    lapic
}

impl Lapic {
    fn store(&mut self, offset: u64, value: u32) -> Outcome {
        self.mmio_write(offset, 4, u64::from(value), 0)
    }
    /// A store whose outcome does not matter.
    fn set(&mut self, offset: u64, value: u32) {
        let _ = self.store(offset, value);
    }
    fn load(&mut self, offset: u64) -> u32 {
        self.mmio_read(offset, 0) as u32
    }
    fn esr(&mut self) -> u32 {
        assert_eq!(self.store(0x280, 0), Outcome::Done);
        self.load(0x280)
    }
    fn vector(&self) -> Option<u8> {
        self.pending().map(|pending| pending.vector)
    }
}

fn fixed(vector: u8, level: bool) -> Message {
    Message {
        destination: Destination::All,
        delivery: Delivery::Fixed,
        vector,
        level,
    }
}

#[test]
fn reset_state() {
    let mut lapic = Lapic::new(3, GHZ, GHZ);
    assert_eq!(lapic.rdmsr(0x1B, 0), Ok(0xFEE0_0800));
    assert_eq!(Lapic::new(0, GHZ, GHZ).rdmsr(0x1B, 0), Ok(0xFEE0_0900));
    for (offset, value) in [
        (0x20, 3 << 24),
        (0x30, 0x0005_0014),
        (0x80, 0),
        (0xD0, 0),
        (0xE0, u32::MAX),
        (0xF0, 0xFF),
        (0x280, 0),
        (0x300, 0),
        (0x310, 0),
        (0x320, 0x1_0000),
        (0x330, 0x1_0000),
        (0x340, 0x1_0000),
        (0x350, 0x1_0000),
        (0x360, 0x1_0000),
        (0x370, 0x1_0000),
        (0x380, 0),
        (0x390, 0),
        (0x3E0, 0),
    ] {
        assert_eq!(lapic.load(offset), value, "{offset:#x}");
    }
}

#[test]
fn mode_transitions() {
    let base = map::LAPIC_BASE;
    let (en, x2) = (BASE_ENABLE, BASE_X2APIC);
    // Figure 11-27: from, to, legal.
    for (path, to, legal) in [
        (&[][..], 0, true),
        (&[], en, true),
        (&[], en | x2, true),
        (&[], x2, false),
        (&[en | x2], en, false),
        (&[en | x2], 0, true),
        (&[en | x2], x2, false),
        (&[en | x2], en | x2, true),
        (&[0], en, true),
        (&[0], en | x2, false),
        (&[0], x2, false),
        (&[0], 0, true),
    ] {
        let mut lapic = Lapic::new(1, GHZ, GHZ);
        for step in path {
            assert_eq!(lapic.wrmsr(0x1B, base | step, 0), Ok(Outcome::Rerouted));
        }
        let before = lapic.base;
        assert_eq!(
            lapic.wrmsr(0x1B, base | to, 0).is_ok(),
            legal,
            "{path:x?} {to:x}"
        );
        assert_eq!(lapic.base, if legal { base | to } else { before });
    }
    let mut lapic = Lapic::new(0, GHZ, GHZ);
    for reserved in [1, 1 << 7, 1 << 9, 1 << 52, 1 << 63] {
        assert_eq!(lapic.wrmsr(0x1B, base | en | reserved, 0), Err(Gp));
    }
    // The bootstrap flag stays.
    assert!(lapic.wrmsr(0x1B, base | en, 0).is_ok());
    assert_eq!(lapic.rdmsr(0x1B, 0), Ok(base | en | BASE_BSP));
}

#[test]
fn registers_are_where_the_mode_says() {
    let mut lapic = xapic();
    assert_eq!(lapic.page(), Some(map::LAPIC_BASE));
    assert_eq!(lapic.rdmsr(0x802, 0), Err(Gp));
    assert_eq!(lapic.wrmsr(0x808, 0, 0), Err(Gp));
    assert!(lapic.wrmsr(0x1B, 0xFED0_0800, 0).is_ok());
    assert_eq!(lapic.page(), Some(0xFED0_0000));
    assert!(
        lapic
            .wrmsr(0x1B, map::LAPIC_BASE | BASE_ENABLE | BASE_X2APIC, 0)
            .is_ok()
    );
    assert_eq!(lapic.page(), None);
    assert_eq!(lapic.rdmsr(0x803, 0), Ok(0x0005_0014));
    assert!(lapic.wrmsr(0x1B, map::LAPIC_BASE, 0).is_ok());
    assert_eq!((lapic.page(), lapic.rdmsr(0x803, 0)), (None, Err(Gp)));
    // Disabling lost the state.
    assert!(lapic.wrmsr(0x1B, map::LAPIC_BASE | BASE_ENABLE, 0).is_ok());
    assert_eq!(lapic.load(0xF0), 0xFF);
}

/// Table 11-6: which x2APIC registers can be read and written.
#[test]
fn x2apic_access_rights() {
    let readable: Vec<u32> = [0x02, 0x03, 0x08, 0x0A, 0x0D, 0x0F]
        .into_iter()
        .chain(0x10..=0x28)
        .chain([0x30])
        .chain(0x32..=0x39)
        .chain([0x3E])
        .collect();
    let writable: Vec<u32> = [0x08, 0x0B, 0x0F, 0x28, 0x30]
        .into_iter()
        .chain(0x32..=0x38)
        .chain([0x3E, 0x3F])
        .collect();
    for register in 0..0x100 {
        let mut lapic = x2apic(2);
        let msr = 0x800 + register;
        assert_eq!(
            lapic.rdmsr(msr, 0).is_ok(),
            readable.contains(&register),
            "read {msr:#x}"
        );
        assert_eq!(
            lapic.wrmsr(msr, 0, 0).is_ok(),
            writable.contains(&register),
            "write {msr:#x}"
        );
    }
}

#[test]
fn x2apic_reserved_bits_fault() {
    let mut lapic = x2apic(0);
    for (msr, value) in [
        (0x808, 0x100),
        (0x80B, 1),
        (0x80F, 0x1000),
        (0x828, 1),
        (0x830, 1 << 12),
        (0x830, 1 << 13),
        (0x830, 1 << 16),
        (0x830, 1 << 20),
        (0x832, 1 << 19),
        (0x832, 1 << 8),
        (0x835, 1 << 11),
        (0x837, 1 << 8),
        (0x838, 1 << 32),
        (0x83E, 4),
        (0x83F, 0x100),
    ] {
        assert_eq!(lapic.wrmsr(msr, value, 0), Err(Gp), "{msr:#x} {value:#x}");
    }
    // Read-only bits may be written back.
    assert!(lapic.wrmsr(0x835, 0x1_5700, 0).is_ok());
    assert_eq!(lapic.rdmsr(0x835, 0), Ok(0x1_0700));
}

/// 11.12.6: the upper half of the ICR does not survive the change to x2APIC mode.
#[test]
fn x2apic_mode_clears_the_destination() {
    let mut lapic = xapic();
    lapic.set(0x310, 0x0500_0000);
    assert!(lapic.wrmsr(0x1B, lapic.base | BASE_X2APIC, 0).is_ok());
    assert_eq!(lapic.rdmsr(0x830, 0), Ok(0));
}

#[test]
fn x2apic_identity() {
    let mut lapic = x2apic(0x25);
    assert_eq!(lapic.rdmsr(0x802, 0), Ok(0x25));
    assert_eq!(lapic.rdmsr(0x80D, 0), Ok(0x2_0020));
}

#[test]
fn request_service_and_end() {
    let mut lapic = xapic();
    assert!(lapic.receive(&fixed(0x41, false)));
    assert!(lapic.receive(&fixed(0x83, true)));
    assert_eq!((lapic.load(0x220), lapic.load(0x240)), (2, 8));
    assert_eq!(
        lapic.pending(),
        Some(Pending {
            vector: 0x83,
            priority: 8,
            external: false
        })
    );
    lapic.accept(0x83);
    assert_eq!(
        (lapic.load(0x240), lapic.load(0x140), lapic.load(0x1C0)),
        (0, 8, 8)
    );
    assert_eq!((lapic.load(0xA0), lapic.vector()), (0x80, None));
    assert!(lapic.receive(&fixed(0x8F, false)));
    assert_eq!(lapic.vector(), None, "same class");
    assert!(lapic.receive(&fixed(0x90, false)));
    assert_eq!(lapic.vector(), Some(0x90));
    lapic.accept(0x90);
    assert_eq!(lapic.store(0xB0, 0), Outcome::Done);
    assert_eq!(lapic.store(0xB0, 0), Outcome::Eoi(0x83));
    assert_eq!(lapic.vector(), Some(0x8F));
    lapic.accept(0x8F);
    assert_eq!(lapic.store(0xB0, 0), Outcome::Done);
    assert_eq!(lapic.vector(), Some(0x41));
    assert_eq!(lapic.store(0xB0, 0), Outcome::Done);
}

#[test]
fn an_edge_after_a_level_clears_the_trigger_mode() {
    let mut lapic = xapic();
    assert!(lapic.receive(&fixed(0x50, true)));
    assert!(lapic.receive(&fixed(0x50, false)));
    lapic.accept(0x50);
    assert_eq!(lapic.store(0xB0, 0), Outcome::Done);
}

#[test]
fn task_and_processor_priority() {
    let mut lapic = xapic();
    assert!(lapic.receive(&fixed(0x45, false)));
    lapic.set_tpr(0x40);
    assert_eq!((lapic.vector(), lapic.load(0xA0)), (None, 0x40));
    assert_eq!(
        lapic.pending_any_tpr().map(|pending| pending.priority),
        Some(4)
    );
    assert_eq!(lapic.store(0x80, 0x3F), Outcome::Done);
    assert_eq!((lapic.vector(), lapic.tpr()), (Some(0x45), 0x3F));
    lapic.accept(0x45);
    // 11.8.3.1: the task priority with its sub-class, or the class in service.
    assert_eq!(lapic.load(0xA0), 0x40);
    lapic.set_tpr(0x47);
    assert_eq!(lapic.load(0xA0), 0x47);
    assert_eq!(lapic.pending_any_tpr(), None);
}

#[test]
fn software_disable() {
    let mut lapic = xapic();
    assert!(lapic.receive(&fixed(0x45, false)));
    assert_eq!(lapic.store(0x320, 0x31), Outcome::Done);
    assert_eq!(lapic.store(0xF0, 0xFF), Outcome::Rerouted);
    assert_eq!(lapic.vector(), None);
    assert!(!lapic.receive(&fixed(0x46, false)));
    assert_eq!(lapic.load(0x320), 0x1_0031);
    assert_eq!(lapic.store(0x320, 0x31), Outcome::Done);
    assert_eq!(lapic.load(0x320), 0x1_0031, "cannot be unmasked");
    assert_eq!(lapic.store(0xF0, ENABLED), Outcome::Enabled);
    assert_eq!(lapic.vector(), Some(0x45), "held meanwhile");
}

#[test]
fn errors() {
    let mut lapic = xapic();
    assert!(lapic.receive(&fixed(0x0F, false)));
    assert_eq!(lapic.load(0x280), 0, "shown after a write only");
    assert_eq!(lapic.esr(), 0x40);
    assert_eq!(lapic.esr(), 0);
    assert_eq!(lapic.store(0x370, 0xFE), Outcome::Done);
    assert_eq!(lapic.store(0x300, 0x0F), Outcome::Done);
    assert_eq!((lapic.esr(), lapic.vector()), (0x20, Some(0xFE)));
    lapic.load(0x40);
    assert_eq!(lapic.store(0xC00, 1), Outcome::Done);
    assert_eq!(lapic.esr(), 0x80);
    assert_eq!(lapic.store(0x370, 0x01), Outcome::Done);
    lapic.load(0x40);
    assert_eq!(lapic.esr(), 0xC0);
    let mut lapic = x2apic(0);
    assert_eq!(lapic.wrmsr(0x83F, 3, 0), Ok(Outcome::Done));
    assert_eq!(lapic.wrmsr(0x828, 0, 0), Ok(Outcome::Done));
    assert_eq!(lapic.rdmsr(0x828, 0), Ok(0x20));
}

#[test]
fn timer_interrupts_mask_and_deadline() {
    let mut lapic = xapic();
    assert_eq!(lapic.mmio_write(0x3E0, 4, 0xB, 0), Outcome::Done);
    assert_eq!(lapic.mmio_write(0x380, 4, 1000, 0), Outcome::Done);
    assert_eq!(lapic.deadline(), super::super::time::NEVER, "masked");
    assert_eq!(lapic.mmio_read(0x390, 400), 600);
    // It expires unseen, and unmasking does not bring it back.
    assert_eq!(lapic.mmio_write(0x320, 4, 0x31, 5000), Outcome::Done);
    assert_eq!(
        (lapic.vector(), lapic.deadline()),
        (None, super::super::time::NEVER)
    );
    assert_eq!(lapic.mmio_write(0x380, 4, 1000, 6000), Outcome::Done);
    assert_eq!(lapic.deadline(), 7000);
    lapic.tick(6999);
    assert_eq!(lapic.vector(), None);
    lapic.tick(7000);
    assert_eq!(lapic.vector(), Some(0x31));
    assert_eq!(lapic.mmio_read(0x390, 7000), 0);
}

#[test]
fn tsc_deadline_msr() {
    let mut lapic = x2apic(0);
    assert_eq!(lapic.wrmsr(0x6E0, 500, 0), Ok(Outcome::Done));
    assert_eq!(lapic.rdmsr(0x6E0, 0), Ok(0), "not in its mode");
    assert!(lapic.wrmsr(0x832, 0x4_00EC, 0).is_ok());
    assert!(lapic.wrmsr(0x6E0, 5000, 0).is_ok());
    assert_eq!(
        (lapic.rdmsr(0x6E0, 4999), lapic.deadline()),
        (Ok(5000), 5000)
    );
    // A past deadline fires at once; reading sees the expiry.
    assert_eq!(lapic.rdmsr(0x6E0, 5000), Ok(0));
    assert_eq!(lapic.vector(), Some(0xEC));
    lapic.accept(0xEC);
    assert!(lapic.wrmsr(0x80B, 0, 5000).is_ok());
    assert!(lapic.wrmsr(0x6E0, 100, 6000).is_ok());
    assert!(lapic.deadline() <= 6000);
    lapic.tick(6000);
    assert_eq!(lapic.vector(), Some(0xEC));
}

#[test]
fn accesses_that_are_not_32_bits_aligned() {
    let mut lapic = xapic();
    assert_eq!(lapic.mmio_write(0x82, 4, 0x50, 0), Outcome::Done);
    assert_eq!(lapic.mmio_write(0x80, 1, 0x50, 0), Outcome::Done);
    assert_eq!(lapic.tpr(), 0);
    assert_eq!(
        lapic.mmio_write(0x80, 8, 0xFFFF_FFFF_0000_0050, 0),
        Outcome::Done
    );
    assert_eq!(lapic.tpr(), 0x50);
    assert_eq!(lapic.mmio_read(0x32, 0), 0x0005);
    assert_eq!(lapic.mmio_read(0x34, 0), 0);
}
