//! Port instructions that the kernel did not complete: IN, OUT, INS and OUTS, with REP.
//!
//! The exit has told port, width and direction, after the processor checked the guest's permission for just those. The
//! code at rip is read only to learn the rest; if it no longer fits the exit, the guest is entered again.

use super::fetch::fetch;
use super::registers::{Mode, Register, get};
use super::string::{Direction, StringOperation};
use super::{EmulateError, RF, Retired, TF, Why, mmio};
use crate::memory::GuestMemory;
use ipc_schema::abi::vm::{PortAccess, VcpuState};

const RAX: u8 = 0;
const RDX: u8 = 2;

/// The devices behind I/O ports. Widths are 1, 2 or 4 bytes.
pub trait PortBus {
    /// Reads `width` bytes from `port`, zero-extended.
    fn input(&mut self, port: u16, width: u8) -> u32;
    /// Writes the low `width` bytes of `value` to `port`.
    fn output(&mut self, port: u16, width: u8, value: u32);
}

/// Carries out the port instruction that made an exit, with the exit's [`PortAccess`] and address of the next
/// instruction. Plain IN and OUT are done without looking at the guest's code; REP goes on for at most
/// [`mmio::CHUNK`] elements. `descriptors`: the page holds group DESC, which operands in FS and GS take.
#[inline]
pub fn emulate<B: PortBus>(
    memory: &GuestMemory,
    state: &mut VcpuState,
    access: PortAccess,
    next_rip: u64,
    descriptors: bool,
    bus: &mut B,
) -> Result<Retired, EmulateError> {
    if access.string() {
        return strings(memory, state, access, descriptors, bus);
    }
    let (port, width) = (access.port(), access.width());
    if access.input() {
        let value = bus.input(port, width);
        Ok(complete_in(state, width, value, next_rip))
    } else {
        bus.output(port, width, out_value(state, width));
        Ok(complete_out(state, next_rip))
    }
}

/// What a plain OUT of `width` bytes writes.
#[inline]
#[must_use]
pub fn out_value(state: &VcpuState, width: u8) -> u32 {
    Register::new(RAX, width).read(state) as u32
}

/// Completes a plain IN: merges `value` into RAX as the width says, and moves rip to `next_rip`.
#[inline]
pub fn complete_in(state: &mut VcpuState, width: u8, value: u32, next_rip: u64) -> Retired {
    Register::new(RAX, width).write(state, value.into());
    complete_out(state, next_rip)
}

/// Completes a plain OUT: moves rip to `next_rip`.
#[inline]
pub fn complete_out(state: &mut VcpuState, next_rip: u64) -> Retired {
    state.rip = if Mode::of(state) == Mode::Long {
        next_rip
    } else {
        next_rip & 0xFFFF_FFFF
    };
    state.shadow = 0;
    let single_step = state.rflags & TF != 0;
    state.rflags &= !RF;
    Retired {
        single_step,
        complete: true,
    }
}

/// INS and OUTS.
#[cold]
fn strings<B: PortBus>(
    memory: &GuestMemory,
    state: &mut VcpuState,
    access: PortAccess,
    descriptors: bool,
    bus: &mut B,
) -> Result<Retired, EmulateError> {
    let fetched = fetch(memory, state)?;
    let instruction = mmio::instruction(&fetched, state)?;
    let operation = match StringOperation::of(&instruction, descriptors) {
        Some(Ok(operation)) => operation,
        Some(Err(why)) => return Err(fetched.unsupported(state, why)),
        None => return Err(EmulateError::Retry),
    };
    let input = match operation.direction {
        Direction::Input => true,
        Direction::Output => false,
        _ => return Err(EmulateError::Retry),
    };
    let port = get(state, RDX) as u16;
    let width = operation.width;
    if (port, width, input) != (access.port(), access.width(), access.input()) {
        return Err(EmulateError::Retry);
    }
    let mut retired = Retired {
        single_step: false,
        complete: false,
    };
    for _ in 0..mmio::CHUNK {
        if operation.is_done(state) {
            return Ok(operation.skip(state));
        }
        // The operand's fault comes before the device sees anything.
        let place = if input {
            operation.destination(memory, state)?
        } else {
            operation.source(memory, state)?
        };
        if !place.ram {
            return Err(fetched.unsupported(state, Why::Straddles));
        }
        if input {
            place.write(memory, bus.input(port, width).into())?;
        } else {
            bus.output(port, width, place.read(memory)? as u32);
        }
        retired = operation.advance(state);
        if retired.complete || retired.single_step {
            break;
        }
    }
    Ok(retired)
}

#[cfg(test)]
mod tests;
