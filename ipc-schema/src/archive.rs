//! The boot archive: one file that holds servers, manifest and guests.
//!
//! Job: the format, its checked reader (`no_std`, no allocation) and its writer.
//! Place: xtask writes it, the boot loader loads it, root reads it.
//! Trust: the reader believes nothing; every field is checked before any entry is handed out.
//!
//! Layout, all integers little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `VIREOARC` |
//! | 8 | 4 | version, [`VERSION`] |
//! | 12 | 4 | number of entries, at most [`MAX_ENTRIES`] |
//! | 16 | 8 | length of the whole archive in bytes, a multiple of [`PAGE`] |
//! | 24 | 64 each | entries: name (48 bytes, zero-padded ASCII), offset `u64`, length `u64` |
//!
//! File contents start at the first multiple of [`PAGE`] after the entries; each file starts on a
//! multiple of [`PAGE`], so that it can be mapped into a server without copying. Two entries may
//! name the same contents (same offset and length), never overlap otherwise.

use alloc::vec::Vec;

/// First eight bytes of an archive.
pub const MAGIC: [u8; 8] = *b"VIREOARC";
/// Format version that this code writes and accepts.
pub const VERSION: u32 = 1;
/// Alignment of file contents in bytes.
pub const PAGE: u64 = 4096;
/// Most entries an archive may hold.
pub const MAX_ENTRIES: u32 = 256;
/// Longest entry name in bytes.
pub const NAME_LEN: usize = 48;

const HEADER_LEN: usize = 24;
const ENTRY_LEN: usize = NAME_LEN + 16;

/// Why bytes are not a boot archive, or files cannot be made into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// Fewer bytes than the header or the entry table needs.
    Truncated,
    /// The first eight bytes are not [`MAGIC`].
    NotAnArchive,
    /// A version that this code does not read.
    Version(u32),
    /// More than [`MAX_ENTRIES`] entries.
    TooManyEntries,
    /// The length in the header is no multiple of [`PAGE`], or more than there is.
    BadTotal,
    /// An entry's name is empty, too long, not printable ASCII, or not zero-padded.
    BadName(u32),
    /// Two entries have one name.
    DuplicateName(u32),
    /// An entry lies outside the archive, inside the table, or off a page boundary.
    BadRange(u32),
    /// An entry overlaps another without being the same file.
    Overlap(u32),
}

impl core::fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated => f.write_str("the boot archive is cut short"),
            Self::NotAnArchive => f.write_str("this is no boot archive"),
            Self::Version(v) => write!(f, "boot archive version {v}, not {VERSION}"),
            Self::TooManyEntries => write!(f, "more than {MAX_ENTRIES} files in the boot archive"),
            Self::BadTotal => f.write_str("the boot archive's length is wrong"),
            Self::BadName(i) => write!(f, "boot archive entry {i}: bad name"),
            Self::DuplicateName(i) => write!(f, "boot archive entry {i}: name used twice"),
            Self::BadRange(i) => write!(f, "boot archive entry {i}: bad range"),
            Self::Overlap(i) => write!(f, "boot archive entry {i}: overlaps another"),
        }
    }
}

impl core::error::Error for ArchiveError {}

/// One file of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The file's name, as `bin/root`.
    pub name: &'a str,
    /// Where its contents start, in bytes from the archive's start; a multiple of [`PAGE`].
    pub offset: u64,
    /// Length of its contents in bytes.
    pub len: u64,
}

impl Entry<'_> {
    /// The file's contents, when all of the archive is at hand; `None` when `archive` is shorter
    /// than the archive that this entry came from.
    pub fn data<'b>(&self, archive: &'b [u8]) -> Option<&'b [u8]> {
        let start = usize::try_from(self.offset).ok()?;
        let end = start.checked_add(usize::try_from(self.len).ok()?)?;
        archive.get(start..end)
    }
}

/// The checked table of an archive.
#[derive(Clone, Copy, Debug)]
pub struct Index<'a> {
    table: &'a [u8],
    total: u64,
}

/// Bytes that must be at hand for [`Index::parse`]: header and table, from the archive's first
/// [`PAGE`] bytes.
pub fn index_len(head: &[u8]) -> Result<usize, ArchiveError> {
    if head.get(..8).ok_or(ArchiveError::Truncated)? != MAGIC {
        return Err(ArchiveError::NotAnArchive);
    }
    let version = read_u32(head, 8)?;
    if version != VERSION {
        return Err(ArchiveError::Version(version));
    }
    let count = read_u32(head, 12)?;
    if count > MAX_ENTRIES {
        return Err(ArchiveError::TooManyEntries);
    }
    // At most 24 + 256 * 64, so no overflow.
    Ok(HEADER_LEN + count as usize * ENTRY_LEN)
}

