//! `mkimage KERNEL RAMDISK OUT bios|uefi`: makes one bootable disk image out of a kernel ELF
//! and a boot archive.
//!
//! Job: the only code that links the `bootloader` crate's image builder. Place: built and called
//! by xtask, kept in the user's cache folder. Trust: it runs on the developer's machine.
use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use bootloader::{BootConfig, DiskImageBuilder};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, ramdisk, out, kind] = args.as_slice() else {
        bail!("usage: mkimage KERNEL RAMDISK OUT bios|uefi");
    };
    let mut builder = DiskImageBuilder::new(PathBuf::from(kernel));
    builder.set_ramdisk(PathBuf::from(ramdisk));
    // Warnings only: the loader writes to the same serial port that becomes the terminal.
    let mut config = BootConfig::default();
    config.log_level = bootloader_boot_config::LevelFilter::Warn;
    builder.set_boot_config(&config);
    let out = PathBuf::from(out);
    match kind.as_str() {
        "bios" => builder.create_bios_image(&out),
        "uefi" => builder.create_uefi_image(&out),
        other => bail!("`{other}` is not an image kind; use bios or uefi"),
    }
    .with_context(|| format!("making the {kind} image {}", out.display()))
}
