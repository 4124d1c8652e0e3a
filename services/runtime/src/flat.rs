//! The header of root's flat image, by which the kernel knows what to map how.
//!
//! The image is loaded at `layout::IMAGE` and entered at its first byte, a jump over this header. All ends are
//! addresses, page-aligned: `IMAGE..text_end` is readable and executable, `..rodata_end` readable, `..data_end`
//! readable and writable (here the file ends), `..bss_end` readable, writable and zero.

/// What [`Header::magic`] must be: `VIREOROT`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"VIREOROT");

/// First bytes of the image.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    /// A jump to the entry point.
    pub jump: [u8; 8],
    /// [`MAGIC`].
    pub magic: u64,
    /// End of what is executable.
    pub text_end: u64,
    /// End of what is read-only.
    pub rodata_end: u64,
    /// End of the file.
    pub data_end: u64,
    /// End of what is zeroed.
    pub bss_end: u64,
    /// `ABI_VERSION` that root was built for.
    pub abi_version: u64,
}

const _: () = assert!(size_of::<Header>() == 56);
