//! Words on standard output, and figures.

use core::fmt::{self, Write};

use crate::sys::{self, Errno, File};

struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            let n = File(1).write(bytes).map_err(|_| fmt::Error)?;
            bytes = bytes.get(n..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Says a line.
pub fn say(text: fmt::Arguments<'_>) {
    let _ = Out.write_fmt(format_args!("{text}\n"));
}

/// Says what went wrong, and ends the guest.
pub fn fail(what: &str, error: Errno) -> ! {
    say(format_args!("COSTS-FAIL {what}: error {error}"));
    sys::sleep(20_000);
    sys::power_off()
}

/// Takes a result, or [`fail`]s.
pub fn must<T>(what: &str, result: Result<T, Errno>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => fail(what, error),
    }
}

/// Measures a batch of `ops` operations `N` times after one that counts for nothing, and says what an operation costs: least, median
/// and most of the batches.
pub fn measure<const N: usize>(name: &str, ops: u64, mut batch: impl FnMut()) {
    let mut figures = [0; N];
    mark();
    batch();
    for figure in &mut figures {
        let before = sys::tsc();
        batch();
        *figure = sys::tsc().wrapping_sub(before) / ops;
    }
    mark();
    figures.sort_unstable();
    let (min, median, max) = (figures[0], figures[N / 2], figures[N - 1]);
    say(format_args!(
        "BENCH {name} instructions {min} {median} {max}"
    ));
}

/// What xtask finds again in the emulator's record of exits: a row of CPUIDs (`EXECUTED` of its `exits.rs`).
fn mark() {
    for _ in 0..79 {
        core::hint::black_box(core::arch::x86_64::__cpuid(0));
    }
}
