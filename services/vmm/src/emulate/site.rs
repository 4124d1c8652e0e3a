//! A place in the guest's code, remembered: so that the same exit at the same place takes no page walk and no decoding.
//!
//! Nothing is taken on trust. What a walk and a decoder depend on is all compared anew each time: the state (rip, mode, paging,
//! root), every page-table entry that the walk went through, every byte of the instruction. If all of it is as it was, both
//! would find what they found; if anything is not, they do it again. So rewritten code, remapped code and redundant
//! prefixes are seen at once, as by the walk itself.

use super::fetch::MAX_LENGTH;
use super::registers::Mode;
use super::walk;
use crate::memory::{GuestMemory, Masked, Watch};
use ipc_schema::abi::vm::VcpuState;

/// A remembered place, with `C` words of code and what was found there.
#[derive(Clone, Copy, Debug)]
pub struct Site<F, const C: usize> {
    rip: u64,
    code_segment: u16,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    watch: Watch<4, C>,
    found: F,
}

impl<F: Copy, const C: usize> Site<F, C> {
    /// No place.
    pub const fn none(nothing: F) -> Self {
        Self {
            rip: 0,
            code_segment: 0,
            cr0: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            watch: Watch::NEVER,
            found: nothing,
        }
    }

    /// What was found, if the guest is at this place and everything is as it was.
    #[inline(always)]
    pub fn find(&self, memory: &GuestMemory, state: &VcpuState) -> Option<F> {
        (self.rip == state.rip
            && self.cr3 == state.cr3
            && self.cr0 == state.cr0
            && self.cr4 == state.cr4
            && self.efer == state.efer
            && self.code_segment == state.cs.attributes
            && memory.unchanged(&self.watch))
        .then_some(self.found)
    }

    /// Remembers the guest's place, where an instruction of `len` bytes, which are `bytes`, was found to be `found`. In 64-bit
    /// mode with four levels of tables and within a page; elsewhere it stays what it is.
    pub fn note(&mut self, memory: &GuestMemory, state: &VcpuState, bytes: &[u8], found: F) {
        let room = 0x1000 - (state.rip & 0xFFF) as usize;
        if Mode::of(state) != Mode::Long || bytes.len() > room.min(8 * C).min(MAX_LENGTH) {
            return;
        }
        let Some((tables, gpa)) = walk::four_levels(memory, state, state.rip) else {
            return;
        };
        let mut code = [Masked::default(); C];
        for (i, word) in code.iter_mut().enumerate() {
            let (mut value, mut mask) = ([0; 8], [0; 8]);
            let bytes = bytes.iter().skip(8 * i);
            for ((byte, value), mask) in bytes.zip(&mut value).zip(&mut mask) {
                (*value, *mask) = (*byte, 0xFF);
            }
            *word = Masked {
                gpa: gpa + 8 * i as u64,
                value: u64::from_le_bytes(value),
                mask: u64::from_le_bytes(mask),
            };
        }
        if let Some(watch) = memory.watch(tables, code) {
            *self = Self {
                rip: state.rip,
                code_segment: state.cs.attributes,
                cr0: state.cr0,
                cr3: state.cr3,
                cr4: state.cr4,
                efer: state.efer,
                watch,
                found,
            };
        }
    }
}

#[cfg(test)]
mod tests;