impl<'a> Index<'a> {
    /// Checks header and table. `head` holds at least [`index_len`] bytes from the archive's
    /// start (all of it will do), `available` is how many bytes the whole archive may have.
    pub fn parse(head: &'a [u8], available: u64) -> Result<Self, ArchiveError> {
        let table_end = index_len(head)?;
        let table = head
            .get(HEADER_LEN..table_end)
            .ok_or(ArchiveError::Truncated)?;
        let total = read_u64(head, 16)?;
        if !total.is_multiple_of(PAGE) || total > available || total < table_end as u64 {
            return Err(ArchiveError::BadTotal);
        }
        let index = Self { table, total };
        for (i, raw) in (0u32..).zip(table.chunks_exact(ENTRY_LEN)) {
            let entry = decode(raw, i)?;
            let end = entry.offset.checked_add(entry.len);
            let inside = end.is_some_and(|end| end <= total);
            if !entry.offset.is_multiple_of(PAGE) || entry.offset < table_end as u64 || !inside {
                return Err(ArchiveError::BadRange(i));
            }
            for (j, earlier) in (0u32..).zip(table.chunks_exact(ENTRY_LEN)).take(i as usize) {
                let earlier = decode(earlier, j)?;
                if earlier.name == entry.name {
                    return Err(ArchiveError::DuplicateName(i));
                }
                let same = earlier.offset == entry.offset && earlier.len == entry.len;
                // Neither sum can overflow: both were checked against `total` above.
                let apart = entry.offset >= earlier.offset + earlier.len
                    || earlier.offset >= entry.offset + entry.len;
                if !same && !apart {
                    return Err(ArchiveError::Overlap(i));
                }
            }
        }
        Ok(index)
    }

    /// The archive's length in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// All files, in the order they were written.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        // `parse` has decoded every entry once, so none is left out here.
        self.table
            .chunks_exact(ENTRY_LEN)
            .filter_map(|raw| decode(raw, 0).ok())
    }

    /// The file of that name.
    pub fn find(&self, name: &str) -> Option<Entry<'a>> {
        self.entries().find(|e| e.name == name)
    }
}

/// Makes an archive of `files` (name, contents). Identical contents are stored once.
pub fn write(files: &[(&str, &[u8])]) -> Result<Vec<u8>, ArchiveError> {
    let count = u32::try_from(files.len()).map_err(|_| ArchiveError::TooManyEntries)?;
    if count > MAX_ENTRIES {
        return Err(ArchiveError::TooManyEntries);
    }
    let mut table = Vec::new();
    let mut body: Vec<u8> = Vec::new();
    let table_end = HEADER_LEN + files.len() * ENTRY_LEN;
    let body_start = table_end.next_multiple_of(PAGE as usize);
    let mut offsets: Vec<usize> = Vec::new();
    for (i, (name, data)) in files.iter().enumerate() {
        if files.iter().take(i).any(|(earlier, _)| earlier == name) {
            return Err(ArchiveError::DuplicateName(i as u32));
        }
        if !name_ok(name.as_bytes()) || name.len() > NAME_LEN {
            return Err(ArchiveError::BadName(i as u32));
        }
        let twin = files
            .iter()
            .zip(&offsets)
            .find(|((_, earlier), _)| earlier == data)
            .map(|(_, offset)| *offset);
        let offset = twin.unwrap_or(body_start + body.len());
        if twin.is_none() {
            body.extend_from_slice(data);
            body.resize(body.len().next_multiple_of(PAGE as usize), 0);
        }
        offsets.push(offset);
        table.extend_from_slice(name.as_bytes());
        table.resize(i * ENTRY_LEN + NAME_LEN, 0);
        table.extend_from_slice(&(offset as u64).to_le_bytes());
        table.extend_from_slice(&(data.len() as u64).to_le_bytes());
    }
    let mut out = Vec::with_capacity(body_start + body.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&((body_start + body.len()) as u64).to_le_bytes());
    out.extend_from_slice(&table);
    out.resize(body_start, 0);
    out.extend_from_slice(&body);
    Ok(out)
}

fn name_ok(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}

fn decode(raw: &[u8], i: u32) -> Result<Entry<'_>, ArchiveError> {
    let padded = raw.get(..NAME_LEN).ok_or(ArchiveError::Truncated)?;
    let len = padded.iter().position(|b| *b == 0).unwrap_or(NAME_LEN);
    let (name, padding) = padded.split_at(len);
    if !name_ok(name) || padding.iter().any(|b| *b != 0) {
        return Err(ArchiveError::BadName(i));
    }
    let name = core::str::from_utf8(name).map_err(|_| ArchiveError::BadName(i))?;
    Ok(Entry {
        name,
        offset: read_u64(raw, NAME_LEN)?,
        len: read_u64(raw, NAME_LEN + 8)?,
    })
}

fn read_u32(bytes: &[u8], at: usize) -> Result<u32, ArchiveError> {
    let field = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
    Ok(u32::from_le_bytes(*field.ok_or(ArchiveError::Truncated)?))
}

