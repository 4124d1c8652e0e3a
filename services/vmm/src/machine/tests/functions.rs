//! PCI functions: routes that follow their BARs, configuration space in memory, messages.

use super::fake::{ENTRY, Fake, Pages, description, machine_of};
use crate::machine::{Exit, Machine, signal};
use ipc_schema::abi::vm::{PortAccess, Post, gpr};
use ipc_schema::interrupt_page::InterruptWriter;
use ipc_schema::manifest::{Device, DeviceKind, PortRange, Registers, Vm};
use ipc_schema::virtio::NOTIFY;
use std::boxed::Box;
use std::vec;
use std::vec::Vec;

/// The test device makes room for a function.
fn with_function() -> Vm {
    let mut vm = description();
    let kind = DeviceKind::VirtioRng { slot: 3 };
    vm.devices[2] = Device {
        kind,
        ports: PortRange::new(0, 0),
        irq: 0,
        doorbell: None,
        ..vm.devices[2].clone()
    };
    vm
}

/// Another function in the place of the clock: earlier in the order of functions, its slot wired to the same line.
fn with_two_functions() -> Vm {
    let mut vm = with_function();
    vm.devices[1] = Device {
        kind: DeviceKind::VirtioRng { slot: 7 },
        ..vm.devices[2].clone()
    };
    vm
}

/// Configuration space of the function in slot 3.
const CONFIG: u64 = 0xE001_8000;
/// Where its I/O BAR is at first.
const BASE: u16 = 0xC000;

/// The guest writes the doubleword at `gpa` by `mov [rbx], eax`.
fn store(m: &mut Machine<'_, Fake>, gpa: u64, value: u64) {
    m.code(&[0x89, 0x03]);
    m.on(move |cpu| {
        cpu.state.rip = ENTRY;
        cpu.state.gpr[gpr::RAX] = value;
        cpu.state.gpr[gpr::RBX] = gpa;
        (Exit::NestedFault, [gpa, 1 << 32 | 4 | 2, 0])
    });
    m.run();
    assert_eq!(m.cpu().rip, ENTRY + 2);
}

/// It reads it by `mov eax, [rbx]`.
fn load(m: &mut Machine<'_, Fake>, gpa: u64) -> u32 {
    m.code(&[0x8B, 0x03]);
    m.on(move |cpu| {
        cpu.state.rip = ENTRY;
        cpu.state.gpr[gpr::RBX] = gpa;
        (Exit::NestedFault, [gpa, 1 << 32 | 4, 0])
    });
    m.run();
    assert_eq!(m.cpu().rip, ENTRY + 2);
    m.cpu().gpr[gpr::RAX] as u32
}

fn out(m: &mut Machine<'_, Fake>, port: u16, value: u64) {
    m.on(move |cpu| {
        cpu.state.gpr[gpr::RAX] = value;
        (Exit::Port, [PortAccess::new(port, 4, false).0, ENTRY, 0])
    });
    m.run();
}

/// Routes and doorbells of the function: first port and number.
fn routed(m: &Machine<'_, Fake>) -> std::vec::Vec<(u16, u16)> {
    routed_to(m, 2)
}

/// Those of device `number`.
fn routed_to(m: &Machine<'_, Fake>, number: usize) -> std::vec::Vec<(u16, u16)> {
    let calls = m.kernel.routes.iter().filter(|r| r.0 == number);
    let bells = m.kernel.bells.iter().filter(|b| b.0 == number);
    calls
        .map(|r| (r.1, r.2))
        .chain(bells.map(|b| (b.2, b.3)))
        .collect()
}

fn routes_at(base: u16) -> [(u16, u16); 3] {
    [(base, NOTIFY), (base + 0xC0, 0x40), (base + 0x80, 2)]
}

