//! The virtio entropy source of a VM, and with it the transport and the queue of all virtio devices: any memory, accesses, notifications
//! and deaths.
#![no_main]

use device_virtio_rng::server::begin;
use fuzz::virtio::{HIGH, IN, OUT, OWN, Seed, WAKE, descriptor, judge, memory, packed, step};
use fuzz::{Bytes, scribble, target};
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
use ipc_schema::state_page::StatePage;
use ipc_schema::virtio::feature;
use virtio::device::Pages;

target!(run, seeds);

/// Bytes of memory below, and above 4 GiB.
const SIZE: u64 = 0x4000;

/// Steps of its own.
const DIE: u8 = OWN;
const SCRIBBLE: u8 = OWN + 1;
const STEPS: u8 = OWN + 2;

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let memory = memory(SIZE);
    let (irq, state) = (Box::new(InterruptPage::new()), Box::new(StatePage::new()));
    let mut vmm = InterruptReader::function(&irq);
    let pages = Pages {
        memory: &memory,
        irq: &irq,
        state: &state,
    };
    let mut server = begin(pages).0;
    while !bytes.is_empty() {
        match bytes.u8() % STEPS {
            DIE => server = begin(pages).0,
            SCRIBBLE => scribble(&*state, &mut bytes),
            common => step(common, &mut bytes, &mut server, &memory),
        }
        judge(&mut server, &mut vmm, &memory, SIZE, || ());
    }
}

/// A driver that begins, offers two buffers, the second by an indirect table, and is served; then its device's server dies. The same with a
/// packed queue.
fn seeds() -> Vec<Vec<u8>> {
    let features = feature::INDIRECT_DESC | feature::EVENT_IDX;
    let mut seed = Seed::driver(features, &[(4, [0x1000, 0x2000, 0x3000])]);
    let direct = [descriptor(HIGH, 64, 3, 1), descriptor(0x800, 32, 2, 0)];
    seed.memory(0x1000, &direct.concat());
    seed.memory(0x1020, &descriptor(0x900, 16, 4, 0));
    seed.memory(0x0900, &descriptor(HIGH + 64, 100, 2, 0));
    seed.memory(0x2000, &[0, 0, 2, 0, 0, 0, 2, 0]);
    let steps = [OUT, 0x80, 1, 0, 0, 0, 0, WAKE, IN, 0x40, 0, DIE, WAKE];
    seed.steps(&steps);
    let features = features | feature::RING_PACKED;
    let mut other = Seed::driver(features, &[(3, [0x1000, 0x2000, 0x3000])]);
    other.memory(0x0900, &descriptor(HIGH + 64, 100, 0, 2));
    let ring = [
        packed(HIGH, 64, 9, 3),
        packed(0x800, 32, 2, 2),
        packed(0x900, 16, 1, 4),
    ];
    other.memory(0x1000, &ring.concat());
    other.steps(&steps);
    // The next round.
    other.memory(0x1000, &descriptor(HIGH, 16, 0, 1 << 15 | 2));
    other.steps(&[DIE, WAKE, DIE]);
    vec![seed.0, other.0]
}
