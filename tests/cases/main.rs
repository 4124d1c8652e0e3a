//! Whole systems in an emulator: booted, driven by their terminal, judged by what they say.
//!
//! `cargo xtask test FILTER` runs those whose name contains FILTER. One emulator runs at a time.

mod errors;
mod exerciser;
mod hardening;
mod isolation;
mod linux;
mod server_death;
mod two_vms;
