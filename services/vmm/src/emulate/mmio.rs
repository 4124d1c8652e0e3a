//! MMIO: the instruction that made a nested page fault on a device's address.

use super::{EmulateError, Retired};
use crate::memory::GuestMemory;
use ipc_schema::abi::vm::VcpuState;

/// The devices behind guest-physical addresses that are not RAM. Widths are 1, 2, 4 or 8 bytes.
pub trait Bus {
    /// Reads `width` bytes at `gpa`, zero-extended.
    fn read(&mut self, gpa: u64, width: u8) -> u64;
    /// Writes the low `width` bytes of `value` at `gpa`.
    fn write(&mut self, gpa: u64, width: u8, value: u64);
}

/// Carries out the instruction at rip, which faulted at the guest-physical address `gpa` of a device.
///
/// A REP instruction goes on for at most [`CHUNK`] elements.
pub fn emulate<B: Bus>(
    memory: &GuestMemory,
    state: &mut VcpuState,
    gpa: u64,
    bus: &mut B,
) -> Result<Retired, EmulateError> {
    let _ = (memory, state, gpa, bus);
    Err(EmulateError::Retry)
}

/// Elements of a REP instruction that one exit carries out.
pub const CHUNK: u32 = 256;
