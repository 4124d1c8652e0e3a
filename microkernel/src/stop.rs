//! A processor's part in a stop ([`crate::sync`]): it is asked to join one, joins it, runs errands meanwhile, and goes on when it has ended.

// From the crate's root, as in `mail` (`tests/stop.rs`).
use crate::atomic::{AtomicU32, Ordering, constant, spin_loop};

/// The part.
#[derive(Debug)]
pub struct Stop {
    /// The stop that it has been asked to join, and the one that it joined last.
    asked: AtomicU32,
    joined: AtomicU32,
    /// 1: while stopped, it is to run the errand.
    errand: AtomicU32,
}

impl Stop {
    constant! {
        /// The part of one that has joined all stops up to number `ended`.
        #[must_use]
        pub(crate) fn new(ended: u32) -> Self {
            Self { asked: AtomicU32::new(ended), joined: AtomicU32::new(ended), errand: AtomicU32::new(0) }
        }
    }

    /// It takes part from now on, after stop number `ended`. Nobody asks it for anything yet.
    pub fn begin(&self, ended: u32) {
        self.asked.store(ended, Ordering::Relaxed);
        self.joined.store(ended, Ordering::Relaxed);
    }

    /// It is to join stop `number`.
    pub fn ask(&self, number: u32) {
        self.asked.store(number, Ordering::Release);
    }

    /// Whether it has joined stop `number`, and so stands still.
    pub fn has_joined(&self, number: u32) -> bool {
        self.joined.load(Ordering::Acquire) == number
    }

    /// It, which stands still, is to run the errand.
    pub fn send(&self) {
        self.errand.store(1, Ordering::Release);
    }

    /// Whether it has.
    pub fn is_back(&self) -> bool {
        self.errand.load(Ordering::Acquire) == 0
    }

    /// The stop that it is to join, if any. For its own processor.
    pub fn wanted(&self) -> Option<u32> {
        let number = self.asked.load(Ordering::Acquire);
        (number != self.joined.load(Ordering::Relaxed)).then_some(number)
    }

    /// Stands still until stop `number` has `ended`, or a later one. For its own processor.
    pub fn join(&self, number: u32, ended: &AtomicU32, errand: impl Fn()) {
        self.joined.store(number, Ordering::Release);
        loop {
            if !self.is_back() {
                errand();
                self.errand.store(0, Ordering::Release);
            }
            // A later stop may have begun by the time that this one's end is seen.
            if ended.load(Ordering::Acquire).wrapping_sub(number) as i32 >= 0 {
                break;
            }
            spin_loop();
        }
    }
}
