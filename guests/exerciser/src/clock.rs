//! Time: the TSC, its frequency measured against the ACPI PM timer (or PIT channel 2).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::cpu::{inl, tsc};
use crate::legacy;

/// The PM timer's clock in Hz (ACPI 6.5 §4.8.3.3).
pub const PM_HZ: u64 = 3_579_545;

static HZ: AtomicU64 = AtomicU64::new(1_000_000_000);
static PM_PORT: AtomicU64 = AtomicU64::new(0);

/// TSC ticks a second.
pub fn hz() -> u64 {
    HZ.load(Relaxed)
}

/// TSC ticks in that many microseconds.
pub fn micros(count: u64) -> u64 {
    hz() / 1000 * count / 1000
}

/// The PM timer's 24 bits, if the machine has one.
pub fn pm() -> Option<u32> {
    match PM_PORT.load(Relaxed) as u16 {
        0 => None,
        port => Some(inl(port) & 0xff_ffff),
    }
}

/// Ticks from `start` to `end` of the PM timer.
pub fn pm_since(start: u32, end: u32) -> u32 {
    end.wrapping_sub(start) & 0xff_ffff
}

/// Polls `condition` for at most `millis` ms; whether it came true.
pub fn wait_for(millis: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = tsc() + micros(millis * 1000);
    loop {
        if condition() {
            return true;
        }
        if tsc() > end {
            return condition();
        }
        // An emulator that counts instructions stops at each `pause`, as at each look at the time: seldom, for that is slow, and not
        // never, for there it gives the other processors their turn, else only every tenth of a second.
        (0..64).map(core::hint::black_box).for_each(drop);
        core::hint::spin_loop();
    }
}

/// The same with interrupts let in between.
pub fn wait_open(millis: u64, mut condition: impl FnMut() -> bool) -> bool {
    wait_for(millis, || {
        crate::cpu::open_window();
        condition()
    })
}

/// Measures the TSC over 10 ms of the PM timer at `pm_port`, or of the PIT where that does not
/// run.
pub(crate) fn init(pm_port: u16) {
    PM_PORT.store(u64::from(pm_port), Relaxed);
    if let Some(first) = pm() {
        let start = tsc();
        for _ in 0..10_000_000u32 {
            let ticks = u64::from(pm_since(first, pm().unwrap_or(first)));
            if ticks >= PM_HZ / 100 {
                HZ.store((tsc() - start) * PM_HZ / ticks, Relaxed);
                return;
            }
        }
        PM_PORT.store(0, Relaxed);
    }
    legacy::pit2_start((legacy::PIT_HZ / 100) as u16);
    let start = tsc();
    for _ in 0..10_000_000u32 {
        if legacy::pit2_done() {
            HZ.store((tsc() - start) * 100, Relaxed);
            return;
        }
    }
}
