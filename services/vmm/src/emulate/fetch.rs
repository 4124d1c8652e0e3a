//! Reading the guest's code at rip.

use super::registers::Mode;
use super::{EmulateError, Unsupported, Why, walk};
use crate::memory::GuestMemory;
use ipc_schema::abi::vm::{VcpuState, offers};

/// Longest instruction, in bytes.
pub(super) const MAX_LENGTH: usize = 15;

/// The bytes at rip: as many as could be read, up to 15 (fewer at the end of mapped code).
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetched {
    /// The bytes, the first in the lowest.
    pub bytes: [u8; 16],
    /// How many of them count.
    pub len: u8,
}

impl Fetched {
    /// The bytes that count.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.len))
            .unwrap_or(&self.bytes)
    }

    /// The error that names this instruction.
    #[cold]
    pub fn unsupported(&self, state: &VcpuState, why: Why) -> EmulateError {
        let mut bytes = [0; 15];
        bytes.copy_from_slice(&self.bytes[..15]);
        EmulateError::Unsupported(Unsupported {
            why,
            rip: state.rip,
            bytes,
            len: self.len,
        })
    }
}

/// Linear address of the next instruction.
#[inline]
pub(super) fn linear_rip(state: &VcpuState) -> u64 {
    if Mode::of(state) == Mode::Long {
        state.rip
    } else {
        state.cs.base.wrapping_add(state.rip) & 0xFFFF_FFFF
    }
}

/// The instruction that a nested page fault has just interrupted: as the processor fetched it, if it tells (decode assists), else
/// out of memory. The bytes are the processor's, and still only bytes: whatever they are, they are decoded like any.
#[inline]
pub(super) fn faulting(memory: &GuestMemory, state: &VcpuState) -> Result<Fetched, EmulateError> {
    if state.offers & offers::BYTES != 0 {
        let [first, second] = state.fetched;
        // None for a fault in a table that was read for a fetch.
        if let len @ 1..=15 = first as u8 & 15 {
            let all = u128::from(first) | u128::from(second) << 64;
            let bytes = (all >> 8).to_le_bytes();
            return Ok(Fetched { bytes, len });
        }
    }
    fetch(memory, state)
}

/// Reads the instruction at rip.
#[inline]
pub(super) fn fetch(memory: &GuestMemory, state: &VcpuState) -> Result<Fetched, EmulateError> {
    let linear = linear_rip(state);
    let Ok(gpa) = walk::code(memory, state, linear) else {
        return Err(EmulateError::Retry);
    };
    if linear & 0xFFF <= 0xFF0
        && let (Ok(low), Ok(high)) = (memory.read_u64(gpa), memory.read_u64(gpa + 8))
    {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        return Ok(Fetched {
            bytes,
            len: MAX_LENGTH as u8,
        });
    }
    fetch_across(memory, state, linear, gpa)
}

/// As [`fetch`], near the end of a page or of RAM.
#[cold]
fn fetch_across(
    memory: &GuestMemory,
    state: &VcpuState,
    linear: u64,
    gpa: u64,
) -> Result<Fetched, EmulateError> {
    let mut fetched = Fetched {
        bytes: [0; 16],
        len: 0,
    };
    let mut at = gpa;
    for i in 0..MAX_LENGTH {
        let here = linear.wrapping_add(i as u64);
        if i != 0 && here & 0xFFF == 0 {
            let here = if Mode::of(state) == Mode::Long {
                here
            } else {
                here & 0xFFFF_FFFF
            };
            let Ok(next) = walk::code(memory, state, here) else {
                break;
            };
            at = next;
        }
        let Ok(byte) = memory.read_u8(at) else { break };
        fetched.bytes[i] = byte;
        fetched.len += 1;
        at = at.wrapping_add(1);
    }
    if fetched.len == 0 {
        return Err(fetched.unsupported(state, Why::CodeOutsideRam));
    }
    Ok(fetched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::testing;

    #[test]
    fn bytes_that_the_processor_has_fetched_need_no_memory() {
        let memory = GuestMemory::owned(&[(0, 0x1000)]);
        let mut state = testing::state();
        // Nothing is there.
        state.rip = 0x10_0000;
        assert!(fetch(&memory, &state).is_err());
        state.fetched = [0xC0_3189_03, u64::MAX];
        assert!(faulting(&memory, &state).is_err(), "not offered");
        state.offers = offers::BYTES;
        let fetched = faulting(&memory, &state).unwrap();
        assert_eq!(fetched.bytes(), [0x89, 0x31, 0xC0]);
        state.fetched = [u64::MAX << 8 | 15, u64::MAX];
        assert_eq!(faulting(&memory, &state).unwrap().bytes(), [0xFF; 15]);
        // It tells of none: out of memory then.
        state.fetched = [0, 0];
        assert!(faulting(&memory, &state).is_err());
        state.rip = 0;
        assert_eq!(faulting(&memory, &state).unwrap().bytes(), [0; 15]);
    }
}
