//! Space: an address space with its capability table.

use super::Result;
use crate::abi::op::space;
use crate::object::Memory;
use crate::slots::Slot;
use crate::sys::invoke;

/// A capability to a Space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space(pub Slot);

impl Space {
    /// Maps `len` bytes of `memory` from `offset` on at `va`; all page multiples. Refused over an existing mapping.
    pub fn map(self, va: u64, memory: Memory, rights: u32, offset: u64, len: u64) -> Result<()> {
        let w1 = u64::from(memory.0) | u64::from(rights) << 32;
        // SAFETY: the kernel refuses to map over what is mapped, so no referenced memory is replaced.
        unsafe { invoke(self.0, space::MAP, [va, w1, offset, len]) }.map(|_| ())
    }

    /// Takes away the whole mapping that was made at `va`.
    ///
    /// # Safety
    ///
    /// If this is the caller's own Space, no reference may point there.
    pub unsafe fn unmap(self, va: u64) -> Result<()> {
        // SAFETY: the caller's obligation.
        unsafe { invoke(self.0, space::UNMAP, [va, 0, 0, 0]) }.map(|_| ())
    }

    /// Copies the capability in the caller's slot `source` to slot `dest` of this Space, with these rights and, if
    /// not 0, this badge.
    pub fn copy_cap(self, source: Slot, dest: Slot, rights: u32, badge: u64) -> Result<()> {
        let words = [u64::from(source), u64::from(dest), u64::from(rights), badge];
        // SAFETY: copying capabilities changes no mapping.
        unsafe { invoke(self.0, space::COPY_CAP, words) }.map(|_| ())
    }

    /// Empties slot `slot` of this Space.
    pub fn drop_cap(self, slot: Slot) -> Result<()> {
        // SAFETY: dropping a capability changes no mapping.
        unsafe { invoke(self.0, space::DROP_CAP, [u64::from(slot), 0, 0, 0]) }.map(|_| ())
    }

    /// Destroys the object in the *caller's* slot `slot`; any kind but Pool.
    ///
    /// # Safety
    ///
    /// If it is a Memory or a Space of the caller's own, no reference may point into it.
    pub unsafe fn destroy_object(self, slot: Slot) -> Result<()> {
        // SAFETY: the caller's obligation.
        unsafe { invoke(self.0, space::DESTROY_OBJECT, [u64::from(slot), 0, 0, 0]) }.map(|_| ())
    }
}
