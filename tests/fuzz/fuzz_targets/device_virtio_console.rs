//! The console of a VM and the manager behind it: any memory, accesses, notifications, bytes, rings and deaths.
#![no_main]

use device_virtio_console::port::Rings;
use device_virtio_console::server::{Parts, Server};
use fuzz::{Bytes, scribble, target};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
use ipc_schema::manifest::{PortName, Ports};
use ipc_schema::ring::{Consumer, Producer, RingPage};
use ipc_schema::state_page::StatePage;
use ipc_schema::virtio::{NOTIFY, status};
use virtio::Memory;

target!(run, seeds);

const PORT: u16 = 0xC000;
/// Bytes of memory below, and above 4 GiB.
const SIZE: u64 = 0x4000;
const HIGH: u64 = 1 << 32;

/// Steps of a run.
const OUT: u8 = 0;
const IN: u8 = 1;
const MEMORY: u8 = 2;
const WAKE: u8 = 3;
const DIE: u8 = 4;
const SCRIBBLE: u8 = 5;
const TYPE: u8 = 6;
const READ: u8 = 7;
const RESIZE: u8 = 8;
const RING: u8 = 9;
const STEPS: u8 = 10;

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let memory = Memory::owned(&[(0, SIZE), (HIGH, SIZE)]);
    let (irq, state) = (Box::new(InterruptPage::new()), Box::new(StatePage::new()));
    let vmm = InterruptReader::function(&irq);
    let names = ["hvc0", "data"].map(|name| PortName::new(name).expect("a name"));
    let ports = Ports::new(&names).expect("two ports");
    let pages: [Box<[RingPage; 2]>; 2] = Default::default();
    let [tx, rx] = &pages;
    let rings = [0, 1].map(|i| Rings {
        tx: &tx[i],
        rx: &rx[i],
    });
    let start = || {
        Server::new(&Parts {
            ports: &ports,
            rows_first: false,
            memory: &memory,
            irq: &irq,
            state: &state,
            rings: &rings,
        })
        .0
    };
    let mut server = start();
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
                let (way, port) = (usize::from(bytes.flag()), usize::from(bytes.flag()));
                scribble(&pages[way][port], &mut bytes);
            }
            _ => {}
        }
        let lines = vmm.look();
        assert!(lines.levels & !1 == 0);
        if server.access(PortAccess::new(PORT + 0x14, 1, true), 0).0
            & u32::from(status::NEEDS_RESET)
            != 0
        {
            // A device that is lost touches nothing more.
            let mut before = [0; SIZE as usize];
            let mut after = [0; SIZE as usize];
            memory.read(0, &mut before).expect("all of it");
            for queue in 0..6u16 {
                let access = PortAccess::new(PORT + NOTIFY + 2 * queue, 2, false);
                let _ = server.access(access, queue.into());
            }
            let _ = server.wake();
            memory.read(0, &mut after).expect("all of it");
            assert_eq!(before, after);
        }
    }
}

/// A driver of two ports that begins, hears of them, opens them, sends a line and receives one; then the server dies.
fn seeds() -> Vec<Vec<u8>> {
    let mut seed = Vec::new();
    let mut out = |offset: u8, width: u8, value: u32| {
        seed.extend([OUT, offset, width]);
        seed.extend(value.to_le_bytes());
    };
    out(0x14, 0, 3);
    out(0x0C, 2, 0x3000_0007);
    out(0x08, 2, 1);
    out(0x0C, 2, 1);
    out(0x14, 0, 11);
    for queue in 0..6u32 {
        out(0x16, 1, queue);
        out(0x18, 1, 4);
        out(0x1A, 1, 1);
        out(0x20, 2, 0x1000 + 0x400 * queue);
        out(0x28, 2, 0x1100 + 0x400 * queue);
        out(0x30, 2, 0x1200 + 0x400 * queue);
        out(0x1C, 1, 1);
    }
    out(0x14, 0, 15);
    out(0xC8, 2, 0x21);
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
    // The console's queues.
    memory(0x1000, &descriptor(0x800, 40, 2, 0));
    memory(0x1100, &[0, 0, 1, 0, 0, 0]);
    let line = [descriptor(0x900, 3, 1, 1), descriptor(HIGH, 9, 0, 0)];
    memory(0x1400, &line.concat());
    memory(0x1500, &[0, 0, 1, 0, 0, 0]);
    // Control: room for four messages; ready, port 0 ready, port 0 open.
    let rooms: Vec<u8> = (0..4)
        .flat_map(|i| descriptor(0xA00 + 64 * i, 64, 2, 0))
        .collect();
    memory(0x1800, &rooms[..48]);
    memory(0x1830, &rooms[48..]);
    memory(0x1900, &[0, 0, 4, 0, 0, 0, 1, 0, 2, 0, 3, 0]);
    memory(0x0C00, &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3, 0, 1, 0]);
    memory(0x0C10, &[0, 0, 0, 0, 6, 0, 1, 0]);
    let says: Vec<u8> = (0..3)
        .flat_map(|i| descriptor(0xC00 + 8 * i, 8, 0, 0))
        .collect();
    memory(0x1C00, &says);
    memory(0x1D00, &[0, 0, 3, 0, 0, 0, 1, 0, 2, 0]);
    seed.extend([
        OUT, 0x86, 1, 3, 0, 0, 0, TYPE, 0, 3, b'l', b's', b'\r', RESIZE, 80, 0, 25, 0,
    ]);
    seed.extend([WAKE, IN, 0x40, 0, IN, 0xC0, 2, READ, 0, 0, 1]);
    let mut two = seed.clone();
    two.extend([DIE, WAKE, TYPE, 1, 1, b'x', WAKE, DIE]);
    vec![seed, two]
}
