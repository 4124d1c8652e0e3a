use super::virtio::{Given, Kind};
use super::*;
use ipc_schema::interrupt_page::Pin;
use ipc_schema::manifest::Registers;

impl Pci {
    fn get(&self, place: u8, offset: u16, width: u8) -> u32 {
        self.read(Pci::by_memory(place, offset, width))
    }
    fn put(&mut self, place: u8, offset: u16, width: u8, value: u32) -> Changed {
        self.write(Pci::by_memory(place, offset, width), value)
    }
}

const KIND: Kind = Kind {
    id: 4,
    class: 0xFF_0000,
    queues: 2,
    config: 8,
};
const fn given(io: u16, memory: u32) -> Given {
    Given {
        io,
        memory,
        irq: Some(11),
        first: Registers::Ports,
    }
}

/// A pin that has never risen.
const LOW: Pin = Pin::new(0, false);
/// Where the tests' function is.
const AT: u8 = 3 << 3;

fn bus() -> Pci {
    let mut pci = Pci::default();
    let function = virtio::function(&KIND, &given(0xC100, 0xC000_1000));
    assert_eq!(pci.add(3, function.clone()), Some(1));
    assert_eq!(pci.add(3, function.clone()), None);
    assert_eq!(pci.add(0, function.clone()), None);
    assert_eq!(pci.add(32, function), None);
    pci
}

/// Offset of the first capability with this number and, in its fourth byte, this type.
fn capability(pci: &Pci, id: u32, kind: Option<u32>) -> u16 {
    let mut at = pci.get(AT, 0x34, 1);
    for _ in 0..48 {
        assert!(at >= 0x40 && at.is_multiple_of(4));
        let head = pci.get(AT, at as u16, 4);
        if head & 0xFF == id && kind.is_none_or(|kind| head >> 24 == kind) {
            return at as u16;
        }
        at = head >> 8 & 0xFF;
    }
    panic!("no capability {id}");
}

#[test]
fn the_host_bridge_is_the_only_function() {
    let mut pci = Pci::default();
    assert_eq!(pci.read(pci.by_ports(0, 4)), u32::MAX, "not enabled");
    pci.set_address(0x8000_0008);
    assert_eq!(pci.read(pci.by_ports(2, 2)), 0x0600);
    assert_eq!(pci.read(pci.by_ports(3, 1)), 0x06);
    pci.set_address(0x8000_0000);
    assert_eq!(pci.read(pci.by_ports(0, 4)), 0x0D57_8086);
    for offset in 0..64 {
        assert_eq!(pci.put(0, offset * 4, 4, u32::MAX), Changed::default());
    }
    assert_eq!((pci.get(0, 0, 4), pci.get(0, 4, 4)), (0x0D57_8086, 0));
    for place in 1..0x1_0000u32 {
        pci.set_address(ENABLE | place << 8);
        assert_eq!(pci.read(pci.by_ports(0, 4)), u32::MAX);
    }
}

#[test]
fn both_ways_see_the_same() {
    let mut pci = bus();
    for offset in 0..0x100u16 {
        for width in [1, 2, 4] {
            let fits = offset & 3 <= 4 - u16::from(width);
            pci.set_address(ENABLE | u32::from(AT) << 8 | u32::from(offset));
            let by_ports = pci.read(pci.by_ports(offset as u8 & 3, width));
            let by_memory = pci.get(AT, offset, width);
            assert_eq!(by_ports, by_memory, "{offset:#x} {width}");
            if fits {
                let whole = pci.get(AT, offset & !3, 4) >> (offset % 4 * 8);
                assert_eq!(by_memory, whole & super::super::width_mask(width));
            }
        }
    }
    // What lies beyond the last port is nobody's.
    assert_eq!(pci.get(AT, 0x3C, 4), 0x10B);
    pci.put(AT, 0x3C, 4, 0x5A);
    pci.set_address(ENABLE | u32::from(AT) << 8 | 0x3C);
    assert_eq!(pci.read(pci.by_ports(3, 2)), 0xFF00);
    pci.write(pci.by_ports(3, 4), 0x0102_0304);
    assert_eq!(pci.get(AT, 0x3C, 4), 0x0000_015A, "line, INTA, read-only");
    // No extended capabilities.
    assert_eq!(pci.get(AT, 0x100, 4), 0);
    assert_eq!(pci.put(AT, 0x104, 4, u32::MAX), Changed::default());
    assert_eq!(pci.get(AT, 0x104, 4), 0);
}

