//! One system's image: boot archive and bootable disk image, under `target/systems/NAME`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use ipc_schema::{
    archive,
    manifest::{Disk, MANIFEST_FILE},
};

use super::bare::{self, Binaries};
use super::second_disk;
use crate::{
    description::{Description, Source},
    host,
    setup::{
        image_maker::{Firmware, ImageMaker},
        toolchain::Toolchain,
    },
};

/// A built system.
#[derive(Clone, Debug)]
pub struct Image {
    /// What it was built from.
    pub description: Description,
    /// Kernel and servers with their debug information, to decode what the machine says.
    pub binaries: Binaries,
    /// The boot archive.
    pub archive: PathBuf,
    /// The bootable disk image.
    pub disk: PathBuf,
    /// The machine's second disk, if something is on it.
    pub second_disk: Option<PathBuf>,
    /// What it boots from.
    pub firmware: Firmware,
}

/// Builds a system's image for one firmware.
pub fn build(description: &Description, firmware: Firmware) -> Result<Image> {
    let maker = ImageMaker::get()?;
    let tc = Toolchain::get()?;
    let system = &description.system;
    let device_bins = system
        .vms
        .iter()
        .flat_map(|vm| vm.devices.iter().map(|d| &d.binary));
    let driver_bins = system.drivers.iter().map(|d| &d.binary);
    let server_bins = system.servers.iter().map(|s| &s.binary);
    // They serve nobody when there are no disks.
    let on_second = |disk: &Disk| disk.on_second_disk();
    let in_memory = !system.disks.iter().all(on_second);
    let store = in_memory.then_some("store");
    let second = system.disks.iter().any(on_second);
    let second = second.then_some("driver-virtio-blk");
    let mut devices = system.vms.iter().flat_map(|vm| &vm.devices);
    let switch = devices
        .any(|d| d.kind.network().is_some())
        .then_some("switch");
    let packages: Vec<&str> = device_bins
        .chain(driver_bins)
        .chain(server_bins)
        .map(|file| file.strip_prefix("bin/").unwrap_or(file))
        .chain(store)
        .chain(switch)
        .chain(second)
        .collect();
    let dir = host::target().join("systems").join(&description.stem);
    host::make_dir(&dir)?;
    // Two xtasks that build the same system take turns.
    let lock = File::create(dir.join("lock")).context("creating the system's lock")?;
    lock.lock().context("locking the system's folder")?;
    let mut binaries = bare::system(&tc, &packages)?;
    if description.checker {
        binaries.kernel = bare::kernel_with(&tc, "checker")?;
    } else if description.measure {
        binaries.kernel = bare::kernel_with(&tc, "measure")?;
    } else if description.unproven {
        binaries.kernel = bare::kernel_with(&tc, "unproven")?;
    }
    let bytes = pack(&tc, description, &binaries, true)?;
    let kernel = host::read(&bare::stripped(&tc, &binaries.kernel)?)?;
    if firmware == Firmware::Bios {
        fits(kernel.len() + bytes.len())?;
    }
    let (kernel_copy, archive) = (dir.join("kernel"), dir.join("boot-archive"));
    let disk = dir.join(format!("{}.{}", description.stem, firmware.name()));
    let same = |path: &Path, new: &[u8]| fs::read(path).is_ok_and(|old| old == new);
    let stale = !same(&kernel_copy, &kernel) || !same(&archive, &bytes);
    if stale {
        for kind in [Firmware::Bios, Firmware::Uefi] {
            let _ = fs::remove_file(dir.join(format!("{}.{}", description.stem, kind.name())));
        }
        host::write_whole(&kernel_copy, &kernel)?;
        host::write_whole(&archive, &bytes)?;
    }
    if !disk.exists() {
        host::step(format!("making the {} image", firmware.name()));
        maker.make(&kernel_copy, &archive, &disk, firmware)?;
    }
    let mut second_disk = None;
    if !description.second_disk.is_empty() {
        let path = dir.join(format!("{}.second", description.stem));
        second_disk::make(&path, &description.second_disk, |partition| {
            let image = partition.image.as_ref();
            image.map(|source| find(&tc, source)).transpose()
        })?;
        second_disk = Some(path);
    }
    Ok(Image {
        second_disk,
        description: description.clone(),
        binaries,
        archive,
        disk,
        firmware,
    })
}

/// Most bytes of kernel and boot archive together that the loader finds when it is loaded by a BIOS: it takes a file system of 65,536 sectors
/// and more for a FAT32, which it is not yet.
const BIOS_MOST: usize = (30 << 20) - (256 << 10);

fn fits(bytes: usize) -> Result<()> {
    ensure!(
        bytes <= BIOS_MOST,
        "kernel and boot archive have {} KiB together, and a BIOS loads at most {}\n  remedy: boot by UEFI (--uefi), put disks on the \
         second disk (on = \"second-disk\"), or take smaller kernels and initial RAM disks",
        bytes.div_ceil(1024),
        BIOS_MOST / 1024
    );
    Ok(())
}

/// The boot archive's bytes; without the guests' files for `sizes`.
pub fn pack(
    tc: &Toolchain,
    description: &Description,
    binaries: &Binaries,
    with_guests: bool,
) -> Result<Vec<u8>> {
    let manifest = description
        .system
        .encode()
        .context("encoding the manifest")?;
    let mut files: Vec<(String, Vec<u8>)> = vec![(MANIFEST_FILE.to_owned(), manifest)];
    for (package, elf) in &binaries.servers {
        // The kernel carries root itself.
        if package != bare::ROOT {
            let bytes = host::read(&bare::stripped(tc, elf)?)?;
            files.push((ipc_schema::manifest::binary_file(package), bytes));
        }
    }
    for (name, source) in description.files.iter().filter(|_| with_guests) {
        files.push((name.clone(), fetch(tc, source)?));
    }
    let refs: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_slice()))
        .collect();
    archive::write(&refs).context("packing the boot archive")
}

fn find(tc: &Toolchain, source: &Source) -> Result<PathBuf> {
    match source {
        Source::Debian(file) => file.get(),
        Source::Build(package) => bare::stripped(tc, &bare::guest(tc, package)?),
        Source::File(path) => Ok(path.clone()),
    }
}

fn fetch(tc: &Toolchain, source: &Source) -> Result<Vec<u8>> {
    host::read(&find(tc, source)?)
}
