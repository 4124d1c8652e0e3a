//! The log ring: records from the kernel and every server, one source number each.

use super::{Cap, Header, Pool, object};
use crate::mem::{Global, Obj};
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use ipc_schema::abi::{Kind, Status};

/// Bytes kept; a power of two.
const SIZE: usize = 1 << 16;
/// Longest record.
pub const RECORD: usize = 255;
/// Bytes, and records, that one `READ` copies at most.
const READ_BYTES: usize = 2048;
const READ_RECORDS: usize = 64;
/// Source number of the kernel.
pub const KERNEL: u8 = 0;

/// The ring. Positions count bytes since boot.
pub struct Ring {
    lock: AtomicBool,
    bytes: [Cell<u8>; SIZE],
    /// Position after the newest record.
    end: Cell<u64>,
    /// Position of the oldest record that is whole.
    start: Cell<u64>,
    /// Signalled when records are added.
    pub reader: Cell<Cap>,
}

/// The only one.
pub static RING: Global<Ring> = Global(Ring {
    lock: AtomicBool::new(false),
    bytes: [const { Cell::new(0) }; SIZE],
    end: Cell::new(0),
    start: Cell::new(0),
    reader: Cell::new(Cap::EMPTY),
});

/// What a Log capability names.
#[repr(C)]
pub struct LogObject {
    header: Header,
}
object!(LogObject, Kind::Log);

impl LogObject {
    /// The Log (boot).
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self { header })
    }
}

impl Ring {
    fn at(&self, position: u64) -> &Cell<u8> {
        &self.bytes[position as usize % SIZE]
    }

    /// Runs `f` while no other processor uses the ring. Interrupts are off; `f` waits for nothing.
    fn locked<T>(&self, f: impl FnOnce() -> T) -> T {
        while self.lock.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let answer = f();
        self.lock.store(false, Ordering::Release);
        answer
    }

    /// Adds a record {u16 length, u8 source, bytes}; the oldest make room.
    pub fn add(&self, source: u8, bytes: impl ExactSizeIterator<Item = u8> + Clone) {
        self.locked(|| {
            let len = bytes.len().min(RECORD);
            let need = len as u64 + 3;
            while self.end.get() + need - self.start.get() > SIZE as u64 {
                self.start
                    .set(self.start.get() + self.record(self.start.get()));
            }
            let head = [len as u8, (len >> 8) as u8, source];
            let record = head.into_iter().chain(bytes.take(len));
            crate::arch::debug_bytes(record.clone());
            for (p, b) in (self.end.get()..).zip(record) {
                self.at(p).set(b);
            }
            self.end.set(self.end.get() + need);
        });
    }

    /// Bytes of the record at a position.
    fn record(&self, p: u64) -> u64 {
        (u64::from(self.at(p).get()) | u64::from(self.at(p + 1).get()) << 8) + 3
    }

    /// Copies whole records from `position` on into `out`, word by word (number and contents; of the last one only the first bytes may
    /// count); answers the next position, the bytes lost, and the bytes copied. A bounded number: there may be more.
    pub fn read(
        &self,
        position: u64,
        room: usize,
        mut out: impl FnMut(usize, u64),
    ) -> (u64, u64, usize) {
        self.locked(|| {
            let from = position.clamp(self.start.get(), self.end.get());
            let most = from + room.min(READ_BYTES) as u64;
            let mut next = from;
            for _ in 0..READ_RECORDS {
                if next >= self.end.get() || next + self.record(next) > most {
                    break;
                }
                next += self.record(next);
            }
            let copied = (next - from) as usize;
            for i in 0..copied.div_ceil(8) {
                out(i, self.word(from + i as u64 * 8));
            }
            (next, from.saturating_sub(position), copied)
        })
    }

    /// Eight bytes from a position on.
    fn word(&self, position: u64) -> u64 {
        let i = position as usize % SIZE;
        let bytes = match self.bytes.get(i..).and_then(|b| b.first_chunk::<8>()) {
            Some(b) => b.each_ref().map(Cell::get),
            None => core::array::from_fn(|k| self.at(position + k as u64).get()),
        };
        u64::from_le_bytes(bytes)
    }
}
