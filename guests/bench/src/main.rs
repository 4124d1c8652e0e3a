//! guest-bench: what each kind of exit costs the guest, in ticks of its own TSC.
//!
//! Place: a VM of its own under Vireo, in 64-bit mode with paging on; with the emulator's
//! `-icount shift=0` a tick is an instruction, the hypervisor's included. Each row is 1,000
//! samples with the cost of an empty loop (the same pair of RDTSC) taken off:
//! `BENCH name instructions min median max`, or `SKIP name: why`; at the end `BENCH-END` and 0
//! to the debug-exit port. `only=` and `skip=` on the command line choose rows.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod measure;
#[cfg(target_os = "none")]
mod rows;

#[cfg(not(target_os = "none"))]
fn main() {}

/// The program: all rows that the command line selects.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
fn guest_main(info: &exerciser::boot::BootInfo) -> ! {
    use exerciser::{cpu, say};

    say!(
        "BENCH-START {}",
        if cpu::on_vireo() {
            "Vireo"
        } else {
            "not Vireo"
        }
    );
    rows::run(info.command_line);
    say!("BENCH-END");
    cpu::exit(0)
}
