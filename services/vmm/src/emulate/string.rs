//! String instructions, one element at a time: MOVS, STOS and LODS between RAM and devices, INS and OUTS.
//!
//! Here the operands' addresses are the emulator's own to compute, check and translate; an operand that the guest has
//! not mapped raises the exception that the processor would.

use super::mmio::{Access, Effect, Kind, WriteBack};
use super::registers::{Mode, Register, get, mask, real_segments, set};
use super::walk::{self, Intent};
use super::{EmulateError, Exception, Retired, TF, Unsupported, Why, retire};
use crate::memory::GuestMemory;
use iced_x86::{Instruction, Mnemonic, OpKind};
use ipc_schema::abi::vm::{Segment, VcpuState};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// RFLAGS.DF.
const DF: u64 = 1 << 10;

/// What moves where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// MOVS: \[rSI\] to ES:\[rDI\].
    Move,
    /// STOS: rAX to ES:\[rDI\].
    Store,
    /// LODS: \[rSI\] to rAX.
    Load,
    /// INS: port to ES:\[rDI\].
    Input,
    /// OUTS: \[rSI\] to port.
    Output,
}

/// A decoded string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StringOperation {
    pub direction: Direction,
    /// Bytes an element.
    pub width: u8,
    /// Bytes of rSI, rDI and rCX: 2, 4 or 8.
    address: u8,
    rep: bool,
    /// Segment of \[rSI\], as the decoder names it.
    source: SourceSegment,
    len: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceSegment {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

impl StringOperation {
    /// The string instruction that this is, if it is one that is emulated; `descriptors`: group DESC is in the page.
    pub fn of(instruction: &Instruction, descriptors: bool) -> Option<Result<Self, Why>> {
        use Mnemonic as M;
        let (direction, width) = match instruction.mnemonic() {
            M::Movsb => (Direction::Move, 1),
            M::Movsw => (Direction::Move, 2),
            M::Movsd => (Direction::Move, 4),
            M::Movsq => (Direction::Move, 8),
            M::Stosb => (Direction::Store, 1),
            M::Stosw => (Direction::Store, 2),
            M::Stosd => (Direction::Store, 4),
            M::Stosq => (Direction::Store, 8),
            M::Lodsb => (Direction::Load, 1),
            M::Lodsw => (Direction::Load, 2),
            M::Lodsd => (Direction::Load, 4),
            M::Lodsq => (Direction::Load, 8),
            M::Insb => (Direction::Input, 1),
            M::Insw => (Direction::Input, 2),
            M::Insd => (Direction::Input, 4),
            M::Outsb => (Direction::Output, 1),
            M::Outsw => (Direction::Output, 2),
            M::Outsd => (Direction::Output, 4),
            _ => return None,
        };
        // MOVSD and its kin are SSE instructions too: only the string form has one of these operands.
        let address = (0..instruction.op_count()).find_map(|i| match instruction.op_kind(i) {
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
            _ => None,
        })?;
        let source = match instruction.segment_prefix() {
            iced_x86::Register::None | iced_x86::Register::DS => SourceSegment::Ds,
            iced_x86::Register::ES => SourceSegment::Es,
            iced_x86::Register::CS => SourceSegment::Cs,
            iced_x86::Register::SS => SourceSegment::Ss,
            _ if matches!(direction, Direction::Store | Direction::Input) => SourceSegment::Ds,
            _ if !descriptors => return Some(Err(Why::Segment)),
            iced_x86::Register::FS => SourceSegment::Fs,
            iced_x86::Register::GS => SourceSegment::Gs,
            _ => return None,
        };
        let rep = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let len = instruction.len() as u8;
        Some(Ok(Self {
            direction,
            width,
            address,
            rep,
            source,
            len,
        }))
    }

    /// True if a REP instruction has no elements left.
    pub fn is_done(self, state: &VcpuState) -> bool {
        self.rep && get(state, RCX) & mask(self.address) == 0
    }

    /// Ends the instruction without an element.
    pub fn skip(self, state: &mut VcpuState) -> Retired {
        retire(state, self.len)
    }

    fn unsupported(self, state: &VcpuState, why: Why) -> EmulateError {
        EmulateError::Unsupported(Unsupported {
            why,
            rip: state.rip,
            bytes: [0; 15],
            len: 0,
        })
    }

    /// Where \[rSI\] is, for reading.
    pub fn source(self, memory: &GuestMemory, state: &VcpuState) -> Result<Place, EmulateError> {
        let segment = match self.source {
            SourceSegment::Es => (&state.es, false),
            SourceSegment::Cs => (&state.cs, false),
            SourceSegment::Ss => (&state.ss, true),
            SourceSegment::Ds => (&state.ds, false),
            SourceSegment::Fs => (&state.fs, false),
            SourceSegment::Gs => (&state.gs, false),
        };
        self.place(memory, state, segment, RSI, Intent::Read)
    }

    /// Where ES:\[rDI\] is, for writing.
    pub fn destination(
        self,
        memory: &GuestMemory,
        state: &VcpuState,
    ) -> Result<Place, EmulateError> {
        self.place(memory, state, (&state.es, false), RDI, Intent::Write)
    }

    fn place(
        self,
        memory: &GuestMemory,
        state: &VcpuState,
        (segment, stack): (&Segment, bool),
        register: u8,
        intent: Intent,
    ) -> Result<Place, EmulateError> {
        let offset = get(state, register) & mask(self.address);
        // In 64-bit code FS and GS alone have a base.
        let based = matches!(self.source, SourceSegment::Fs | SourceSegment::Gs) && register == RSI;
        let linear = linear(state, segment, offset, self.width, intent, based)
            .map_err(|()| {
                if stack {
                    Exception::STACK
                } else {
                    Exception::GENERAL_PROTECTION
                }
            })
            .map_err(EmulateError::Exception)?;
        let translate =
            |linear| walk::data(memory, state, linear, intent).map_err(EmulateError::Exception);
        let first = translate(linear)?;
        let room = 0x1000 - (linear & 0xFFF);
        let (room, second) = if room < u64::from(self.width) {
            let next = linear.wrapping_add(room);
            let next = if Mode::of(state) == Mode::Long {
                next
            } else {
                next & 0xFFFF_FFFF
            };
            (room as u8, translate(next)?)
        } else {
            (self.width, 0)
        };
        let ram = memory.contains(first, u64::from(room));
        if room < self.width {
            let ram_too = memory.contains(second, u64::from(self.width - room));
            if !ram || !ram_too {
                return Err(self.unsupported(state, Why::Straddles));
            }
        }
        Ok(Place {
            first,
            second,
            room,
            width: self.width,
            ram,
        })
    }

    /// Advances rSI, rDI and rCX by an element, and rip behind the last one.
    pub fn advance(self, state: &mut VcpuState) -> Retired {
        let all = mask(self.address);
        let step = if state.rflags & DF != 0 {
            0u64.wrapping_sub(u64::from(self.width))
        } else {
            u64::from(self.width)
        };
        let mut add = |register: u8, by: u64| {
            let old = get(state, register);
            let new = old.wrapping_add(by) & all;
            // 32-bit address registers are zero-extended, 16-bit ones merged.
            set(
                state,
                register,
                if self.address == 2 {
                    old & !all | new
                } else {
                    new
                },
            );
            new
        };
        if matches!(
            self.direction,
            Direction::Move | Direction::Load | Direction::Output
        ) {
            add(RSI, step);
        }
        if matches!(
            self.direction,
            Direction::Move | Direction::Store | Direction::Input
        ) {
            add(RDI, step);
        }
        if self.rep && add(RCX, u64::MAX) != 0 {
            return Retired {
                single_step: state.rflags & TF != 0,
                complete: false,
            };
        }
        retire(state, self.len)
    }
}

/// An operand's guest-physical place: one piece, or two in RAM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    first: u64,
    second: u64,
    /// Bytes in the first piece.
    room: u8,
    width: u8,
    /// False for a device.
    pub ram: bool,
}