#[test]
fn sizing_and_moving_bars() {
    let mut pci = bus();
    assert_eq!(pci.get(AT, 0x00, 4), 0x1044_1AF4);
    assert_eq!(pci.get(AT, 0x0E, 1), 0, "type 0, one function");
    assert_eq!(
        [0x10, 0x14, 0x18].map(|bar| pci.get(AT, bar, 4)),
        [0xC101, 0xC000_1000, 0xC000_2000]
    );
    assert_eq!(pci.locate(0xC000_2014), Some(Place::Bar(1, 2, 0x14)));
    assert_eq!(pci.locate(0xC000_3000), None);
    assert_eq!(pci.ports(1), Some(PortRange::new(0xC100, 0x100)));
    assert_eq!(pci.locate(0xC000_1804), Some(Place::Bar(1, 1, 0x804)));
    // Off: it answers nowhere.
    let off = pci.put(AT, 0x04, 2, 0);
    assert!(off.ranges && off.interrupts);
    assert_eq!((pci.ports(1), pci.locate(0xC000_1000)), (None, None));
    let sized = |pci: &mut Pci, offset| {
        let was = pci.get(AT, offset, 4);
        pci.put(AT, offset, 4, u32::MAX);
        let size = pci.get(AT, offset, 4);
        pci.put(AT, offset, 4, was);
        size
    };
    assert_eq!(sized(&mut pci, 0x10), 0xFFFF_FF01);
    assert_eq!(sized(&mut pci, 0x14), 0xFFFF_F000);
    assert_eq!(sized(&mut pci, 0x18), 0xFFFF_F000);
    for absent in [0x1C, 0x20, 0x24, 0x30] {
        assert_eq!(sized(&mut pci, absent), 0);
    }
    assert!(pci.put(AT, 0x10, 4, 0x2042).ranges);
    assert!(!pci.put(AT, 0x10, 4, 0x2000).ranges, "the same");
    assert!(pci.put(AT, 0x04, 2, 0x403).ranges);
    assert_eq!(pci.get(AT, 0x04, 2), 0x403);
    assert_eq!(pci.ports(1), Some(PortRange::new(0x2000, 0x100)));
    // Byte by byte, as some firmware does.
    assert!(pci.put(AT, 0x11, 1, 0x30).ranges);
    assert_eq!(pci.ports(1), Some(PortRange::new(0x3000, 0x100)));
}

#[test]
fn ports_that_are_not_for_pci_are_not_answered() {
    let mut pci = bus();
    pci.keep_out(PortRange::new(0x5000, 16));
    for (base, there) in [
        (0x0C00, false),
        (0x0F00, false),
        (0x1000, true),
        (0x5000, false),
        (0x5100, true),
        (0xFF00, true),
        (0x1_2000, false),
        (0xFFFF_FF00, false),
    ] {
        pci.put(AT, 0x10, 4, base);
        assert_eq!(pci.ports(1).is_some(), there, "{base:#x}");
    }
    // Two at one place: the earlier one's.
    assert_eq!(
        pci.add(4, virtio::function(&KIND, &given(0x5100, 0xC000_2000))),
        Some(2)
    );
    pci.put(AT, 0x10, 4, 0x5100);
    assert!(pci.ports(1).is_some() && pci.ports(2).is_none());
    pci.put(AT, 0x04, 2, 0);
    assert!(pci.ports(2).is_some());
}

#[test]
fn memory_is_decoded_by_ecam_first() {
    let mut pci = bus();
    assert_eq!(
        pci.locate(0xE001_8042),
        Some(Place::Configuration(AT, 0x42))
    );
    pci.put(AT, 0x14, 4, 0xE001_8000);
    assert_eq!(
        pci.locate(0xE001_8042),
        Some(Place::Configuration(AT, 0x42))
    );
    pci.put(AT, 0x14, 4, 0xF000_0000);
    assert_eq!(pci.locate(0xF000_0FFF), Some(Place::Bar(1, 1, 0xFFF)));
    assert_eq!(
        (pci.locate(0xF000_1000), pci.locate(0xEFFF_FFFF)),
        (None, None)
    );
    assert_eq!(pci.locate(0x1_F000_0000), None);
}

