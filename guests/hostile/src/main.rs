//! guest-hostile: exits at random, of every kind that a guest can cause.
//!
//! Ports, MMIO, MSRs, CPUID leaves, control and debug registers, page tables, the APIC, SVM and VMX instructions, and instruction
//! bytes that mean nothing. Its own handlers catch what comes of it, and a timer ends what would not end; when it breaks itself all
//! the same, its VM ends and may be started again. Its machine must not notice.
//!
//! Command line: `seed=N` (decimal or 0x; else from the TSC), `acts=N` (0: for ever), `end=triple-fault` (else the debug-exit
//! port). The first line says the seed; the same seed makes the same acts.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod acts;
#[cfg(target_os = "none")]
mod tables;

#[cfg(not(target_os = "none"))]
fn main() {}

/// Acts between two lines that say what has been done: a VM may end at any of them.
#[cfg(target_os = "none")]
const REPORT: u64 = 32;

/// The program.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
fn guest_main(info: &exerciser::boot::BootInfo) -> ! {
    use exerciser::{cpu, idt, say, serial};

    let line = info.command_line;
    let number = |key| line.value(key).and_then(acts::number);
    let seed = number("seed").unwrap_or_else(cpu::tsc);
    say!("HOSTILE-GUEST seed {seed:#x} on {}", info.protocol);
    let mut guest = acts::Guest::new(seed);
    let most = number("acts").unwrap_or(0);
    let mut count = 0u64;
    while most == 0 || count < most {
        guest.act();
        count += 1;
        if count.is_multiple_of(REPORT) {
            say!(
                "HOSTILE-GUEST seed {seed:#x}: {count} acts: {}",
                guest.report()
            );
        }
    }
    say!(
        "HOSTILE-GUEST seed {seed:#x}: {count} acts: {}, all",
        guest.report()
    );
    if line.value("end") == Some("triple-fault") {
        serial::drain();
        idt::load(0);
        // SAFETY: ends the machine, which is the point.
        unsafe { core::arch::asm!("ud2", options(noreturn)) }
    }
    cpu::exit(0)
}
