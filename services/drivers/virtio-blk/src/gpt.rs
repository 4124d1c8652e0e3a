//! The partitions of a disk: a GUID partition table (UEFI 2.10, 5.3), read only.

use alloc::string::String;
use alloc::vec::Vec;

/// Bytes of a logical block of the disk.
pub const SECTOR: usize = 512;
/// Where the header is.
pub const HEADER_AT: u64 = 1;
/// Most bytes of a table of entries.
pub const MAX_TABLE: usize = 64 << 10;
/// Least bytes of an entry and of a header (5.3.2, 5.3.3).
const ENTRY: usize = 128;
const HEADER: usize = 92;
const SIGNATURE: &[u8; 8] = b"EFI PART";

/// Why a disk has no partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has no such table.
    None,
    /// A checksum is wrong.
    Damaged,
    /// A number is of no use.
    Nonsense,
}

impl Why {
    /// In words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::None => "it has no GUID partition table",
            Self::Damaged => "its partition table is damaged",
            Self::Nonsense => "its partition table says what cannot be",
        }
    }
}

/// Where the entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// First sector.
    pub first: u64,
    /// Entries.
    entries: usize,
    /// Bytes of each.
    entry: usize,
    sum: u32,
    /// First sector that a partition may have, and last.
    usable: (u64, u64),
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// First sector.
    pub first: u64,
    /// Sectors.
    pub sectors: u64,
}

/// CRC-32 (ISO 3309), as 5.3.2 wants it.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32_of(bytes.iter().copied())
}

fn crc32_of(bytes: impl Iterator<Item = u8>) -> u32 {
    let step = |mut crc: u32, byte: u8| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        }
        crc
    };
    !bytes.fold(u32::MAX, step)
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*four))
}

fn quad(bytes: &[u8], at: usize) -> Option<u64> {
    let eight = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*eight))
}

impl Table {
    /// Reads the header, sector [`HEADER_AT`] of a disk of so many sectors.
    pub fn parse(header: &[u8], capacity: u64) -> Result<Self, Why> {
        if header.get(..8) != Some(SIGNATURE) {
            return Err(Why::None);
        }
        Self::fields(header, capacity).unwrap_or(Err(Why::Nonsense))
    }

    fn fields(header: &[u8], capacity: u64) -> Option<Result<Self, Why>> {
        let len = long(header, 12)? as usize;
        let header = header.get(..len).filter(|h| h.len() >= HEADER)?;
        // Its own checksum counts as zeroes.
        let bytes = header.iter().enumerate();
        let bytes = bytes.map(|(i, b)| if (16..20).contains(&i) { 0 } else { *b });
        if crc32_of(bytes) != long(header, 16)? {
            return Some(Err(Why::Damaged));
        }
        let table = Self {
            first: quad(header, 72)?,
            entries: long(header, 80)? as usize,
            entry: long(header, 84)? as usize,
            sum: long(header, 88)?,
            usable: (quad(header, 40)?, quad(header, 48)?),
        };
        let bytes = table.entries.checked_mul(table.entry)?;
        let end = table.first.checked_add(table.sectors())?;
        let sound = quad(header, 24)? == HEADER_AT
            && table.entry >= ENTRY
            && bytes > 0
            && bytes <= MAX_TABLE
            && table.first > HEADER_AT
            && end <= table.usable.0
            && table.usable.1 < capacity;
        Some(if sound { Ok(table) } else { Err(Why::Nonsense) })
    }

    /// Sectors that the entries take.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.entries.saturating_mul(self.entry).div_ceil(SECTOR) as u64
    }

    /// Reads the entries out of those sectors. Whoever overlaps another, or lies outside, makes the table nonsense.
    pub fn partitions(&self, bytes: &[u8]) -> Result<Vec<Partition>, Why> {
        // At most MAX_TABLE, as was seen.
        let all = bytes.get(..self.entries * self.entry);
        let all = all.ok_or(Why::Nonsense)?;
        if crc32(all) != self.sum {
            return Err(Why::Damaged);
        }
        let mut found = Vec::new();
        for entry in all.chunks_exact(self.entry) {
            let used = entry.iter().take(16).any(|b| *b != 0);
            if used {
                found.push(self.partition(entry).ok_or(Why::Nonsense)?);
            }
        }
        let mut ends: Vec<(u64, u64)> = found.iter().map(|p| (p.first, p.sectors)).collect();
        ends.sort_unstable();
        let mut pairs = ends.iter().zip(ends.iter().skip(1));
        // Neither sum overflows: both ends are usable sectors.
        if pairs.any(|(a, b)| a.0 + a.1 > b.0) {
            return Err(Why::Nonsense);
        }
        Ok(found)
    }

    fn partition(&self, entry: &[u8]) -> Option<Partition> {
        let (first, last) = (quad(entry, 32)?, quad(entry, 40)?);
        if first < self.usable.0 || last > self.usable.1 || first > last {
            return None;
        }
        let letters = entry.get(56..ENTRY)?.chunks_exact(2);
        let letters = letters.filter_map(|b| Some(u16::from_le_bytes(*b.first_chunk::<2>()?)));
        let name = char::decode_utf16(letters.take_while(|l| *l != 0));
        Some(Partition {
            name: name
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
            first,
            sectors: last - first + 1,
        })
    }
}