#[test]
fn virtio_structures_are_where_the_layout_says() {
    let pci = bus();
    let structure = |kind| {
        let at = capability(&pci, 9, Some(kind));
        let word = |offset| pci.get(AT, at + offset, 4);
        (pci.get(AT, at + 2, 1), word(4), word(8), word(12), at)
    };
    assert_ne!(pci.get(AT, 0x06, 2) & 1 << 4, 0, "there is a list");
    let place = |kind| {
        let (len, bar, at, size, _) = structure(kind);
        (len, bar, at, size)
    };
    assert_eq!(place(1), (16, 0, 0x00, 0x40));
    assert_eq!(place(2), (20, 0, 0x80, 0x40));
    assert_eq!(pci.get(AT, structure(2).4 + 16, 4), 2);
    assert_eq!(place(3), (16, 0, 0x40, 1));
    assert_eq!(place(4), (16, 0, 0xC0, 8));
    assert_eq!(place(5), (20, 0, 0, 0));
    let msix = capability(&pci, 0x11, None);
    assert_eq!(pci.get(AT, msix + 2, 2), 2, "three vectors");
    assert_eq!(
        (pci.get(AT, msix + 4, 4), pci.get(AT, msix + 8, 4)),
        (1, 0x801)
    );
}

#[test]
fn the_window_leads_to_bars_and_nowhere_else() {
    let mut pci = bus();
    let at = capability(&pci, 9, Some(5));
    let through = |pci: &Pci, offset, width| pci.through(Pci::by_memory(AT, at + offset, width));
    assert_eq!(through(&pci, 12, 4), None, "an ordinary register");
    assert_eq!(through(&pci, 16, 4), Some((1, None)), "length 0");
    let set = |pci: &mut Pci, bar, offset, length| {
        pci.put(AT, at + 4, 1, bar);
        pci.put(AT, at + 8, 4, offset);
        pci.put(AT, at + 12, 4, length);
    };
    for (bar, offset, length, width, fits) in [
        (0, 0x14, 1, 1, true),
        (0, 0x16, 2, 2, true),
        (0, 0xFC, 4, 4, true),
        (1, 0x800, 4, 4, true),
        (0, 0x14, 4, 2, false),
        (0, 0x16, 4, 4, false),
        (0, 0x100, 4, 4, false),
        (0, u32::MAX, 1, 1, false),
        (2, 0xF00, 4, 4, true),
        (2, 0x1000, 4, 4, false),
        (3, 0, 4, 4, false),
        (0xFF, 0, 4, 4, false),
        (0, 0, 3, 3, false),
    ] {
        set(&mut pci, bar, offset, length);
        let bar = bar as u8;
        let there = fits.then_some(Through { bar, offset, width });
        assert_eq!(
            through(&pci, 16, width),
            Some((1, there)),
            "{bar} {offset:#x}"
        );
    }
    set(&mut pci, 0, 0, 1);
    assert_eq!(
        through(&pci, 17, 1),
        Some((1, None)),
        "not at its first byte"
    );
}

/// The function with MSI-X on and vector 1 set up.
fn with_vectors() -> Pci {
    let mut pci = bus();
    pci.put(AT, 0x04, 2, 7);
    let msix = capability(&pci, 0x11, None);
    assert!(pci.put(AT, msix + 2, 2, 0x8000).interrupts);
    let table = pci.function_mut(1).unwrap().table(1).unwrap();
    for (offset, value) in [(0x10, 0xFEE0_1003), (0x14, 0), (0x18, 0x41), (0x1C, 0)] {
        table.write(offset, value, u32::MAX);
    }
    assert_eq!(table.read(0x10), 0xFEE0_1000, "an address of doublewords");
    pci
}

#[test]
fn vectors_wait_while_they_are_masked() {
    let mut pci = with_vectors();
    let msix = capability(&pci, 0x11, None);
    let message = Some((0xFEE0_1000, 0x41));
    let function = |pci: &mut Pci| pci.function_mut(1).unwrap().clone();
    let mut f = function(&mut pci);
    // Vector 2 is masked, 3 and above are not there.
    f.signal(!1, LOW);
    assert_eq!((f.take_message(), f.take_message()), (message, None));
    assert_eq!(f.table(1).unwrap().read(0x800), 1 << 2);
    f.table(1).unwrap().write(0x2C, 0, u32::MAX);
    assert_eq!((f.take_message(), f.take_message()), (Some((0, 0)), None));
    assert_eq!(f.table(1).unwrap().read(0x800), 0);
    // The whole function masked, then no leave to write, then off.
    for (offset, held, free) in [(msix + 2, 0xC000, 0x8000), (4, 3, 7), (msix + 2, 0, 0x8000)] {
        assert!(pci.put(AT, offset, 2, held).interrupts);
        let f = pci.function_mut(1).unwrap();
        f.signal(1 << 1, LOW);
        assert_eq!(f.take_message(), None);
        assert_eq!(f.table(1).unwrap().read(0x800), 1 << 1);
        pci.put(AT, offset, 2, free);
        assert_eq!(pci.function_mut(1).unwrap().take_message(), message);
    }
    // Pending bits and what is beyond the table cannot be written.
    let table = pci.function_mut(1).unwrap().table(1).unwrap();
    for offset in [0x30, 0x3C, 0x800, 0x804, 0xFFC] {
        table.write(offset, u32::MAX, u32::MAX);
        assert_eq!(table.read(offset), 0);
    }
    table.write(0x1C, u32::MAX, u32::MAX);
    assert_eq!(table.read(0x1C), 1, "of Vector Control only the mask");
    assert!(pci.function_mut(1).unwrap().table(0).is_none());
}

