//! The machine's second disk: a raw image with a GUID partition table (UEFI 2.10, 5.3) whose partitions are named after the disks of a
//! description.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{description::Partition, host};

const SECTOR: u64 = 512;
/// Where partitions begin.
const ALIGN: u64 = 1 << 20;
/// Entries of the table, and bytes of each.
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
/// Sectors of the table.
const TABLE: u64 = (ENTRIES * ENTRY) as u64 / SECTOR;
/// Letters of a partition's name.
const NAME: usize = 36;
/// The type of partitions that hold a Linux file system, or anything: 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
const TYPE: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];
/// What is looked at for zeroes at a time.
const PIECE: usize = 64 << 10;

/// A partition with its bytes' place, and its image's file.
struct Laid<'a> {
    partition: &'a Partition,
    at: u64,
    image: Option<PathBuf>,
}

/// Makes the disk at `path`, unless it is there as it should be. `get` finds an image's file.
pub fn make(
    path: &Path,
    partitions: &[Partition],
    get: impl Fn(&Partition) -> Result<Option<PathBuf>>,
) -> Result<()> {
    ensure!(
        partitions.len() <= ENTRIES,
        "{} disks are on the second disk, and {ENTRIES} are the most\n  remedy: put some of them in memory",
        partitions.len()
    );
    let mut laid = Vec::new();
    let mut at = ALIGN;
    for partition in partitions {
        let image = get(partition)?;
        laid.push(Laid {
            partition,
            at,
            image,
        });
        at += partition.size.next_multiple_of(ALIGN);
    }
    let (recipe, stamp) = (recipe(&laid)?, path.with_extension("recipe"));
    if path.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == recipe) {
        return Ok(());
    }
    host::step("laying the second disk out");
    let tmp = host::temporary(path);
    let written = write(&tmp, &laid, at + ALIGN);
    if written.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    written?;
    fs::rename(&tmp, path).with_context(|| format!("writing {}", path.display()))?;
    host::write_whole(&stamp, recipe.as_bytes())
}

/// All that the disk depends on, as text.
fn recipe(laid: &[Laid<'_>]) -> Result<String> {
    let mut text = String::from("1\n");
    for part in laid {
        let (name, size) = (&part.partition.name, part.partition.size);
        write!(text, "{name} {size}")?;
        if let Some(image) = &part.image {
            let meta =
                fs::metadata(image).with_context(|| format!("reading {}", image.display()))?;
            let (len, s, ns) = (meta.len(), meta.mtime(), meta.mtime_nsec());
            if len > size {
                bail!(
                    "disk `{name}` is smaller than its image of {len} bytes\n  remedy: give it a larger `size`, or none"
                );
            }
            write!(text, " {} {len} {s}.{ns}", image.display())?;
        }
        text.push('\n');
    }
    Ok(text)
}

fn write(path: &Path, laid: &[Laid<'_>], bytes: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(bytes)?;
    let last = bytes / SECTOR - 1;
    let table = table(laid);
    let put = |file: &mut File, sector: u64, bytes: &[u8]| -> Result<()> {
        file.seek(SeekFrom::Start(sector * SECTOR))?;
        Ok(file.write_all(bytes)?)
    };
    put(&mut file, 0, &protective(last))?;
    for (own, other, entries) in [(1, last, 2), (last, 1, last - TABLE)] {
        put(&mut file, own, &header((own, other), entries, last, &table))?;
        put(&mut file, entries, &table)?;
    }
    for part in laid {
        if let Some(image) = &part.image {
            copy(image, &mut file, part.at)
                .with_context(|| format!("copying {}", image.display()))?;
        }
    }
    Ok(())
}

/// Copies a file to a place that is zeroes, leaving out what is.
fn copy(from: &Path, to: &mut File, mut at: u64) -> Result<()> {
    let mut from = File::open(from)?;
    let mut piece = vec![0; PIECE];
    loop {
        let len = from.read(&mut piece)?;
        if len == 0 {
            return Ok(());
        }
        let bytes = piece.get(..len).unwrap_or(&[]);
        if bytes.iter().any(|b| *b != 0) {
            to.seek(SeekFrom::Start(at))?;
            to.write_all(bytes)?;
        }
        at += len as u64;
    }
}

/// The record that tells tools which know no such table that the disk is in use (5.2.3).
fn protective(last: u64) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    let sectors = u32::try_from(last).unwrap_or(u32::MAX);
    let entry = [0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0];
    sector[446..458].copy_from_slice(&entry);
    sector[458..462].copy_from_slice(&sectors.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn header((own, other): (u64, u64), entries: u64, last: u64, table: &[u8]) -> Vec<u8> {
    let mut header = Vec::from(*b"EFI PART");
    let (first_usable, last_usable) = (2 + TABLE, last - TABLE - 1);
    header.extend([0, 0, 1, 0, 92, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for field in [own, other, first_usable, last_usable] {
        header.extend(field.to_le_bytes());
    }
    header.extend(unique("disk"));
    header.extend(entries.to_le_bytes());
    for field in [ENTRIES as u32, ENTRY as u32, crc32(table)] {
        header.extend(field.to_le_bytes());
    }
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    header.resize(SECTOR as usize, 0);
    header
}

fn table(laid: &[Laid<'_>]) -> Vec<u8> {
    let mut table = Vec::new();
    for part in laid {
        let (first, sectors) = (part.at / SECTOR, part.partition.size.div_ceil(SECTOR));
        table.extend(TYPE);
        table.extend(unique(&part.partition.name));
        for field in [first, first + sectors - 1, 0] {
            table.extend(field.to_le_bytes());
        }
        let mut name: Vec<u16> = part.partition.name.encode_utf16().collect();
        name.resize(NAME, 0);
        table.extend(name.iter().flat_map(|letter| letter.to_le_bytes()));
    }
    table.resize(ENTRIES * ENTRY, 0);
    table
}

/// An identifier that is another for each name, and always the same (RFC 9562, version 8).
fn unique(name: &str) -> [u8; 16] {
    let hash = |seed: u64| {
        let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, step)
    };
    let both = u128::from(hash(0)) << 64 | u128::from(hash(1));
    let mut id = both.to_le_bytes();
    id[7] = id[7] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
#[path = "second_disk_tests.rs"]
mod tests;