fn read_u64(bytes: &[u8], at: usize) -> Result<u64, ArchiveError> {
    let field = bytes.get(at..).and_then(|b| b.first_chunk::<8>());
    Ok(u64::from_le_bytes(*field.ok_or(ArchiveError::Truncated)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::String, vec};
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let long = vec![7u8; 5000];
        write(&[
            ("manifest", b"abc"),
            ("vm/a/kernel", &long),
            ("vm/b/kernel", &long),
            ("empty", b""),
        ])
        .unwrap()
    }

    #[test]
    fn golden_layout() {
        let bytes = sample();
        assert_eq!(&bytes[..8], b"VIREOARC");
        assert_eq!(&bytes[8..16], &[1, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(&bytes[16..24], &(16384u64).to_le_bytes());
        assert_eq!(&bytes[24..33], b"manifest\0");
        assert_eq!(&bytes[72..80], &4096u64.to_le_bytes());
        assert_eq!(&bytes[80..88], &3u64.to_le_bytes());
        assert_eq!(&bytes[4096..4100], b"abc\0");
        assert_eq!(bytes.len(), 16384);
    }

    #[test]
    fn round_trip_and_twins() {
        let bytes = sample();
        let index = Index::parse(&bytes, bytes.len() as u64).unwrap();
        assert_eq!(index.total(), bytes.len() as u64);
        assert_eq!(index.entries().count(), 4);
        let a = index.find("vm/a/kernel").unwrap();
        let b = index.find("vm/b/kernel").unwrap();
        assert_eq!((a.offset, a.len), (b.offset, b.len));
        assert_eq!(a.data(&bytes).unwrap(), &[7u8; 5000][..]);
        assert_eq!(index.find("empty").unwrap().data(&bytes), Some(&[][..]));
        assert!(index.find("vm/a").is_none());
        // The table alone is enough to read it.
        let len = index_len(&bytes[..4096]).unwrap();
        assert_eq!(
            Index::parse(&bytes[..len], 16384)
                .unwrap()
                .entries()
                .count(),
            4
        );
    }

    #[test]
    fn each_error() {
        let good = sample();
        let parse = |bytes: &[u8]| Index::parse(bytes, bytes.len() as u64).map(|_| ());
        let with = |at: usize, new: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + new.len()].copy_from_slice(new);
            parse(&bytes)
        };
        assert_eq!(parse(&good), Ok(()));
        assert_eq!(parse(&good[..100]), Err(ArchiveError::Truncated));
        assert_eq!(parse(&good[..8192]), Err(ArchiveError::BadTotal));
        assert_eq!(with(0, b"X"), Err(ArchiveError::NotAnArchive));
        assert_eq!(with(8, &[9]), Err(ArchiveError::Version(9)));
        assert_eq!(with(12, &[0, 2]), Err(ArchiveError::TooManyEntries));
        assert_eq!(with(16, &[1]), Err(ArchiveError::BadTotal));
        assert_eq!(with(24, &[0]), Err(ArchiveError::BadName(0)));
        assert_eq!(with(24, &[0xff]), Err(ArchiveError::BadName(0)));
        assert_eq!(with(60, b"x"), Err(ArchiveError::BadName(0)));
        assert_eq!(with(72, &[1]), Err(ArchiveError::BadRange(0)));
        assert_eq!(with(72, &[0, 0]), Err(ArchiveError::BadRange(0)));
        assert_eq!(with(80, &[0xff; 8]), Err(ArchiveError::BadRange(0)));
        assert_eq!(
            with(24 + 64 * 2 + 3, b"a"),
            Err(ArchiveError::DuplicateName(2))
        );
        assert_eq!(with(80, &[0, 0x20]), Err(ArchiveError::Overlap(1)));
        assert_eq!(write(&[("", b"")]), Err(ArchiveError::BadName(0)));
        assert_eq!(write(&[("a b", b"")]), Err(ArchiveError::BadName(0)));
        let long = "n".repeat(49);
        assert_eq!(write(&[(&long, b"")]), Err(ArchiveError::BadName(0)));
        assert_eq!(
            write(&[("a", b""), ("a", b"")]),
            Err(ArchiveError::DuplicateName(1))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
            if magic && bytes.len() >= 24 {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
                bytes[12..16].copy_from_slice(&3u32.to_le_bytes());
                bytes[16..24].copy_from_slice(&4096u64.to_le_bytes());
            }
            if let Ok(index) = Index::parse(&bytes, u64::MAX) {
                for e in index.entries() { let _ = e.data(&bytes); }
            }
        }

        #[test]
        fn one_changed_byte_never_escapes(at in 0usize..300, value in any::<u8>()) {
            let mut bytes = sample();
            bytes[at] = value;
            if let Ok(index) = Index::parse(&bytes, bytes.len() as u64) {
                for e in index.entries() {
                    prop_assert!(e.data(&bytes).is_some());
                    prop_assert_eq!(e.offset % PAGE, 0);
                }
            }
        }

        #[test]
        fn whatever_is_written_is_read(contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9000), 0..8)) {
            let names: Vec<String> = (0..contents.len()).map(|i| format!("f{i}")).collect();
            let files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
            let bytes = write(&files).unwrap();
            let index = Index::parse(&bytes, bytes.len() as u64).unwrap();
            for (name, data) in files {
                prop_assert_eq!(index.find(name).unwrap().data(&bytes), Some(data));
            }
        }
    }
}
