//! A driver's side and a manager's, and a server between them that dies at any step if it is told to.

use std::boxed::Box;
use std::cell::Cell;
use std::vec::Vec;

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::InterruptPage;
use ipc_schema::manifest::{PortName, Ports};
use ipc_schema::ring::{CAPACITY, Consumer, Producer, RingPage};
use ipc_schema::state_page::{Access, Outcome, StatePage, kind};
use virtio::Memory;
use virtio::device::{Pages, Signals};

use crate::control::{HEADER, Message};
use crate::port::Rings;
use crate::server::{Parts, Server, begin};

thread_local! {
    /// Steps until the server dies.
    static LIFE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// What ends a server.
struct Death;

/// The server has got this far.
pub(crate) fn step() {
    let left = LIFE.with(|l| l.replace(l.get().wrapping_sub(1)));
    if left == 0 {
        std::panic::resume_unwind(Box::new(Death));
    }
}

pub const PORT: u16 = 0xC000;
/// The driver's queues are packed.
pub const PACKED: u64 = 1 << 34;
/// Two ports, and six queues.
pub const QUEUES: u16 = 6;
/// Buffers of a queue, of two descriptors each.
const SLOTS: u16 = 8;
const SIZE: u16 = 2 * SLOTS;
/// Bytes of a buffer.
pub const ROOM: usize = 4096;

/// Everything that outlives a server.
pub struct Shared {
    pub memory: Memory,
    pub irq: InterruptPage,
    pub state: StatePage,
    pub tx: [RingPage; 2],
    pub rx: [RingPage; 2],
    pub names: Ports,
}

impl Shared {
    pub fn new() -> Self {
        let names = ["hvc0", "data"].map(|name| PortName::new(name).unwrap());
        Self {
            memory: Memory::owned(&[(0, 0x10_0000)]),
            irq: InterruptPage::new(),
            state: StatePage::new(),
            tx: Default::default(),
            rx: Default::default(),
            names: Ports::new(&names).unwrap(),
        }
    }

    pub fn rings(&self) -> [Rings<'_>; 2] {
        [0, 1].map(|i| Rings {
            tx: &self.tx[i],
            rx: &self.rx[i],
        })
    }

    pub fn server<'a>(&'a self, rings: &'a [Rings<'a>], rows_first: bool) -> (Server<'a>, bool) {
        begin(&Parts {
            ports: &self.names,
            rows_first,
            packed: true,
            pages: Pages {
                memory: &self.memory,
                irq: &self.irq,
                state: &self.state,
            },
            rings,
        })
    }
}

/// A driver, a manager, and the server.
pub struct World<'a> {
    pub shared: &'a Shared,
    rings: &'a [Rings<'a>],
    pub server: Server<'a>,
    pub rows_first: bool,
    /// Steps of the next lives.
    lives: Vec<usize>,
    stamp: u64,
    /// Per queue: made available, seen used.
    available: [u16; QUEUES as usize],
    seen: [u16; QUEUES as usize],
    event_idx: bool,
    packed: bool,
    pub signals: Signals,
}

const fn base(queue: u16) -> u64 {
    0x1000 * (queue as u64 + 1)
}
/// Round of a packed ring's buffer of this number, of which it holds as many as there are slots (2.8.1).
const fn packed_wrap(index: u16) -> bool {
    (index / SLOTS).is_multiple_of(2)
}
const fn buffer(queue: u16, slot: u16) -> u64 {
    0x1_0000 + 0x8000 * queue as u64 + ROOM as u64 * slot as u64
}

impl<'a> World<'a> {
    pub fn new(shared: &'a Shared, rings: &'a [Rings<'a>], lives: Vec<usize>) -> Self {
        let mut world = Self {
            shared,
            rings,
            server: shared.server(rings, false).0,
            rows_first: false,
            lives,
            stamp: 0,
            available: [0; QUEUES as usize],
            seen: [0; QUEUES as usize],
            event_idx: false,
            packed: false,
            signals: Signals::default(),
        };
        world.wake();
        world.live();
        world
    }

    fn live(&mut self) {
        LIFE.with(|l| l.set(self.lives.pop().unwrap_or(usize::MAX)));
    }

    /// It lives for ever from now on.
    pub fn immortal(&mut self) {
        self.lives.clear();
        self.live();
    }

    /// Its successor, as root would start it.
    pub fn die(&mut self) {
        LIFE.with(|l| l.set(usize::MAX));
        self.server = self.shared.server(self.rings, self.rows_first).0;
        let signals = self.server.wake();
        self.note(signals);
        self.live();
    }

    fn note(&mut self, signals: Signals) {
        self.signals.vmm |= signals.vmm;
        self.signals.peer |= signals.peer;
    }

    /// Does something with the server; `None`: it died of it.
    fn with<T>(&mut self, act: impl FnOnce(&mut Server<'a>) -> (T, Signals)) -> Option<T> {
        let server = &mut self.server;
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(server)));
        match done {
            Ok((value, signals)) => {
                self.note(signals);
                Some(value)
            }
            Err(_) => {
                self.die();
                None
            }
        }
    }

