//! MMIO: the instruction that made a nested page fault on a device's address.
//!
//! The processor has translated and checked the operand before it faulted, and told its guest-physical address; so a
//! plain instruction needs no address arithmetic here, only its kind, its width and its register. What the exit said
//! about the access (read or write) must agree with the code now at rip: a second processor may have rewritten it, and
//! must not turn a read that the guest's page tables allow into a write that they do not.

use super::alu::Operation;
use super::fetch::{Fetched, fetch};
use super::registers::{Mode, Register, mask};
use super::string::StringOperation;
use super::{EmulateError, Retired, Why, fast, retire, string, walk};
use crate::memory::GuestMemory;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use ipc_schema::abi::vm::VcpuState;

/// The devices behind guest-physical addresses that are not RAM. Widths are 1, 2, 4 or 8 bytes.
pub trait Bus {
    /// Reads `width` bytes at `gpa`, zero-extended.
    fn read(&mut self, gpa: u64, width: u8) -> u64;
    /// Writes the low `width` bytes of `value` at `gpa`.
    fn write(&mut self, gpa: u64, width: u8, value: u64);
}

/// Elements of a REP instruction that one exit carries out.
pub const CHUNK: u32 = 256;

/// Error code of a nested page fault (information 1 of the exit): it was a write.
const ERROR_WRITE: u64 = 1 << 1;
/// An instruction fetch.
const ERROR_FETCH: u64 = 1 << 4;
/// In the guest's page tables.
const ERROR_TABLES: u64 = 1 << 33;

/// What the device is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read, then [`Access::complete`] with the value.
    Read,
    /// Write this value, then [`Access::complete`] (its argument is ignored).
    Write(u64),
    /// Nothing: a REP instruction with no elements left, or one whose operand is RAM by now.
    None,
}

/// A write that follows a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteBack {
    /// Where.
    pub gpa: u64,
    /// The value.
    pub value: u64,
}

/// What is to happen with the value that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing: a store.
    Store,
    /// It goes to a register, sign-extended from the access's width if so.
    Load { to: Register, signed: bool },
    /// Memory is the first operand.
    AluMemory { operation: Operation, operand: u64 },
    /// A register is the first operand.
    AluRegister { operation: Operation, to: Register },
    /// Memory and register change places.
    Exchange { with: Register },
    /// One element of a string instruction.
    String(StringOperation),
}

/// An operand across two pages, at least one of them a device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Bytes in the first page.
    room: u8,
    /// Guest-physical address of the second page.
    second: u64,
}

/// One device access of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Access {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// What the device is to do.
    pub kind: Kind,
    /// Set if the operand goes on in another page.
    pub(super) split: Option<Split>,
    /// Length of the instruction.
    pub(super) len: u8,
    pub(super) effect: Effect,
}

impl Access {
    /// True if the operand is written in the end.
    fn writes(&self) -> bool {
        match self.effect {
            Effect::Store | Effect::Exchange { .. } => true,
            Effect::AluMemory { operation, .. } => operation.writes(),
            Effect::Load { .. } | Effect::AluRegister { .. } => false,
            Effect::String(_) => matches!(self.kind, Kind::Write(_)),
        }
    }

    /// Each byte's guest-physical address.
    fn bytes(&self, split: Split) -> impl Iterator<Item = (u32, u64)> {
        let first = self.gpa;
        (0..self.width.min(8)).map(move |i| {
            let gpa = match i.checked_sub(split.room) {
                None => first.wrapping_add(u64::from(i)),
                Some(i) => split.second.wrapping_add(u64::from(i)),
            };
            (u32::from(i) * 8, gpa)
        })
    }

    /// Reads the operand; across pages, byte by byte.
    #[inline]
    fn read<B: Bus>(&self, bus: &mut B) -> u64 {
        let Some(split) = self.split else {
            return bus.read(self.gpa, self.width);
        };
        self.bytes(split).fold(0, |value, (shift, gpa)| {
            value | (bus.read(gpa, 1) & 0xFF) << shift
        })
    }

    /// Writes the operand; across pages, byte by byte.
    #[inline]
    fn write<B: Bus>(&self, bus: &mut B, value: u64) {
        let Some(split) = self.split else {
            return bus.write(self.gpa, self.width, value);
        };
        for (shift, gpa) in self.bytes(split) {
            bus.write(gpa, 1, value >> shift & 0xFF);
        }
    }

