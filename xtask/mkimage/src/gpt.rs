//! A GUID partition table with one EFI system partition (UEFI 2.10, chapter 5). The identifiers
//! are fixed, so that the same input makes the same image.

use std::{fs, path::Path};

use anyhow::{Context, Result};

const SECTOR: usize = 512;
const ENTRIES: u32 = 128;
const ENTRY_LEN: u32 = 128;
/// Sectors of the entry array.
const TABLE: u64 = (ENTRIES * ENTRY_LEN) as u64 / SECTOR as u64;
/// The partition starts at 1 MiB/16 = 64 KiB.
const FIRST: u64 = 128;
/// EFI system partition, C12A7328-F81F-11D2-BA4B-00A0C93EC93B, in its mixed-endian form.
const ESP: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
const DISK_ID: [u8; 16] = *b"Vireo disk\0\0\x40\0\x80\0";
const PARTITION_ID: [u8; 16] = *b"Vireo boot\0\0\x40\0\x80\0";

/// Writes a disk that holds the file system image `fat`.
pub fn write_disk(fat: &Path, out: &Path) -> Result<()> {
    let fat = fs::read(fat).with_context(|| format!("reading {}", fat.display()))?;
    fs::write(out, disk(&fat)).with_context(|| format!("writing {}", out.display()))
}

fn disk(fat: &[u8]) -> Vec<u8> {
    let sectors = fat.len().div_ceil(SECTOR) as u64;
    let last_usable = FIRST + sectors - 1;
    let backup_table = last_usable + 1;
    let backup = backup_table + TABLE;
    let mut entry = Vec::new();
    entry.extend(ESP);
    entry.extend(PARTITION_ID);
    entry.extend(FIRST.to_le_bytes());
    entry.extend(last_usable.to_le_bytes());
    entry.extend(0u64.to_le_bytes());
    entry.extend("boot".encode_utf16().flat_map(u16::to_le_bytes));
    entry.resize((ENTRIES * ENTRY_LEN) as usize, 0);
    let table_crc = crc32(&entry);
    let header = |mine: u64, other: u64, table: u64| {
        let mut h = Vec::new();
        h.extend(b"EFI PART");
        h.extend(0x0001_0000u32.to_le_bytes());
        h.extend(92u32.to_le_bytes());
        h.extend([0; 8]); // its own check sum, set below, and a reserved field
        for lba in [mine, other, 2 + TABLE, last_usable] {
            h.extend(lba.to_le_bytes());
        }
        h.extend(DISK_ID);
        h.extend(table.to_le_bytes());
        h.extend(ENTRIES.to_le_bytes());
        h.extend(ENTRY_LEN.to_le_bytes());
        h.extend(table_crc.to_le_bytes());
        let crc = crc32(&h);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        h.resize(SECTOR, 0);
        h
    };
    let mut disk = protective_mbr(backup);
    disk.extend(header(1, backup, 2));
    disk.extend(&entry);
    disk.resize(FIRST as usize * SECTOR, 0);
    disk.extend(fat);
    disk.resize(backup_table as usize * SECTOR, 0);
    disk.extend(&entry);
    disk.extend(header(backup, 1, backup_table));
    disk
}

/// UEFI 2.10, 5.2.3: one partition of type 0xee over the whole disk.
fn protective_mbr(last_lba: u64) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR];
    let size = u32::try_from(last_lba).unwrap_or(u32::MAX);
    mbr[446..454].copy_from_slice(&[0, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff]);
    mbr[454..458].copy_from_slice(&1u32.to_le_bytes());
    mbr[458..462].copy_from_slice(&size.to_le_bytes());
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

/// The CRC of Ethernet and GPT: reflected, polynomial 0x04C11DB7.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc >>= 1;
            if low == 1 {
                crc ^= 0xedb8_8320;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
