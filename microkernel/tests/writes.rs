//! The sequence lock of capability tables under every interleaving of writers and a reader, on the model checker's atomics.

/// In place of the kernel's.
mod atomic {
    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{AtomicU32, Ordering, fence};
    macro_rules! constant {
        ($(#[$m:meta])* $v:vis fn $($rest:tt)*) => { $(#[$m])* $v fn $($rest)* };
    }
    pub(crate) use constant;
}
#[path = "../src/writes.rs"]
mod writes;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::thread;
use writes::Writes;

/// A slot: words that belong together, read and written one by one.
struct Slot {
    writes: Writes,
    words: [AtomicU64; 2],
}

impl Slot {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            writes: Writes::default(),
            words: Default::default(),
        })
    }
    fn write(&self, value: u64) {
        self.writes
            .write(|| self.words.iter().for_each(|w| w.store(value, Relaxed)));
    }
    fn read(&self) -> [u64; 2] {
        self.writes
            .read(|| [0, 1].map(|i| self.words[i].load(Relaxed)))
    }
}

/// What is read was written at one time.
#[test]
fn no_reader_sees_half_a_capability() {
    loom::model(|| {
        let slot = Slot::new();
        let writer = {
            let slot = slot.clone();
            thread::spawn(move || slot.write(1))
        };
        let [a, b] = slot.read();
        assert_eq!(a, b);
        writer.join().unwrap();
        assert_eq!(slot.read(), [1, 1]);
    });
}

/// Two writers write one after the other, whatever a reader does.
#[test]
fn writers_take_turns() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    // Who waits for the lock looks again and again.
    model.max_branches = 50_000;
    model.check(|| {
        let slot = Slot::new();
        let writers = [1, 2].map(|value| {
            let slot = slot.clone();
            thread::spawn(move || slot.write(value))
        });
        let [a, b] = slot.read();
        assert_eq!(a, b);
        writers.into_iter().for_each(|w| w.join().unwrap());
        let [a, b] = slot.read();
        assert!(a == b && a != 0);
    });
}
