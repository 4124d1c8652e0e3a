//! The whole device against a driver's side, written out by hand.

use crate::server::{self, Server};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader, Lines};
use ipc_schema::state_page::{Past, StatePage, StateWriter};
use ipc_schema::virtio::{NO_VECTOR, status};
use virtio::Memory;
use virtio::device::Pages;

/// Memory that both sides have.
struct Ram(Memory);

const SIZE: u16 = 8;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

impl Ram {
    fn new() -> Self {
        Self(Memory::owned(&[(0, 0x1_0000)]))
    }
    fn put(&self, gpa: u64, bytes: &[u8]) {
        self.0.write(gpa, bytes).unwrap();
    }
    fn half(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.0.read(gpa, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }
    fn bytes(&self, gpa: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read(gpa as u64, &mut bytes).unwrap();
        bytes
    }
    fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = DESCRIPTORS + 16 * u64::from(index);
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }
    fn offer(&self, head: u16) {
        let index = self.half(AVAILABLE + 2);
        self.put(
            AVAILABLE + 4 + 2 * u64::from(index % SIZE),
            &head.to_le_bytes(),
        );
        self.put(AVAILABLE + 2, &index.wrapping_add(1).to_le_bytes());
    }
}

fn begin<'a>(ram: &'a Ram, irq: &'a InterruptPage, state: &'a StatePage) -> (Server<'a>, bool) {
    let memory = &ram.0;
    server::begin(Pages { memory, irq, state })
}

fn out(server: &mut Server<'_>, offset: u16, width: u8, value: u32) -> bool {
    server
        .access(PortAccess::new(0xC000 + offset, width, false), value)
        .1
        .vmm
}

fn get(server: &mut Server<'_>, offset: u16, width: u8) -> u32 {
    server
        .access(PortAccess::new(0xC000 + offset, width, true), 0)
        .0
}

/// As a driver begins (virtio 1.2, 3.1.1).
fn start(server: &mut Server<'_>, vector: u16) {
    for (offset, width, value) in [
        (0x14, 1, 0),
        (0x14, 1, 3),
        (0x08, 4, 1),
        (0x0C, 4, 1),
        (0x14, 1, 11),
        (0x16, 2, 0),
        (0x18, 2, SIZE.into()),
        (0x1A, 2, vector.into()),
        (0x20, 4, DESCRIPTORS as u32),
        (0x28, 4, AVAILABLE as u32),
        (0x30, 4, USED as u32),
        (0x1C, 2, 1),
    ] {
        let _ = out(server, offset, width, value);
    }
    assert_eq!(get(server, 0x14, 1), 11, "the features are agreed on");
    let _ = out(server, 0x14, 1, 15);
}

#[test]
fn a_request_is_filled_and_told_by_its_vector() {
    let (ram, irq, state) = (Ram::new(), InterruptPage::new(), StatePage::new());
    let vmm = InterruptReader::function(&irq);
    let (mut server, was) = begin(&ram, &irq, &state);
    assert!(!was);
    start(&mut server, 1);
    ram.descriptor(3, 0x8000, 16, 1 | 2, 5);
    ram.descriptor(5, 0x9000, 48, 2, 0);
    ram.offer(3);
    assert!(server.wake().vmm);
    assert_eq!(
        vmm.look(),
        Lines {
            levels: 0,
            rises: 2
        }
    );
    assert_eq!(ram.half(USED + 2), 1);
    assert_eq!(ram.bytes(USED as usize + 4, 8), [3, 0, 0, 0, 64, 0, 0, 0]);
    assert_ne!(ram.bytes(0x8000, 16), [0; 16]);
    assert_ne!(ram.bytes(0x9000, 48), [0; 48]);
    assert_eq!(ram.bytes(0x9030, 16), [0; 16], "nothing beyond");
    assert!(!server.wake().vmm, "nothing more to do");
    // No interrupt wanted.
    ram.put(AVAILABLE, &[1, 0]);
    ram.offer(5);
    assert!(!server.wake().vmm);
    assert_eq!(ram.half(USED + 2), 2);
}