#[test]
fn routes_follow_the_bar_before_the_write_is_over() {
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    assert_eq!(routed(&m), routes_at(BASE));
    // Decoding off, moved, on again, by mechanism #1.
    for (register, value, wanted) in [
        (0x04, 0, &[][..]),
        (0x10, 0x2000, &[]),
        (0x04, 1, &routes_at(0x2000)),
        (0x10, 0x0C00, &[]),
        (0x10, 0xFF00, &routes_at(0xFF00)),
    ] {
        out(&mut m, 0xCF8, 0x8000_1800 | register);
        out(&mut m, 0xCFC, value);
        assert_eq!(routed(&m), wanted, "{register:#x} {value:#x}");
    }
    // By ECAM it is the same.
    store(&mut m, CONFIG + 0x10, 0x3000);
    assert_eq!(routed(&m), routes_at(0x3000));
    assert_eq!(load(&mut m, CONFIG + 0x10), 0x3001);
    assert_eq!(load(&mut m, CONFIG), 0x1044_1AF4);
    assert_eq!(m.kernel.routes.iter().filter(|r| r.0 != 2).count(), 2);
}

/// Each step of a guest that lets two functions change places is followed at once; where both want the same ports, the earlier has them.
#[test]
fn two_functions_change_places() {
    let pages = Pages::default();
    let mut m = machine_of(&with_two_functions(), &pages);
    let (first, second) = (BASE, BASE + 0x100);
    let of = |m: &Machine<'_, Fake>| [routed_to(m, 1), routed_to(m, 2)];
    assert_eq!(of(&m), [routes_at(first), routes_at(second)]);
    let earlier = CONFIG + 0x2_0000;
    store(&mut m, earlier + 0x10, second.into());
    assert_eq!(of(&m), [routes_at(second).to_vec(), vec![]]);
    store(&mut m, CONFIG + 0x10, first.into());
    assert_eq!(of(&m), [routes_at(second), routes_at(first)]);
    // Sized as Linux does it, decoding or not: for a moment it is where all ones say, which is where ports end.
    store(&mut m, CONFIG + 0x10, u32::MAX.into());
    assert_eq!(load(&mut m, CONFIG + 0x10), 0xFFFF_FF01);
    assert_eq!(of(&m)[0], routes_at(second));
    store(&mut m, CONFIG + 0x10, second.into());
    assert_eq!(of(&m), [routes_at(second).to_vec(), vec![]]);
    // The earlier one goes: what it leaves is the other's.
    store(&mut m, earlier + 4, 0);
    assert_eq!(of(&m), [vec![], routes_at(second).to_vec()]);
}

#[test]
fn what_has_no_route_is_forwarded() {
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    m.kernel.answers.push_back(Box::new(|| Ok(0x55)));
    m.on(|_| {
        let access = PortAccess::new(BASE + 0x14, 1, true);
        (Exit::Port, [access.0, ENTRY, 0])
    });
    m.run();
    assert_eq!(m.cpu().gpr[gpr::RAX] & 0xFF, 0x55);
    let read = PortAccess::new(BASE + 0x14, 1, true);
    assert_eq!(m.kernel.calls, [(2, read, 0)]);
    // Off: nobody is asked.
    out(&mut m, 0xCF8, 0x8000_1804);
    out(&mut m, 0xCFC, 0);
    m.on(move |_| (Exit::Port, [read.0, ENTRY, 0]));
    m.run();
    assert_eq!(m.cpu().gpr[gpr::RAX] & 0xFF, 0xFF);
    assert_eq!(m.kernel.calls.len(), 1);
}

/// All capabilities: offset and first doubleword.
fn capabilities(m: &mut Machine<'_, Fake>) -> Vec<(u64, u32)> {
    let mut all = vec![];
    let mut at = u64::from(load(m, CONFIG + 0x34) & 0xFF);
    while at != 0 {
        let head = load(m, CONFIG + at);
        all.push((at, head));
        at = u64::from(head >> 8 & 0xFF);
    }
    all
}

/// Offset of the first capability with this number and, in its fourth byte, this type.
fn capability(m: &mut Machine<'_, Fake>, id: u32, kind: Option<u32>) -> u64 {
    let mut all = capabilities(m).into_iter();
    let fits =
        |&(_, head): &(u64, u32)| head & 0xFF == id && kind.is_none_or(|kind| head >> 24 == kind);
    all.find(fits).expect("the capability").0
}

