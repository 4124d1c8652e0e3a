//! Hand-made kernels of each kind.

use alloc::vec::Vec;

pub(super) fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage with one setup sector, and 64 KiB of protected-mode code.
pub(super) fn bzimage() -> Vec<u8> {
    let mut f = alloc::vec![0u8; 1024 + 0x10000];
    f[0x1F1] = 1;
    put(&mut f, 0x1F4, &0x1000u32.to_le_bytes());
    put(&mut f, 0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(&mut f, 0x202, b"HdrS");
    put(&mut f, 0x206, &0x020Fu16.to_le_bytes());
    f[0x211] = 1;
    put(&mut f, 0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(&mut f, 0x230, &0x20_0000u32.to_le_bytes());
    f[0x234] = 1;
    put(&mut f, 0x236, &1u16.to_le_bytes());
    put(&mut f, 0x238, &2047u32.to_le_bytes());
    put(&mut f, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut f, 0x260, &0x40_0000u32.to_le_bytes());
    for (i, b) in f.iter_mut().enumerate().skip(1024) {
        *b = i as u8;
    }
    f
}

pub(super) struct Segment {
    pub vaddr: u64,
    pub paddr: u64,
    pub memsz: u64,
    pub kind: u32,
    pub data: Vec<u8>,
}

/// An ELF64 executable.
pub(super) fn elf64(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut f = alloc::vec![0u8; 64 + 56 * segments.len()];
    put(&mut f, 0, b"\x7fELF\x02\x01\x01");
    put(&mut f, 16, &2u16.to_le_bytes());
    put(&mut f, 18, &62u16.to_le_bytes());
    put(&mut f, 20, &1u32.to_le_bytes());
    put(&mut f, 24, &entry.to_le_bytes());
    put(&mut f, 32, &64u64.to_le_bytes());
    put(&mut f, 52, &64u16.to_le_bytes());
    put(&mut f, 54, &56u16.to_le_bytes());
    put(&mut f, 56, &(segments.len() as u16).to_le_bytes());
    for (i, s) in segments.iter().enumerate() {
        let at = 64 + 56 * i;
        let offset = f.len().next_multiple_of(16);
        put(&mut f, at, &s.kind.to_le_bytes());
        put(&mut f, at + 8, &(offset as u64).to_le_bytes());
        put(&mut f, at + 16, &s.vaddr.to_le_bytes());
        put(&mut f, at + 24, &s.paddr.to_le_bytes());
        put(&mut f, at + 32, &(s.data.len() as u64).to_le_bytes());
        put(&mut f, at + 40, &s.memsz.to_le_bytes());
        put(&mut f, at + 48, &4u64.to_le_bytes());
        f.resize(offset, 0);
        f.extend_from_slice(&s.data);
    }
    f
}

/// A Xen ELF note.
pub(super) fn note(kind: u32, descriptor: &[u8]) -> Segment {
    let mut data = Vec::new();
    data.extend_from_slice(&4u32.to_le_bytes());
    data.extend_from_slice(&(descriptor.len() as u32).to_le_bytes());
    data.extend_from_slice(&kind.to_le_bytes());
    data.extend_from_slice(b"Xen\0");
    data.extend_from_slice(descriptor);
    Segment {
        vaddr: 0,
        paddr: 0,
        memsz: data.len() as u64,
        kind: 4,
        data,
    }
}

pub(super) fn text(vaddr: u64, paddr: u64, memsz: u64, data: &[u8]) -> Segment {
    Segment {
        vaddr,
        paddr,
        memsz,
        kind: 1,
        data: data.to_vec(),
    }
}

pub(super) fn pvh() -> Vec<u8> {
    // As in Linux: another note comes first.
    elf64(
        0xFFFF_FFFF_8100_0000,
        &[
            text(0xFFFF_FFFF_8100_0000, 0x100_0000, 0x3000, &[0xAB; 0x1000]),
            note(5, &[0; 12]),
            note(18, &0x100_0800u64.to_le_bytes()),
        ],
    )
}

/// A flat Multiboot kernel with address fields.
pub(super) fn multiboot_flat() -> Vec<u8> {
    let mut f = alloc::vec![0xCCu8; 0x2000];
    let flags: u32 = 0x1_0003;
    let words = [
        0x1BAD_B002u32,
        flags,
        0u32.wrapping_sub(0x1BAD_B002).wrapping_sub(flags),
        0x20_0100, // header_addr: the header is at file offset 0x200, so the load begins at offset 0x100
        0x20_0000,
        0x20_1000,
        0x20_3000,
        0x20_0040,
    ];
    for (i, w) in words.iter().enumerate() {
        put(&mut f, 0x200 + 4 * i, &w.to_le_bytes());
    }
    f
}

pub(super) fn multiboot_elf() -> Vec<u8> {
    let mut data = alloc::vec![0x90u8; 0x400];
    for (i, w) in [0x1BAD_B002u32, 0, 0u32.wrapping_sub(0x1BAD_B002)]
        .iter()
        .enumerate()
    {
        put(&mut data, 0x40 + 4 * i, &w.to_le_bytes());
    }
    elf64(
        0xFFFF_8000_0010_0010,
        &[text(0xFFFF_8000_0010_0000, 0x10_0000, 0x1000, &data)],
    )
}
