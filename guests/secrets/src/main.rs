//! guest-secrets: plants values in every register that it has, and looks whether it ever sees another guest's.
//!
//! Two VMs run it with different `key=N` (1 to 255). Each word that it plants names its key and its register, so that a word of the
//! other's, wherever it turns up, is known for what it is: `LEAK key K: NAME has V`. What it planted must also still be there after
//! any number of switches: `LOST key K: NAME has V`. At its start, before it writes anything, it looks for what an earlier guest on this
//! processor may have left. That the search works it shows on itself: `SECRETS key K: self-test N` is the number of its own words
//! that the same search finds once they are planted.
//!
//! It also is the live VM of the hostile tests: 4 MiB of its memory hold a pattern that must stay, and its clocks must go on
//! (`LOST key K: memory` and `clock`).
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod registers;

#[cfg(not(target_os = "none"))]
fn main() {}

/// The program.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
fn guest_main(info: &exerciser::boot::BootInfo) -> ! {
    use exerciser::{clock, cpu, say};
    use registers::Secrets;

    let key = info.command_line.value("key").and_then(|k| k.parse().ok());
    let key: u8 = key.unwrap_or(1);
    let mut secrets = Secrets::new(key);
    say!("SECRETS key {key}: {} registers at start", secrets.look());
    exerciser::serial::drain();
    secrets.plant();
    say!("SECRETS key {key}: self-test {}", secrets.own());
    memory::fill(key);
    let mut rounds = 0u64;
    let mut before = (cpu::tsc(), clock::pm().unwrap_or(0));
    loop {
        for leaf in 0..8 {
            cpu::cpuid(leaf, 0);
            cpu::inb(0x61);
        }
        // Long enough for the other to run in between.
        clock::wait_for(1 + rounds % 4, || false);
        secrets.look();
        secrets.kept();
        if let Some(address) = memory::changed(key, rounds) {
            secrets.lost += 1;
            say!("LOST key {key}: memory at {address:#x}");
        }
        let now = (cpu::tsc(), clock::pm().unwrap_or(0));
        if now.0 <= before.0 || now.1 == before.1 {
            secrets.lost += 1;
            say!("LOST key {key}: clock {before:?} to {now:?}");
        }
        before = now;
        rounds += 1;
        if rounds.is_multiple_of(16) {
            say!(
                "SECRETS key {key}: {rounds} rounds, {} leaks, {} lost",
                secrets.leaks,
                secrets.lost
            );
        }
    }
}
