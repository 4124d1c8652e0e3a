//! Memory type range registers: storage with the checks of Intel SDM vol. 3, 12.11. They change nothing (the nested page
//! table's types and the guest's PAT decide), but a guest finds in them what firmware would have left.

use super::super::GeneralProtection;
use super::{index, legal};

/// Variable ranges.
const VARIABLE: usize = 8;
/// Fixed-range registers: one of 64 KiB, two of 16 KiB, eight of 4 KiB.
const FIXED: usize = 11;
/// MTRRcap: 8 variable ranges, fixed ones, write-combining.
const CAP: u64 = 0x508;
/// MTRRdefType: MTRRs on, fixed ones on, write-back.
const DEF_TYPE_RESET: u64 = 1 << 11 | 1 << 10 | 6;
const DEF_TYPE_BITS: u64 = 1 << 11 | 1 << 10 | 0xFF;
const MASK_VALID: u64 = 1 << 11;
/// All eight parts write-back.
const FIXED_WB: u64 = 0x0606_0606_0606_0606;
/// The 16 KiB register of 0xA0000..0xC0000: video memory, uncached.
const FIXED_VIDEO: usize = 2;
/// From 3 GiB to 4 GiB: never RAM, uncached.
const HOLE_BASE: u64 = 0xC000_0000;
const HOLE_SIZE: u64 = 0x4000_0000;

/// The registers of one vCPU.
#[derive(Clone, Debug)]
pub(super) struct Mtrrs {
    def_type: u64,
    variable: [(u64, u64); VARIABLE],
    fixed: [u64; FIXED],
    /// Address bits that do not exist.
    beyond: u64,
}

/// Uncached, write-combining, write-through, write-protected, write-back.
fn is_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// The same and UC-.
pub(super) fn is_pat_type(value: u8) -> bool {
    is_type(value) || value == 7
}

impl Mtrrs {
    /// As firmware leaves them, for a processor with so many physical address bits.
    pub fn new(physical_bits: u8) -> Self {
        let beyond = u64::MAX.checked_shl(physical_bits.into()).unwrap_or(0);
        let mut variable = [(0, 0); VARIABLE];
        variable[0] = (HOLE_BASE, !beyond & !(HOLE_SIZE - 1) | MASK_VALID);
        let mut fixed = [FIXED_WB; FIXED];
        fixed[FIXED_VIDEO] = 0;
        Self {
            def_type: DEF_TYPE_RESET,
            variable,
            fixed,
            beyond,
        }
    }

    /// Place of a fixed-range register in the array.
    fn fixed(index: u32) -> Option<usize> {
        match index {
            index::MTRR_FIX64K => Some(0),
            index::MTRR_FIX16K_FIRST..=index::MTRR_FIX16K_LAST => {
                Some((index - index::MTRR_FIX16K_FIRST) as usize + 1)
            }
            index::MTRR_FIX4K_FIRST..=index::MTRR_FIX4K_LAST => {
                Some((index - index::MTRR_FIX4K_FIRST) as usize + 3)
            }
            _ => None,
        }
    }

    /// True for the numbers that are answered here.
    pub fn owns(&self, index: u32) -> bool {
        matches!(
            index,
            index::MTRR_CAP | index::MTRR_DEF_TYPE | index::MTRR_VARIABLE_FIRST
                ..=index::MTRR_VARIABLE_LAST
        ) || Self::fixed(index).is_some()
    }

    pub fn read(&self, index: u32) -> Result<u64, GeneralProtection> {
        match index {
            index::MTRR_CAP => Ok(CAP),
            index::MTRR_DEF_TYPE => Ok(self.def_type),
            index::MTRR_VARIABLE_FIRST..=index::MTRR_VARIABLE_LAST => {
                let range = self
                    .variable
                    .get((index - index::MTRR_VARIABLE_FIRST) as usize / 2);
                range
                    .map(|&(base, mask)| if index & 1 == 0 { base } else { mask })
                    .ok_or(GeneralProtection)
            }
            _ => Self::fixed(index)
                .and_then(|i| self.fixed.get(i))
                .copied()
                .ok_or(GeneralProtection),
        }
    }

    pub fn write(&mut self, index: u32, value: u64) -> Result<(), GeneralProtection> {
        match index {
            index::MTRR_DEF_TYPE => {
                legal(value & !DEF_TYPE_BITS == 0 && is_type(value as u8))?;
                self.def_type = value;
            }
            index::MTRR_VARIABLE_FIRST..=index::MTRR_VARIABLE_LAST => {
                let slot = (index - index::MTRR_VARIABLE_FIRST) as usize / 2;
                let range = self.variable.get_mut(slot).ok_or(GeneralProtection)?;
                if index & 1 == 0 {
                    legal(value & (self.beyond | 0xF00) == 0 && is_type(value as u8))?;
                    range.0 = value;
                } else {
                    legal(value & (self.beyond | 0x7FF) == 0)?;
                    range.1 = value;
                }
            }
            _ => {
                let register = Self::fixed(index)
                    .and_then(|i| self.fixed.get_mut(i))
                    .ok_or(GeneralProtection)?;
                legal(value.to_le_bytes().iter().all(|&t| is_type(t)))?;
                *register = value;
            }
        }
        Ok(())
    }
}
