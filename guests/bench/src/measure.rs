//! Samples, how one is taken, and their report.

use core::cell::UnsafeCell;

use exerciser::say;
use exerciser::stats::summarise;

/// Samples of a row.
pub const SAMPLES: usize = 1000;
/// Runs before the first sample, so that caches of all kinds are warm.
const WARM_UP: usize = 16;

struct Samples(UnsafeCell<[u64; SAMPLES]>);
// SAFETY: borrowed by `sample` alone, which the main flow calls and which does not nest.
unsafe impl Sync for Samples {}
static TAKEN: Samples = Samples(UnsafeCell::new([0; SAMPLES]));

/// Where a debugger finds the sample that it traces (`cargo xtask bench --trace`): called before it with the hash of the
/// row's name, and after it with 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bench_trace(row: u64) {
    core::hint::black_box(row);
}

/// FNV-1a, 64 bits: a row's name in a register.
fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Takes the samples and hands them over. One loop, so that there is one copy of the code that is measured: what a VMM
/// remembers of an instruction by its place is the same in every round, the traced one too.
fn sample(name: &str, mut take: impl FnMut() -> u64) -> &'static mut [u64; SAMPLES] {
    // SAFETY: see above; every caller is done with the last borrow.
    let samples = unsafe { &mut *TAKEN.0.get() };
    for round in 0..WARM_UP + SAMPLES {
        let traced = round == WARM_UP + SAMPLES / 2;
        if traced {
            bench_trace(name_hash(name));
        }
        let took = take();
        // Else the compiler would make a copy of the round for the one that is traced.
        if core::hint::black_box(traced) {
            bench_trace(0);
        }
        if let Some(place) = round.checked_sub(WARM_UP).and_then(|i| samples.get_mut(i)) {
            *place = took;
        }
    }
    samples
}

/// The least that `take` gives: for the empty loop.
pub fn least(take: impl FnMut() -> u64) -> u64 {
    summarise(sample("", take), 0).map_or(0, |summary| summary.min)
}

/// Measures and reports a row; `empty` comes off each sample.
pub fn row(name: &str, empty: u64, take: impl FnMut() -> u64) {
    if let Some(found) = summarise(sample(name, take), empty) {
        say!(
            "BENCH {name} instructions {} {} {}",
            found.min,
            found.median,
            found.max
        );
    }
}

/// What a timed piece of code finds in its registers.
#[derive(Clone, Copy, Default)]
pub struct Given {
    /// In EAX.
    pub eax: u32,
    /// In ECX.
    pub ecx: u32,
    /// In EDX.
    pub edx: u32,
    /// In RDI.
    pub rdi: u64,
}

/// Joins EDX:EAX.
pub fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Takes the time of one piece of code between two RDTSC: (TSC before, TSC after). The code may
/// change RAX, RBX, RCX and RDX; loading its registers is part of the time, as it is of the
/// empty loop's.
macro_rules! timed {
    ($given:expr, $($code:literal),*) => {{
        let given: $crate::measure::Given = $given;
        let (low, high, first_low, first_high): (u32, u32, u32, u32);
        // SAFETY: every piece of code here leaves memory alone, but for device registers, and
        // changes the registers named below only.
        unsafe {
            core::arch::asm!(
                "mov r11, rbx",
                "rdtsc",
                "mov r9d, eax",
                "mov r13d, edx",
                "mov eax, r8d",
                "mov ecx, r10d",
                "mov edx, r12d",
                $($code,)*
                "rdtsc",
                "mov rbx, r11",
                in("r8") given.eax,
                in("r10") given.ecx,
                in("r12") given.edx,
                in("rdi") given.rdi,
                out("eax") low,
                out("edx") high,
                out("ecx") _,
                out("r9") first_low,
                out("r13") first_high,
                out("r11") _,
                options(nostack),
            );
        }
        ($crate::measure::join(first_low, first_high), $crate::measure::join(low, high))
    }};
}
pub(crate) use timed;

/// TSC ticks between the two RDTSC of [`timed`].
macro_rules! ticks {
    ($($argument:tt)*) => {{
        let (before, after) = $crate::measure::timed!($($argument)*);
        after.wrapping_sub(before)
    }};
}
pub(crate) use ticks;