    /// Finishes the instruction (or the element) with the `value` that the device gave: registers, flags and rip. A
    /// write that this asks for is still to be carried out.
    ///
    /// # Errors
    /// Only for strings: the RAM operand is no longer there.
    pub fn complete(
        self,
        memory: &GuestMemory,
        state: &mut VcpuState,
        value: u64,
    ) -> Result<(Option<WriteBack>, Retired), EmulateError> {
        let value = value & mask(self.width);
        let mut back = None;
        match self.effect {
            Effect::Store => {}
            Effect::Load { to, signed } => {
                let bits = 64 - 8 * u32::from(self.width);
                let value = if signed {
                    ((value << bits) as i64 >> bits) as u64
                } else {
                    value
                };
                to.write(state, value);
            }
            Effect::AluMemory { operation, operand } => {
                let (result, flags) = operation.apply(self.width, value, operand, state.rflags);
                state.rflags = flags;
                back = operation.writes().then_some(result);
            }
            Effect::AluRegister { operation, to } => {
                let (result, flags) =
                    operation.apply(self.width, to.read(state), value, state.rflags);
                state.rflags = flags;
                if operation.writes() {
                    to.write(state, result);
                }
            }
            Effect::Exchange { with } => {
                back = Some(with.read(state));
                with.write(state, value);
            }
            Effect::String(operation) => {
                return string::complete(memory, state, operation, &self, value);
            }
        }
        let back = back.map(|value| WriteBack {
            gpa: self.gpa,
            value,
        });
        Ok((back, retire(state, self.len)))
    }
}

/// Carries out the instruction at rip, which faulted at the guest-physical address `gpa` of a device with the exit's
/// error code `error`. A REP instruction goes on for at most [`CHUNK`] elements.
/// `descriptors`: the page holds group DESC, which string operands in FS and GS take; without it they are
/// [`Why::Segment`].
#[inline]
pub fn emulate<B: Bus>(
    memory: &GuestMemory,
    state: &mut VcpuState,
    gpa: u64,
    error: u64,
    descriptors: bool,
    bus: &mut B,
) -> Result<Retired, EmulateError> {
    let fetched = fetch(memory, state)?;
    // The short way once more, by itself: the compiler then sees that only plain loads and stores come from it.
    if let Some(access) = fast::decode(&fetched, state, gpa)
        && fits(&access, error)
        && (gpa & 0xFFF != 0 || fast::begins_page(&fetched, state))
    {
        match access.effect {
            Effect::Load { to, .. } => to.write(state, bus.read(gpa, access.width)),
            _ => {
                if let Kind::Write(value) = access.kind {
                    bus.write(gpa, access.width, value);
                }
            }
        }
        return Ok(retire(state, access.len));
    }
    let access = judge(memory, state, &fetched, gpa, error, descriptors)?;
    let retired = perform(memory, state, bus, access)?;
    match access.effect {
        Effect::String(operation) => more(memory, state, bus, operation, retired),
        _ => Ok(retired),
    }
}

/// One access.
#[inline]
fn perform<B: Bus>(
    memory: &GuestMemory,
    state: &mut VcpuState,
    bus: &mut B,
    access: Access,
) -> Result<Retired, EmulateError> {
    let value = match access.kind {
        Kind::Read => access.read(bus),
        Kind::Write(value) => {
            access.write(bus, value);
            0
        }
        Kind::None => 0,
    };
    let (back, retired) = access.complete(memory, state, value)?;
    if let Some(back) = back {
        match access.effect {
            Effect::String(_) => bus.write(back.gpa, access.width, back.value),
            _ => access.write(bus, back.value),
        }
    }
    Ok(retired)
}

/// The further elements of a REP instruction.
#[cold]
fn more<B: Bus>(
    memory: &GuestMemory,
    state: &mut VcpuState,
    bus: &mut B,
    operation: StringOperation,
    mut retired: Retired,
) -> Result<Retired, EmulateError> {
    for _ in 1..CHUNK {
        if retired.complete || retired.single_step {
            break;
        }
        let access = string::element(memory, state, operation)?;
        retired = perform(memory, state, bus, access)?;
    }
    Ok(retired)
}

/// True if a plain access is what the exit told, in one page of a device.
#[inline(always)]
fn fits(access: &Access, error: u64) -> bool {
    error & (ERROR_FETCH | ERROR_TABLES) == 0
        && access.writes() == (error & ERROR_WRITE != 0)
        && access.gpa & 0xFFF <= 0x1000 - u64::from(access.width)
}

/// Decodes, and holds the result against the exit.
#[inline(never)]
fn judge(
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
    let linear = instruction
        .virtual_address(operand, 0, |register, _, _| {
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
pub(super) fn instruction(
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
pub(super) fn general(register: iced_x86::Register) -> Option<Register> {
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
pub(super) fn full(
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
    let (kind, effect) = match (instruction.mnemonic(), operation) {
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

#[cfg(test)]
mod tests;
