//! Reads from a virtio disk, past the page cache.

use crate::report::{fail, measure, must};
use crate::sys::{Aio, DIRECT, EINVAL, File, IoEvent, Iocb, sleep};

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Blocks that are written first, and then read.
const BLOCKS: usize = 4096;
/// Operations at once.
const DEPTH: usize = 32;

#[repr(C, align(4096))]
struct Buffers([[u8; BLOCK]; DEPTH]);

/// A row of numbers that seem random, the same each time (Numerical Recipes' constants).
struct Random(u32);

impl Random {
    fn block(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % BLOCKS
    }
}

fn disk() -> File {
    for _ in 0..200 {
        if let Ok(disk) = File::open(c"/dev/vda", DIRECT) {
            return disk;
        }
        sleep(10_000);
    }
    fail("no /dev/vda", 0)
}

/// A block says which it is at both its ends.
fn mark(bytes: &mut [u8; BLOCK], block: usize) {
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes[BLOCK - 8..].copy_from_slice(&(!block).to_le_bytes());
}

fn check(bytes: &[u8; BLOCK], block: usize) {
    if bytes[..8] != block.to_le_bytes() || bytes[BLOCK - 8..] != (!block).to_le_bytes() {
        fail("a block is not what was written", block);
    }
}

/// The rows.
pub fn run() {
    let file = disk();
    // SAFETY: this is called once, and nothing else uses it.
    let Buffers(buffers) = unsafe { &mut *{ &raw mut BUFFERS } };
    fill(file, buffers);
    let mut random = Random(12_345);
    measure::<9>("blk_read_4k_qd1", 64, || {
        for _ in 0..64 {
            let block = random.block();
            let buffer = &mut buffers[0];
            if must("pread", file.read_at(buffer, block * BLOCK)) != BLOCK {
                fail("a short read", block);
            }
            check(buffer, block);
        }
    });
    let aio = must("io_setup", Aio::new(2 * DEPTH));
    measure::<9>("blk_read_4k_qd32", 256, || {
        deep(file, &aio, buffers, &mut random, 256)
    });
    aio.destroy();
}

static mut BUFFERS: Buffers = Buffers([[0; BLOCK]; DEPTH]);

/// Writes all blocks.
fn fill(file: File, buffers: &mut [[u8; BLOCK]; DEPTH]) {
    for first in (0..BLOCKS).step_by(DEPTH) {
        for (i, buffer) in buffers.iter_mut().enumerate() {
            buffer.fill(0x5a);
            mark(buffer, first + i);
        }
        let bytes = buffers.as_flattened();
        if must("pwrite", file.write_at(bytes, first * BLOCK)) != bytes.len() {
            fail("a short write", first);
        }
    }
}

/// Reads `count` blocks with [`DEPTH`] reads under way as long as there are so many.
fn deep(
    file: File,
    aio: &Aio,
    buffers: &mut [[u8; BLOCK]; DEPTH],
    random: &mut Random,
    count: usize,
) {
    let mut operations = [Iocb::default(); DEPTH];
    let mut events = [IoEvent::default(); DEPTH];
    let mut begin = [core::ptr::null_mut::<Iocb>(); DEPTH];
    for (i, operation) in operations.iter_mut().enumerate() {
        operation.data = i as u64;
        operation.file = file.0 as u32;
        operation.buffer = buffers[i].as_mut_ptr() as u64;
        operation.bytes = BLOCK as u64;
        operation.offset = (random.block() * BLOCK) as u64;
        begin[i] = operation;
    }
    let (mut left, mut flying, mut next) = (count, 0, DEPTH);
    loop {
        // SAFETY: buffers and operations live until all events have come, and are looked at only behind theirs.
        if must("io_submit", unsafe { aio.submit(&begin[..next]) }) != next {
            fail("io_submit took some only", next);
        }
        flying += next;
        left -= next;
        if flying == 0 {
            return;
        }
        next = 0;
        loop {
            let n = must("io_getevents", aio.events(&mut events));
            flying -= n;
            for event in &events[..n] {
                let i = event.data as usize % DEPTH;
                if event.result != BLOCK as i64 {
                    fail("an asynchronous read", EINVAL);
                }
                check(&buffers[i], operations[i].offset as usize / BLOCK);
                if next < left {
                    operations[i].offset = (random.block() * BLOCK) as u64;
                    begin[next] = &mut operations[i];
                    next += 1;
                }
            }
            if next > 0 {
                break;
            }
            if flying == 0 {
                return;
            }
        }
    }
}
