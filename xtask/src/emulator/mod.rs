//! Boots an image in an emulator, talks to its serial port, decodes its log.
//!
//! Job: what `run`, `bench` and the whole-system tests drive a machine with. Place: on top of
//! `build`. Trust: the machine's output is data; patterns and decoders must survive any bytes.

pub mod bochs;
pub mod exit;
pub mod gdb;
pub mod log;
pub mod machine;
pub mod options;
pub mod process;
pub mod qemu;
pub mod records;
pub mod script;
pub mod symbols;
pub mod terminal;

pub use exit::Exit;
pub use machine::Machine;
pub use options::{Emulator, Options};
