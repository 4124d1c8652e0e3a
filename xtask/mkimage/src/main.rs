//! `mkimage KERNEL RAMDISK OUT bios` and `mkimage KERNEL RAMDISK OUT uefi STAGE`: one bootable disk
//! image out of a kernel ELF and a boot archive.
//!
//! Job: the only code that links the `bootloader` crate's image builder (BIOS); the UEFI image is
//! our own, around our own stage (`uefi/`). Place: built and called by xtask, kept in the user's
//! cache folder. Trust: it runs on the developer's machine.

mod gpt;

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{bail, Context, Result};
use bootloader::{BootConfig, DiskImageBuilder};

const MIB: u64 = 1 << 20;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let made = match args.as_slice() {
        [kernel, ramdisk, out, "bios"] => bios(kernel, ramdisk, out),
        [kernel, ramdisk, out, "uefi", stage] => uefi(kernel, ramdisk, out, stage),
        _ => bail!("usage: mkimage KERNEL RAMDISK OUT (bios | uefi STAGE)"),
    };
    made.context("making the disk image")
}

fn bios(kernel: &str, ramdisk: &str, out: &str) -> Result<()> {
    let mut builder = DiskImageBuilder::new(PathBuf::from(kernel));
    builder.set_ramdisk(PathBuf::from(ramdisk));
    // Warnings only: the loader writes to the same serial port that becomes the terminal.
    let mut config = BootConfig::default();
    config.log_level = bootloader_boot_config::LevelFilter::Warn;
    builder.set_boot_config(&config);
    builder.create_bios_image(Path::new(out))
}

/// A GPT disk with one EFI system partition.
fn uefi(kernel: &str, ramdisk: &str, out: &str, stage: &str) -> Result<()> {
    let files = [
        ("efi/boot/bootx64.efi", stage),
        ("kernel-x86_64", kernel),
        ("ramdisk", ramdisk),
    ];
    let mut contents = Vec::new();
    for (name, path) in files {
        contents.push((
            name,
            fs::read(path).with_context(|| format!("reading {path}"))?,
        ));
    }
    let bytes: u64 = contents.iter().map(|(_, data)| data.len() as u64).sum();
    // Room for the tables and for rounding each file up to clusters.
    let size = (bytes + bytes / 64 + MIB / 2).next_multiple_of(MIB / 2);
    let fat_path = format!("{out}.fat");
    let result = write_fat(&fat_path, size, &contents)
        .and_then(|()| gpt::write_disk(Path::new(&fat_path), Path::new(out)));
    let _ = fs::remove_file(&fat_path);
    result
}

fn write_fat(path: &str, size: u64, files: &[(&str, Vec<u8>)]) -> Result<()> {
    let image = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("creating {path}"))?;
    image.set_len(size)?;
    let format = fatfs::FormatVolumeOptions::new().volume_label(*b"VIREO      ");
    fatfs::format_volume(&image, format).context("formatting the system partition")?;
    // No real times: the same input makes the same image.
    let options = fatfs::FsOptions::new().time_provider(&NoTime);
    let volume = fatfs::FileSystem::new(&image, options)?;
    let root = volume.root_dir();
    root.create_dir("efi")?;
    root.create_dir("efi/boot")?;
    for (name, data) in files {
        let mut file = root.create_file(name)?;
        file.write_all(data)
            .with_context(|| format!("writing {name} into the image"))?;
    }
    Ok(())
}

#[derive(Debug)]
struct NoTime;

impl fatfs::TimeProvider for NoTime {
    fn get_current_date(&self) -> fatfs::Date {
        fatfs::Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> fatfs::DateTime {
        let time = fatfs::Time {
            hour: 0,
            min: 0,
            sec: 0,
            millis: 0,
        };
        fatfs::DateTime {
            date: self.get_current_date(),
            time,
        }
    }
}
