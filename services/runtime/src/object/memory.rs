//! Memory: a run of physical pages.

use super::Result;
use crate::abi::op::memory;
use crate::object::Pool;
use crate::slots::Slot;
use crate::sys::invoke;

/// A capability to a Memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory(pub Slot);

/// What a Memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bytes.
    pub len: u64,
    /// Whether it is RAM, not device registers.
    pub ram: bool,
    /// First physical address; 0 without CONTROL.
    pub phys: u64,
}

impl Memory {
    /// A part of it, `offset` and `len` in bytes, page multiples. `payer` pays for the object.
    pub fn divide(self, offset: u64, len: u64, dest: Slot, payer: Pool) -> Result<Memory> {
        // SAFETY: dividing changes no mapping.
        unsafe {
            invoke(
                self.0,
                memory::DIVIDE,
                [offset, len, u64::from(dest), u64::from(payer.0)],
            )
        }?;
        Ok(Memory(dest))
    }

    /// Takes it out of every mapping, its parts' included.
    ///
    /// # Safety
    ///
    /// The caller must have no reference into it.
    pub unsafe fn revoke(self) -> Result<()> {
        // SAFETY: the caller's obligation.
        unsafe { invoke(self.0, memory::REVOKE, [0; 4]) }.map(|_| ())
    }

    /// Gives it, all of it, to the kernel as a Pool, of whose Memory `pools` Pools can be made.
    ///
    /// # Safety
    ///
    /// The caller must have no reference into it, for it is revoked first.
    pub unsafe fn make_pool(self, dest: Slot, pools: u64) -> Result<Pool> {
        let words = [u64::from(dest), pools, 0, 0];
        // SAFETY: the caller's obligation.
        unsafe { invoke(self.0, memory::MAKE_POOL, words) }?;
        Ok(Pool(dest))
    }

    /// What it is.
    pub fn info(self) -> Result<Info> {
        // SAFETY: asking changes nothing.
        let w = unsafe { invoke(self.0, memory::INFO, [0; 4]) }?;
        Ok(Info {
            len: w[0],
            ram: w[1] == 0,
            phys: w[2],
        })
    }
}
