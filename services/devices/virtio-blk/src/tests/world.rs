//! A device under test: with a driver made by hand on one side, and `store` itself on the other; either may die.

use std::sync::atomic::AtomicU64;

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::disk::{Back, BlkConfig, Channel, Geometry, StoreConfig, map_words};
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
use ipc_schema::state_page::StatePage;
use store::server::Store;
use virtio::Memory;
use virtio::device::Pages;

use crate::server::{Parts, Server, begin};

pub const BLOCKS: u32 = 40;
pub const SECTORS: u64 = BLOCKS as u64 * 8;
pub const IMAGE: usize = 5 * 4096 + 700;
pub const QUEUES: u16 = 2;
/// Descriptors of each queue, and of each request.
const SIZE: u16 = 32;
const EACH: u16 = 4;
/// Requests of each queue.
pub const REQUESTS: usize = (SIZE / EACH) as usize;
/// Where the first queue's rings are, the second's, and what is in them.
const RINGS: u64 = 0x1000;
const STEP: u64 = 0x2000;
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0x1000;
/// Where the first request's buffers are, the second's, and its data.
const BUFFERS: u64 = 0x1_0000;
const BUFFER: u64 = 0x2_0000;
const DATA: u64 = 0x1000;
const MEMORY: u64 = 0x30_0000;

/// Bits of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The disk's image.
pub fn image() -> Vec<u8> {
    (0..IMAGE).map(|i| (i * 7 + i / 256) as u8 | 1).collect()
}

/// Where the descriptors of a packed queue's buffer lie, and in which round; each has [`EACH`].
fn place(number: u16) -> (u64, bool) {
    let first = u64::from(number) * u64::from(EACH);
    let size = u64::from(SIZE);
    (16 * (first % size), first / size % 2 == 0)
}

fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

/// What outlives the servers, and the servers.
pub struct World {
    pub memory: &'static Memory,
    pub irq: &'static InterruptPage,
    state: &'static StatePage,
    channel: &'static Channel,
    words: &'static [AtomicU64],
    image: &'static [u8],
    pub config: &'static BlkConfig,
    lives: u64,
    server: Option<Server<'static>>,
    pub store: Store<'static>,
    vmm: InterruptReader<'static>,
    /// Vectors that were signalled and not looked at.
    rises: u64,
    offered: [u16; QUEUES as usize],
    seen: [u16; QUEUES as usize],
}

fn store(
    words: &'static [AtomicU64],
    channel: &'static Channel,
    config: &BlkConfig,
    life: u64,
) -> Store<'static> {
    let config = StoreConfig {
        disks: vec![config.disk.clone()],
        clients: vec![0],
    };
    let (mut store, reports) = Store::new(&config, &[words], &[channel], life * 1000).unwrap();
    assert_eq!((reports[0].lost, reports[0].mended), (0, 0));
    store.serve(|_| ());
    store
}

impl World {
    pub fn new(pages: u32) -> Self {
        Self::with(pages, false)
    }

    /// One whose queues are packed, if that is so.
    pub fn with(pages: u32, packed: bool) -> Self {
        Self::behind(Back::Store, pages, packed)
    }