#[test]
fn without_a_vector_the_pin_asserts_until_isr_is_read() {
    let (ram, irq, state) = (Ram::new(), InterruptPage::new(), StatePage::new());
    let vmm = InterruptReader::function(&irq);
    let (mut server, _) = begin(&ram, &irq, &state);
    start(&mut server, NO_VECTOR);
    ram.descriptor(0, 0x8000, 64, 2, 0);
    ram.offer(0);
    assert!(server.wake().vmm);
    assert_eq!(
        vmm.look(),
        Lines {
            levels: 1 << 1 | 1,
            rises: 0
        }
    );
    assert_eq!(
        (
            get(&mut server, 0x40, 1),
            u64::from(vmm.look().pin().level())
        ),
        (1, 0)
    );
    assert_eq!(get(&mut server, 0x40, 1), 0);
    // A notification that was forwarded instead of routed.
    ram.offer(0);
    assert!(out(&mut server, 0x80, 2, 0));
    assert_eq!(ram.half(USED + 2), 2);
}

#[test]
fn a_successor_goes_on_where_its_predecessor_was() {
    let (ram, irq, state) = (Ram::new(), InterruptPage::new(), StatePage::new());
    let vmm = InterruptReader::function(&irq);
    let (mut server, _) = begin(&ram, &irq, &state);
    start(&mut server, 1);
    ram.descriptor(0, 0x8000, 8, 2, 0);
    ram.offer(0);
    assert!(server.wake().vmm);
    let _ = vmm.look();
    // Dead before it heard the next doorbell.
    ram.offer(0);
    let (mut server, was) = begin(&ram, &irq, &state);
    assert!(was);
    assert_eq!(vmm.look().rises, 2, "an interrupt that may have been lost");
    assert!(server.wake().vmm);
    assert_eq!((ram.half(USED + 2), vmm.look().rises), (2, 2));
    assert_eq!(get(&mut server, 0x14, 1), 15);
}

/// A driver that hears of rises alone (MSI) may have missed one with a predecessor, whose pin has been high since.
#[test]
fn a_successors_pin_rises_again() {
    let (ram, irq, state) = (Ram::new(), InterruptPage::new(), StatePage::new());
    let vmm = InterruptReader::function(&irq);
    let (mut server, _) = begin(&ram, &irq, &state);
    start(&mut server, NO_VECTOR);
    ram.descriptor(0, 0x8000, 64, 2, 0);
    ram.offer(0);
    assert!(server.wake().vmm);
    let before = vmm.look().pin();
    let (mut server, was) = begin(&ram, &irq, &state);
    let pin = vmm.look().pin();
    assert!(was && before.level() && pin.level() && pin.rose(before));
    assert_eq!(get(&mut server, 0x40, 1), 1);
}

#[test]
fn one_whole_slot_is_enough() {
    let (ram, irq, state) = (Ram::new(), InterruptPage::new(), StatePage::new());
    let vmm = InterruptReader::function(&irq);
    let (mut server, _) = begin(&ram, &irq, &state);
    assert_eq!(server.past(), Past::Nothing);
    start(&mut server, 1);
    ram.descriptor(0, 0x8000, 8, 2, 0);
    ram.offer(0);
    assert!(server.wake().vmm);
    ram.offer(0);
    for life in 2u16..10 {
        let _ = vmm.look();
        // Either of two that are the same, or the newest is somebody else's.
        match life % 3 {
            0 => StateWriter::new(&state, 0xBAD).0.save(&[7]),
            which => state.spoil(which == 1),
        }
        let (mut server, was) = begin(&ram, &irq, &state);
        assert!(was);
        match server.past() {
            Past::Configuration { .. } => assert_eq!(life % 3, 0),
            Past::Whole { mended } => assert!(mended.is_some() && life % 3 != 0),
            past => panic!("{past:?}"),
        }
        assert!(server.wake().vmm);
        assert_eq!((ram.half(USED + 2), vmm.look().rises & 2), (life, 2));
        assert_eq!(get(&mut server, 0x14, 1), 15);
        ram.offer(0);
    }
}