#[test]
fn the_window_reaches_the_server_even_while_decoding_is_off() {
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    let at = CONFIG + capability(&mut m, 9, Some(5));
    store(&mut m, CONFIG + 4, 0);
    for (offset, value) in [(4, 0), (8, 0x20), (12, 4)] {
        store(&mut m, at + offset, value);
    }
    m.kernel.answers.push_back(Box::new(|| Ok(0x1234_5678)));
    assert_eq!(load(&mut m, at + 16), 0x1234_5678);
    m.kernel.answers.push_back(Box::new(|| Ok(0)));
    store(&mut m, at + 16, 0xAABB_CCDD);
    let port = BASE + 0x20;
    assert_eq!(
        m.kernel.calls,
        [
            (2, PortAccess::new(port, 4, true), 0),
            (2, PortAccess::new(port, 4, false), 0xAABB_CCDD),
        ]
    );
    // The MSI-X table is the VMM's own.
    for (offset, value) in [(4, 1), (8, 0x0C)] {
        store(&mut m, at + offset, value);
    }
    assert_eq!(load(&mut m, at + 16), 1, "masked");
    assert_eq!(m.kernel.calls.len(), 2);
}

/// For drivers that take no ports: all but notifications is forwarded, whether or not the ports are on.
#[test]
fn the_registers_are_in_memory_too() {
    /// The BAR, and `device_status` in it.
    const BAR: u64 = 0xC000_1000;
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    store(&mut m, CONFIG + 4, 2);
    m.kernel.answers.push_back(Box::new(|| Ok(0x0102_0304)));
    assert_eq!(load(&mut m, BAR + 0x14), 0x0102_0304);
    m.kernel.answers.push_back(Box::new(|| Ok(0)));
    store(&mut m, BAR + 0x20, 0xAABB_CCDD);
    let wanted = [
        (2, PortAccess::new(BASE + 0x14, 4, true), 0),
        (2, PortAccess::new(BASE + 0x20, 4, false), 0xAABB_CCDD),
    ];
    assert_eq!(m.kernel.calls, wanted);
    // Its only queue's doorbell; at that of one that it has not, its server is asked.
    store(&mut m, BAR + u64::from(NOTIFY), 0);
    assert_eq!(m.kernel.rung, [(2, 0)]);
    m.kernel.answers.push_back(Box::new(|| Ok(0)));
    store(&mut m, BAR + u64::from(NOTIFY) + 4, 0);
    assert_eq!((m.kernel.rung.len(), m.kernel.calls.len()), (1, 3));
    // Behind the registers is nothing.
    for offset in [0x100, 0xFFC] {
        store(&mut m, BAR + offset, 1);
        assert_eq!(load(&mut m, BAR + offset), u32::MAX);
    }
    assert_eq!(m.kernel.calls.len(), 3);
    // Through the window they are the same.
    let at = CONFIG + capability(&mut m, 9, Some(5));
    for (offset, value) in [(4, 2), (8, 0x20), (12, 4)] {
        store(&mut m, at + offset, value);
    }
    m.kernel.calls.clear();
    m.kernel.answers.push_back(Box::new(|| Ok(0x1234_5678)));
    assert_eq!(load(&mut m, at + 16), 0x1234_5678);
    assert_eq!(
        m.kernel.calls,
        [(2, PortAccess::new(BASE + 0x20, 4, true), 0)]
    );
    // Off: nobody is asked.
    store(&mut m, CONFIG + 4, 0);
    assert_eq!(load(&mut m, BAR + 0x14), u32::MAX);
    assert_eq!(m.kernel.calls.len(), 1);
}

/// A driver takes the first set that it can use.
#[test]
fn a_description_says_which_registers_come_first() {
    for (first, bars) in [(Registers::Ports, [0, 2]), (Registers::Memory, [2, 0])] {
        let mut vm = with_function();
        vm.devices[2].registers = first;
        let pages = Pages::default();
        let mut m = machine_of(&vm, &pages);
        let mut seen = vec![];
        for (at, head) in capabilities(&mut m) {
            if head & 0xFF == 9 && head >> 24 != 5 {
                seen.push((head >> 24, load(&mut m, CONFIG + at + 4)));
            }
        }
        // Common, notification, ISR; an entropy source has no configuration.
        let wanted = bars.map(|bar| [1, 2, 3].map(|kind| (kind, bar)));
        assert_eq!(seen, wanted.concat());
    }
}

