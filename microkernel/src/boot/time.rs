//! How fast the TSC and the APIC timer run.

use crate::arch::{apic, cpuid, now, port_in, port_out};

/// The PIT's frequency in Hz.
const PIT_HZ: u64 = 1_193_182;
/// Ticks of the PIT that are measured: 50 ms.
const TICKS: u64 = 59_659;

/// Starts the local APIC; answers the TSC's frequency in Hz and where it comes from (1 CPUID, 2 PIT).
pub fn calibrate() -> (u64, u32) {
    // The PICs: every input masked, vectors out of the way of exceptions for spurious ones (8259A data sheet).
    for (first, [command, data]) in [(0xe0, [0x20, 0x21]), (0xe8, [0xa0, 0xa1])] {
        port_out(command, 1, 0x11);
        for value in [first, if command == 0x20 { 4 } else { 2 }, 1, 0xff] {
            port_out(data, 1, value);
        }
    }
    apic::init();
    // Channel 2, gate on, speaker off, mode 0 (output rises at the end of the count; Intel 8254 data sheet).
    port_out(0x61, 1, (port_in(0x61, 1) & !2) | 1);
    port_out(0x43, 1, 0xb0);
    port_out(0x42, 1, TICKS & 0xff);
    port_out(0x42, 1, TICKS >> 8);
    let cycles = apic::calibrate(|| {
        let start = now();
        while port_in(0x61, 1) & 0x20 == 0 {
            // A port is slow to read, and slowest in an emulator: a microsecond in 50,000 between two looks is near enough.
            (0..256).map(core::hint::black_box).for_each(drop);
        }
        now() - start
    });
    // Core crystal clock, times its ratio to the TSC (Intel SDM vol. 3, 18.7.3).
    let told = cpuid(0x15);
    let hz = u64::from(told.ecx) * u64::from(told.ebx) / u64::from(told.eax.max(1));
    if hz > 100_000_000 {
        (hz, 1)
    } else {
        (cycles * PIT_HZ / TICKS, 2)
    }
}
