//! ELF files of ours: the flat form of root that the kernel carries, and sizes.
//!
//! The flat form spares the kernel an ELF loader. Little-endian `u64` fields: the magic bytes
//! `VIREOFLT`, entry, number of segments, then for each segment {virtual address, memory size,
//! file offset, file size, flags}. Addresses and offsets are multiples of 4096; flags are the
//! kernel's rights: R = 1, W = 2, X = 4. The segments' bytes follow.

use anyhow::{Context, Result, bail};
use object::{
    Object, ObjectSection,
    elf::{FileHeader64, PF_R, PF_W, PF_X, PT_LOAD},
    endian::LittleEndian,
    read::elf::{FileHeader, ProgramHeader},
};

/// First bytes of a flat file.
pub const FLAT_MAGIC: [u8; 8] = *b"VIREOFLT";
const PAGE: u64 = 4096;

struct Segment<'a> {
    vaddr: u64,
    memsz: u64,
    flags: u64,
    lead: usize,
    data: &'a [u8],
}

impl Segment<'_> {
    fn filesz(&self) -> u64 {
        if self.data.is_empty() {
            0
        } else {
            (self.lead + self.data.len()) as u64
        }
    }
}

/// Flattens a static ELF.
pub fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<LittleEndian>::parse(elf).context("reading the ELF header")?;
    let endian = header.endian()?;
    let mut segments = Vec::new();
    for ph in header.program_headers(endian, elf)? {
        if ph.p_type(endian) != PT_LOAD || ph.p_memsz(endian) == 0 {
            continue;
        }
        let at = ph.p_vaddr(endian);
        let Ok(data) = ph.data(endian, elf) else {
            bail!("a segment lies outside the file");
        };
        let lead = at % PAGE;
        let bits = [(PF_R, 1), (PF_W, 2), (PF_X, 4)];
        let set = bits
            .iter()
            .filter(|(bit, _)| ph.p_flags(endian).contains(*bit));
        let flags = set.map(|(_, value)| value).sum();
        let memsz = ph
            .p_memsz(endian)
            .checked_add(lead)
            .context("a segment is too long")?;
        segments.push(Segment {
            vaddr: at - lead,
            memsz,
            flags,
            lead: lead as usize,
            data,
        });
    }
    if segments.is_empty() {
        bail!("the ELF has nothing to load");
    }
    segments.sort_by_key(|s| s.vaddr);
    for (a, b) in segments.iter().zip(segments.iter().skip(1)) {
        if a.vaddr + a.memsz > b.vaddr {
            bail!(
                "two segments share the page at {:#x}: align them in the linker script",
                b.vaddr
            );
        }
    }
    if let Some(s) = segments.iter().find(|s| s.flags & 6 == 6) {
        bail!(
            "the segment at {:#x} is both writable and executable",
            s.vaddr
        );
    }
    Ok(lay_out(header.e_entry(endian), &segments))
}

fn lay_out(entry: u64, segments: &[Segment<'_>]) -> Vec<u8> {
    let page = PAGE as usize;
    let mut head = Vec::from(FLAT_MAGIC);
    head.extend(entry.to_le_bytes());
    head.extend((segments.len() as u64).to_le_bytes());
    let start = (head.len() + segments.len() * 40).next_multiple_of(page);
    let mut body = Vec::new();
    for s in segments {
        let offset = (start + body.len()) as u64;
        for field in [s.vaddr, s.memsz, offset, s.filesz(), s.flags] {
            head.extend(field.to_le_bytes());
        }
        if !s.data.is_empty() {
            body.resize(body.len() + s.lead, 0);
            body.extend_from_slice(s.data);
            body.resize(body.len().next_multiple_of(page), 0);
        }
    }
    head.resize(start, 0);
    head.extend(body);
    head
}

/// Bytes of executable sections.
pub fn text_size(elf: &[u8]) -> Result<u64> {
    let file = object::File::parse(elf).context("reading the ELF")?;
    let text = file
        .sections()
        .filter(|s| s.kind() == object::SectionKind::Text);
    Ok(text.map(|s| s.size()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn flat_layout() {
        let segments = [
            Segment {
                vaddr: 0x400000,
                memsz: 0x123,
                flags: 5,
                lead: 0x20,
                data: b"text",
            },
            Segment {
                vaddr: 0x401000,
                memsz: 0x3000,
                flags: 3,
                lead: 0,
                data: b"",
            },
            Segment {
                vaddr: 0x404000,
                memsz: 0x10,
                flags: 1,
                lead: 0,
                data: b"ro",
            },
        ];
        let flat = lay_out(0x400020, &segments);
        assert_eq!(&flat[..8], b"VIREOFLT");
        assert_eq!((word(&flat, 8), word(&flat, 16)), (0x400020, 3));
        let first: Vec<u64> = (0..5).map(|i| word(&flat, 24 + i * 8)).collect();
        assert_eq!(first, [0x400000, 0x123, 4096, 0x24, 5]);
        let second: Vec<u64> = (0..5).map(|i| word(&flat, 64 + i * 8)).collect();
        assert_eq!(second, [0x401000, 0x3000, 8192, 0, 3]);
        assert_eq!(&flat[4096 + 0x20..4096 + 0x24], b"text");
        assert_eq!(&flat[8192..8194], b"ro");
        assert_eq!(flat.len(), 12288);
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(flatten(b"no elf").is_err());
        assert!(flatten(&[0; 64]).is_err());
        assert!(text_size(b"").is_err());
    }
}
