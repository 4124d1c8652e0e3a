//! Length of the instruction that made an exit, for processors that do not tell it.
//!
//! The bytes at rip are compared with the instruction that the exit names: the guest may have rewritten its code since,
//! and then the answer is [`EmulateError::Retry`], never a length of something else. Redundant prefixes are legal and
//! counted (Intel SDM vol. 2, 2.1.1; AMD APM vol. 3, 1.2). The last place of each kind is remembered ([`Lengths`]).

use super::EmulateError;
use super::fetch::{Fetched, fetch};
use super::registers::Mode;
use super::site::Site;
use crate::memory::GuestMemory;
use ipc_schema::abi::vm::VcpuState;

/// The instruction that the exit was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// CPUID: 0F A2.
    Cpuid,
    /// RDMSR: 0F 32.
    Rdmsr,
    /// WRMSR: 0F 30.
    Wrmsr,
    /// HLT: F4.
    Hlt,
    /// VMMCALL (0F 01 D9) or VMCALL (0F 01 C1).
    Vmcall,
    /// INVD (0F 08) or WBINVD (0F 09).
    Wbinvd,
    /// XSETBV: 0F 01 D1.
    Xsetbv,
    /// RDPMC: 0F 33.
    Rdpmc,
    /// RDTSC: 0F 31.
    Rdtsc,
    /// RDTSCP: 0F 01 F9.
    Rdtscp,
    /// PAUSE: F3 90.
    Pause,
    /// CLTS: 0F 06.
    Clts,
    /// MOV to or from a control register: 0F 20 or 0F 22 and a ModRM byte.
    MovCr,
    /// MONITOR (0F 01 C8) or MWAIT (0F 01 C9).
    Monitor,
}

impl Expected {
    /// Length of the instruction if `bytes` (the first in the lowest) starts with it, without a prefix; else 0.
    #[inline(always)]
    const fn matches(self, bytes: u64) -> u8 {
        let two = bytes & 0xFFFF;
        let three = bytes & 0xFF_FFFF;
        let (hit, len) = match self {
            Self::Cpuid => (two == 0xA20F, 2),
            Self::Rdmsr => (two == 0x320F, 2),
            Self::Wrmsr => (two == 0x300F, 2),
            Self::Hlt => (bytes & 0xFF == 0xF4, 1),
            Self::Vmcall => (three == 0xD9_010F || three == 0xC1_010F, 3),
            Self::Wbinvd => (two == 0x080F || two == 0x090F, 2),
            Self::Xsetbv => (three == 0xD1_010F, 3),
            Self::Rdpmc => (two == 0x330F, 2),
            Self::Rdtsc => (two == 0x310F, 2),
            Self::Rdtscp => (three == 0xF9_010F, 3),
            // F3 is counted as the prefix that it is; without it this is NOP or XCHG and makes no exit.
            Self::Pause => (two == 0x90F3, 2),
            Self::Clts => (two == 0x060F, 2),
            Self::MovCr => (two == 0x200F || two == 0x220F, 3),
            Self::Monitor => (three == 0xC8_010F || three == 0xC9_010F, 3),
        };
        if hit { len } else { 0 }
    }
}

/// How many places are remembered, a power of two.
const SITES: usize = 16;

/// The instructions that made exits last, and their lengths.
#[derive(Debug)]
pub struct Lengths([Site<(Expected, u8), 1>; SITES]);

impl Default for Lengths {
    fn default() -> Self {
        Self([Site::none((Expected::Cpuid, 0)); SITES])
    }
}

impl Lengths {
    /// As [`instruction_length`].
    ///
    /// # Errors
    /// As [`instruction_length`].
    #[inline(always)]
    pub fn find(
        &mut self,
        memory: &GuestMemory,
        state: &VcpuState,
        expected: Expected,
    ) -> Result<u8, EmulateError> {
        match self.0[state.rip as usize % SITES].find(memory, state) {
            Some((found, len)) if found == expected => Ok(len),
            _ => self.miss(memory, state, expected),
        }
    }

    #[inline(never)]
    fn miss(
        &mut self,
        memory: &GuestMemory,
        state: &VcpuState,
        expected: Expected,
    ) -> Result<u8, EmulateError> {
        let fetched = fetch(memory, state)?;
        let len = with_prefixes(&fetched, state, expected)?;
        let bytes = fetched.bytes().get(..usize::from(len)).unwrap_or_default();
        self.0[state.rip as usize % SITES].note(memory, state, bytes, (expected, len));
        Ok(len)
    }
}

/// Length in bytes of the instruction at rip, which must be `expected`.
///
/// # Errors
/// [`EmulateError::Retry`] if the code no longer holds it or is no longer mapped; `Unsupported` for code outside RAM.
pub fn instruction_length(
    memory: &GuestMemory,
    state: &VcpuState,
    expected: Expected,
) -> Result<u8, EmulateError> {
    with_prefixes(&fetch(memory, state)?, state, expected)
}

/// Any prefixes, page ends and mismatches.
fn with_prefixes(
    fetched: &Fetched,
    state: &VcpuState,
    expected: Expected,
) -> Result<u8, EmulateError> {
    let bytes = fetched.bytes();
    let long = Mode::of(state) == Mode::Long;
    let mut at = 0;
    let mut rep = false;
    let mut rex = false;
    // LOCK is no legal prefix of any of these. REX counts only right before the opcode; one before another prefix is
    // ignored by the processor, so it is passed over too.
    while let Some(&byte) = bytes.get(at) {
        rex = false;
        match byte {
            0xF3 => rep = true,
            0xF2 => rep = false,
            0x66 | 0x67 | 0x2E | 0x36 | 0x3E | 0x26 | 0x64 | 0x65 => {}
            0x40..=0x4F if long => rex = byte & 1 != 0,
            _ => break,
        }
        at += 1;
    }
    let mut window = [0; 8];
    for (to, from) in window.iter_mut().zip(bytes.get(at..).unwrap_or(&[])) {
        *to = *from;
    }
    let mut window = u64::from_le_bytes(window);
    let mut prefixes = at;
    if expected == Expected::Pause {
        // With REX.B it is XCHG r8, rAX. The F3 is among the prefixes already.
        if !rep || rex {
            return Err(EmulateError::Retry);
        }
        window = window << 8 | 0xF3;
        prefixes -= 1;
    }
    match expected.matches(window) {
        0 => Err(EmulateError::Retry),
        len if prefixes + usize::from(len) <= bytes.len() => Ok(prefixes as u8 + len),
        _ => Err(EmulateError::Retry),
    }
}

#[cfg(test)]
mod tests;
