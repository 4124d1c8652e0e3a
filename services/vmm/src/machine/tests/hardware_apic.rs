//! The local APIC in hardware: what the processor is given, and what comes back.

use super::fake::{Cpu, ENTRY, Fake, Pages, access, description, machine_on};
use crate::machine::{End, Exit, Machine, signal};
use ipc_schema::abi::vm::{Groups, POSTED, Post, gpr, offers};
use ipc_schema::interrupt_page::InterruptWriter;

const IF: u64 = 1 << 9;
const VECTOR: u8 = 0x54;
/// Its bit, in word 1.
const BIT: u64 = 1 << (VECTOR - 64);
const GIVEN: u64 = Groups::APIC | Groups::REQUESTS;

/// Lets the guest write an MSR.
fn wrmsr(m: &mut Machine<'_, Fake>, index: u64, value: u64) {
    m.memory.write(ENTRY + 0x800, &[0x0F, 0x30]).unwrap();
    m.on(move |cpu: &mut Cpu| {
        cpu.state.rip = ENTRY + 0x800;
        access(Exit::Wrmsr, index, value)(cpu)
    });
}
/// To x2APIC mode: LINT0 masked, enabled; GSI 4 as `VECTOR`, with these redirection bits.
fn begin(m: &mut Machine<'_, Fake>, bits: u32) {
    wrmsr(m, 0x1B, 0xFEE0_0D00);
    wrmsr(m, 0x835, 1 << 16);
    wrmsr(m, 0x80F, 0x1FF);
    for (address, value) in [(0xFEC0_0000, 0x18), (0xFEC0_0010, u32::from(VECTOR) | bits)] {
        let mut code = [0xA3, 0, 0, 0, 0];
        code[1..].copy_from_slice(&u32::to_le_bytes(address));
        let at = ENTRY + 0x100 + u64::from(address & 0xFF0);
        m.memory.write(at, &code).unwrap();
        m.on(move |cpu: &mut Cpu| {
            cpu.state.rip = at;
            cpu.state.gpr[gpr::RAX] = value.into();
            (Exit::NestedFault, [address.into(), 2, 0])
        });
    }
}
fn dirty(m: &Machine<'_, Fake>) -> std::vec::Vec<u64> {
    let entries = m.kernel.entries.iter();
    entries.map(|e| e.dirty & GIVEN).collect()
}

#[test]
fn a_guest_in_x2apic_mode_has_its_interrupts_requested_not_posted() {
    let pages = Pages::default();
    let mut m = machine_on(&description(), &pages, offers::X2APIC);
    begin(&mut m, 0);
    let uart = InterruptWriter::new(&pages.irq[0]);
    m.on(|cpu| {
        assert_eq!(cpu.state.apic, 1);
        (Exit::Init, [0; 3])
    });
    m.on(|_| (Exit::Signal, [signal::DEVICE, 0, 0]));
    m.on(|cpu| {
        assert_eq!(cpu.state.apic_irr, [0, BIT, 0, 0]);
        // Taken, ended without an exit; and asked for again while it is in service.
        (cpu.state.apic_irr, cpu.state.apic_isr) = ([0; 4], [0, BIT, 0, 0]);
        (Exit::Signal, [signal::DEVICE, 0, 0])
    });
    m.on(|cpu| {
        assert_eq!(
            (cpu.state.apic_irr, cpu.state.apic_isr),
            ([0; 4], [0, BIT, 0, 0])
        );
        (Exit::Init, [0; 3])
    });
    let mut uart = uart;
    assert!(uart.set_level(4, true));
    assert_eq!(m.run(), End::Killed);
    // The first entry gives all there is, off; then it is on from the write that fits it.
    assert_eq!(dirty(&m)[..4], [GIVEN, 0, 0, GIVEN]);
    assert!(m.kernel.entries.iter().all(|e| e.post == Post::NONE));
    assert_eq!(
        dirty(&m).iter().filter(|&&d| d == Groups::REQUESTS).count(),
        1
    );
}

#[test]
fn a_processor_that_does_not_offer_it_is_not_asked() {
    let pages = Pages::default();
    let mut m = machine_on(&description(), &pages, 0);
    begin(&mut m, 0);
    let mut uart = InterruptWriter::new(&pages.irq[0]);
    assert!(uart.set_level(4, true));
    m.on(|_| (Exit::Signal, [signal::DEVICE, 0, 0]));
    m.run();
    assert!(dirty(&m)[1..].iter().all(|&d| d == 0));
    assert_eq!(m.kernel.groups[Exit::Hlt as usize] & Groups::APIC, 0);
    let last = m.kernel.entries.last().unwrap();
    assert_eq!(last.post, Post::vector(VECTOR, false));
}

