//! GuestSpace: nested page table and exit routes of one VM.

use super::Result;
use crate::abi::op::guest_space;
use crate::ipc::{Endpoint, Notification};
use crate::object::Memory;
use crate::slots::Slot;
use crate::sys::invoke;

/// A capability to a GuestSpace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSpace(pub Slot);

impl GuestSpace {
    /// Maps `len` bytes of `memory` from `offset` on at guest-physical `gpa`; all page multiples.
    pub fn map(self, gpa: u64, memory: Memory, rights: u32, offset: u64, len: u64) -> Result<()> {
        let w1 = u64::from(memory.0) | u64::from(rights) << 32;
        // SAFETY: it changes only what the guest sees.
        unsafe { invoke(self.0, guest_space::MAP, [gpa, w1, offset, len]) }.map(|_| ())
    }

    /// Takes away the whole mapping that was made at `gpa`.
    pub fn unmap(self, gpa: u64) -> Result<()> {
        // SAFETY: it changes only what the guest sees.
        unsafe { invoke(self.0, guest_space::UNMAP, [gpa, 0, 0, 0]) }.map(|_| ())
    }

    /// Sends accesses to `count` ports from `first` on to a server, which has `limit` TSC cycles to answer each.
    pub fn route(self, first: u16, count: u16, server: Endpoint, limit: u64) -> Result<()> {
        let w0 = u64::from(first) | u64::from(count) << 16 | 1 << 32;
        // SAFETY: it changes no mapping.
        unsafe {
            invoke(
                self.0,
                guest_space::ROUTE,
                [w0, u64::from(server.0), limit, 0],
            )
        }
        .map(|_| ())
    }

    /// Makes writes to `count` ports from `first` on (only those of `value`, if given) ring a doorbell.
    pub fn doorbell(
        self,
        first: u16,
        count: u16,
        bell: Notification,
        value: Option<u64>,
    ) -> Result<()> {
        let w0 =
            u64::from(first) | u64::from(count) << 16 | 2 << 32 | u64::from(value.is_some()) << 40;
        let words = [w0, u64::from(bell.0), value.unwrap_or(0), 0];
        // SAFETY: it changes no mapping.
        unsafe { invoke(self.0, guest_space::ROUTE, words) }.map(|_| ())
    }

    /// Takes away the route or doorbell that begins at `first`.
    pub fn unroute(self, first: u16) -> Result<()> {
        // SAFETY: it changes no mapping.
        unsafe { invoke(self.0, guest_space::UNROUTE, [u64::from(first), 0, 0, 0]) }.map(|_| ())
    }
}
