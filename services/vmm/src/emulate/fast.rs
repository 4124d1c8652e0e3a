//! The short way for plain MOVs: `mov [mem], reg`, `mov [mem], imm` and `mov reg, [mem]` with an operand size or REX
//! prefix at most. The address is not computed (the exit told it), only its encoding's length. Everything else is left
//! to the full decoder; a test holds the two against each other.

use super::fetch::Fetched;
use super::mmio::{Access, Effect, Kind};
use super::registers::{Mode, Register, get, mask};
use ipc_schema::abi::vm::VcpuState;

const OPERAND_SIZE: u8 = 0x66;
const MOV_STORE_8: u8 = 0x88;
const MOV_STORE: u8 = 0x89;
const MOV_LOAD_8: u8 = 0x8A;
const MOV_LOAD: u8 = 0x8B;
const MOV_IMMEDIATE_8: u8 = 0xC6;
const MOV_IMMEDIATE: u8 = 0xC7;

/// Length of ModRM, SIB and displacement in 32- and 64-bit addressing; 0 for a register operand.
#[inline(always)]
const fn operand_length(modrm: u8, sib: u8) -> usize {
    let displacement = match modrm >> 6 {
        0 => {
            let base = if modrm & 7 == 4 { sib & 7 } else { modrm & 7 };
            if base == 5 { 4 } else { 0 }
        }
        1 => 1,
        2 => 4,
        _ => return 0,
    };
    1 + (modrm & 7 == 4) as usize + displacement
}

/// What a MOV moves.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// Memory to a register.
    Load(Register),
    /// A register to memory.
    Store(Register),
    /// A value to memory.
    Immediate(u64),
}

/// One of the forms above, decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    what: Move,
    /// Bytes moved.
    width: u8,
    /// Length of the instruction.
    pub len: u8,
    /// Number of the register that alone is the address, in 64-bit code; else [`NO_BASE`].
    base: u8,
}

const NO_BASE: u8 = 0xFF;

impl Form {
    /// Of no instruction.
    pub const NONE: Self = Self {
        what: Move::Immediate(0),
        width: 0,
        len: 0,
        base: NO_BASE,
    };

    /// Decodes one of the forms above; `None` for anything else.
    pub fn of(fetched: &Fetched, mode: Mode) -> Option<Self> {
        if mode == Mode::Code16 {
            return None;
        }
        let mut at = 0usize;
        let byte = |at: usize| fetched.bytes[at & 15];
        let mut wide = 4u8;
        if byte(0) == OPERAND_SIZE {
            wide = 2;
            at = 1;
        }
        let mut rex = 0u8;
        if mode == Mode::Long && byte(at) & 0xF0 == 0x40 {
            rex = byte(at);
            if rex & 8 != 0 {
                wide = 8;
            }
            at += 1;
        }
        let opcode = byte(at);
        let modrm = byte(at + 1);
        let operand = operand_length(modrm, byte(at + 2));
        if operand == 0 {
            return None;
        }
        let width = match opcode {
            MOV_STORE | MOV_LOAD | MOV_IMMEDIATE => wide,
            MOV_STORE_8 | MOV_LOAD_8 | MOV_IMMEDIATE_8 => 1,
            _ => return None,
        };
        let mut len = at + 1 + operand;
        let number = modrm >> 3 & 7 | (rex & 4) << 1;
        let register = if width == 1 && rex == 0 {
            Register::legacy_byte(number)
        } else {
            Register::new(number, width)
        };
        let what = match opcode {
            MOV_STORE | MOV_STORE_8 => Move::Store(register),
            MOV_LOAD | MOV_LOAD_8 => Move::Load(register),
            _ => {
                if modrm >> 3 & 7 != 0 {
                    return None;
                }
                // At most two prefixes, opcode, and six bytes of operand come before it.
                let immediate =
                    u32::from_le_bytes([byte(len), byte(len + 1), byte(len + 2), byte(len + 3)]);
                len += usize::from(width.min(4));
                // A 64-bit store takes 32 bits, sign-extended.
                Move::Immediate(if width == 8 {
                    immediate as i32 as u64
                } else {
                    u64::from(immediate) & mask(width)
                })
            }
        };
        if len > usize::from(fetched.len) {
            return None;
        }
        let low = modrm & 7;
        let alone = mode == Mode::Long && modrm >> 6 == 0 && !matches!(low, 4 | 5);
        Some(Self {
            what,
            width,
            len: len as u8,
            base: if alone { low | (rex & 1) << 3 } else { NO_BASE },
        })
    }

    /// The access that it makes at `gpa`.
    #[inline(always)]
    pub fn access(self, state: &VcpuState, gpa: u64) -> Access {
        let (kind, effect) = match self.what {
            Move::Store(from) => (Kind::Write(from.read(state)), Effect::Store),
            Move::Immediate(value) => (Kind::Write(value), Effect::Store),
            Move::Load(to) => (Kind::Read, Effect::Load { to, signed: false }),
        };
        Access {
            gpa,
            width: self.width,
            kind,
            split: None,
            len: self.len,
            effect,
        }
    }

    /// True if its operand surely begins at the start of a page: \[register\] in 64-bit code. Where the processor reports the first
    /// byte of a page, the operand could as well have begun in the page before.
    #[inline(always)]
    pub fn begins_page(self, state: &VcpuState) -> bool {
        self.base != NO_BASE && get(state, self.base) & 0xFFF == 0
    }
}

/// The access of one of the forms above; `None` for anything else.
#[inline]
pub(super) fn decode(fetched: &Fetched, state: &VcpuState, gpa: u64) -> Option<Access> {
    Form::of(fetched, Mode::of(state)).map(|form| form.access(state, gpa))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::{mmio, testing};
    use crate::memory::GuestMemory;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// Whatever the short way takes, the full decoder takes in the same way.
        #[test]
        fn agrees_with_the_full_decoder(
            prefixes in prop::collection::vec(prop_oneof![Just(0x66u8), 0x40u8..0x50, Just(0x67)], 0..3),
            opcode in prop_oneof![
                4 => prop::sample::select(&[0x88u8, 0x89, 0x8A, 0x8B, 0xC6, 0xC7][..]), 1 => any::<u8>()
            ],
            rest in any::<[u8; 15]>(),
            len in 1u8..16,
            gprs in any::<[u64; 16]>(),
            long in any::<bool>(),
        ) {
            let mut bytes = prefixes.clone();
            bytes.push(opcode);
            bytes.extend_from_slice(&rest);
            let fetched = Fetched { bytes: bytes[..16].try_into().unwrap(), len };
            let mut state = testing::state();
            state.gpr = gprs;
            state.rsp = 0x1234_5678_9ABC_DEF0;
            state.cs.attributes = if long { 0xA9B } else { 0xC9B };
            state.efer = if long { 0x500 } else { 0 };
            let quick = decode(&fetched, &state, 0xFEE0_0000);
            let full = mmio::full(&GuestMemory::owned(&[]), &fetched, &state, 0xFEE0_0000, false);
            if let Some(quick) = quick {
                prop_assert_eq!(Ok(quick), full);
            } else if len == 15 && prefixes.len() <= 1 && !prefixes.contains(&0x67) {
                // And it does take every form that it is there for.
                let mov = matches!(opcode, 0x88..=0x8B) || (matches!(opcode, 0xC6 | 0xC7) && rest[0] >> 3 & 7 == 0);
                let legacy_inc = !long && prefixes.iter().any(|p| p & 0xF0 == 0x40);
                prop_assert!(!mov || rest[0] >= 0xC0 || legacy_inc, "{:02x?}", bytes);
            }
        }
    }
}
