//! What can be wrong with a guest's files.

use crate::memory::OutOfRange;
use core::fmt;

/// Why a guest was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadError {
    /// None of the known formats.
    UnknownFormat,
    /// The file ends before something that it announces.
    Truncated {
        /// What should have been there.
        what: &'static str,
        /// File offset at which it ends.
        end: u64,
        /// Length of the file.
        have: u64,
    },
    /// A field of the file holds a value that makes no sense.
    BadField {
        /// Its name in the format's specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A Linux kernel with a boot protocol older than 2.12, which has no 64-bit entry.
    LinuxTooOld {
        /// Its version, major in the high byte.
        version: u16,
    },
    /// A Linux kernel without the 64-bit entry point (XLF_KERNEL_64): a 32-bit kernel.
    LinuxNot64Bit,
    /// A Multiboot kernel that insists on a feature that we lack.
    MultibootFeature {
        /// The header's flag bits that are not understood.
        flags: u32,
    },
    /// The file is not an ELF that can be loaded.
    Elf(&'static str),
    /// A part of the kernel belongs where the guest has no usable RAM.
    NoRoomForKernel {
        /// First guest-physical address.
        address: u64,
        /// Length in bytes.
        size: u64,
    },
    /// No free RAM is left for the RAM disk below the address that the kernel asks for.
    NoRoomForInitrd {
        /// Its length in bytes.
        size: u64,
        /// The address that it has to stay below.
        below: u64,
    },
    /// No free RAM is left for what the boot protocol hands over.
    NoRoomForBootInformation,
    /// The command line is longer than the kernel takes.
    CommandLineTooLong {
        /// Its length in bytes.
        len: u64,
        /// The longest that is taken.
        max: u64,
    },
    /// The entry point is outside everything that was loaded, or above 4 GiB for a 32-bit entry.
    BadEntry {
        /// The entry point.
        address: u64,
    },
    /// An access beyond the guest's memory.
    Memory(OutOfRange),
}

impl From<OutOfRange> for LoadError {
    fn from(e: OutOfRange) -> Self {
        Self::Memory(e)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFormat => {
                f.write_str("the kernel is neither a Linux bzImage, nor an ELF with a PVH note, nor a Multiboot 1 kernel")
            }
            Self::Truncated { what, end, have } => {
                write!(f, "the kernel's file is cut off: {what} ends at byte {end}, the file at {have}")
            }
            Self::BadField { field, value } => write!(f, "the kernel's header holds {field} = {value:#x}"),
            Self::LinuxTooOld { version } => write!(
                f,
                "a Linux kernel with boot protocol {}.{:02}: 2.12 or later is needed (Linux 3.8)",
                version >> 8,
                version & 0xFF
            ),
            Self::LinuxNot64Bit => f.write_str("a 32-bit Linux kernel: only those with a 64-bit entry can be started"),
            Self::MultibootFeature { flags } => {
                write!(f, "the Multiboot kernel insists on unknown features (header flags {flags:#x})")
            }
            Self::Elf(e) => write!(f, "the kernel is a damaged ELF file: {e}"),
            Self::NoRoomForKernel { address, size } => {
                write!(f, "the guest has no free RAM at {address:#x} for {size:#x} bytes of its kernel: give it more memory")
            }
            Self::NoRoomForInitrd { size, below } => {
                write!(f, "the guest has no {size:#x} bytes of free RAM below {below:#x} for its RAM disk: give it more memory")
            }
            Self::NoRoomForBootInformation => {
                f.write_str("the guest has no free RAM below 4 GiB left for its boot information: give it more memory")
            }
            Self::CommandLineTooLong { len, max } => {
                write!(f, "the command line has {len} bytes, the kernel takes {max}")
            }
            Self::BadEntry { address } => write!(f, "the kernel's entry point {address:#x} is in no part of it"),
            Self::Memory(e) => write!(f, "{e}"),
        }
    }
}

impl core::error::Error for LoadError {}
