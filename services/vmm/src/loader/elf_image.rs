//! ELF executables, loaded at the physical addresses that they name (System V ABI, chapter 5).

use super::place::Placement;
use super::{LoadError, file};
use crate::memory::GuestMemory;
use alloc::vec::Vec;
use elf::ElfBytes;
use elf::abi::{PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use elf::parse::ParseError;
use elf::segment::ProgramHeader;

/// A kernel has a handful; each costs a pass over guest memory.
const MAX_LOADS: usize = 64;

/// A parsed ELF file.
pub(super) struct Image<'a> {
    elf: ElfBytes<'a, LittleEndian>,
    file: &'a [u8],
}

impl From<ParseError> for LoadError {
    fn from(e: ParseError) -> Self {
        Self::Elf(match e {
            ParseError::BadMagic(_) => "no ELF magic",
            ParseError::UnsupportedElfClass(_) => "neither 32-bit nor 64-bit",
            ParseError::UnsupportedElfEndianness(_) => "not little-endian",
            ParseError::UnsupportedVersion(_) => "unknown version",
            ParseError::BadOffset(_) | ParseError::SliceReadError(_) => {
                "a table or segment lies outside the file"
            }
            ParseError::IntegerOverflow => "sizes or offsets overflow",
            ParseError::BadEntsize(_) => "table entries of the wrong size",
            _ => "inconsistent headers",
        })
    }
}

/// True if the file starts as an ELF does.
pub(super) fn is_elf(kernel: &[u8]) -> bool {
    kernel.starts_with(b"\x7fELF")
}

impl<'a> Image<'a> {
    /// Parses the headers.
    pub fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        Ok(Self {
            elf: ElfBytes::minimal_parse(file)?,
            file,
        })
    }

    fn loads(&self) -> Result<Vec<ProgramHeader>, LoadError> {
        let mut loads = Vec::new();
        for header in self.elf.segments().into_iter().flatten() {
            if header.p_type == PT_LOAD && header.p_memsz != 0 {
                if loads.len() == MAX_LOADS {
                    return Err(LoadError::Elf("more than 64 segments to load"));
                }
                loads.push(header);
            }
        }
        if loads.is_empty() {
            return Err(LoadError::Elf("no segment to load"));
        }
        Ok(loads)
    }

    /// The descriptor of the note `name`, `kind`, if there is one.
    pub fn note(&self, name: &[u8], kind: u64) -> Option<&'a [u8]> {
        for header in self.elf.segments().into_iter().flatten() {
            if header.p_type != PT_NOTE {
                continue;
            }
            let Ok(notes) = self.elf.segment_data_as_notes(&header) else {
                continue;
            };
            for note in notes {
                if let Note::Unknown(note) = note
                    && note.n_type == kind
                    && note.name == name
                {
                    return Some(note.desc);
                }
            }
        }
        None
    }

    /// Copies all segments to their physical addresses.
    pub fn load(&self, memory: &GuestMemory, placement: &mut Placement) -> Result<(), LoadError> {
        let loads = self.loads()?;
        for header in &loads {
            if header.p_filesz > header.p_memsz {
                return Err(LoadError::Elf(
                    "a segment with more bytes in the file than in memory",
                ));
            }
            placement.take_kernel(header.p_paddr, header.p_memsz)?;
        }
        for header in &loads {
            // `take_kernel` has found all of `p_memsz` to be RAM, so these sums do not overflow.
            let offset = usize::try_from(header.p_offset)
                .map_err(|_| LoadError::Elf("sizes or offsets overflow"))?;
            memory.write(
                header.p_paddr,
                file::bytes(self.file, offset, header.p_filesz as usize)?,
            )?;
            memory.fill(
                header.p_paddr + header.p_filesz,
                header.p_memsz - header.p_filesz,
                0,
            )?;
        }
        Ok(())
    }

    /// True if the physical address is in a loaded segment.
    pub fn holds(&self, address: u64) -> bool {
        self.loads().is_ok_and(|loads| {
            loads
                .iter()
                .any(|h| address.wrapping_sub(h.p_paddr) < h.p_memsz)
        })
    }

    /// The ELF header's entry point as a physical address: it may be given as a virtual one.
    pub fn physical_entry(&self) -> Result<u64, LoadError> {
        let address = self.elf.ehdr.e_entry;
        for header in self.loads()? {
            let offset = address.wrapping_sub(header.p_vaddr);
            if offset < header.p_memsz {
                return Ok(header.p_paddr.wrapping_add(offset));
            }
        }
        if self.holds(address) {
            Ok(address)
        } else {
            Err(LoadError::BadEntry { address })
        }
    }
}
