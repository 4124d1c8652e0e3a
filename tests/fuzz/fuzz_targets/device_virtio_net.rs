//! The network card of a VM and the switch behind it: any memory, accesses, notifications, frames, links and deaths.
#![no_main]

use device_virtio_net::server::{Parts, begin};
use fuzz::virtio::{HIGH, IN, OUT, OWN, Seed, WAKE, descriptor, judge, memory, packed, step};
use fuzz::{Bytes, scribble, target};
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
use ipc_schema::link::{LINK_BYTES, LinkPage, NetConfig, PortConfig};
use ipc_schema::state_page::StatePage;
use ipc_schema::virtio::feature;
use switch::switch::Switch;
use virtio::Memory;
use virtio::device::Pages;

target!(run, seeds);

/// Bytes of memory below, and above 4 GiB.
const SIZE: u64 = 0x4000;

/// Steps of its own.
const DIE: u8 = OWN;
const SCRIBBLE: u8 = OWN + 1;
const SWITCH: u8 = OWN + 2;
const LINK: u8 = OWN + 3;
const INDICES: u8 = OWN + 4;
const STEPS: u8 = OWN + 5;

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let memory = memory(SIZE);
    let (irq, state) = (Box::new(InterruptPage::new()), Box::new(StatePage::new()));
    let mut vmm = InterruptReader::function(&irq);
    let config = NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        packed: true,
        pairs: 2,
    };
    // The card's link, and that of another which sends whatever it likes.
    let ports = [0, 100_000].map(|rate| PortConfig {
        name: "port".into(),
        network: 0,
        rate,
    });
    let pages = [Box::new(LinkPage::new()), Box::new(LinkPage::new())];
    let links = [(); 2].map(|()| Memory::owned(&[(0, LINK_BYTES)]));
    let connect = |now| {
        let parts = ports.iter().zip(&pages).zip(&links);
        Switch::new(parts.map(|((c, p), m)| (c, &**p, m)), now, 1000)
    };
    let shared = Pages {
        memory: &memory,
        irq: &irq,
        state: &state,
    };
    let start = || {
        begin(&Parts {
            config: &config,
            pages: shared,
            page: &pages[0],
            link: &links[0],
        })
        .0
    };
    let (mut server, mut now) = (start(), 0u64);
    let mut between = connect(now);
    while !bytes.is_empty() {
        match bytes.u8() % STEPS {
            DIE => match bytes.flag() {
                true => server = start(),
                false => between = connect(now),
            },
            SWITCH => {
                now += u64::from(bytes.u8());
                let _ = between.serve(now, |port| assert!(port < 2));
            }
            LINK => {
                let (which, at, len) = (bytes.flag(), bytes.u32(), bytes.below(64));
                let _ =
                    links[usize::from(which)].write(u64::from(at) % LINK_BYTES, bytes.take(len));
            }
            INDICES => {
                let which = usize::from(bytes.flag());
                scribble(&*pages[which], &mut bytes);
            }
            SCRIBBLE => scribble(&*state, &mut bytes),
            common => step(common, &mut bytes, &mut server, &memory),
        }
        judge(&mut server, &mut vmm, &memory, SIZE, || ());
    }
}

/// A driver that begins, gives two receive buffers and sends a frame to all; the other port's frame comes in; then both servers die. The same
/// with packed queues.
fn seeds() -> Vec<Vec<u8>> {
    let features = feature::INDIRECT_DESC | feature::EVENT_IDX | 0x8003;
    let places = [(4, [0x1000, 0x1100, 0x1200]), (4, [0x1400, 0x1500, 0x1600])];
    let mut seed = Seed::driver(features, &places);
    let receive = [descriptor(HIGH, 40, 2, 0), descriptor(0x800, 100, 2, 0)];
    seed.memory(0x1000, &receive.concat());
    seed.memory(0x1100, &[0, 0, 2, 0, 0, 0, 1, 0]);
    let transmit = [descriptor(0x900, 12, 1, 1), descriptor(0x920, 60, 0, 0)];
    seed.memory(0x1400, &transmit.concat());
    seed.memory(0x1500, &[0, 0, 1, 0, 0, 0]);
    let mut other = Seed::driver(features | feature::RING_PACKED, &places);
    let receive = [packed(HIGH, 40, 2, 2), packed(0x800, 100, 0, 2)];
    other.memory(0x1000, &receive.concat());
    let transmit = [packed(0x900, 12, 7, 1), packed(0x920, 60, 1, 0)];
    other.memory(0x1400, &transmit.concat());
    let mut all = vec![commands()];
    for mut seed in [seed, other] {
        frames(&mut seed);
        all.push(seed.0.clone());
        seed.steps(&[DIE, 1, WAKE, DIE, 0, SWITCH, 1]);
        all.push(seed.0);
    }
    all
}

/// A driver of two pairs sends commands: both pairs, an address, two tables, a mode; one that is none. Then frames come.
fn commands() -> Vec<u8> {
    let features = feature::INDIRECT_DESC | 0x8003 | 1 << 17 | 1 << 18 | 1 << 22 | 1 << 23;
    let place = |at| (4, [at, at + 0x80, at + 0xC0]);
    let places = [0x1000, 0x1100, 0x1200, 0x1300, 0x1400].map(place);
    let mut seed = Seed::driver(features, &places);
    let commands: [&[u8]; 5] = [
        &[4, 0, 2, 0],
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[
            1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 8, 1, 0, 0, 0, 0x33, 0x33, 0, 0, 0, 1,
        ],
        &[0, 0, 0],
        &[2, 0, 1, 0],
    ];
    for (n, command) in (0u8..).zip(commands) {
        seed.memory(0x800, command);
        let parts = [
            descriptor(0x800, command.len() as u32, 1, 1),
            descriptor(0x880, 1, 2, 0),
        ];
        seed.memory(0x1400, &parts.concat());
        seed.memory(0x1482, &[n + 1, 0]);
        // Its queue's bell.
        seed.out(0x88, 2, 4);
    }
    for queue in [0x1000, 0x1200] {
        seed.memory(queue, &descriptor(0x900, 100, 2, 0));
        seed.memory(queue + 0x80, &[0, 0, 1, 0, 0, 0]);
    }
    frames(&mut seed);
    seed.steps(&[DIE, 1, WAKE]);
    seed.0
}

/// The frame that is sent, and the one that comes in.
fn frames(seed: &mut Seed) {
    seed.memory(0x0900, &[1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]);
    seed.memory(
        0x0920,
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0],
    );
    seed.steps(&[OUT, 0x82, 1, 1, 0, 0, 0, SWITCH, 1, WAKE]);
    // The other port: 60 bytes to all.
    seed.steps(&[LINK, 1]);
    seed.steps(&4096u32.to_le_bytes());
    seed.steps(&[32, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    seed.steps(&[
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 2, 8, 0, 0, 0,
    ]);
    // A packet of 80 bytes is in that lane: its first word.
    seed.steps(&[INDICES, 1, 1, 0, 0, 80, 0, SWITCH, 1, WAKE, IN, 0x40, 0]);
}
