//! Makes a fresh machine ready: Debian packages, the bare-metal toolchain, the image maker, guests.
//!
//! Job: each thing is asked for by the module that needs it, and installed once. Place: under
//! `build` and `emulator`. Trust: installs only from Debian's and Rust's registries, by their
//! ordinary clients; has rustup install nothing.

pub mod apt;
pub mod debian;
pub mod fuzzing;
pub mod guests;
pub mod image_maker;
pub mod toolchain;
