//! The network card of a VM and the switch behind it: any memory, accesses, notifications, frames, links and deaths.
#![no_main]

use device_virtio_net::server::{Parts, Server};
use fuzz::{Bytes, scribble, target};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
use ipc_schema::link::{LINK_BYTES, LinkPage, NetConfig, PortConfig};
use ipc_schema::state_page::StatePage;
use ipc_schema::virtio::{NOTIFY, status};
use switch::switch::Switch;
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
const SWITCH: u8 = 6;
const LINK: u8 = 7;
const INDICES: u8 = 8;
const STEPS: u8 = 9;

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let memory = Memory::owned(&[(0, SIZE), (HIGH, SIZE)]);
    let (irq, state) = (Box::new(InterruptPage::new()), Box::new(StatePage::new()));
    let vmm = InterruptReader::function(&irq);
    let config = NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
    };
    // The card's link, and that of another which sends whatever it likes.
    let ports = [0, 100_000].map(|rate| PortConfig {
        name: "port".into(),
        network: 0,
        rate,
    });
    let pages = [Box::new(LinkPage::new()), Box::new(LinkPage::new())];
    let links = [(); 2].map(|()| Memory::owned(&[(0, LINK_BYTES)]));
    let begin = |now| {
        let parts = ports.iter().zip(&pages).zip(&links);
        Switch::new(parts.map(|((c, p), m)| (c, &**p, m)), now, 1000)
    };
    let start = || {
        Server::new(&Parts {
            config: &config,
            memory: &memory,
            irq: &irq,
            state: &state,
            page: &pages[0],
            link: &links[0],
        })
        .0
    };
    let (mut server, mut now) = (start(), 0u64);
    let mut between = begin(now);
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
            DIE => match bytes.flag() {
                true => server = start(),
                false => between = begin(now),
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
            let _ = server.access(PortAccess::new(PORT + NOTIFY, 2, false), 0);
            let _ = server.access(PortAccess::new(PORT + NOTIFY + 2, 2, false), 1);
            let _ = server.wake();
            memory.read(0, &mut after).expect("all of it");
            assert_eq!(before, after);
        }
    }
}

/// A driver that begins, gives two receive buffers and sends a frame to all; the other port's frame comes in; then both servers die.
fn seeds() -> Vec<Vec<u8>> {
    let mut seed = Vec::new();
    let mut out = |offset: u8, width: u8, value: u32| {
        seed.extend([OUT, offset, width]);
        seed.extend(value.to_le_bytes());
    };
    out(0x14, 0, 3);
    out(0x0C, 2, 0x3000_8003);
    out(0x08, 2, 1);
    out(0x0C, 2, 1);
    out(0x14, 0, 11);
    for queue in 0..2u32 {
        out(0x16, 1, queue);
        out(0x18, 1, 4);
        out(0x1A, 1, 1);
        out(0x20, 2, 0x1000 + 0x400 * queue);
        out(0x28, 2, 0x1100 + 0x400 * queue);
        out(0x30, 2, 0x1200 + 0x400 * queue);
        out(0x1C, 1, 1);
    }
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
    let receive = [descriptor(HIGH, 40, 2, 0), descriptor(0x800, 100, 2, 0)];
    memory(0x1000, &receive.concat());
    memory(0x1100, &[0, 0, 2, 0, 0, 0, 1, 0]);
    let transmit = [descriptor(0x900, 12, 1, 1), descriptor(0x920, 60, 0, 0)];
    memory(0x1400, &transmit.concat());
    memory(0x1500, &[0, 0, 1, 0, 0, 0]);
    memory(0x0900, &[1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]);
    memory(
        0x0920,
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0],
    );
    seed.extend([OUT, 0x82, 1, 1, 0, 0, 0, SWITCH, 1, WAKE]);
    // The other port: 60 bytes to all.
    seed.extend([LINK, 1]);
    seed.extend(4096u32.to_le_bytes());
    seed.extend([32, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    seed.extend([
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 2, 8, 0, 0, 0,
    ]);
    // A packet of 80 bytes is in that lane: its first word.
    seed.extend([INDICES, 1, 1, 0, 0, 80, 0, SWITCH, 1, WAKE, IN, 0x40, 0]);
    let mut two = seed.clone();
    two.extend([DIE, 1, WAKE, DIE, 0, SWITCH, 1]);
    vec![seed, two]
}
