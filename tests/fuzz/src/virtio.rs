//! What the targets of virtio devices share: steps, judgement, and the driver of their seeds.

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::InterruptReader;
use ipc_schema::virtio::{NOTIFY, NOTIFY_MULTIPLIER, status};
use virtio::{Memory, Model, Server};

use crate::Bytes;

/// Ports of the device.
pub const PORT: u16 = 0xC000;
/// Where more memory is: above 4 GiB.
pub const HIGH: u64 = 1 << 32;

/// A write to a register.
pub const OUT: u8 = 0;
/// A read.
pub const IN: u8 = 1;
/// The guest writes its memory.
pub const MEMORY: u8 = 2;
/// A doorbell, or a signal of the back end.
pub const WAKE: u8 = 3;
/// The first step that is a target's own.
pub const OWN: u8 = 4;

/// Memory of so many bytes, and as many above 4 GiB.
#[must_use]
pub fn memory(size: u64) -> Memory {
    Memory::owned(&[(0, size), (HIGH, size)])
}

/// Does one of the steps before [`OWN`].
///
/// # Panics
/// When the device breaks a promise.
pub fn step<'a, M: Model<'a>>(
    step: u8,
    bytes: &mut Bytes<'_>,
    server: &mut Server<'a, M>,
    memory: &Memory,
) {
    match step {
        OUT | IN => {
            let (offset, width) = (u16::from(bytes.u8()), bytes.width(false));
            let port = PortAccess::new(PORT + offset, width, step == IN);
            let value = if step == OUT { bytes.u32() } else { 0 };
            let (value, _) = server.access(port, value);
            assert!(width == 4 || value >> (8 * width) == 0, "wider than asked");
        }
        MEMORY => {
            let (at, high, len) = (bytes.u16(), bytes.flag(), bytes.below(64));
            let base = if high { HIGH } else { 0 };
            // What is outside is refused, as the guest's own would be.
            let _ = memory.write(base + u64::from(at), bytes.take(len));
        }
        _ => {
            let _ = server.wake();
        }
    }
}

/// The VMM looks at the device after a step, and judges it: once it is lost it touches nothing more, whatever its back end does.
///
/// # Panics
/// When the device breaks a promise.
pub fn judge<'a, M: Model<'a>>(
    server: &mut Server<'a, M>,
    vmm: &mut InterruptReader<'_>,
    memory: &Memory,
    size: u64,
    back_end: impl FnOnce(),
) {
    let _ = vmm.look();
    let lost = u32::from(status::NEEDS_RESET);
    if server.access(PortAccess::new(PORT + 0x14, 1, true), 0).0 & lost == 0 {
        return;
    }
    let all = || {
        let mut bytes = vec![0; size as usize];
        memory.read(0, &mut bytes).expect("all of it");
        bytes
    };
    let before = all();
    for queue in 0..2 {
        let port = PORT + NOTIFY + NOTIFY_MULTIPLIER * queue;
        let _ = server.access(PortAccess::new(port, 2, false), queue.into());
    }
    back_end();
    let _ = server.wake();
    assert!(before == all());
}

/// Where a seed's driver has its queue: size, and descriptors, driver's area, device's area.
pub type Place = (u16, [u32; 3]);

/// A seed: the steps of a driver.
#[derive(Clone, Default)]
pub struct Seed(pub Vec<u8>);

impl Seed {
    /// A driver begins (3.1.1), with these features beside `VERSION_1`, and its queues.
    #[must_use]
    pub fn driver(features: u64, queues: &[Place]) -> Self {
        let mut seed = Self::default();
        seed.out(0x14, 1, 3);
        seed.out(0x0C, 4, features as u32);
        seed.out(0x08, 4, 1);
        seed.out(0x0C, 4, (features >> 32) as u32 | 1);
        seed.out(0x14, 1, 11);
        for (number, (size, [descriptors, driver, device])) in (0..).zip(queues) {
            seed.out(0x16, 2, number);
            seed.out(0x18, 2, (*size).into());
            seed.out(0x1A, 2, 1);
            seed.out(0x20, 4, *descriptors);
            seed.out(0x28, 4, *driver);
            seed.out(0x30, 4, *device);
            seed.out(0x1C, 2, 1);
        }
        seed.out(0x14, 1, 15);
        seed
    }

    /// A write to a register.
    pub fn out(&mut self, offset: u8, width: u32, value: u32) {
        self.0.extend([OUT, offset, width.ilog2() as u8]);
        self.0.extend(value.to_le_bytes());
    }

    /// A write to memory, of less than 64 bytes.
    pub fn memory(&mut self, at: u16, data: &[u8]) {
        self.0.push(MEMORY);
        self.0.extend(at.to_le_bytes());
        self.0.extend([0, data.len() as u8]);
        self.0.extend(data);
    }

    /// Other steps.
    pub fn steps(&mut self, steps: &[u8]) {
        self.0.extend(steps);
    }
}

/// A descriptor of a packed queue that is available in the first round (2.8.1).
#[must_use]
pub fn packed(gpa: u64, len: u32, id: u16, flags: u16) -> Vec<u8> {
    descriptor(gpa, len, id, flags | 1 << 7)
}

/// A descriptor of a split queue (2.7.5).
#[must_use]
pub fn descriptor(gpa: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = gpa.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}