#[test]
fn a_vector_of_the_server_reaches_the_guest() {
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    // The APIC on; vector 0 of the table to it; MSI-X on, leave to write.
    store(&mut m, 0xFEE0_00F0, 0x1FF);
    store(&mut m, 0xC000_0000, 0xFEE0_0000);
    store(&mut m, 0xC000_0008, 0x51);
    store(&mut m, 0xC000_000C, 0);
    let msix = CONFIG + capability(&mut m, 0x11, None);
    store(&mut m, msix, 0x8000_0000);
    store(&mut m, CONFIG + 4, 7);
    let mut writer = InterruptWriter::new(&pages.irq[2]);
    assert!(writer.set_msi(0));
    m.exit(Exit::Signal, [signal::DEVICE, 0, 0]);
    m.run();
    assert_eq!(m.last().post, Post::vector(0x51, false));
    assert_eq!(load(&mut m, 0xC000_0800), 0, "no longer pending");
    // Masked, it waits, and comes when it no longer is.
    store(&mut m, 0xC000_000C, 1);
    assert!(writer.set_msi(0));
    m.exit(Exit::Signal, [signal::DEVICE, 0, 0]);
    m.run();
    assert_eq!(load(&mut m, 0xC000_0800), 1);
    store(&mut m, 0xC000_000C, 0);
    assert_eq!(load(&mut m, 0xC000_0800), 0);
}

#[test]
fn a_halt_rings_for_what_was_put_off() {
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    let halt = |m: &mut Machine<'_, Fake>| {
        m.code(&[0xF4]).on(|cpu| {
            cpu.state.rip = ENTRY;
            cpu.state.rflags |= 1 << 9;
            (Exit::Hlt, [0; 3])
        });
        m.run();
    };
    halt(&mut m);
    assert_eq!(m.kernel.rung, []);
    // It has one queue: it is not rung at others.
    InterruptWriter::new(&pages.irq[2]).hold(0b11);
    InterruptWriter::new(&pages.irq[0]).hold(0b1);
    halt(&mut m);
    assert_eq!(m.kernel.rung, [(2, 0)]);
    halt(&mut m);
    assert_eq!(m.kernel.rung.len(), 1, "once");
}

#[test]
fn the_pin_reaches_the_ioapic_and_the_8259s() {
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    store(&mut m, 0xFEE0_00F0, 0x1FF);
    // Slot 3 is wired to the fourth line, pin 19: level-triggered, vector 0x61.
    for (index, value) in [(0x37, 0), (0x36, 0x8061)] {
        store(&mut m, 0xFEC0_0000, index);
        store(&mut m, 0xFEC0_0010, value);
    }
    let mut writer = InterruptWriter::new(&pages.irq[2]);
    assert!(writer.set_intx(true));
    m.exit(Exit::Signal, [signal::DEVICE, 0, 0]);
    m.run();
    assert_eq!(m.last().post, Post::vector(0x61, false));
    assert_ne!(load(&mut m, CONFIG + 4) & 1 << 19, 0, "interrupt status");
    // Input 11 of the 8259 pair, which is level-triggered (ELCR) and masked.
    m.on(|_| (Exit::Port, [PortAccess::new(0x4D1, 1, true).0, ENTRY, 0]));
    m.on(|cpu| {
        assert_ne!(cpu.state.gpr[gpr::RAX] & 1 << 3, 0);
        (Exit::Port, [PortAccess::new(0xA0, 1, true).0, ENTRY, 0])
    });
    m.run();
    assert_ne!(m.cpu().gpr[gpr::RAX] & 1 << 3, 0, "requested");
}

