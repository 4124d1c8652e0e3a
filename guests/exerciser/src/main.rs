//! exerciser: the test guest that takes every exit kind of its hypervisor and checks what comes
//! back.
//!
//! One line a case on the serial line: `PASS name`, `FAIL name: why` or `SKIP name: why`; then
//! `EXERCISER n passed, m failed`; then 0 or 1 to the debug-exit port 0xf4. What the command
//! line may say is in [`exerciser::cmdline`]; the modes are in `modes.rs`.
//!
//! Cases that only Vireo can pass (its CPUID signature, its MSR policy, ...) are skipped where
//! CPUID does not name it; everything else must pass under plain QEMU as well.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod cases;
#[cfg(target_os = "none")]
mod check;
#[cfg(target_os = "none")]
mod modes;

#[cfg(not(target_os = "none"))]
fn main() {}

/// The program: a mode, or all cases that the command line selects.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
fn guest_main(info: &exerciser::boot::BootInfo) -> ! {
    use exerciser::{clock, cpu, say};

    let line = info.command_line;
    say!(
        "EXERCISER starts: {}, {}, tsc {} kHz, command line \"{}\"",
        info.protocol,
        if cpu::on_vireo() {
            "Vireo"
        } else {
            "not Vireo"
        },
        clock::hz() / 1000,
        line.0
    );
    modes::enter(info);
    let failed = check::run_all(info);
    cpu::exit(u32::from(failed > 0))
}
