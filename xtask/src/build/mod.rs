//! From sources to a bootable image.
//!
//! Job: compile the bare-metal crates, flatten root, pack the boot archive, make the disk image.
//! Place: between `setup` and `emulator`. Trust: everything here runs on the developer's machine.

pub mod bare;
pub mod cpio;
pub mod elf;
pub mod image;
mod second_disk;
