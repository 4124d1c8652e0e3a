//! MMIO: the instruction that made a nested page fault on a device's address.
//!
//! The processor has translated and checked the operand before it faulted, and told its guest-physical address; so a
//! plain instruction needs no address arithmetic here, only its kind, its width and its register. What the exit said
//! about the access (read or write) must agree with the code now at rip: a second processor may have rewritten it, and
//! must not turn a read that the guest's page tables allow into a write that they do not.

use super::alu::Operation;
use super::fast::Form;
use super::fetch::faulting as fetch;
use super::registers::{Mode, Register, mask};
use super::site::Site;
use super::string::StringOperation;
use super::{EmulateError, Retired, retire, string};
use crate::memory::GuestMemory;
use ipc_schema::abi::vm::VcpuState;

mod decode;

#[cfg(test)]
pub(super) use decode::full;
use decode::judge;
pub(super) use decode::{general, instruction, linear_address};

/// The devices behind guest-physical addresses that are not RAM. Widths are 1, 2, 4 or 8 bytes.
pub trait Bus {
    /// Reads `width` bytes at `gpa`, zero-extended.
    fn read(&mut self, gpa: u64, width: u8) -> u64;
    /// Writes the low `width` bytes of `value` at `gpa`.
    fn write(&mut self, gpa: u64, width: u8, value: u64);
}

/// Elements of a REP instruction that one exit carries out.
pub const CHUNK: u32 = 256;

/// RFLAGS.ZF.
const ZF: u64 = 1 << 6;
/// Number of RAX.
const RAX: u8 = 0;
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
    /// CMPXCHG with this register.
    CompareExchange { with: Register },
    /// XADD with this register.
    ExchangeAdd { with: Register },
    /// CMOVcc whose condition does not hold: the register is as it was, but zero-extended.
    KeepRegister { to: Register },
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
            Effect::Store
            | Effect::Exchange { .. }
            | Effect::CompareExchange { .. }
            | Effect::ExchangeAdd { .. } => true,
            Effect::AluMemory { operation, .. } => operation.writes(),
            Effect::Load { .. } | Effect::AluRegister { .. } | Effect::KeepRegister { .. } => false,
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
            Effect::CompareExchange { with } => {
                let accumulator = Register::new(RAX, self.width);
                let (_, flags) =
                    Operation::Cmp.apply(self.width, accumulator.read(state), value, state.rflags);
                state.rflags = flags;
                // The processor writes in either case.
                back = Some(if flags & ZF != 0 {
                    with.read(state)
                } else {
                    accumulator.write(state, value);
                    value
                });
            }
            Effect::ExchangeAdd { with } => {
                let (result, flags) =
                    Operation::Add.apply(self.width, value, with.read(state), state.rflags);
                state.rflags = flags;
                with.write(state, value);
                back = Some(result);
            }
            Effect::KeepRegister { to } => {
                let kept = to.read(state);
                to.write(state, kept);
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

/// The places of the guest's last plain accesses to devices.
#[derive(Debug)]
pub struct Sites([Site<Form, 2>; SITES]);

/// How many, a power of two.
const SITES: usize = 16;

impl Default for Sites {
    fn default() -> Self {
        Self([Site::none(Form::NONE); SITES])
    }
}

impl Sites {
    /// The form of the instruction at rip, if it is a plain MOV.
    #[inline(always)]
    fn find(
        &mut self,
        memory: &GuestMemory,
        state: &VcpuState,
    ) -> Result<Option<Form>, EmulateError> {
        match self.0[state.rip as usize % SITES].find(memory, state) {
            Some(form) => Ok(Some(form)),
            None => self.miss(memory, state),
        }
    }

    #[inline(never)]
    fn miss(
        &mut self,
        memory: &GuestMemory,
        state: &VcpuState,
    ) -> Result<Option<Form>, EmulateError> {
        let fetched = fetch(memory, state)?;
        let form = Form::of(&fetched, Mode::of(state));
        if let Some(form) = form {
            let bytes = fetched.bytes().get(..usize::from(form.len));
            self.0[state.rip as usize % SITES].note(memory, state, bytes.unwrap_or_default(), form);
        }
        Ok(form)
    }
}

/// Carries out the instruction at rip, which faulted at the guest-physical address `gpa` of a device with the exit's
/// error code `error`. A REP instruction goes on for at most [`CHUNK`] elements.
/// `descriptors`: the page holds group DESC, which string operands in FS and GS take; without it they are
/// [`super::Why::Segment`].
#[inline]
pub fn emulate<B: Bus>(
    memory: &GuestMemory,
    state: &mut VcpuState,
    gpa: u64,
    error: u64,
    descriptors: bool,
    bus: &mut B,
) -> Result<Retired, EmulateError> {
    emulate_at(
        &mut Sites::default(),
        memory,
        state,
        (gpa, error),
        descriptors,
        bus,
    )
}

/// As [`emulate`], for a guest whose last places are in `sites`.
#[inline(always)]
pub fn emulate_at<B: Bus>(
    sites: &mut Sites,
    memory: &GuestMemory,
    state: &mut VcpuState,
    (gpa, error): (u64, u64),
    descriptors: bool,
    bus: &mut B,
) -> Result<Retired, EmulateError> {
    if let Some(form) = sites.find(memory, state)? {
        // The compiler sees that only plain loads and stores come from it.
        let access = form.access(state, gpa);
        if fits(&access, error) && (gpa & 0xFFF != 0 || form.begins_page(state)) {
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
    }
    emulate_any(memory, state, (gpa, error), descriptors, bus)
}

/// Whatever is not a plain MOV within one page.
#[inline(never)]
fn emulate_any<B: Bus>(
    memory: &GuestMemory,
    state: &mut VcpuState,
    (gpa, error): (u64, u64),
    descriptors: bool,
    bus: &mut B,
) -> Result<Retired, EmulateError> {
    let fetched = fetch(memory, state)?;
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

#[cfg(test)]
mod tests;