    pub fn wake(&mut self) {
        while self.with(|s| ((), s.wake())).is_none() || self.server.model().deadline() == 0 {}
    }

    /// A routed access, tried again by the VMM for as long as the state page says that it was not done.
    fn access(&mut self, port: PortAccess, value: u32) -> u32 {
        loop {
            self.stamp += 1;
            let port = PortAccess(port.0 | self.stamp << 32);
            if let Some(value) = self.with(|s| s.access(port, value)) {
                return value;
            }
            let access = Access::of(port, value);
            if let Outcome::Done(value) = self.shared.state.outcome(kind::VIRTIO_CONSOLE, access) {
                return value;
            }
        }
    }

    pub fn out(&mut self, offset: u16, width: u8, value: u32) {
        self.access(PortAccess::new(PORT + offset, width, false), value);
    }

    pub fn get(&mut self, offset: u16, width: u8) -> u32 {
        self.access(PortAccess::new(PORT + offset, width, true), 0)
    }

    /// As a driver begins (virtio 1.2, 3.1.1), with these features beside what every device has.
    pub fn start(&mut self, features: u64) {
        self.event_idx = features & 1 << 29 != 0;
        self.packed = features & PACKED != 0;
        for (offset, width, value) in [
            (0x14, 1, 0),
            (0x14, 1, 3),
            (0x08, 4, 0),
            (0x0C, 4, features as u32),
            (0x08, 4, 1),
            (0x0C, 4, (features >> 32) as u32 | 1),
            (0x14, 1, 11),
        ] {
            self.out(offset, width, value);
        }
        assert_eq!(self.get(0x14, 1), 11, "the features are agreed on");
        self.out(0x10, 2, 0);
        let queues = if features & 2 == 0 { 2 } else { QUEUES };
        for queue in 0..queues {
            self.shared.memory.write(base(queue), &[0; 0x800]).unwrap();
            self.available[usize::from(queue)] = 0;
            self.seen[usize::from(queue)] = 0;
            for (offset, width, value) in [
                (0x16, 2, queue.into()),
                (0x18, 2, SIZE.into()),
                (0x1A, 2, u32::from(queue) + 1),
                (0x20, 4, base(queue) as u32),
                (0x28, 4, base(queue) as u32 + 0x400),
                (0x30, 4, base(queue) as u32 + 0x600),
                (0x1C, 2, 1),
            ] {
                self.out(offset, width, value);
            }
        }
        self.out(0x14, 1, 15);
    }

