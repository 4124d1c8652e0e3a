//! The console of a VM and the manager behind it: any memory, accesses, notifications, bytes, rings and deaths.
#![no_main]

use device_virtio_console::port::Rings;
use device_virtio_console::server::{Parts, begin};
use fuzz::virtio::{HIGH, IN, OUT, OWN, Seed, WAKE, descriptor, judge, memory, packed, step};
use fuzz::{Bytes, scribble, target};
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
use ipc_schema::manifest::{PortName, Ports};
use ipc_schema::ring::{Consumer, Producer, RingPage};
use ipc_schema::state_page::StatePage;
use ipc_schema::virtio::feature;
use virtio::device::Pages;

target!(run, seeds);

/// Bytes of memory below, and above 4 GiB.
const SIZE: u64 = 0x4000;

/// Steps of its own.
const DIE: u8 = OWN;
const SCRIBBLE: u8 = OWN + 1;
const TYPE: u8 = OWN + 2;
const READ: u8 = OWN + 3;
const RESIZE: u8 = OWN + 4;
const RING: u8 = OWN + 5;
const STEPS: u8 = OWN + 6;

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let memory = memory(SIZE);
    let (irq, state) = (Box::new(InterruptPage::new()), Box::new(StatePage::new()));
    let mut vmm = InterruptReader::function(&irq);
    let names = ["hvc0", "data"].map(|name| PortName::new(name).expect("a name"));
    let ports = Ports::new(&names).expect("two ports");
    let [tx, rx]: [Box<[RingPage; 2]>; 2] = Default::default();
    let rings = [0, 1].map(|i| Rings {
        tx: &tx[i],
        rx: &rx[i],
    });
    let start = || {
        begin(&Parts {
            ports: &ports,
            rows_first: false,
            packed: true,
            pages: Pages {
                memory: &memory,
                irq: &irq,
                state: &state,
            },
            rings: &rings,
        })
        .0
    };
    let mut server = start();
    while !bytes.is_empty() {
        match bytes.u8() % STEPS {
            DIE => server = start(),
            SCRIBBLE => scribble(&*state, &mut bytes),
            TYPE => {
                let (port, len) = (usize::from(bytes.flag()), bytes.below(64));
                Producer::new(&rx[port]).push(bytes.take(len));
            }
            READ => {
                let (port, len) = (usize::from(bytes.flag()), bytes.below(4096));
                let _ = Consumer::new(&tx[port]).pop(&mut [0; 4096][..len]);
            }
            RESIZE => Producer::new(&rx[0]).set_note(bytes.u32()),
            RING => {
                let (sent, port) = (bytes.flag(), usize::from(bytes.flag()));
                scribble(if sent { &tx[port] } else { &rx[port] }, &mut bytes);
            }
            common => step(common, &mut bytes, &mut server, &memory),
        }
        judge(&mut server, &mut vmm, &memory, SIZE, || {
            Producer::new(&rx[0]).push(b"x");
        });
    }
}

/// A driver of two ports that begins with these features, and three messages of its: it is ready, so is port 0, and that is open.
fn driver(features: u64) -> Seed {
    let places: Vec<_> = (0..6)
        .map(|queue| 0x1000 + 0x400 * queue)
        .map(|at| (4, [at, at + 0x100, at + 0x200]))
        .collect();
    let mut seed = Seed::driver(features, &places);
    let ready = [0, 0, 0, 0, 0, 0, 1, 0];
    let port_ready = [0, 0, 0, 0, 3, 0, 1, 0];
    let port_open = [0, 0, 0, 0, 6, 0, 1, 0];
    seed.memory(0x0C00, &[ready, port_ready, port_open].concat());
    seed
}

/// A driver of two ports that begins, hears of them, opens the first, sends a line and receives one; then the server dies.
fn seeds() -> Vec<Vec<u8>> {
    let features = feature::INDIRECT_DESC | feature::EVENT_IDX | 7;
    let mut seed = driver(features);
    seed.out(0xC8, 4, 0x21);
    // The console's queues.
    seed.memory(0x1000, &descriptor(0x800, 40, 2, 0));
    seed.memory(0x1100, &[0, 0, 1, 0, 0, 0]);
    let line = [descriptor(0x900, 3, 1, 1), descriptor(HIGH, 9, 0, 0)];
    seed.memory(0x1400, &line.concat());
    seed.memory(0x1500, &[0, 0, 1, 0, 0, 0]);
    // Control: room for four messages, and the driver's three.
    for i in 0..4 {
        let room = descriptor(0xA00 + 64 * u64::from(i), 64, 2, 0);
        seed.memory(0x1800 + 16 * i, &room);
    }
    seed.memory(0x1900, &[0, 0, 4, 0, 0, 0, 1, 0, 2, 0, 3, 0]);
    for i in 0..3 {
        let message = descriptor(0xC00 + 8 * u64::from(i), 8, 0, 0);
        seed.memory(0x1C00 + 16 * i, &message);
    }
    seed.memory(0x1D00, &[0, 0, 3, 0, 0, 0, 1, 0, 2, 0]);
    seed.steps(&[OUT, 0x86, 1, 3, 0, 0, 0]);
    seed.steps(&[TYPE, 0, 3, b'l', b's', b'\r', RESIZE, 80, 0, 25, 0]);
    seed.steps(&[WAKE, IN, 0x40, 0, IN, 0xC0, 2, READ, 0, 0, 1]);
    let mut two = seed.clone();
    two.steps(&[DIE, WAKE, TYPE, 1, 1, b'x', WAKE, DIE]);
    vec![seed.0, two.0, packed_queues()]
}

/// The same console behind packed queues, and a death with a buffer of each kind under way.
fn packed_queues() -> Vec<u8> {
    let features = feature::RING_PACKED | feature::INDIRECT_DESC | feature::EVENT_IDX | 7;
    let mut seed = driver(features);
    seed.memory(0x1000, &packed(0x800, 40, 3, 2));
    let line = [packed(0x900, 3, 0, 1), packed(HIGH, 9, 7, 0)];
    seed.memory(0x1400, &line.concat());
    for i in 0..4 {
        let room = packed(0xA00 + 64 * u64::from(i), 64, i, 2);
        seed.memory(0x1800 + 16 * i, &room);
    }
    for i in 0..3 {
        let message = packed(0xC00 + 8 * u64::from(i), 8, i, 0);
        seed.memory(0x1C00 + 16 * i, &message);
    }
    seed.steps(&[OUT, 0x86, 1, 3, 0, 0, 0]);
    seed.steps(&[TYPE, 0, 3, b'l', b's', b'\r', WAKE, DIE, WAKE]);
    seed.steps(&[READ, 0, 0, 1, TYPE, 0, 1, b'x', WAKE, DIE]);
    seed.0
}
