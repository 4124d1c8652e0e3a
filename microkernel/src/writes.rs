//! A sequence lock: processors that write what others read without a lock.

// From the crate's root, as in `mail` (`tests/writes.rs`).
use crate::atomic::{AtomicU32, Ordering, constant, fence, spin_loop};

/// Lets one processor at a time write a capability table, and readers notice: odd while written.
#[derive(Debug)]
pub struct Writes(AtomicU32);

impl Writes {
    constant! {
        /// Nobody writes.
        #[must_use]
        pub(crate) fn new() -> Self { Self(AtomicU32::new(0)) }
    }

    /// Writes, as the only one. `write` is a few words long.
    pub fn write(&self, write: impl FnOnce()) {
        let mut n = self.0.load(Ordering::Relaxed);
        while n & 1 != 0
            || self
                .0
                .compare_exchange(n, n.wrapping_add(1), Ordering::Acquire, Ordering::Relaxed)
                .is_err()
        {
            spin_loop();
            n = self.0.load(Ordering::Relaxed);
        }
        // Whoever sees a word that is written from here on sees the odd number.
        fence(Ordering::Release);
        write();
        self.0.store(n.wrapping_add(2), Ordering::Release);
    }

    /// What `read` reads while nobody writes.
    pub fn read<T>(&self, mut read: impl FnMut() -> T) -> T {
        loop {
            let before = self.0.load(Ordering::Acquire);
            let value = read();
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.0.load(Ordering::Relaxed) == before {
                return value;
            }
            spin_loop();
        }
    }
}

impl Default for Writes {
    fn default() -> Self {
        Self::new()
    }
}
