//! What the fuzz targets share: bytes read as values, and the entry points that libFuzzer calls.
//!
//! Job: one target for each parser of outside input, and one over the kernel's pure part. Place: built and run by
//! `cargo xtask fuzz`, with a sanitizer; the layout is cargo-fuzz's, so that works too. Trust: nothing here ships.
//!
//! A target judges more than "no panic": whatever a parser accepts must hold what the parser promises (round trips,
//! ranges inside the buffer, nothing written outside its place), and a wrong answer is a panic like any other.

pub use libfuzzer_sys;

pub mod virtio;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The input, read from its front as whatever a target needs; zeroes when it is used up.
#[derive(Clone)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// True when nothing is left: the end of a stream of steps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes, or what is left of them.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let got = self.take(N);
        out[..got.len()].copy_from_slice(got);
        out
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }
    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }
    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
    /// True or false.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }
    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        let raw = if end <= 256 {
            self.u8().into()
        } else {
            self.u16().into()
        };
        let raw: usize = raw;
        raw % end
    }
    /// One of `all`, which is not empty.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
    /// A width of an access: 1, 2 or 4, and 8 if `wide`.
    pub fn width(&mut self, wide: bool) -> u8 {
        1 << self.below(if wide { 4 } else { 3 })
    }
    /// A number of any magnitude: small ones, large ones and those near a power of two are all likely.
    pub fn number(&mut self) -> u64 {
        let how = self.u8();
        let shift = u32::from(how & 63);
        match how >> 6 {
            0 => self.u8().into(),
            1 => u64::from(self.u8()) << shift,
            2 => (1u64 << shift).wrapping_sub(u64::from(self.u8())),
            _ => self.u64(),
        }
    }
}

/// Writes seeds into the folder that `cargo xtask fuzz` names; called before libFuzzer reads its corpus.
pub fn write_seeds(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(dir) = std::env::var_os("VIREO_FUZZ_SEEDS") else {
        return;
    };
    for (i, seed) in seeds().iter().enumerate() {
        let path = Path::new(&dir).join(format!("seed-{i:02}"));
        // A corpus that cannot be written is told by libFuzzer, which cannot read it either.
        let _ = std::fs::write(path, seed);
    }
}

/// Declares a target: `target!(run)` or `target!(run, seeds)`, with `fn run(&[u8])` and `fn seeds() -> Vec<Vec<u8>>`.
#[macro_export]
macro_rules! target {
    ($run:path) => {
        $crate::target!($run, Vec::new);
    };
    ($run:path, $seeds:path) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::write_seeds($seeds), |data: &[u8]| {
            $run(data);
        });
    };
}

/// The 64-bit words of a shared page, as the hostile peer who has it mapped writes them.
///
/// # Panics
/// When `T` is no page.
#[must_use]
pub fn words<T: SharedPage>(page: &T) -> &[AtomicU64; 512] {
    const { assert!(size_of::<T>() >= 4096 && align_of::<T>() == 4096) };
    // SAFETY: a `SharedPage` is 4096 bytes of atomics or more, and nothing else (the trait's promise), so any of its bytes may be
    // read and written through other atomics of the same page; one thread does both.
    unsafe { &*std::ptr::from_ref(page).cast() }
}

/// A page that another protection domain has mapped too.
///
/// # Safety
/// The type consists of atomic integers only, without padding.
pub unsafe trait SharedPage {}
// SAFETY: its definition in ipc-schema: atomics only, and its size is asserted there.
unsafe impl SharedPage for ipc_schema::ring::RingPage {}
// SAFETY: as above.
unsafe impl SharedPage for ipc_schema::interrupt_page::InterruptPage {}
// SAFETY: as above.
unsafe impl SharedPage for ipc_schema::state_page::StatePage {}
// SAFETY: as above.
unsafe impl SharedPage for ipc_schema::link::LinkPage {}
// SAFETY: as above; it is longer.
unsafe impl SharedPage for ipc_schema::disk::Channel {}

/// One word of a shared page is overwritten, as a hostile peer would.
pub fn scribble<T: SharedPage>(page: &T, bytes: &mut Bytes<'_>) {
    // The first words are the interesting ones in every kind of page.
    let at = if bytes.flag() {
        bytes.below(32)
    } else {
        bytes.below(512)
    };
    let cell = &words(page)[at];
    let old = cell.load(Ordering::Relaxed);
    let value = bytes.number();
    cell.store(
        if bytes.flag() { old ^ value } else { value },
        Ordering::Relaxed,
    );
}