    pub fn half(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.shared.memory.read(gpa, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Whether the driver has a buffer to give.
    pub fn free(&self, queue: u16) -> bool {
        let q = usize::from(queue);
        self.available[q].wrapping_sub(self.seen[q]) < SLOTS
    }

    /// Writes a descriptor: where and how long, and flags and next, or ID and flags in a packed ring (2.7.5, 2.8.13).
    fn descriptor(&self, queue: u16, index: u16, (at, len): (u64, usize), rest: [u16; 2]) {
        let to = base(queue) + 16 * u64::from(index);
        let memory = &self.shared.memory;
        memory.write(to, &at.to_le_bytes()).unwrap();
        memory.write(to + 8, &(len as u32).to_le_bytes()).unwrap();
        memory
            .write(to + 12, &rest.map(u16::to_le_bytes).concat())
            .unwrap();
    }

    /// Gives a buffer, in two parts: bytes to be read, or room to be written. Rings the doorbell if the device asks for that.
    pub fn give(&mut self, queue: u16, read: &[u8], room: usize, cut: usize) {
        let index = self.available[usize::from(queue)];
        let slot = index % SLOTS;
        let (memory, at) = (&self.shared.memory, buffer(queue, slot));
        memory.write(at, read).unwrap();
        let len = read.len().max(room);
        let cut = cut.min(len);
        let write = if room != 0 { 2u16 } else { 0 };
        let next = index.wrapping_add(1);
        self.available[usize::from(queue)] = next;
        if self.packed {
            // 2.8.1: available in this round. The first descriptor last, and the ID in the last one.
            let whose = if packed_wrap(index) { 1 << 7 } else { 1 << 15 };
            for (i, at, len, flags) in [
                (2 * slot + 1, at + cut as u64, len - cut, write),
                (2 * slot, at, cut, 1 | write),
            ] {
                self.descriptor(queue, i, (at, len), [100 + slot, flags | whose]);
            }
            // Either descriptor may be the one that is waited for (2.8.10).
            let event = self.half(base(queue) + 0x600);
            let [first, second] =
                [2 * slot, 2 * slot + 1].map(|i| i | u16::from(packed_wrap(index)) << 15);
            if !self.event_idx || event == first || event == second {
                self.wake();
            }
            return;
        }
        for (i, at, len, flags) in [
            (2 * slot, at, cut, 1 | write),
            (2 * slot + 1, at + cut as u64, len - cut, write),
        ] {
            self.descriptor(queue, i, (at, len), [flags, 2 * slot + 1]);
        }
        let ring = base(queue) + 0x400;
        let head = (2 * slot).to_le_bytes();
        memory
            .write(ring + 4 + 2 * u64::from(index % SIZE), &head)
            .unwrap();
        memory.write(ring + 2, &next.to_le_bytes()).unwrap();
        let event = self.half(base(queue) + 0x600 + 4 + 8 * u64::from(SIZE));
        if !self.event_idx || event == index {
            self.wake();
        }
    }

    /// ID and length of the next buffer that the device has used, if there is one: IDs are numbers of slots.
    fn used(&self, queue: u16, index: u16) -> Option<(u16, u32)> {
        let used = base(queue) + 0x600;
        let slot = index % SLOTS;
        let mut element = [0; 8];
        if self.packed {
            let at = base(queue) + 16 * u64::from(2 * slot) + 8;
            self.shared.memory.read(at, &mut element).unwrap();
            let word = u64::from_le_bytes(element);
            let bits = [55, 63].map(|bit| word >> bit & 1 != 0);
            let is = bits == [packed_wrap(index); 2];
            return is.then(|| ((word >> 32) as u16 - 100, word as u32));
        }
        if self.half(used + 2) == index {
            return None;
        }
        let at = used + 4 + 8 * u64::from(index % SIZE);
        self.shared.memory.read(at, &mut element).unwrap();
        let word = u64::from_le_bytes(element);
        Some((word as u16 / 2, (word >> 32) as u32))
    }

    /// Takes buffers that the device has used: how many bytes it says to have written, and these.
    pub fn take(&mut self, queue: u16) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let Some((id, len)) = self.used(queue, self.seen[usize::from(queue)]) {
            let index = self.seen[usize::from(queue)];
            assert_ne!(
                index,
                self.available[usize::from(queue)],
                "more used than given"
            );
            let slot = index % SLOTS;
            assert_eq!(id, slot, "in order");
            let mut bytes = std::vec![0; len as usize];
            self.shared
                .memory
                .read(buffer(queue, slot), &mut bytes)
                .unwrap();
            all.push(bytes);
            self.seen[usize::from(queue)] = index.wrapping_add(1);
        }
        all
    }

    /// Sends a control message.
    pub fn says(&mut self, port: u32, event: u16, value: u16) {
        let (bytes, _) = Message { port, event, value }.bytes(&[]);
        self.give(3, &bytes[..HEADER], 0, 3);
        assert_eq!(self.take(3).len(), 1);
    }

    /// Control messages that have come, with what follows them; their buffers are given again.
    pub fn hears(&mut self) -> Vec<(Message, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            let some = self.take(2);
            if some.is_empty() {
                return all;
            }
            for bytes in some {
                let header = <[u8; HEADER]>::try_from(&bytes[..HEADER]).unwrap();
                all.push((Message::from_bytes(header), bytes[HEADER..].to_vec()));
                self.give(2, &[], 64, 4);
            }
        }
    }

    /// What the manager reads of a port; it wakes the server if it is to.
    pub fn reads(&mut self, port: usize, most: usize) -> Vec<u8> {
        let mut buffer = [0; CAPACITY];
        let mut ring = Consumer::new(&self.shared.tx[port]);
        let most = most.min(CAPACITY);
        let count = ring.pop(&mut buffer[..most]);
        if count != 0 && ring.needs_signal() {
            self.wake();
        }
        buffer[..count].to_vec()
    }

    /// What the manager writes to a port, as far as there is room; it wakes the server if it is to.
    pub fn writes(&mut self, port: usize, bytes: &[u8]) -> usize {
        let mut ring = Producer::new(&self.shared.rx[port]);
        let count = ring.push(bytes);
        if count != 0 && ring.needs_signal() {
            self.wake();
        }
        count
    }

    /// The manager tells a size.
    pub fn sizes(&mut self, columns: u16, rows: u16) {
        let size = crate::Size { columns, rows };
        Producer::new(&self.shared.rx[0]).set_note(size.note());
        self.wake();
    }
}