    /// One that believes `store` to be this.
    pub fn behind(back: Back, pages: u32, packed: bool) -> Self {
        let irq: &'static InterruptPage = leak(InterruptPage::new());
        let disk = Geometry {
            name: "d".into(),
            blocks: BLOCKS,
            image: IMAGE.div_ceil(4096) as u32,
            pages,
        };
        let words: Vec<AtomicU64> = (0..map_words(BLOCKS)).map(|_| AtomicU64::new(0)).collect();
        let words = Box::leak(words.into_boxed_slice());
        let channel = leak(Channel::new());
        let config: &'static BlkConfig = leak(BlkConfig {
            disk,
            serial: "serial-7".into(),
            queues: QUEUES,
            packed,
            back,
        });
        let mut world = Self {
            memory: leak(Memory::owned(&[(0, MEMORY)])),
            irq,
            state: leak(StatePage::new()),
            channel,
            words,
            image: Box::leak(image().into_boxed_slice()),
            config,
            lives: 1,
            server: None,
            store: store(words, channel, config, 1),
            vmm: InterruptReader::function(irq),
            rises: 0,
            offered: [0; QUEUES as usize],
            seen: [0; QUEUES as usize],
        };
        let pages = vec![0xEE; pages as usize * 4096].into_boxed_slice();
        assert!(!world.start(Box::leak(pages)));
        world.drive();
        world
    }

    fn start(&mut self, content: &'static mut [u8]) -> bool {
        let (server, was) = begin(Parts {
            config: self.config,
            pages: Pages {
                memory: self.memory,
                irq: self.irq,
                state: self.state,
            },
            channel: self.channel,
            content,
            image: self.image,
        });
        self.server = Some(server);
        was
    }

    pub fn server(&mut self) -> &mut Server<'static> {
        self.server.as_mut().unwrap()
    }

    /// The device's server dies and is started again.
    pub fn kill_server(&mut self) {
        let pages = self.server.take().unwrap().into_model().into_pages();
        assert!(self.start(pages));
    }

    /// `store` dies and is started again.
    pub fn kill_store(&mut self) {
        self.lives += 1;
        self.store = store(self.words, self.channel, self.config, self.lives);
    }

    /// Everybody runs until there is nothing to do.
    pub fn run(&mut self) {
        let _ = self.server().wake();
        for _ in 0..10_000 {
            let mut signalled = false;
            self.store.serve(|_| signalled = true);
            let signals = self.server().wake();
            if !signalled && !signals.peer {
                return;
            }
        }
        panic!("they never come to rest");
    }

    pub fn out(&mut self, offset: u16, width: u8, value: u32) {
        let access = PortAccess::new(0xC000 + offset, width, false);
        let _ = self.server().access(access, value);
    }

    pub fn get(&mut self, offset: u16, width: u8) -> u32 {
        let access = PortAccess::new(0xC000 + offset, width, true);
        self.server().access(access, 0).0
    }

    /// As a driver begins (virtio 1.2, 3.1.1), with all features but the event index.
    pub fn drive(&mut self) {
        self.out(0x14, 1, 0);
        self.out(0x14, 1, 3);
        for half in 0..2 {
            self.out(0x00, 4, half);
            let offered = self.get(0x04, 4);
            self.out(0x08, 4, half);
            let wanted = if half == 0 {
                offered & !(1 << 29)
            } else {
                offered
            };
            self.out(0x0C, 4, wanted);
        }
        self.out(0x14, 1, 11);
        assert_eq!(self.get(0x14, 1), 11, "the features are agreed on");
        for queue in 0..QUEUES {
            let rings = RINGS + STEP * u64::from(queue);
            let zeroes = vec![0; STEP as usize];
            self.memory.write(rings, &zeroes).unwrap();
            self.out(0x16, 2, queue.into());
            self.out(0x18, 2, SIZE.into());
            self.out(0x1A, 2, u32::from(queue) + 1);
            self.out(0x20, 4, rings as u32);
            self.out(0x28, 4, (rings + AVAILABLE) as u32);
            self.out(0x30, 4, (rings + USED) as u32);
            self.out(0x1C, 2, 1);
        }
        (self.offered, self.seen) = ([0; QUEUES as usize], [0; QUEUES as usize]);
        self.out(0x14, 1, 15);
    }

    fn half(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(gpa, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Where a request's buffers are: header, status, data.
    fn buffers(queue: u16, request: usize) -> (u64, u64, u64) {
        let at = BUFFERS + BUFFER * (request as u64 + u64::from(queue) * REQUESTS as u64);
        (at, at + 0x100, at + DATA)
    }

    /// Makes a request of `kind` available: `output` is its data, or it gets `input` bytes. Data is in two parts.
    pub fn submit(
        &mut self,
        (queue, request): (u16, usize),
        kind: u32,
        sector: u64,
        output: &[u8],
        input: usize,
    ) {
        let (header, status, data) = Self::buffers(queue, request);
        self.memory.write(header, &kind.to_le_bytes()).unwrap();
        self.memory
            .write(header + 8, &sector.to_le_bytes())
            .unwrap();
        self.memory.write(status, &[0xAA]).unwrap();
        self.memory.write(data, output).unwrap();
        self.memory.write(data, &vec![0xAA; input]).unwrap();
        let len = output.len().max(input);
        let direction = if input > 0 { WRITE } else { 0 };
        // Cut where no boundary is.
        let cut = len / 3;
        let table = RINGS + STEP * u64::from(queue);
        let first = request as u16 * EACH;
        let descriptors = [
            (header, 16, NEXT),
            (data, cut, NEXT | direction),
            (data + cut as u64, len - cut, NEXT | direction),
            (status, 1, WRITE),
        ];
        let number = self.offered[queue as usize];
        self.offered[queue as usize] = number.wrapping_add(1);
        if self.config.packed {
            let (at, wrap) = place(number);
            let whose = if wrap { 1 << 7 } else { 1 << 15 };
            // The first one last (2.8.21); the last one has the ID.
            for (i, (gpa, len, flags)) in descriptors.into_iter().enumerate().rev() {
                let descriptor = (gpa, len as u32, request as u16, flags | whose);
                self.descriptor(table + at + 16 * i as u64, descriptor);
            }
            return;
        }
        for (i, (gpa, len, flags)) in (first..).zip(descriptors) {
            self.descriptor(table + 16 * u64::from(i), (gpa, len as u32, flags, i + 1));
        }
        let place = table + AVAILABLE + 4 + 2 * u64::from(number % SIZE);
        let index = number.wrapping_add(1).to_le_bytes();
        self.memory.write(place, &first.to_le_bytes()).unwrap();
        self.memory.write(table + AVAILABLE + 2, &index).unwrap();
    }

    /// The last two halves are flags and the next one's number, or ID and flags.
    fn descriptor(&self, at: u64, (gpa, len, one, two): (u64, u32, u16, u16)) {
        self.memory.write(at, &gpa.to_le_bytes()).unwrap();
        self.memory.write(at + 8, &len.to_le_bytes()).unwrap();
        self.memory.write(at + 12, &one.to_le_bytes()).unwrap();
        self.memory.write(at + 14, &two.to_le_bytes()).unwrap();
    }

    /// The next request in the used ring, or in the ring.
    fn used(&self, queue: u16, seen: u16) -> Option<u16> {
        let table = RINGS + STEP * u64::from(queue);
        if self.config.packed {
            let (at, wrap) = place(seen);
            let flags = self.half(table + at + 14);
            let used = [7, 15].iter().all(|bit| (flags >> bit & 1 != 0) == wrap);
            return used.then(|| self.half(table + at + 12));
        }
        let used = table + USED;
        let there = self.half(used + 2) != seen;
        there.then(|| self.half(used + 4 + 8 * u64::from(seen % SIZE)) / EACH)
    }

    /// The next request that is done: its number, its status, and the first `len` bytes of its data.
    pub fn done(&mut self, queue: u16, len: usize) -> Option<(usize, u8, Vec<u8>)> {
        let seen = self.seen[queue as usize];
        self.rises |= self.vmm.look().rises;
        let vector = 2 << queue;
        let Some(request) = self.used(queue, seen) else {
            self.rises &= !vector;
            return None;
        };
        assert!(self.rises & vector != 0, "told without an interrupt");
        self.seen[queue as usize] = seen.wrapping_add(1);
        let (_, status, data) = Self::buffers(queue, request.into());
        let mut byte = [0];
        self.memory.read(status, &mut byte).unwrap();
        let mut bytes = vec![0; len];
        self.memory.read(data, &mut bytes).unwrap();
        Some((request.into(), byte[0], bytes))
    }

    /// Does one request, from beginning to end; its status and data.
    pub fn one(&mut self, kind: u32, sector: u64, output: &[u8], input: usize) -> (u8, Vec<u8>) {
        self.submit((0, 0), kind, sector, output, input);
        self.run();
        let (request, status, bytes) = self.done(0, input).expect("it is done");
        assert_eq!(request, 0);
        (status, bytes)
    }
}
