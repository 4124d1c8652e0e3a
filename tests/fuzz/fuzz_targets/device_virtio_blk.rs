//! The block device of a VM with `store` behind it: any memory, accesses, notifications, scribbled channels, and deaths of either.
#![no_main]

use std::sync::atomic::AtomicU64;

use device_virtio_blk::server::{Parts, begin};
use fuzz::virtio::{HIGH, OWN, Seed, WAKE, descriptor, judge, memory, packed, step};
use fuzz::{Bytes, scribble, target};
use ipc_schema::disk::{Back, BlkConfig, Channel, Geometry, StoreConfig, map_words};
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
use ipc_schema::state_page::StatePage;
use ipc_schema::virtio::feature;
use store::server::Store;
use virtio::device::Pages;

target!(run, seeds);

/// Bytes of memory below, and above 4 GiB.
const SIZE: u64 = 0x8000;
/// The disk: blocks, blocks of its image, pages.
const BLOCKS: u32 = 12;
const IMAGE: usize = 4096 * 3 + 5;
const PAGES: u32 = 5;

/// Steps of its own.
const STORE: u8 = OWN;
const DIE: u8 = OWN + 1;
const STORE_DIES: u8 = OWN + 2;
const SCRIBBLE: u8 = OWN + 3;
const SCRIBBLE_MAP: u8 = OWN + 4;
const SCRIBBLE_CHANNEL: u8 = OWN + 5;
const STEPS: u8 = OWN + 6;

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let memory = memory(SIZE);
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
        packed: true,
        back: Back::Store,
    };
    let of_store = StoreConfig {
        disks: vec![disk],
        clients: vec![0],
    };
    let image = vec![0x5A; IMAGE];
    let mut pages = vec![0xEE; PAGES as usize * 4096];
    let mut vmm = InterruptReader::function(&irq);
    let mut life = 0;
    let mut new_store = || {
        life += 1;
        Store::new(&of_store, &[&words], &[&channel], life)
            .expect("it fits")
            .0
    };
    let shared = Pages {
        memory: &memory,
        irq: &irq,
        state: &state,
    };
    let new = |content| {
        begin(Parts {
            config: &config,
            pages: shared,
            channel: &channel,
            content,
            image: &image,
        })
        .0
    };
    let (mut store, mut server) = (new_store(), new(&mut pages));
    while !bytes.is_empty() {
        match bytes.u8() % STEPS {
            STORE => store.serve(|_| ()),
            DIE => server = new(server.into_model().into_pages()),
            STORE_DIES => store = new_store(),
            SCRIBBLE => scribble(&*state, &mut bytes),
            SCRIBBLE_MAP => {
                let word = &words[bytes.below(words.len())];
                word.store(bytes.u64(), std::sync::atomic::Ordering::Relaxed);
            }
            SCRIBBLE_CHANNEL => scribble(&*channel, &mut bytes),
            common => step(common, &mut bytes, &mut server, &memory),
        }
        assert!(store.free(0) <= PAGES);
        judge(&mut server, &mut vmm, &memory, SIZE, || {
            store.serve(|_| ());
        });
    }
}

/// A driver that begins, writes a sector, reads it, and is served through the deaths of both servers. The same with a packed queue.
fn seeds() -> Vec<Vec<u8>> {
    let features = feature::INDIRECT_DESC | feature::EVENT_IDX;
    let mut seed = Seed::driver(features, &[(8, [0x1000, 0x2000, 0x3000])]);
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
    seed.memory(0x1000, &write.concat());
    seed.memory(0x1030, &read.concat());
    seed.memory(0x1060, &clear.concat());
    seed.memory(0x2000, &[0, 0, 3, 0, 0, 0, 3, 0, 6, 0]);
    let mut other = Seed::driver(
        features | feature::RING_PACKED,
        &[(9, [0x1000, 0x2000, 0x3000])],
    );
    let write = [
        packed(0x400, 16, 0, 1),
        packed(HIGH, 512, 0, 1),
        packed(0x500, 1, 5, 2),
    ];
    let read = [
        packed(0x410, 16, 0, 1),
        packed(HIGH + 0x1000, 512, 0, 3),
        packed(0x501, 1, 2, 2),
    ];
    let clear = [packed(0x420, 16, 0, 1), packed(0x430, 16, 3, 2)];
    other.memory(0x1000, &write.concat());
    other.memory(0x1030, &read.concat());
    other.memory(0x1060, &clear.concat());
    for seed in [&mut seed, &mut other] {
        requests(seed);
    }
    vec![seed.0, other.0]
}

/// The requests' headers, and the steps of those who serve them.
fn requests(seed: &mut Seed) {
    let header = |kind: u32, sector: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes
    };
    seed.memory(0x0400, &header(1, 17));
    seed.memory(0x0410, &header(0, 17));
    seed.memory(0x0420, &header(13, 0));
    seed.memory(0x0430, &[9, 0, 0, 0, 0, 0, 0, 0, 30, 0, 0, 0, 1, 0, 0, 0]);
    seed.steps(&[
        WAKE, STORE, WAKE, DIE, WAKE, STORE, WAKE, STORE_DIES, STORE, WAKE, STORE, WAKE,
    ]);
}
