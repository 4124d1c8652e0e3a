//! Finishing in software what the processor could not: MMIO and string port instructions, and the length of the
//! instruction that made an exit.
//!
//! Job: read the guest's code through its own page tables, decode it, and carry it out on its [`VcpuState`]. Place: under
//! the VMM's exit loop; devices are reached through [`mmio::Bus`] or between a decode and its completion. Trust: code,
//! page tables and registers are the guest's and may change at any time; the worst that they can do is to hurt the
//! guest itself, and whatever no longer fits the exit ends in [`EmulateError::Retry`].
//!
//! The state page must hold the groups [`GROUPS`]; what changes are the general registers and group RIP.

use core::fmt;
use ipc_schema::abi::vm::{Event, Groups, VcpuState};

mod alu;
mod condition;
pub mod control;
mod fast;
mod fetch;
pub mod length;
pub mod mmio;
pub mod port;
mod registers;
mod site;
mod string;
#[cfg(test)]
pub(crate) mod testing;
pub mod walk;

pub use length::{Expected, Lengths, instruction_length};
pub use registers::Mode;

/// State groups that everything here reads. String instructions with FS or GS overrides also take [`Groups::DESC`], and say
/// so by [`Why::Segment`]. Only [`Groups::RIP`] is written.
pub const GROUPS: u64 = Groups::RIP | Groups::CR | Groups::SEG;

/// An exception that the instruction raises: inject it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u32>,
    /// CR2, for a page fault: to be put into the state page (group CR).
    pub cr2: Option<u64>,
}

impl Exception {
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self {
        vector: 13,
        error: Some(0),
        cr2: None,
    };
    /// #SS(0).
    pub const STACK: Self = Self {
        vector: 12,
        error: Some(0),
        cr2: None,
    };
    /// #UD.
    pub const INVALID_OPCODE: Self = Self {
        vector: 6,
        error: None,
        cr2: None,
    };

    /// #PF at `address`.
    #[must_use]
    pub const fn page_fault(address: u64, error: u32) -> Self {
        Self {
            vector: 14,
            error: Some(error),
            cr2: Some(address),
        }
    }

    /// What `run` takes to deliver it.
    #[must_use]
    pub const fn event(self) -> Event {
        Event::exception(self.vector, self.error)
    }
}

/// Why an instruction is beyond the emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No encoding that the decoder knows.
    Undecodable,
    /// A known instruction that is not emulated on MMIO.
    Instruction,
    /// The guest runs code that is not in its RAM.
    CodeOutsideRam,
    /// A memory operand that crosses from RAM into a device, or two pages of a device.
    Straddles,
    /// A string instruction through FS or GS, and group DESC is not there: ask for it, and try again.
    Segment,
    /// The guest's page tables lie in a device.
    PageTables,
}

/// An instruction that cannot be emulated: the VM stops, with this in its log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Unsupported {
    /// Why.
    pub why: Why,
    /// Its address.
    pub rip: u64,
    /// Its bytes, `len` of them, up to 15.
    pub bytes: [u8; 15],
    /// How many.
    pub len: u8,
}

impl fmt::Debug for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self
            .bytes
            .get(..usize::from(self.len))
            .unwrap_or(&self.bytes);
        write!(f, "{:?} at {:#x}: {bytes:02x?}", self.why, self.rip)
    }
}

/// Why an instruction was not carried out. Nothing of the guest's state has changed then, except that a string
/// instruction keeps the elements that it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmulateError {
    /// Its code or page tables are not what they were at the exit: enter the guest again and let the processor decide.
    Retry,
    /// It raises an exception.
    Exception(Exception),
    /// It is beyond the emulator.
    Unsupported(Unsupported),
}

/// An instruction has been carried out and rip stands behind it (or on it still, for an unfinished REP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Retired {
    /// RFLAGS.TF was set: a #DB with DR6.BS is due before the next instruction.
    pub single_step: bool,
    /// False for a string instruction that has elements left: enter the guest, it comes back by itself.
    pub complete: bool,
}

/// RFLAGS.TF.
const TF: u64 = 1 << 8;
/// RFLAGS.RF.
pub(crate) const RF: u64 = 1 << 16;

/// Moves rip behind an instruction of `len` bytes and ends what lasts for one instruction: the interrupt shadow and RF.
/// For every exit whose instruction the VMM completes itself.
#[inline]
pub fn retire(state: &mut VcpuState, len: u8) -> Retired {
    let next = state.rip.wrapping_add(u64::from(len));
    state.rip = if Mode::of(state) == Mode::Long {
        next
    } else {
        next & 0xFFFF_FFFF
    };
    state.shadow = 0;
    let single_step = state.rflags & TF != 0;
    state.rflags &= !RF;
    Retired {
        single_step,
        complete: true,
    }
}
