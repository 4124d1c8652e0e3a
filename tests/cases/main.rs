//! Whole systems in an emulator: booted, driven by their terminal, judged by what they say.
//!
//! `cargo xtask test FILTER` runs those whose name contains FILTER. One emulator runs at a time.

mod bochs;
mod conformance;
mod errors;
mod exerciser;
mod hardening;
mod hostile;
mod isolation;
mod lifetimes;
mod linux;
mod secrets;
mod server_death;
mod smp;
mod time;
mod two_vms;