impl Place {
    pub fn read(self, memory: &GuestMemory) -> Result<u64, EmulateError> {
        let mut bytes = [0; 8];
        let (low, high) = bytes.split_at_mut(usize::from(self.room));
        let rest = usize::from(self.width - self.room);
        let done = memory
            .read(self.first, low)
            .and_then(|()| memory.read(self.second, &mut high[..rest]));
        done.map_err(|_| EmulateError::Retry)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub fn write(self, memory: &GuestMemory, value: u64) -> Result<(), EmulateError> {
        let bytes = value.to_le_bytes();
        let (low, high) = bytes.split_at(usize::from(self.room));
        let rest = usize::from(self.width - self.room);
        let done = memory
            .write(self.first, low)
            .and_then(|()| memory.write(self.second, &high[..rest]));
        done.map_err(|_| EmulateError::Retry)
    }
}

/// Linear address of `width` bytes at `offset`, or the segment's refusal (Intel SDM vol. 3, 5.3 to 5.5).
fn linear(
    state: &VcpuState,
    segment: &Segment,
    offset: u64,
    width: u8,
    intent: Intent,
    based: bool,
) -> Result<u64, ()> {
    let last = u64::from(width) - 1;
    if Mode::of(state) == Mode::Long {
        // ES, CS, SS and DS have base 0. Canonical for 48 bits; for 57 the page walk finds nothing there.
        let offset = if based {
            segment.base.wrapping_add(offset)
        } else {
            offset
        };
        let end = offset.checked_add(last).ok_or(())?;
        let canonical = |a: u64| ((a as i64) << 16 >> 16) as u64 == a;
        return if canonical(offset) && canonical(end) {
            Ok(offset)
        } else {
            Err(())
        };
    }
    let end = offset.checked_add(last).ok_or(())?;
    let limit = u64::from(segment.limit);
    let mut within = end <= limit;
    if !real_segments(state) {
        let attributes = segment.attributes;
        let present = attributes & 0x80 != 0;
        let code = attributes & 8 != 0;
        let bit1 = attributes & 2 != 0;
        // Bit 1: readable code, or writable data.
        let allowed = match intent {
            Intent::Read => !code || bit1,
            Intent::Write => !code && bit1,
        };
        if !present || !allowed {
            return Err(());
        }
        if !code && attributes & 4 != 0 {
            let top = if attributes & 0x400 != 0 {
                0xFFFF_FFFF
            } else {
                0xFFFF
            };
            within = offset > limit && end <= top;
        }
    }
    if within {
        Ok(segment.base.wrapping_add(offset) & 0xFFFF_FFFF)
    } else {
        Err(())
    }
}

/// The next element of a MOVS, STOS or LODS.
pub(super) fn element(
    memory: &GuestMemory,
    state: &VcpuState,
    operation: StringOperation,
) -> Result<Access, EmulateError> {
    let access = |gpa, kind| {
        Ok(Access {
            gpa,
            width: operation.width,
            kind,
            split: None,
            len: operation.len,
            effect: Effect::String(operation),
        })
    };
    if operation.is_done(state) {
        return access(0, Kind::None);
    }
    // An operand may turn out to be RAM: a REP that runs out of a device, or page tables that have changed. It is then
    // carried out here, and no device has a part in it.
    match operation.direction {
        Direction::Store => {
            let to = operation.destination(memory, state)?;
            let value = get(state, RAX) & mask(operation.width);
            if to.ram {
                to.write(memory, value)?;
                return access(to.first, Kind::None);
            }
            access(to.first, Kind::Write(value))
        }
        Direction::Load => {
            let from = operation.source(memory, state)?;
            access(from.first, if from.ram { Kind::None } else { Kind::Read })
        }
        Direction::Move => {
            let from = operation.source(memory, state)?;
            let to = operation.destination(memory, state)?;
            match (from.ram, to.ram) {
                (false, _) => access(from.first, Kind::Read),
                (true, false) => access(to.first, Kind::Write(from.read(memory)?)),
                (true, true) => {
                    to.write(memory, from.read(memory)?)?;
                    access(to.first, Kind::None)
                }
            }
        }
        // A port instruction makes no nested fault before its port exit is handled.
        Direction::Input | Direction::Output => Err(EmulateError::Retry),
    }
}

/// Finishes an element of a MOVS, STOS or LODS.
pub(super) fn complete(
    memory: &GuestMemory,
    state: &mut VcpuState,
    operation: StringOperation,
    access: &Access,
    value: u64,
) -> Result<(Option<WriteBack>, Retired), EmulateError> {
    let mut back = None;
    match (access.kind, operation.direction) {
        (Kind::None, _) if operation.is_done(state) => return Ok((None, operation.skip(state))),
        (Kind::None, Direction::Load) => {
            let value = operation.source(memory, state)?.read(memory)?;
            Register::new(RAX, operation.width).write(state, value);
        }
        (Kind::Read, Direction::Load) => Register::new(RAX, operation.width).write(state, value),
        (Kind::Read, Direction::Move) => {
            let to = operation.destination(memory, state)?;
            if to.ram {
                to.write(memory, value)?;
            } else {
                back = Some(WriteBack {
                    gpa: to.first,
                    value,
                });
            }
        }
        _ => {}
    }
    Ok((back, operation.advance(state)))
}
