//! How fast the TSC and the APIC timer run.

use crate::arch::{apic, now, port_in, port_out};

/// The PIT's frequency in Hz.
const PIT_HZ: u64 = 1_193_182;
/// Ticks of the PIT that are measured: 50 ms.
const TICKS: u64 = 59_659;

/// Starts the local APIC; answers the TSC's frequency in Hz and where it comes from (1 CPUID, 2 PIT).
pub fn calibrate() -> (u64, u32) {
    quiet_pic();
    apic::init();
    // Channel 2, gate on, speaker off, mode 0 (output rises at the end of the count; Intel 8254 data sheet).
    port_out(0x61, 1, (port_in(0x61, 1) & !2) | 1);
    port_out(0x43, 1, 0xb0);
    port_out(0x42, 1, TICKS & 0xff);
    port_out(0x42, 1, TICKS >> 8);
    apic::start_counting();
    let start = now();
    while port_in(0x61, 1) & 0x20 == 0 {
        core::hint::spin_loop();
    }
    let cycles = now() - start;
    let ticks = u64::from(apic::stop_counting());
    apic::set_rate(ticks, cycles);
    let id = raw_cpuid::CpuId::new();
    match id
        .get_tsc_info()
        .and_then(|t| t.tsc_frequency())
        .filter(|&f| f > 100_000_000)
    {
        Some(hz) => (hz, 1),
        None => (cycles * PIT_HZ / TICKS, 2),
    }
}

/// The PICs: every input masked, vectors out of the way of exceptions for spurious ones (8259A data sheet).
fn quiet_pic() {
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, 0xe0),
        (0xa1, 0xe8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xff),
        (0xa1, 0xff),
    ] {
        port_out(port, 1, value);
    }
}
