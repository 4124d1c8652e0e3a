//! What one local APIC takes from others and sends to them: destinations, the ICR, INIT, LINT0.

use super::*;

#[test]
fn destinations() {
    let mut flat = xapic();
    flat.set(0xD0, 0x0400_0000);
    assert!(flat.matches(Destination::short(0x06, true), None));
    assert!(!flat.matches(Destination::short(0x03, true), None));
    assert!(flat.matches(Destination::short(0xFF, true), None));
    assert!(flat.matches(Destination::short(0x00, false), None));
    assert!(!flat.matches(Destination::short(0x01, false), None));
    assert!(flat.matches(Destination::short(0xFF, false), None));
    let mut cluster = xapic();
    cluster.set(0xE0, 0x0FFF_FFFF);
    cluster.set(0xD0, 0x2200_0000);
    assert!(cluster.matches(Destination::short(0x26, true), None));
    assert!(!cluster.matches(Destination::short(0x16, true), None));
    assert!(!cluster.matches(Destination::short(0x21, true), None));
    let x2 = x2apic(0x25);
    assert!(x2.matches(Destination::long(0x0002_0030, true), None));
    assert!(!x2.matches(Destination::long(0x0001_0020, true), None));
    assert!(!x2.matches(Destination::long(0x0002_0010, true), None));
    assert!(x2.matches(Destination::long(0x25, false), None));
    assert!(!x2.matches(Destination::Others, Some(0x25)));
    assert!(x2.matches(Destination::Others, Some(1)) && x2.matches(Destination::All, Some(1)));
    assert!(
        x2.matches(Destination::Itself, Some(0x25)) && !x2.matches(Destination::Itself, Some(1))
    );
}

#[test]
fn icr_sends_what_it_says() {
    let mut lapic = xapic();
    lapic.set(0x310, 0x0500_0000);
    let message = |destination, delivery, vector| {
        Outcome::Send(Message {
            destination,
            delivery,
            vector,
            level: false,
        })
    };
    assert_eq!(
        lapic.store(0x300, 0x0_0841),
        message(Destination::Logical(5), Delivery::Fixed, 0x41)
    );
    assert_eq!(lapic.load(0x300), 0x841);
    assert_eq!(
        lapic.store(0x300, 0x4_0041),
        message(Destination::Itself, Delivery::Fixed, 0x41)
    );
    assert_eq!(
        lapic.store(0x300, 0xC_0400),
        message(Destination::Others, Delivery::Nmi, 0)
    );
    assert_eq!(
        lapic.store(0x300, 0x0_C500),
        message(Destination::Physical(5), Delivery::Init, 0)
    );
    assert_eq!(
        lapic.store(0x300, 0x0_8500),
        Outcome::Done,
        "INIT level de-assert"
    );
    assert_eq!(
        lapic.store(0x300, 0x0_0608),
        message(Destination::Physical(5), Delivery::StartUp, 8)
    );
    for nothing in [0x0_0200, 0x0_0300, 0x0_0700, 0x4_0400, 0x4_0500] {
        assert_eq!(lapic.store(0x300, nothing), Outcome::Done, "{nothing:#x}");
    }
    let mut lapic = x2apic(1);
    assert_eq!(
        lapic.wrmsr(0x830, 0xFFFF_FFFF_0000_0041, 0),
        Ok(message(
            Destination::Physical(u32::MAX),
            Delivery::Fixed,
            0x41
        ))
    );
    assert_eq!(lapic.rdmsr(0x830, 0), Ok(0xFFFF_FFFF_0000_0041));
    assert_eq!(
        lapic.wrmsr(0x83F, 0x41, 0),
        Ok(message(Destination::Itself, Delivery::Fixed, 0x41))
    );
}

#[test]
fn init_start_up_and_nmi() {
    let mut lapic = x2apic(1);
    lapic.receive(&Message {
        delivery: Delivery::Nmi,
        ..fixed(0, false)
    });
    assert_eq!(lapic.take_event(), None, "held until the processor runs");
    let start = Message {
        delivery: Delivery::StartUp,
        ..fixed(0x9A, false)
    };
    lapic.receive(&start);
    assert_eq!(
        lapic.take_event(),
        Some(Effect::StartCpu {
            cpu: 1,
            vector: 0x9A
        })
    );
    assert_eq!(lapic.take_event(), Some(Effect::Nmi { cpu: 1 }));
    lapic.receive(&start);
    assert_eq!(lapic.take_event(), None, "only one that waits starts");
    lapic.set_tpr(0x50);
    lapic.receive(&Message {
        delivery: Delivery::Init,
        ..fixed(0, false)
    });
    lapic.receive(&start);
    assert_eq!(lapic.take_event(), Some(Effect::InitCpu { cpu: 1 }));
    assert_eq!(
        lapic.take_event(),
        Some(Effect::StartCpu {
            cpu: 1,
            vector: 0x9A
        })
    );
    // INIT resets the APIC but not its mode.
    assert_eq!(
        (lapic.tpr(), lapic.mode(), lapic.svr),
        (0, Mode::X2apic, 0xFF)
    );
}

#[test]
fn lint0() {
    let mut lapic = xapic();
    assert!(lapic.takes_external(), "as firmware leaves it");
    lapic.set(0x350, 0x1_0700);
    assert!(!lapic.takes_external());
    lapic.set(0x350, 0x42);
    lapic.set_lint0(true);
    lapic.set_lint0(true);
    assert_eq!(lapic.vector(), Some(0x42));
    lapic.accept(0x42);
    lapic.set(0xB0, 0);
    assert_eq!(lapic.vector(), None);
    // Level-triggered: again after each EOI while asserted.
    lapic.set(0x350, 0x8042);
    assert_eq!((lapic.vector(), lapic.load(0x350)), (Some(0x42), 0xC042));
    lapic.accept(0x42);
    lapic.set(0xB0, 0);
    assert_eq!(lapic.vector(), Some(0x42));
    lapic.set_lint0(false);
    lapic.accept(0x42);
    lapic.set(0xB0, 0);
    assert_eq!((lapic.vector(), lapic.load(0x350)), (None, 0x8042));
    lapic.set(0x350, 0x400);
    lapic.set_lint0(true);
    assert_eq!(lapic.take_event(), Some(Effect::Nmi { cpu: 0 }));
    // Without an APIC the 8259's output is the processor's own, on the bootstrap processor.
    assert!(lapic.wrmsr(0x1B, map::LAPIC_BASE, 0).is_ok());
    assert!(lapic.takes_external());
    let mut other = Lapic::new(1, GHZ, GHZ);
    assert!(other.wrmsr(0x1B, map::LAPIC_BASE, 0).is_ok());
    assert!(!other.takes_external());
}
