//! The guest's mode, and its general registers at every width.

use ipc_schema::abi::vm::VcpuState;

/// EFER.LMA.
const EFER_LMA: u64 = 1 << 10;
/// CR0.PE.
const CR0_PE: u64 = 1;
/// RFLAGS.VM.
const RFLAGS_VM: u64 = 1 << 17;
/// Segment attribute L (64-bit code).
const ATTRIBUTE_L: u16 = 1 << 9;
/// Segment attribute D/B.
const ATTRIBUTE_DB: u16 = 1 << 10;

/// How the processor reads the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit code: EFER.LMA and CS.L.
    Long,
    /// 32-bit code: protected or compatibility mode with CS.D.
    Code32,
    /// 16-bit code: real mode, virtual-8086, or CS.D clear.
    Code16,
}

impl Mode {
    /// The mode of `state`.
    #[inline]
    #[must_use]
    pub fn of(state: &VcpuState) -> Self {
        if state.efer & EFER_LMA != 0 && state.cs.attributes & ATTRIBUTE_L != 0 {
            Self::Long
        } else if state.cs.attributes & ATTRIBUTE_DB != 0 {
            Self::Code32
        } else {
            Self::Code16
        }
    }

    /// The decoder's word for it.
    pub(super) const fn bitness(self) -> u32 {
        match self {
            Self::Long => 64,
            Self::Code32 => 32,
            Self::Code16 => 16,
        }
    }
}

/// True in real and virtual-8086 mode, where segments carry no rights.
pub(super) fn real_segments(state: &VcpuState) -> bool {
    state.cr0 & CR0_PE == 0 || state.rflags & RFLAGS_VM != 0
}

/// Number of RSP among the general registers: it lives outside the array, in group RIP.
pub(super) const RSP: u8 = 4;

/// A general register by its architectural number.
#[inline]
pub(super) fn get(state: &VcpuState, number: u8) -> u64 {
    if number == RSP {
        state.rsp
    } else {
        state.gpr[usize::from(number & 15)]
    }
}

/// Sets all 64 bits of a general register.
#[inline]
pub(super) fn set(state: &mut VcpuState, number: u8, value: u64) {
    if number == RSP {
        state.rsp = value
    } else {
        state.gpr[usize::from(number & 15)] = value
    }
}

/// The low `width` bytes of a mask.
#[inline]
pub(super) const fn mask(width: u8) -> u64 {
    match width {
        1 => 0xFF,
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}

/// A register operand: which bytes of which register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    /// Architectural number, 0..16.
    pub number: u8,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// AH, CH, DH or BH: bits 8..16 of `number`.
    pub high: bool,
}

impl Register {
    /// A plain register.
    pub const fn new(number: u8, width: u8) -> Self {
        Self {
            number,
            width,
            high: false,
        }
    }

    /// The byte register that an encoding without REX names: 4 to 7 are AH, CH, DH, BH.
    pub const fn legacy_byte(number: u8) -> Self {
        if number >= 4 && number < 8 {
            Self {
                number: number - 4,
                width: 1,
                high: true,
            }
        } else {
            Self {
                number,
                width: 1,
                high: false,
            }
        }
    }

    /// Its value, zero-extended.
    #[inline]
    pub fn read(self, state: &VcpuState) -> u64 {
        let value = get(state, self.number);
        if self.high {
            (value >> 8) & 0xFF
        } else {
            value & mask(self.width)
        }
    }

    /// Writes it: 32-bit writes clear the upper half, narrower ones keep the rest (Intel SDM vol. 1, 3.4.1.1).
    #[inline]
    pub fn write(self, state: &mut VcpuState, value: u64) {
        let old = get(state, self.number);
        let new = match (self.width, self.high) {
            (1, true) => (old & !0xFF00) | (value & 0xFF) << 8,
            (1, false) => (old & !0xFF) | (value & 0xFF),
            (2, _) => (old & !0xFFFF) | (value & 0xFFFF),
            (4, _) => value & 0xFFFF_FFFF,
            _ => value,
        };
        set(state, self.number, new);
    }
}
