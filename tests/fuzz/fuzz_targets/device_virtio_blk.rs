//! The block device of a VM with `store` behind it: any memory, accesses, notifications, scribbled channels, and deaths of either.
#![no_main]

use std::sync::atomic::AtomicU64;

use device_virtio_blk::server::{Parts, Server};
use fuzz::{Bytes, scribble, target};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::disk::{Back, BlkConfig, Channel, Geometry, StoreConfig, map_words};
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
use ipc_schema::state_page::StatePage;
use ipc_schema::virtio::{NOTIFY, status};
use store::server::Store;
use virtio::Memory;

target!(run, seeds);

const PORT: u16 = 0xC000;
/// Bytes of memory below, and above 4 GiB.
const SIZE: u64 = 0x8000;
const HIGH: u64 = 1 << 32;
/// The disk: blocks, blocks of its image, pages.
const BLOCKS: u32 = 12;
const IMAGE: usize = 4096 * 3 + 5;
const PAGES: u32 = 5;

/// Steps of a run.
const OUT: u8 = 0;
const IN: u8 = 1;
const MEMORY: u8 = 2;
const WAKE: u8 = 3;
const STORE: u8 = 4;
const DIE: u8 = 5;
const STORE_DIES: u8 = 6;
const SCRIBBLE: u8 = 7;
const SCRIBBLE_MAP: u8 = 8;
const STEPS: u8 = 10;

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let memory = Memory::owned(&[(0, SIZE), (HIGH, SIZE)]);
    let (irq, state) = (Box::new(InterruptPage::new()), Box::new(StatePage::new()));
    let channel = Box::new(Channel::new());
    let words: Vec<AtomicU64> = (0..map_words(BLOCKS)).map(|_| AtomicU64::new(0)).collect();
    let disk = Geometry {
        name: "d".into(),
        blocks: BLOCKS,
        image: IMAGE.div_ceil(4096) as u32,
        pages: PAGES,
    };
    let config = BlkConfig {
        disk: disk.clone(),
        serial: "serial".into(),
        queues: 2,
        back: Back::Store,
    };
    let of_store = StoreConfig {
        disks: vec![disk],
        clients: vec![0],
    };
    let image = vec![0x5A; IMAGE];
    let mut pages = vec![0xEE; PAGES as usize * 4096];
    let vmm = InterruptReader::function(&irq);
    let mut life = 0;
    let mut new_store = || {
        life += 1;
        Store::new(&of_store, &[&words], &[&channel], life)
            .expect("it fits")
            .0
    };
    let new = |pages| {
        Server::new(Parts {
            config: &config,
            memory: &memory,
            irq: &irq,
            state: &state,
            channel: &channel,
            pages,
            image: &image,
        })
        .0
    };
    let (mut store, mut server) = (new_store(), new(&mut pages));
    while !bytes.is_empty() {
        match bytes.u8() % STEPS {
            OUT => {
                let (offset, width) = (u16::from(bytes.u8()), bytes.width(false));
                let access = PortAccess::new(PORT + offset, width, false);
                let _ = server.access(access, bytes.u32());
            }
            IN => {
                let (offset, width) = (u16::from(bytes.u8()), bytes.width(false));
                let (value, _) = server.access(PortAccess::new(PORT + offset, width, true), 0);
                assert!(width == 4 || value >> (8 * width) == 0, "wider than asked");
            }
            MEMORY => {
                let (at, high, len) = (bytes.u16(), bytes.flag(), bytes.below(64));
                let base = if high { HIGH } else { 0 };
                // What is outside is refused, as the guest's own would be.
                let _ = memory.write(base + u64::from(at), bytes.take(len));
            }
            WAKE => {
                let _ = server.wake();
            }
            STORE => store.serve(|_| ()),
            DIE => server = new(server.into_pages()),
            STORE_DIES => store = new_store(),
            SCRIBBLE => scribble(&*state, &mut bytes),
            SCRIBBLE_MAP => {
                let word = &words[bytes.below(words.len())];
                word.store(bytes.u64(), std::sync::atomic::Ordering::Relaxed);
            }
            _ => scribble(&*channel, &mut bytes),
        }
        assert!(store.free(0) <= PAGES);
        assert!(vmm.look().levels & !1 == 0);
        let lost = u32::from(status::NEEDS_RESET);
        if server.access(PortAccess::new(PORT + 0x14, 1, true), 0).0 & lost != 0 {
            // A device that is lost touches nothing more.
            let mut before = [0; SIZE as usize];
            let mut after = [0; SIZE as usize];
            memory.read(0, &mut before).expect("all of it");
            let _ = server.access(PortAccess::new(PORT + NOTIFY, 2, false), 0);
            store.serve(|_| ());
            let _ = server.wake();
            memory.read(0, &mut after).expect("all of it");
            assert_eq!(before, after);
        }
    }
}

/// A driver that begins, writes a sector, reads it, and is served through the deaths of both servers.
fn seeds() -> Vec<Vec<u8>> {
    let mut seed = Vec::new();
    let mut out = |offset: u8, width: u8, value: u32| {
        seed.extend([OUT, offset, width]);
        seed.extend(value.to_le_bytes());
    };
    out(0x14, 0, 3);
    out(0x0C, 2, 0x3000_0000);
    out(0x08, 2, 1);
    out(0x0C, 2, 1);
    out(0x14, 0, 11);
    out(0x18, 1, 8);
    out(0x1A, 1, 1);
    out(0x20, 2, 0x1000);
    out(0x28, 2, 0x2000);
    out(0x30, 2, 0x3000);
    out(0x1C, 1, 1);
    out(0x14, 0, 15);
    let mut memory = |at: u16, data: &[u8]| {
        seed.push(MEMORY);
        seed.extend(at.to_le_bytes());
        seed.extend([0, data.len() as u8]);
        seed.extend(data);
    };
    let descriptor = |gpa: u64, len: u32, flags: u16, next: u16| {
        let mut bytes = gpa.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    };
    let header = |kind: u32, sector: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes
    };
    let write = [
        descriptor(0x400, 16, 1, 1),
        descriptor(HIGH, 512, 1, 2),
        descriptor(0x500, 1, 2, 0),
    ];
    let read = [
        descriptor(0x410, 16, 1, 4),
        descriptor(HIGH + 0x1000, 512, 3, 5),
        descriptor(0x501, 1, 2, 0),
    ];
    let clear = [descriptor(0x420, 16, 1, 7), descriptor(0x430, 16, 1, 2)];
    memory(0x1000, &write.concat());
    memory(0x1030, &read.concat());
    memory(0x1060, &clear.concat());
    memory(0x0400, &header(1, 17));
    memory(0x0410, &header(0, 17));
    memory(0x0420, &header(13, 0));
    memory(0x0430, &[9, 0, 0, 0, 0, 0, 0, 0, 30, 0, 0, 0, 1, 0, 0, 0]);
    memory(0x2000, &[0, 0, 3, 0, 0, 0, 3, 0, 6, 0]);
    seed.extend([
        WAKE, STORE, WAKE, DIE, WAKE, STORE, WAKE, STORE_DIES, STORE, WAKE, STORE, WAKE,
    ]);
    vec![seed]
}
