//! The ELF note that says for which ABI a server was built. Root refuses to start another.
//!
//! Layout (System V gABI, "Note Section"): name size 6, descriptor size 4, type 1, `"VIREO\0"` padded to 8 bytes,
//! then the ABI version as a little-endian `u32`.

use ipc_schema::abi::ABI_VERSION;

/// Name of the note's owner, with its terminating zero.
pub const OWNER: [u8; 6] = *b"VIREO\0";
/// Type of the note: an ABI version.
pub const TYPE: u32 = 1;

/// The note as it is in the file.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4))]
pub struct AbiNote {
    name_size: u32,
    desc_size: u32,
    kind: u32,
    name: [u8; 8],
    version: u32,
}

const _: () = assert!(size_of::<AbiNote>() == 24);

impl AbiNote {
    /// The note of this build.
    #[must_use]
    pub const fn current() -> Self {
        Self {
            name_size: 6,
            desc_size: 4,
            kind: TYPE,
            name: *b"VIREO\0\0\0",
            version: ABI_VERSION,
        }
    }
}
