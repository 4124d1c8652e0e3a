//! From the instruction at rip to the one access that it makes.

use super::super::alu::Operation;
use super::super::condition::{self, Conditional};
use super::super::fetch::Fetched;
use super::super::registers::{Mode, Register, mask};
use super::super::string::{self, StringOperation};
use super::super::{EmulateError, Why, fast, walk};
use super::{Access, ERROR_FETCH, ERROR_TABLES, ERROR_WRITE, Effect, Kind, Split};
use crate::memory::GuestMemory;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use ipc_schema::abi::vm::VcpuState;

/// Decodes, and holds the result against the exit.
#[inline(never)]
pub(super) fn judge(
    memory: &GuestMemory,
    state: &VcpuState,
    fetched: &Fetched,
    gpa: u64,
    error: u64,
    descriptors: bool,
) -> Result<Access, EmulateError> {
    if error & (ERROR_FETCH | ERROR_TABLES) != 0 {
        let why = if error & ERROR_FETCH != 0 {
            Why::CodeOutsideRam
        } else {
            Why::PageTables
        };
        return Err(fetched.unsupported(state, why));
    }
    let access = match fast::decode(fetched, state, gpa) {
        Some(access) => access,
        None => full(memory, fetched, state, gpa, descriptors)?,
    };
    if matches!(access.effect, Effect::String(_)) {
        return Ok(access);
    }
    if access.writes() != (error & ERROR_WRITE != 0) {
        // Some report a read for an instruction that reads and writes (QEMU): the right to write is then yet to be shown.
        return if access.kind == Kind::Read && access.writes() {
            place(memory, state, fetched, descriptors, access)
        } else {
            Err(EmulateError::Retry)
        };
    }
    let within = gpa & 0xFFF <= 0x1000 - u64::from(access.width);
    if within && (gpa & 0xFFF != 0 || access.width == 1) {
        return Ok(access);
    }
    place(memory, state, fetched, descriptors, access)
}

/// Translates the operand, where the exit does not tell all: whether one at a border of a page lies across it (told is the
/// address of its first byte, or of the first byte in the second page, whichever is a device's), or whether it may be
/// written.
#[cold]
fn place(
    memory: &GuestMemory,
    state: &VcpuState,
    fetched: &Fetched,
    descriptors: bool,
    access: Access,
) -> Result<Access, EmulateError> {
    let instruction = instruction(fetched, state)?;
    let operand = (0..instruction.op_count())
        .find(|&i| instruction.op_kind(i) == OpKind::Memory)
        .ok_or(EmulateError::Retry)?;
    let long = Mode::of(state) == Mode::Long;
    let linear = linear_address(&instruction, operand, state, descriptors)
        .ok_or_else(|| fetched.unsupported(state, Why::Segment))?;
    let narrow = |linear: u64| if long { linear } else { linear & 0xFFFF_FFFF };
    let linear = narrow(linear.wrapping_add(bit_offset(&instruction, state, access.width)));
    let intent = if access.writes() {
        walk::Intent::Write
    } else {
        walk::Intent::Read
    };
    let translate =
        |linear| walk::data(memory, state, linear, intent).map_err(EmulateError::Exception);
    let first = translate(linear)?;
    let room = 0x1000 - (linear & 0xFFF);
    if room >= u64::from(access.width) {
        return if access.gpa == first {
            Ok(access)
        } else {
            Err(EmulateError::Retry)
        };
    }
    let second = translate(narrow(linear.wrapping_add(room)))?;
    if access.gpa != first && access.gpa != second {
        return Err(EmulateError::Retry);
    }
    Ok(Access {
        gpa: first,
        split: Some(Split {
            room: room as u8,
            second,
        }),
        ..access
    })
}

