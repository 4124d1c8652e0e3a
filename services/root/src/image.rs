//! What is in a server's ELF file, checked.

use alloc::vec::Vec;
use core::fmt;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_R, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use ipc_schema::abi::{ABI_VERSION, layout, rights};
use runtime::elf_note;

use crate::ram::PAGE;

/// Most bytes of address space that an image may take.
pub const MAX_SIZE: u64 = 64 << 20;

/// Why a file is no server that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// No ELF file, or cut short.
    NotElf,
    /// Not a static x86-64 program.
    NotStatic,
    /// It has no note that says its ABI version.
    NoAbiNote,
    /// It was built for another ABI version.
    Abi(u32),
    /// A segment that lies outside `IMAGE..IMAGE + MAX_SIZE`, wraps, or has more bytes in the file than in memory.
    BadSegment(u64),
    /// A segment that is writable and executable.
    WritableCode(u64),
    /// Two segments on one page.
    SharedPage(u64),
    /// The entry point is in no executable segment.
    BadEntry(u64),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => f.write_str("no ELF file"),
            Self::NotStatic => f.write_str("no static x86-64 program"),
            Self::NoAbiNote => f.write_str("no ABI note"),
            Self::Abi(v) => write!(f, "built for ABI version {v}, not {ABI_VERSION}"),
            Self::BadSegment(a) => write!(f, "bad segment at {a:#x}"),
            Self::WritableCode(a) => write!(f, "writable code at {a:#x}"),
            Self::SharedPage(a) => write!(f, "two segments share the page of {a:#x}"),
            Self::BadEntry(a) => write!(f, "bad entry point {a:#x}"),
        }
    }
}

impl core::error::Error for ImageError {}

/// What is to be loaded at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// First page's address.
    pub va: u64,
    /// Bytes of memory, in pages.
    pub len: u64,
    /// Offset of the data in the first page.
    pub lead: u64,
    /// What the file holds; zeroes follow.
    pub data: &'a [u8],
    /// `READ`, and `WRITE` or `EXEC`.
    pub rights: u32,
    /// Where its pages are.
    pub place: Place,
}

/// Where a segment's pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among those that all instances share, since nobody writes them, from this offset on.
    Common(u64),
    /// Among the server's own, from this offset on.
    Own(u64),
}

/// A server's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Where its first thread starts.
    pub entry: u64,
    /// Its segments, in the order of their addresses.
    pub segments: Vec<Segment<'a>>,
    /// Bytes of its own pages.
    pub own: u64,
    /// Bytes of the pages that all instances share.
    pub common: u64,
}

impl<'a> Image<'a> {
    /// Reads and checks a file. With `all_own` nothing is shared with other instances.
    pub fn parse(file: &'a [u8], all_own: bool) -> Result<Self, ImageError> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| ImageError::NotElf)?;
        if elf.ehdr.e_machine != EM_X86_64 || elf.ehdr.e_type != ET_EXEC {
            return Err(ImageError::NotStatic);
        }
        let headers = elf.segments().ok_or(ImageError::NotElf)?;
        let mut segments: Vec<Segment<'a>> = Vec::new();
        let mut version = None;
        for header in headers.iter() {
            match header.p_type {
                PT_LOAD if header.p_memsz > 0 => {
                    let data = elf.segment_data(&header).map_err(|_| ImageError::NotElf)?;
                    segments.push(segment(
                        header.p_vaddr,
                        header.p_memsz,
                        header.p_flags,
                        data,
                    )?);
                }
                PT_NOTE => {
                    let notes = elf
                        .segment_data_as_notes(&header)
                        .map_err(|_| ImageError::NotElf)?;
                    version = version.or(notes.into_iter().find_map(|n| abi_version(&n)));
                }
                PT_INTERP | PT_DYNAMIC => return Err(ImageError::NotStatic),
                _ => {}
            }
        }
        match version {
            Some(ABI_VERSION) => {}
            Some(other) => return Err(ImageError::Abi(other)),
            None => return Err(ImageError::NoAbiNote),
        }
        segments.sort_by_key(|s| s.va);
        for (a, b) in segments.iter().zip(segments.iter().skip(1)) {
            if a.va + a.len > b.va {
                return Err(ImageError::SharedPage(b.va));
            }
        }
        let entry = elf.ehdr.e_entry;
        let code =
            |s: &&Segment<'_>| s.rights & rights::EXEC != 0 && entry.wrapping_sub(s.va) < s.len;
        if !segments.iter().any(|s| code(&s)) {
            return Err(ImageError::BadEntry(entry));
        }
        let (mut own, mut common) = (0, 0);
        for segment in &mut segments {
            let shared = !all_own && segment.rights & rights::WRITE == 0;
            let size = if shared { &mut common } else { &mut own };
            segment.place = match shared {
                true => Place::Common(*size),
                false => Place::Own(*size),
            };
            *size += segment.len;
        }
        Ok(Self {
            entry,
            segments,
            own,
            common,
        })
    }
}

fn segment(va: u64, mem_len: u64, flags: u32, data: &[u8]) -> Result<Segment<'_>, ImageError> {
    let bad = ImageError::BadSegment(va);
    let end = va
        .checked_add(mem_len)
        .and_then(|e| e.checked_next_multiple_of(PAGE))
        .ok_or(bad)?;
    if va < layout::IMAGE
        || end > layout::IMAGE + MAX_SIZE
        || data.len() as u64 > mem_len
        || flags & PF_R == 0
    {
        return Err(bad);
    }
    if flags & PF_W != 0 && flags & PF_X != 0 {
        return Err(ImageError::WritableCode(va));
    }
    let lead = va % PAGE;
    let mut allowed = rights::READ;
    if flags & PF_W != 0 {
        allowed |= rights::WRITE;
    }
    if flags & PF_X != 0 {
        allowed |= rights::EXEC;
    }
    Ok(Segment {
        va: va - lead,
        len: end - (va - lead),
        lead,
        data,
        rights: allowed,
        place: Place::Own(0),
    })
}

fn abi_version(note: &Note<'_>) -> Option<u32> {
    let Note::Unknown(note) = note else {
        return None;
    };
    let name = note.name.strip_suffix(b"\0").unwrap_or(note.name);
    let owner = elf_note::OWNER.strip_suffix(b"\0")?;
    if name != owner || note.n_type != u64::from(elf_note::TYPE) {
        return None;
    }
    note.desc.first_chunk::<4>().map(|v| u32::from_le_bytes(*v))
}

/// Where the parts of a server are in the one run of RAM that holds its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Bytes of the image's own pages, from offset 0.
    pub image: u64,
    /// Offset of the stack.
    pub stack: u64,
    /// Bytes of the stack.
    pub stack_len: u64,
    /// Offset of the heap.
    pub heap: u64,
    /// Bytes of the heap.
    pub heap_len: u64,
    /// Offset of the start page.
    pub start: u64,
    /// Bytes of the start page, in pages.
    pub start_len: u64,
}

impl Parts {
    /// For an image, a stack, a heap and a start page of these sizes in bytes.
    #[must_use]
    pub fn new(image: u64, stack: u64, heap: u64, start: u64) -> Self {
        let pages = |bytes: u64| bytes.next_multiple_of(PAGE);
        let stack_at = pages(image);
        let heap_at = stack_at + pages(stack);
        Self {
            image: stack_at,
            stack: stack_at,
            stack_len: pages(stack),
            heap: heap_at,
            heap_len: pages(heap),
            start: heap_at + pages(heap),
            start_len: pages(start.max(1)),
        }
    }

    /// Bytes in all.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.start + self.start_len
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
