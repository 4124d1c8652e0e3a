//! Instructions that a guest does not have, or that fault, and those that move strings.

use super::fake::{ENTRY, Pages, machine};
use crate::machine::{End, Exit};
use ipc_schema::abi::vm::{Event, Groups, gpr};

const GP: Event = Event::exception(13, Some(0));

#[test]
fn instructions_that_the_guest_does_not_have() {
    let pages = Pages::default();
    for (exit, event) in [
        (Exit::Rdpmc, GP),
        (Exit::Vmcall, Event::exception(6, None)),
        (Exit::VmInstruction, Event::exception(6, None)),
        (Exit::Monitor, Event::exception(6, None)),
    ] {
        let mut m = machine(&pages);
        m.exit(exit, [0; 3]);
        m.run();
        assert_eq!(
            (m.last().inject, m.last().dirty, m.cpu().rip),
            (event, 0, ENTRY)
        );
    }
    let mut m = machine(&pages);
    m.code(&[0x0F, 0x09])
        .exit(Exit::Init, [0; 3])
        .exit(Exit::Wbinvd, [0; 3]);
    m.run();
    assert_eq!((m.last().inject.0, m.cpu().rip), (0, ENTRY + 2));
}

#[test]
fn xsetbv() {
    let pages = Pages::default();
    for (value, fine) in [(3u64, true), (2, false)] {
        let mut m = machine(&pages);
        m.code(&[0x0F, 0x01, 0xD1]).on(move |cpu| {
            cpu.state.gpr[gpr::RAX] = value;
            cpu.state.gpr[gpr::RCX] = 0;
            cpu.state.gpr[gpr::RDX] = 0;
            (Exit::Xsetbv, [0; 3])
        });
        m.run();
        if fine {
            assert_eq!((m.cpu().xcr0, m.cpu().rip), (3, ENTRY + 3));
            assert_eq!(m.last().dirty, Groups::RIP | Groups::XCR);
        } else {
            assert_eq!((m.cpu().xcr0, m.cpu().rip, m.last().inject), (1, ENTRY, GP));
        }
    }
}

#[test]
fn intercepted_exceptions_are_the_guests() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.exit(Exit::Exception, [17, 0, 0]);
    m.run();
    assert_eq!(m.last().inject, Event::exception(17, Some(0)));
    // General detect: GD is cleared on the way to the handler, the rest stays.
    let mut m = machine(&pages);
    m.on(|cpu| {
        cpu.state.dr = [9, 8, 7, 6];
        cpu.state.dr6 = 0xFFFF_2FF0;
        cpu.state.dr7 = 0x2401;
        (Exit::Exception, [1, 0, 0xFFFF_2FF0])
    });
    m.run();
    assert_eq!(
        (m.last().inject, m.last().dirty),
        (Event::exception(1, None), Groups::DR)
    );
    assert_eq!(
        (m.cpu().dr, m.cpu().dr6, m.cpu().dr7),
        ([9, 8, 7, 6], 0xFFFF_2FF0, 0x401)
    );
}

/// Leaf 0xD tells sizes for the XCR0 that the guest has at that moment, even if it set it without an exit; other leaves do
/// not ask for it.
#[test]
fn xsave_sizes_follow_the_processors_xcr0() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.kernel.length = 2;
    for (xcr0, size) in [(7u64, 0x340), (3, 0x240), (7, 0x340)] {
        for _ in 0..2 {
            m.on(move |cpu| {
                cpu.state.gpr[gpr::RAX] = 0xD;
                cpu.state.gpr[gpr::RCX] = 0;
                cpu.state.xcr0 = xcr0;
                (Exit::Cpuid, [0; 3])
            });
        }
        m.on(move |cpu| {
            assert_eq!(cpu.state.gpr[gpr::RBX], size);
            cpu.state.gpr[gpr::RAX] = 0;
            (Exit::Cpuid, [0; 3])
        });
    }
    m.run();
    assert_eq!(m.kernel.groups[Exit::Cpuid as usize], Groups::IP);
    // Every leaf 0xD was executed twice, everything else once.
    assert_eq!(m.kernel.entries.len(), 10);
}

/// MOVS from FS: carried out only when the exit brings group DESC.
#[test]
fn mmio_strings_through_fs_ask_for_descriptors() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.code(&[0x64, 0xA4]);
    for _ in 0..2 {
        m.on(|cpu| {
            cpu.state.fs.base = 0xFEC0_0000;
            cpu.state.fs.limit = u32::MAX;
            cpu.state.fs.attributes = 0xC93;
            cpu.state.gpr[gpr::RSI] = 0;
            cpu.state.gpr[gpr::RDI] = 0x10_0000;
            (Exit::NestedFault, [0xFEC0_0000, 1 << 32, 0])
        });
    }
    assert_eq!(m.run(), End::Killed);
    assert_eq!(m.kernel.entries[1].dirty, 0, "not carried out at first");
    assert_eq!((m.cpu().rip, m.cpu().gpr[gpr::RDI]), (ENTRY + 2, 0x10_0001));
}