/// Linear address of a memory operand, before it is cut to the mode's width. `None` if it takes `descriptors` that are not there.
pub(in crate::emulate) fn linear_address(
    instruction: &Instruction,
    operand: u32,
    state: &VcpuState,
    descriptors: bool,
) -> Option<u64> {
    let long = Mode::of(state) == Mode::Long;
    instruction.virtual_address(operand, 0, |register, _, _| {
        use iced_x86::Register as R;
        Some(match register {
            R::FS | R::GS if !descriptors => return None,
            R::FS => state.fs.base,
            R::GS => state.gs.base,
            R::ES | R::CS | R::SS | R::DS if long => 0,
            R::ES => state.es.base,
            R::CS => state.cs.base,
            R::SS => state.ss.base,
            R::DS => state.ds.base,
            other => general(other)?.read(state),
        })
    })
}

/// How far the number of a bit in a register moves the operand of BT and its kin: by whole operands (Intel SDM vol. 2, BT).
fn bit_offset(instruction: &Instruction, state: &VcpuState, width: u8) -> u64 {
    let is_bit_test = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    if !is_bit_test || instruction.op_kind(1) != OpKind::Register {
        return 0;
    }
    let Some(register) = general(instruction.op_register(1)) else {
        return 0;
    };
    let unused = 64 - 8 * u32::from(width.clamp(1, 8));
    let bit = (register.read(state) << unused) as i64 >> unused;
    let bits = 8 * i64::from(width.max(1));
    (bit.div_euclid(bits) * (bits / 8)) as u64
}

/// Decodes with the full decoder.
pub(in crate::emulate) fn instruction(
    fetched: &Fetched,
    state: &VcpuState,
) -> Result<Instruction, EmulateError> {
    let mut decoder = Decoder::with_ip(
        Mode::of(state).bitness(),
        fetched.bytes(),
        state.rip,
        DecoderOptions::NONE,
    );
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Err(fetched.unsupported(state, Why::Undecodable));
    }
    Ok(instruction)
}

/// A decoder's general register.
pub(in crate::emulate) fn general(register: iced_x86::Register) -> Option<Register> {
    use iced_x86::Register as R;
    let from = |first: R, width| Register::new((register as u32 - first as u32) as u8, width);
    let n = register as u32;
    Some(match n {
        _ if (R::AL as u32..=R::BL as u32).contains(&n) => from(R::AL, 1),
        _ if (R::AH as u32..=R::BH as u32).contains(&n) => Register {
            high: true,
            ..from(R::AH, 1)
        },
        // SPL is number 4.
        _ if (R::SPL as u32..=R::R15L as u32).contains(&n) => {
            let low = from(R::SPL, 1);
            Register {
                number: low.number + 4,
                ..low
            }
        }
        _ if (R::AX as u32..=R::R15W as u32).contains(&n) => from(R::AX, 2),
        _ if (R::EAX as u32..=R::R15D as u32).contains(&n) => from(R::EAX, 4),
        _ if (R::RAX as u32..=R::R15 as u32).contains(&n) => from(R::RAX, 8),
        _ => return None,
    })
}

/// What the second operand is.
enum Source {
    Register(Register),
    Immediate(u64),
}

/// Operand `number`, if it is a general register or an immediate.
fn source(instruction: &Instruction, number: u32) -> Option<Source> {
    match instruction.op_kind(number) {
        OpKind::Register => general(instruction.op_register(number)).map(Source::Register),
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Some(Source::Immediate(instruction.immediate(number))),
        _ => None,
    }
}

/// The full decoder's way.
#[cold]
#[inline(never)]
pub(in crate::emulate) fn full(
    memory: &GuestMemory,
    fetched: &Fetched,
    state: &VcpuState,
    gpa: u64,
    descriptors: bool,
) -> Result<Access, EmulateError> {
    let instruction = instruction(fetched, state)?;
    if let Some(operation) = StringOperation::of(&instruction, descriptors) {
        let operation = operation.map_err(|why| fetched.unsupported(state, why))?;
        return string::element(memory, state, operation);
    }
    plain(&instruction, state, gpa).ok_or_else(|| fetched.unsupported(state, Why::Instruction))
}

