//! What an instruction writes to CR0: MOV to it, or LMSW.

use super::fetch::fetch;
use super::mmio::{general, instruction, linear_address};
use super::registers::{Mode, Register};
use super::{EmulateError, Why, walk};
use crate::memory::GuestMemory;
use iced_x86::{Code, OpKind, Register as R};
use ipc_schema::abi::vm::VcpuState;

/// What LMSW writes: PE, MP, EM, TS. It sets PE, and never clears it (AMD APM vol. 3, LMSW).
const MACHINE_STATUS: u64 = 0xF;
const PE: u64 = 1;

/// The value that the instruction at rip writes to CR0, and the instruction's length. `descriptors`: the page holds group DESC, which an
/// operand in FS or GS takes.
///
/// # Errors
/// `Retry` if the code no longer writes CR0; the exception that reading LMSW's operand raises.
pub fn written_to_cr0(
    memory: &GuestMemory,
    state: &VcpuState,
    descriptors: bool,
) -> Result<(u64, u8), EmulateError> {
    let fetched = fetch(memory, state)?;
    let decoded = instruction(&fetched, state)?;
    let length = decoded.len() as u8;
    let register = |register: R| general(register).ok_or(EmulateError::Retry);
    let word = match decoded.code() {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 if decoded.op0_register() == R::CR0 => {
            return Ok((register(decoded.op1_register())?.read(state), length));
        }
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => match decoded.op0_kind() {
            OpKind::Register => Register {
                width: 2,
                ..register(decoded.op0_register())?
            }
            .read(state),
            _ => {
                let at = linear_address(&decoded, 0, state, descriptors)
                    .ok_or_else(|| fetched.unsupported(state, Why::Segment))?;
                word_at(memory, state, at).map_err(|error| {
                    error.unwrap_or_else(|| fetched.unsupported(state, Why::Instruction))
                })?
            }
        },
        _ => return Err(EmulateError::Retry),
    };
    let kept = state.cr0 & !MACHINE_STATUS | state.cr0 & PE;
    Ok((kept | word & MACHINE_STATUS, length))
}

/// Two bytes of the guest's RAM. No error of the guest's: they are elsewhere.
fn word_at(
    memory: &GuestMemory,
    state: &VcpuState,
    linear: u64,
) -> Result<u64, Option<EmulateError>> {
    let mut word = 0;
    for i in 0..2 {
        let linear = linear.wrapping_add(i);
        let linear = if Mode::of(state) == Mode::Long {
            linear
        } else {
            linear & 0xFFFF_FFFF
        };
        let gpa = walk::data(memory, state, linear, walk::Intent::Read)
            .map_err(|fault| Some(EmulateError::Exception(fault)))?;
        word |= u64::from(memory.read_u8(gpa).map_err(|_| None)?) << (8 * i);
    }
    Ok(word)
}
