//! Puts a guest's kernel into its memory and says how its first processor starts.
//!
//! Job: find out what the file is (Linux bzImage, ELF with a PVH note, Multiboot 1), load it as its protocol says, with
//! RAM disk and command line. Place: once, before the first `run`. Trust: every byte of the file may be hostile; a wrong
//! one is a [`LoadError`] that says what is wrong. The ACPI tables are written before, by [`crate::acpi::build`].

use alloc::{borrow::Cow, format};

use crate::memory::GuestMemory;

mod elf_image;
mod error;
mod file;
mod linux;
mod multiboot;
mod place;
mod pvh;
mod state;
#[cfg(test)]
mod tests;

pub use error::LoadError;
pub use place::{Entry, Kind, memory_map};
pub use state::EntryState;

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel's file.
    pub kernel: &'a [u8],
    /// The RAM disk's file.
    pub initrd: Option<&'a [u8]>,
    /// The command line.
    pub cmdline: &'a str,
    /// Guest-physical address of the RSDP ([`crate::acpi::build`]), 0 if there is none.
    pub rsdp: u64,
    /// Rate of the guest's TSC.
    pub tsc_khz: u64,
}

impl Request<'_> {
    /// The command line for Linux, of at most `max` bytes: with the rate of its TSC behind it (`tsc_early_khz`, Linux
    /// `Documentation/admin-guide/kernel-parameters.txt`), unless it says something of that itself or has no room for it.
    ///
    /// Where CPUID tells no rate that it knows, Linux takes that between two events of a timer. If its processor is somebody else's just
    /// before the second, it comes to less: of two VMs that started at once, one took 535 MHz for 1,000, and its clock ran at 1.87 times
    /// the speed from then on.
    fn linux_cmdline(&self, max: u64) -> Cow<'_, str> {
        const PARAMETER: &str = "tsc_early_khz=";
        let told = self.cmdline.contains(PARAMETER);
        let whole = format!("{} {PARAMETER}{}", self.cmdline, self.tsc_khz);
        if told || whole.len() as u64 > max {
            return Cow::Borrowed(self.cmdline);
        }
        Cow::Owned(whole)
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Linux bzImage, started by the 64-bit boot protocol.
    LinuxBzImage,
    /// ELF with a PVH note.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

/// A recognised file, with what recognising it has found.
enum Found<'a> {
    Linux,
    Pvh(elf_image::Image<'a>, u64),
    Multiboot(multiboot::Header),
}

fn find(kernel: &[u8]) -> Result<Found<'_>, LoadError> {
    if linux::is_linux(kernel) {
        return Ok(Found::Linux);
    }
    // An ELF that is broken for PVH may still be a Multiboot kernel that is loaded by address fields.
    let mut broken = None;
    if elf_image::is_elf(kernel) {
        match elf_image::Image::parse(kernel).and_then(|image| Ok((pvh::entry(&image)?, image))) {
            Ok((Some(entry), image)) => return Ok(Found::Pvh(image, entry)),
            Ok((None, _)) => {}
            Err(e) => broken = Some(e),
        }
    }
    match multiboot::find(kernel) {
        Some(header) => Ok(Found::Multiboot(header)),
        None => Err(broken.unwrap_or(LoadError::UnknownFormat)),
    }
}

/// Says what a kernel's file is.
pub fn detect(kernel: &[u8]) -> Result<Format, LoadError> {
    Ok(match find(kernel)? {
        Found::Linux => Format::LinuxBzImage,
        Found::Pvh(..) => Format::Pvh,
        Found::Multiboot(_) => Format::Multiboot,
    })
}

/// Loads a guest. After an error the guest's memory holds whatever was written until then.
pub fn load(memory: &GuestMemory, request: &Request<'_>) -> Result<EntryState, LoadError> {
    match find(request.kernel)? {
        Found::Linux => linux::load(memory, request),
        Found::Pvh(image, entry) => pvh::load(memory, request, &image, entry),
        Found::Multiboot(header) => multiboot::load(memory, request, header),
    }
}