#[test]
fn the_pin_is_silent_while_there_are_messages() {
    let mut pci = bus();
    let msix = capability(&pci, 0x11, None);
    pci.function_mut(1).unwrap().signal(0, Pin::new(1, true));
    assert_eq!(pci.lines(), 1 << 3);
    assert_eq!(pci.get(AT, 0x06, 2) & 1 << 3, 1 << 3);
    pci.put(AT, 0x04, 2, 0x400);
    assert_eq!((pci.lines(), pci.get(AT, 0x06, 2) & 1 << 3), (0, 1 << 3));
    pci.put(AT, 0x04, 2, 0);
    assert_eq!(pci.lines(), 1 << 3);
    pci.put(AT, msix + 2, 2, 0x8000);
    assert_eq!(pci.lines(), 0);
    pci.put(AT, msix + 2, 2, 0);
    pci.function_mut(1).unwrap().signal(0, Pin::new(1, false));
    assert_eq!((pci.lines(), pci.get(AT, 0x06, 2) & 1 << 3), (0, 0));
}

#[test]
fn msi_sends_one_message_a_rise() {
    let mut pci = bus();
    let msi = capability(&pci, 0x05, None);
    assert_eq!(
        pci.get(AT, msi + 2, 2),
        0x80,
        "one message, 64 bits, no mask"
    );
    // Nothing but address, data and the enable bit can be written.
    for (offset, value) in [(0, 0x0081_0005), (4, !3), (8, u32::MAX), (12, 0xFFFF)] {
        pci.put(AT, msi + offset, 4, u32::MAX);
        assert_eq!(pci.get(AT, msi + offset, 4) & !0xFF00, value & !0xFF00);
    }
    pci.put(AT, msi + 2, 2, 0);
    for (offset, value) in [(4, 0xFEE0_1000), (8, 0), (12, 0x41)] {
        assert!(!pci.put(AT, msi + offset, 4, value).interrupts);
    }
    let message = Some((0xFEE0_1000, 0x41));
    let signal = |pci: &mut Pci, rises, level| {
        let function = pci.function_mut(1).unwrap();
        function.signal(0, Pin::new(rises, level));
        [function.take_message(), function.take_message()]
    };
    // By its pin, until messages are wanted: then what nobody has asked about comes at once.
    pci.put(AT, 0x04, 2, 7);
    assert_eq!(
        (signal(&mut pci, 1, true), pci.lines()),
        ([None; 2], 1 << 3)
    );
    assert!(pci.put(AT, msi + 2, 2, 1).interrupts);
    assert_eq!(
        (signal(&mut pci, 1, true), pci.lines()),
        ([message, None], 0)
    );
    assert_eq!(signal(&mut pci, 1, false), [None; 2]);
    // Down and up between two looks, and up and down.
    assert_eq!(signal(&mut pci, 2, true), [message, None]);
    assert_eq!(signal(&mut pci, 3, true), [message, None]);
    assert_eq!(signal(&mut pci, 4, false), [message, None]);
    // Without leave to write it waits; with MSI off it is none.
    pci.put(AT, 0x04, 2, 3);
    assert_eq!(signal(&mut pci, 5, true), [None; 2]);
    pci.put(AT, 0x04, 2, 7);
    assert_eq!(signal(&mut pci, 5, true), [message, None]);
    pci.put(AT, msi + 2, 2, 0);
    assert_eq!(
        (signal(&mut pci, 6, true), pci.lines()),
        ([None; 2], 1 << 3)
    );
    assert_eq!(signal(&mut pci, 6, false), [None; 2]);
    pci.put(AT, msi + 2, 2, 1);
    assert_eq!(signal(&mut pci, 6, false), [None; 2], "it is over");
    // MSI-X comes first, where a driver wants both.
    let msix = capability(&pci, 0x11, None);
    pci.put(AT, msix + 2, 2, 0x8000);
    assert_eq!((signal(&mut pci, 7, true), pci.lines()), ([None; 2], 0));
}
