//! Disks in a system's description, and their check.

use alloc::{format, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

use super::{CheckError, Fault, Place, System, name_ok};
use crate::disk::{BLOCK, MAX_BLOCKS};

/// Longest serial of a disk in bytes (virtio 1.2, 5.2.6).
pub const MAX_SERIAL: usize = 20;

/// A disk that `store` serves: RAM over an image, which is copied as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Unique name, also a part of archive file names.
    pub name: String,
    /// Its size in bytes, a multiple of [`BLOCK`]; 0: as large as its image.
    pub size: u64,
    /// Archive file of its image; without one it begins as zeroes.
    pub image: Option<String>,
    /// Memory in bytes for what is written, a multiple of [`BLOCK`]; 0: the disk is read-only.
    pub memory: u64,
    /// What guests know it by, at most [`MAX_SERIAL`] bytes.
    pub serial: String,
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
                        Some(other) if disk.memory > 0 => Fault::DiskTaken(other),
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
        self.memory.saturating_add(self.size / BLOCK * 16)
    }
}