#[test]
fn what_is_not_known_any_more_needs_a_reset() {
    let (ram, irq, state) = (Ram::new(), InterruptPage::new(), StatePage::new());
    let vmm = InterruptReader::function(&irq);
    let (mut server, _) = begin(&ram, &irq, &state);
    start(&mut server, 1);
    ram.descriptor(0, 0x8000, 8, 2, 0);
    ram.offer(0);
    let _ = vmm.look();
    for copy in [false, true] {
        state.spoil(copy);
    }
    let (mut server, was) = begin(&ram, &irq, &state);
    assert_eq!((was, server.past()), (false, Past::Lost));
    // Whichever it listens to.
    let all = Lines {
        levels: 1 << 1 | 1,
        rises: 3,
    };
    assert_eq!(vmm.look(), all);
    let _ = server.wake();
    let _ = out(&mut server, 0x80, 2, 0);
    assert_eq!(ram.half(USED + 2), 0, "where the queue is is not known");
    // That it is so is known to the next.
    for _ in 0..2 {
        let (mut server, was) = begin(&ram, &irq, &state);
        assert!(was);
        assert_eq!(get(&mut server, 0x14, 1) as u8, status::NEEDS_RESET);
        assert!(vmm.look().pin().level());
    }
    let (mut server, _) = begin(&ram, &irq, &state);
    assert_eq!(
        get(&mut server, 0x40, 1),
        2,
        "a change of the configuration"
    );
    assert!(!vmm.look().pin().level());
    start(&mut server, 1);
    assert_eq!(ram.half(USED + 2), 1);
}

#[test]
fn a_broken_device_stays_so_over_a_death() {
    for vector in [0, NO_VECTOR] {
        let (ram, irq, state) = (Ram::new(), InterruptPage::new(), StatePage::new());
        let vmm = InterruptReader::function(&irq);
        let (mut server, _) = begin(&ram, &irq, &state);
        start(&mut server, 1);
        let _ = out(&mut server, 0x10, 2, vector.into());
        ram.descriptor(0, 0x8000, 8, 2, 0);
        ram.offer(SIZE);
        let _ = server.wake();
        let seen = |lines: Lines| (lines.pin().level(), lines.rises);
        let told = (seen(vmm.look()), get(&mut server, 0x14, 1));
        // It is what it should be by now.
        ram.put(AVAILABLE + 4, &[0, 0]);
        let (mut server, was) = begin(&ram, &irq, &state);
        assert!(was);
        let _ = server.wake();
        assert_eq!((seen(vmm.look()), get(&mut server, 0x14, 1)), told);
        assert_eq!(told.1, 15 | u32::from(status::NEEDS_RESET));
        assert_eq!(ram.half(USED + 2), 0);
        ram.put(AVAILABLE + 2, &[0, 0]);
        start(&mut server, 1);
        ram.offer(0);
        assert!(server.wake().vmm);
        assert_eq!(ram.half(USED + 2), 1);
    }
}

#[test]
fn what_makes_no_sense_needs_a_reset() {
    type Spoil = fn(&Ram);
    let ways: [Spoil; 7] = [
        |ram| ram.descriptor(0, 0x8000, 8, 1 | 2, 0),
        |ram| ram.descriptor(0, 0x8000, 8, 1, SIZE),
        |ram| ram.descriptor(0, 0xFFFC, 8, 2, 0),
        |ram| ram.descriptor(0, u64::MAX, 8, 2, 0),
        |ram| ram.descriptor(0, 0x8000, 16, 4, 0),
        |ram| ram.put(AVAILABLE + 4, &SIZE.to_le_bytes()),
        |ram| ram.put(AVAILABLE + 2, &(SIZE + 2).to_le_bytes()),
    ];
    for spoil in ways {
        let (ram, irq, state) = (Ram::new(), InterruptPage::new(), StatePage::new());
        let (mut server, _) = begin(&ram, &irq, &state);
        start(&mut server, NO_VECTOR);
        ram.descriptor(0, 0x8000, 8, 2, 0);
        ram.offer(0);
        spoil(&ram);
        assert!(server.wake().vmm);
        assert_eq!(
            get(&mut server, 0x14, 1) as u8 & status::NEEDS_RESET,
            status::NEEDS_RESET
        );
        assert_eq!(
            get(&mut server, 0x40, 1),
            2,
            "a change of the configuration"
        );
        ram.offer(0);
        assert!(!server.wake().vmm, "it does nothing more");
        let _ = out(&mut server, 0x14, 1, 0);
        assert_eq!(get(&mut server, 0x14, 1), 0);
    }
}
