//! Disks in a system's description, and their check.

use alloc::{format, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

use super::{CheckError, Fault, Place, System, name_ok};
use crate::disk::{BLOCK, DRIVER_PAGES, MAX_BLOCKS};

/// Longest serial of a disk in bytes (virtio 1.2, 5.2.6).
pub const MAX_SERIAL: usize = 20;

/// Where a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Home {
    /// In memory, which `store` serves: RAM over an image in the boot archive, copied as it is written.
    Memory,
    /// On the second disk of the machine, in the partition that has its name.
    SecondDisk {
        /// It cannot be written.
        read_only: bool,
    },
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Unique name, also a part of archive file names.
    pub name: String,
    /// Its size in bytes, a multiple of [`BLOCK`]; 0: as large as its image.
    pub size: u64,
    /// Archive file of its image; without one it begins as zeroes.
    pub image: Option<String>,
    /// Memory in bytes for what is written, a multiple of [`BLOCK`]; 0: the disk is read-only. On the second disk: 0.
    pub memory: u64,
    /// What guests know it by, at most [`MAX_SERIAL`] bytes.
    pub serial: String,
    /// Where it is. On the second disk it has a size, and no image in the archive.
    pub home: Home,
}

/// Archive file name of a disk's image.
pub fn disk_file(disk: &str) -> String {
    format!("disk/{disk}")
}

impl System {
    /// Disks are sound, have names of their own, and fit into the memory that VMs leave.
    pub(super) fn check_disks(&self, vms: u64, available: u64) -> Result<(), CheckError> {
        let fail = |place, fault| Err(CheckError { place, fault });
        let mut needed = vms;
        for (i, disk) in self.disks.iter().enumerate() {
            disk.check(i)?;
            if let Some(j) = self.disks.iter().take(i).position(|d| d.name == disk.name) {
                return fail(Place::Disk(i), Fault::DuplicateName(Place::Disk(j)));
            }
            needed = needed.saturating_add(disk.takes());
            if needed > available {
                let fault = Fault::MemoryDoesNotFit { needed, available };
                return fail(Place::Disk(i), fault);
            }
        }
        Ok(())
    }

    /// Every block device has a disk, and one that can be written has one device.
    pub(super) fn check_disks_of_devices(&self) -> Result<(), CheckError> {
        let mut taken: Vec<Option<Place>> = self.disks.iter().map(|_| None).collect();
        for (v, vm) in self.vms.iter().enumerate() {
            for (d, device) in vm.devices.iter().enumerate() {
                let Some(disk) = device.kind.disk() else {
                    continue;
                };
                let place = Place::Device(v, d);
                let there = self
                    .disks
                    .get(disk as usize)
                    .zip(taken.get_mut(disk as usize));
                let fault = match there {
                    None => Fault::UnknownDisk,
                    Some((disk, before)) => match before.replace(place) {
                        Some(other) if disk.writable() => Fault::DiskTaken(other),
                        _ => continue,
                    },
                };
                return Err(CheckError { place, fault });
            }
        }
        Ok(())
    }
}

impl Disk {
    /// Checks everything that can be told without its image. `index` is only for the error.
    fn check(&self, index: usize) -> Result<(), CheckError> {
        let fault = if !name_ok(&self.name) {
            Fault::BadName
        } else if self.serial.len() > MAX_SERIAL
            || !self.serial.bytes().all(|b| b.is_ascii_graphic())
        {
            Fault::BadSerial
        } else if self.size == 0 && self.image.is_none()
            || !self.size.is_multiple_of(BLOCK)
            || !self.memory.is_multiple_of(BLOCK)
            || self.size / BLOCK > MAX_BLOCKS
            || self.size != 0 && self.memory > self.size
            || self.memory / BLOCK > MAX_BLOCKS
            || self.on_second_disk() && (self.size == 0 || self.memory > 0 || self.image.is_some())
        {
            Fault::BadDiskSize
        } else {
            return Ok(());
        };
        let place = Place::Disk(index);
        Err(CheckError { place, fault })
    }

    /// Bytes of the machine's memory that it takes beside its image: for what is written, and for `store` to know where that is, twice
    /// eight bytes a block.
    pub const fn takes(&self) -> u64 {
        match self.home {
            Home::Memory => self.memory.saturating_add(self.size / BLOCK * 16),
            // For one device; those that share a disk are few.
            Home::SecondDisk { .. } => DRIVER_PAGES as u64 * BLOCK,
        }
    }

    /// Whether it can be written.
    #[must_use]
    pub const fn writable(&self) -> bool {
        match self.home {
            Home::Memory => self.memory > 0,
            Home::SecondDisk { read_only } => !read_only,
        }
    }

    /// Whether it is on the machine's second disk.
    #[must_use]
    pub const fn on_second_disk(&self) -> bool {
        matches!(self.home, Home::SecondDisk { .. })
    }
}
