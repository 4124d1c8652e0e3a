//! defmt's global logger: one raw frame is one record of the Log.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::abi::layout::slot;
use crate::object::log::{Log, MAX_RECORD};
use crate::time;

/// Which Log capability records go through.
static SLOT: AtomicU32 = AtomicU32::new(slot::LOG);

/// Sends further records through another Log capability. Root needs it, whose own is made by itself.
pub fn use_slot(log: u32) {
    SLOT.store(log, Ordering::Relaxed);
}

struct Frame {
    open: bool,
    too_long: bool,
    len: usize,
    encoder: defmt::Encoder,
    bytes: [u8; MAX_RECORD],
}

struct Cell(UnsafeCell<Frame>);

// SAFETY: servers log from their first thread only (the contract of `Thread::start`).
unsafe impl Sync for Cell {}

static FRAME: Cell = Cell(UnsafeCell::new(Frame {
    open: false,
    too_long: false,
    len: 0,
    encoder: defmt::Encoder::new(),
    bytes: [0; MAX_RECORD],
}));

impl Frame {
    fn put(to: &mut [u8; MAX_RECORD], len: &mut usize, too_long: &mut bool, bytes: &[u8]) {
        match to
            .get_mut(*len..)
            .and_then(|free| free.get_mut(..bytes.len()))
        {
            Some(free) => {
                free.copy_from_slice(bytes);
                *len += bytes.len();
            }
            None => *too_long = true,
        }
    }
}

#[defmt::global_logger]
struct Logger;

// SAFETY: there is one thread, so that `acquire` excludes by a flag; `write` and `release` come between as defmt
// promises. A frame is left open only by a panic within a `Format`, after which `abandon` is called.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        // SAFETY: single thread, and no other reference is alive outside these four functions.
        let frame = unsafe { &mut *FRAME.0.get() };
        if frame.open {
            // A `Format` that logs: defmt forbids it.
            crate::rt::abort();
        }
        frame.open = true;
        frame.too_long = false;
        frame.len = 0;
        let Frame {
            encoder,
            bytes,
            len,
            too_long,
            ..
        } = frame;
        encoder.start_frame(|b| Frame::put(bytes, len, too_long, b));
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: as in `acquire`.
        let frame = unsafe { &mut *FRAME.0.get() };
        let Frame {
            encoder,
            bytes,
            len,
            too_long,
            ..
        } = frame;
        encoder.end_frame(|b| Frame::put(bytes, len, too_long, b));
        frame.open = false;
        if frame.too_long {
            defmt::error!(
                "a log record longer than {=usize} bytes is lost",
                MAX_RECORD
            );
        } else if let Some(record) = frame.bytes.get(..frame.len) {
            // A record that cannot be written has nowhere to be reported.
            let _ = Log(SLOT.load(Ordering::Relaxed)).write(record);
        }
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: as in `acquire`.
        let frame = unsafe { &mut *FRAME.0.get() };
        let Frame {
            encoder,
            bytes: to,
            len,
            too_long,
            ..
        } = frame;
        encoder.write(bytes, |b| Frame::put(to, len, too_long, b));
    }
}

/// Gives up a frame that a panic has left open.
pub(crate) fn abandon() {
    // SAFETY: as in `Logger::acquire`; the code that had the frame open does not come back from its panic.
    unsafe { (*FRAME.0.get()).open = false };
}

defmt::timestamp!("{=u64:us}", time::microseconds(time::now()));