/// A driver that knows MSI and no MSI-X: each rise of the pin is a message, also one that falls and rises between two looks.
#[test]
fn msi_reaches_the_local_apic() {
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    store(&mut m, 0xFEE0_00F0, 0x1FF);
    let mut at = load(&mut m, CONFIG + 0x34) & 0xFF;
    while load(&mut m, CONFIG + u64::from(at)) & 0xFF != 5 {
        at = load(&mut m, CONFIG + u64::from(at)) >> 8 & 0xFF;
        assert_ne!(at, 0, "there is MSI");
    }
    let msi = CONFIG + u64::from(at);
    for (offset, value) in [(4, 0xFEE0_0000), (8, 0), (12, 0x71), (0, 1 << 16)] {
        store(&mut m, msi + offset, value);
    }
    let command = load(&mut m, CONFIG + 4);
    store(&mut m, CONFIG + 4, (command | 4).into());
    let mut writer = InterruptWriter::new(&pages.irq[2]);
    for round in 0..3 {
        if round != 0 {
            assert!(writer.set_intx(false));
        }
        assert!(writer.set_intx(true));
        m.kernel.entries.clear();
        m.exit(Exit::Signal, [signal::DEVICE, 0, 0]);
        // It is taken, and ended.
        m.on(|cpu| {
            cpu.posted = false;
            (Exit::Init, [0; 3])
        });
        m.run();
        let posts = m.kernel.entries.iter().filter(|e| e.post != Post::NONE);
        let posts: Vec<Post> = posts.map(|e| e.post).collect();
        assert_eq!(posts, [Post::vector(0x71, false)], "{round}");
        store(&mut m, 0xFEE0_00B0, 0);
    }
}

/// A line that two pins share: it asserts for as long as one of them does, and ends when the last has fallen.
#[test]
fn a_shared_line_comes_again_until_all_pins_have_fallen() {
    let pages = Pages::default();
    let mut m = machine_of(&with_two_functions(), &pages);
    store(&mut m, 0xFEE0_00F0, 0x1FF);
    for (index, value) in [(0x37, 0), (0x36, 0x8061)] {
        store(&mut m, 0xFEC0_0000, index);
        store(&mut m, 0xFEC0_0010, value);
    }
    let mut pins = [1, 2].map(|i| InterruptWriter::new(&pages.irq[i]));
    assert!(pins.iter_mut().all(|pin| pin.set_intx(true)));
    m.exit(Exit::Signal, [signal::DEVICE, 0, 0]);
    for pin in &mut pins {
        // It is taken, its handler finds one function that has asserted, and ends it.
        m.on(|cpu| {
            cpu.posted = false;
            (Exit::Init, [0; 3])
        });
        m.run();
        let mut posts = m.kernel.entries.iter().filter(|e| e.post != Post::NONE);
        assert_eq!(
            posts.next_back().map(|e| e.post),
            Some(Post::vector(0x61, false))
        );
        m.kernel.entries.clear();
        assert!(pin.set_intx(false));
        store(&mut m, 0xFEE0_00B0, 0);
    }
    m.kernel.entries.clear();
    m.exit(Exit::Init, [0; 3]);
    m.run();
    assert_eq!(m.last().post, Post::NONE);
    assert_eq!(load(&mut m, CONFIG + 4) & 1 << 19, 0, "interrupt status");
}

#[test]
fn nothing_is_at_the_rest_of_the_hole() {
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    for gpa in [0xC000_2000, 0xDFFF_FFFC, 0xE010_0000, 0xFEBF_FFFC] {
        assert_eq!(load(&mut m, gpa), u32::MAX);
        store(&mut m, gpa, 0);
    }
    assert_eq!(m.kernel.notes.len(), 8);
}

/// The local APIC is where the guest has put it, also where PCI is: the processor comes before the bus.
#[test]
fn an_apic_that_was_moved_into_the_hole_answers_there() {
    let pages = Pages::default();
    let mut m = machine_of(&with_function(), &pages);
    m.code(&[0x0F, 0x30]);
    m.on(|cpu| {
        cpu.state.rip = ENTRY;
        cpu.state.gpr[gpr::RCX] = 0x1B;
        cpu.state.gpr[gpr::RAX] = 0xD000_0900;
        cpu.state.gpr[gpr::RDX] = 0;
        (Exit::Wrmsr, [0; 3])
    });
    m.run();
    store(&mut m, 0xD000_00F0, 0x1FF);
    assert_eq!(load(&mut m, 0xD000_00F0), 0x1FF);
    store(&mut m, 0xD000_00B0, 0);
    assert!(m.kernel.notes.is_empty(), "{:?}", m.kernel.notes);
}