/// An instruction with one memory operand; `None` if it is not emulated.
fn plain(instruction: &Instruction, state: &VcpuState, gpa: u64) -> Option<Access> {
    use Mnemonic as M;
    use iced_x86::MemorySize as S;
    let width = match instruction.memory_size() {
        S::UInt8 | S::Int8 => 1,
        S::UInt16 | S::Int16 => 2,
        S::UInt32 | S::Int32 => 4,
        S::UInt64 | S::Int64 => 8,
        _ => return None,
    };
    let in_memory = |number: u32| {
        instruction.op_count() > number && instruction.op_kind(number) == OpKind::Memory
    };
    let (first, second) = (in_memory(0), in_memory(1));
    let operation = match instruction.mnemonic() {
        M::Add => Some(Operation::Add),
        M::Adc => Some(Operation::Adc),
        M::Sub => Some(Operation::Sub),
        M::Sbb => Some(Operation::Sbb),
        M::Cmp => Some(Operation::Cmp),
        M::And => Some(Operation::And),
        M::Test => Some(Operation::Test),
        M::Or => Some(Operation::Or),
        M::Xor => Some(Operation::Xor),
        M::Inc => Some(Operation::Inc),
        M::Dec => Some(Operation::Dec),
        M::Neg => Some(Operation::Neg),
        M::Not => Some(Operation::Not),
        M::Bt => Some(Operation::Bt),
        M::Bts => Some(Operation::Bts),
        M::Btr => Some(Operation::Btr),
        M::Btc => Some(Operation::Btc),
        _ => None,
    };
    let value = |number: u32| match source(instruction, number)? {
        Source::Register(register) => Some(register.read(state)),
        Source::Immediate(value) => Some(value),
    };
    let register = |number: u32| match source(instruction, number)? {
        Source::Register(register) => Some(register),
        Source::Immediate(_) => None,
    };
    let conditional = condition::of(instruction.mnemonic(), state.rflags);
    let (kind, effect) = match (instruction.mnemonic(), operation) {
        _ if conditional.is_some() => match conditional? {
            (Conditional::Set, holds) if first => (Kind::Write(holds.into()), Effect::Store),
            (Conditional::Move, true) if second => (
                Kind::Read,
                Effect::Load {
                    to: register(0)?,
                    signed: false,
                },
            ),
            (Conditional::Move, false) if second => {
                (Kind::Read, Effect::KeepRegister { to: register(0)? })
            }
            _ => return None,
        },
        (M::Cmpxchg, _) if first => (Kind::Read, Effect::CompareExchange { with: register(1)? }),
        (M::Xadd, _) if first => (Kind::Read, Effect::ExchangeAdd { with: register(1)? }),
        (M::Mov | M::Movnti, _) if first => (Kind::Write(value(1)? & mask(width)), Effect::Store),
        (M::Mov | M::Movzx, _) if second => (
            Kind::Read,
            Effect::Load {
                to: register(0)?,
                signed: false,
            },
        ),
        (M::Movsx | M::Movsxd, _) if second => (
            Kind::Read,
            Effect::Load {
                to: register(0)?,
                signed: true,
            },
        ),
        (M::Xchg, _) if first => (Kind::Read, Effect::Exchange { with: register(1)? }),
        (M::Xchg, _) if second => (Kind::Read, Effect::Exchange { with: register(0)? }),
        (_, Some(operation)) if first => {
            let operand = if instruction.op_count() > 1 {
                value(1)?
            } else {
                0
            };
            (
                Kind::Read,
                Effect::AluMemory {
                    operation,
                    operand: operand & mask(width),
                },
            )
        }
        (_, Some(operation)) if second => (
            Kind::Read,
            Effect::AluRegister {
                operation,
                to: register(0)?,
            },
        ),
        _ => return None,
    };
    Some(Access {
        gpa,
        width,
        kind,
        split: None,
        len: instruction.len() as u8,
        effect,
    })
}
