//! The virtio entropy source of a VM, and with it the transport and the queue of all virtio devices: any memory, accesses, notifications
//! and deaths.
#![no_main]

use device_virtio_rng::server::Server;
use fuzz::{Bytes, scribble, target};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader};
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
const STEPS: u8 = 6;

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let memory = Memory::owned(&[(0, SIZE), (HIGH, SIZE)]);
    let (irq, state) = (Box::new(InterruptPage::new()), Box::new(StatePage::new()));
    let vmm = InterruptReader::function(&irq);
    let start = || Server::new(&memory, &irq, &state).0;
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
            let _ = server.wake();
            memory.read(0, &mut after).expect("all of it");
            assert_eq!(before, after);
        }
    }
}

/// A driver that begins, offers two buffers, the second by an indirect table, and is served; then its device's server dies.
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
    out(0x18, 1, 4);
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
    let direct = [descriptor(HIGH, 64, 3, 1), descriptor(0x800, 32, 2, 0)];
    memory(0x1000, &direct.concat());
    memory(0x1020, &descriptor(0x900, 16, 4, 0));
    memory(0x0900, &descriptor(HIGH + 64, 100, 2, 0));
    memory(0x2000, &[0, 0, 2, 0, 0, 0, 2, 0]);
    seed.extend([OUT, 0x80, 1, 0, 0, 0, 0, WAKE, IN, 0x40, 0, DIE, WAKE]);
    vec![seed]
}
