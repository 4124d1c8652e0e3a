//! Puts a guest's kernel into its memory and says how its first processor starts.
//!
//! Job: find out what the file is (Linux bzImage, ELF with a PVH note, Multiboot 1), load it as its protocol says, with
//! RAM disk and command line. Place: once, before the first `run`. Trust: every byte of the file may be hostile; a wrong
//! one is a [`LoadError`] that says what is wrong.

use crate::memory::{GuestMemory, OutOfRange};
use core::fmt;
use ipc_schema::abi::vm::{Segment, VcpuState};

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

/// How the first processor starts. All values are architectural; the same for both vendors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// What was loaded.
    pub format: Format,
    /// First instruction.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// General register.
    pub rax: u64,
    /// General register.
    pub rbx: u64,
    /// General register.
    pub rsi: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER, as the guest sees it.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// ES, SS, DS, FS and GS.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// LDTR: not present.
    pub ldtr: Segment,
    /// GDTR: base and limit.
    pub gdtr: Segment,
    /// IDTR: base and limit.
    pub idtr: Segment,
}

impl EntryState {
    /// Writes all of it into a vCPU's state page, the rest at reset values: every group but TSC is then dirty.
    pub fn apply(&self, state: &mut VcpuState) {
        state.gpr = [0; 16];
        state.gpr[0] = self.rax;
        state.gpr[3] = self.rbx;
        state.gpr[6] = self.rsi;
        state.rip = self.rip;
        state.rsp = self.rsp;
        state.rflags = self.rflags;
        state.shadow = 0;
        state.cpl = 0;
        state.cr0 = self.cr0;
        state.cr2 = 0;
        state.cr3 = self.cr3;
        state.cr4 = self.cr4;
        state.efer = self.efer;
        state.cs = self.cs;
        for segment in [&mut state.es, &mut state.ss, &mut state.ds, &mut state.fs, &mut state.gs] {
            *segment = self.data;
        }
        state.ldtr = self.ldtr;
        state.tr = self.tr;
        state.gdtr = self.gdtr;
        state.idtr = self.idtr;
        (state.star, state.lstar, state.cstar, state.sfmask) = (0, 0, 0, 0);
        (state.kernel_gs_base, state.sysenter_cs, state.sysenter_esp, state.sysenter_eip) = (0, 0, 0, 0);
        // Reset values: Intel SDM vol. 3, 9.1.1 and 12.12.4; AMD APM vol. 2, 14.1.3.
        state.pat = 0x0007_0406_0007_0406;
        state.dr = [0; 4];
        state.dr6 = 0xFFFF_0FF0;
        state.dr7 = 0x400;
        state.xcr0 = 1;
    }
}

/// Why a guest was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// None of the known formats.
    UnknownFormat,
    /// The file does not fit the guest's memory.
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
            Self::UnknownFormat => f.write_str("neither a Linux bzImage, nor an ELF with a PVH note, nor Multiboot 1"),
            Self::Memory(e) => write!(f, "the guest has too little memory: {e}"),
        }
    }
}

impl core::error::Error for LoadError {}

/// Says what a kernel file is.
pub fn detect(kernel: &[u8]) -> Result<Format, LoadError> {
    let _ = kernel;
    Err(LoadError::UnknownFormat)
}

/// Loads a guest.
pub fn load(memory: &GuestMemory, request: &Request<'_>) -> Result<EntryState, LoadError> {
    let _ = memory;
    match detect(request.kernel)? {
        Format::LinuxBzImage | Format::Pvh | Format::Multiboot => Err(LoadError::UnknownFormat),
    }
}
