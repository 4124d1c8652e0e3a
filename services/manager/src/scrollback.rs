//! What a VM printed while nobody looked.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Bytes kept for a VM.
const KEPT: usize = 8192;

/// The last bytes, and how many older ones were dropped.
#[derive(Clone, Debug, Default)]
pub struct Scrollback {
    bytes: VecDeque<u8>,
    dropped: u64,
}

impl Scrollback {
    /// Appends; drops the oldest bytes beyond the limit.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(KEPT);
        self.bytes.drain(..excess);
        self.dropped += excess as u64;
    }

    /// Takes all, with the number of bytes that were dropped before them.
    pub fn take(&mut self) -> (u64, Vec<u8>) {
        let dropped = core::mem::take(&mut self.dropped);
        (dropped, core::mem::take(&mut self.bytes).into())
    }
}