#[test]
fn the_end_of_a_level_triggered_interrupt_reaches_the_ioapic() {
    const LEVEL: u32 = 1 << 15;
    let pages = Pages::default();
    let mut m = machine_on(&description(), &pages, offers::X2APIC);
    begin(&mut m, LEVEL);
    let mut uart = InterruptWriter::new(&pages.irq[0]);
    assert!(uart.set_level(4, true));
    m.on(|_| (Exit::Signal, [signal::DEVICE, 0, 0]));
    for _ in 0..2 {
        // The line is up still: as often as it ends, it comes again.
        m.on(|cpu| {
            assert_eq!(cpu.state.apic_level, [0, BIT, 0, 0]);
            assert_eq!(cpu.state.apic_irr, [0, BIT, 0, 0]);
            cpu.state.apic_irr = [0; 4];
            (Exit::Eoi, [VECTOR.into(), 0, 0])
        });
    }
    m.on(|cpu| {
        assert_eq!(cpu.state.apic_irr, [0, BIT, 0, 0]);
        (Exit::Init, [0; 3])
    });
    assert_eq!(m.run(), End::Killed);
    // It falls: its end is the last.
    assert!(uart.set_level(4, false));
    m.on(|cpu| {
        cpu.state.apic_irr = [0; 4];
        (Exit::Eoi, [VECTOR.into(), 0, 0])
    });
    m.on(|cpu| {
        assert_eq!(cpu.state.apic_irr, [0; 4]);
        (Exit::Init, [0; 3])
    });
    assert_eq!(m.run(), End::Killed);
}

#[test]
fn what_is_in_service_holds_a_halted_guest() {
    let pages = Pages::default();
    let mut m = machine_on(&description(), &pages, offers::X2APIC);
    begin(&mut m, 0);
    m.code(&[0xF4, 0xF4]);
    m.on(|cpu| {
        cpu.state.rip = ENTRY;
        cpu.state.rflags = 2 | IF;
        // In service above what will be requested.
        cpu.state.apic_isr = [0, 0, 1 << 40, 0];
        (Exit::Hlt, [0; 3])
    });
    let mut uart = InterruptWriter::new(&pages.irq[0]);
    assert!(uart.set_level(4, true));
    m.kernel
        .waits
        .push_back(std::boxed::Box::new(|_| signal::DEVICE));
    m.kernel
        .waits
        .push_back(std::boxed::Box::new(|_| signal::QUIT));
    assert_eq!(m.run(), End::Killed);
    assert_eq!(m.kernel.waited.len(), 2, "it sleeps on");

    let mut m = machine_on(&description(), &pages, offers::X2APIC);
    begin(&mut m, 0);
    m.code(&[0xF4, 0xF4]);
    m.on(|cpu| {
        cpu.state.rip = ENTRY;
        cpu.state.rflags = 2 | IF;
        cpu.state.apic_isr = [0, 1, 0, 0];
        (Exit::Hlt, [0; 3])
    });
    m.kernel
        .waits
        .push_back(std::boxed::Box::new(|_| signal::DEVICE));
    m.on(|cpu| {
        assert_eq!(cpu.state.apic_isr, [0, 1, 0, 0], "given back");
        assert_eq!(cpu.state.apic_irr, [0, BIT, 0, 0]);
        (Exit::Init, [0; 3])
    });
    assert_eq!(m.run(), End::Killed);
}

#[test]
fn a_vector_that_somebody_has_posted_ends_a_halt() {
    let pages = Pages::default();
    let mut m = machine_on(&description(), &pages, offers::X2APIC | offers::POSTED);
    begin(&mut m, 0);
    m.code(&[0xF4, 0xF4]);
    m.on(|cpu| {
        cpu.state.rip = ENTRY;
        cpu.state.rflags = 2 | IF;
        (Exit::Hlt, [0; 3])
    });
    m.kernel.waits.push_back(std::boxed::Box::new(|_| POSTED));
    m.on(|cpu| {
        assert_eq!(cpu.state.rip, ENTRY + 1);
        assert_eq!(cpu.state.apic_irr, [0; 4], "the kernel has it");
        (Exit::Init, [0; 3])
    });
    assert_eq!(m.run(), End::Killed);
    assert_eq!(m.kernel.waited.len(), 1);
}

#[test]
fn an_apic_switched_off_by_software_is_the_models_again() {
    let pages = Pages::default();
    let mut m = machine_on(&description(), &pages, offers::X2APIC);
    begin(&mut m, 0);
    m.on(|cpu| {
        cpu.state.apic_isr = [0, 1, 0, 0];
        cpu.state.apic_irr = [0, 1 << 1, 0, 0];
        (Exit::Init, [0; 3])
    });
    // Once to ask for the vectors, which the exit does not bring, and once with them.
    wrmsr(&mut m, 0x80F, 0xFF);
    m.on(|cpu| {
        assert_eq!((cpu.state.apic, cpu.state.rip), (1, ENTRY + 0x800));
        (Exit::Init, [0; 3])
    });
    wrmsr(&mut m, 0x80F, 0xFF);
    m.on(|cpu| {
        assert_eq!((cpu.state.apic, cpu.state.rip), (0, ENTRY + 0x802));
        (Exit::Init, [0; 3])
    });
    wrmsr(&mut m, 0x80F, 0x1FF);
    m.on(|cpu| {
        assert_eq!(cpu.state.apic, 1);
        assert_eq!(cpu.state.apic_isr, [0, 1, 0, 0]);
        assert_eq!(cpu.state.apic_irr, [0, 1 << 1, 0, 0]);
        (Exit::Init, [0; 3])
    });
    assert_eq!(m.run(), End::Killed);
}
