//! Whole systems in an emulator: booted, driven by their terminal, judged by what they say.
//!
//! `cargo xtask test FILTER` runs those whose name contains FILTER. Emulators run side by side, each with the processors of the
//! host that it needs.

mod bochs;
mod conformance;
mod consoles;
mod debian;
mod disks;
mod errors;
mod exerciser;
mod hardening;
mod hostile;
mod intx;
mod isolation;
mod lifetimes;
mod linux;
mod net;
mod others;
mod second_disk;
mod secrets;
mod server_death;
mod smp;
mod soak;
mod stale;
mod time;
mod two_vms;
mod virtio;
