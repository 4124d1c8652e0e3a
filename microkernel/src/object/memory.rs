//! Memory: a run of physical pages, its parts, and a record of each range of it that is mapped.
//!
//! A Memory with parts can't be mapped, and parts don't overlap: each page is reachable through at most one Memory that can be mapped,
//! so that taking that one out of its mappings takes the page away from everybody.

use super::{Header, Mapping, Object, Pool, object, pool::pool_of};
use crate::list::{Link, Linked, List};
use crate::mem::{Obj, PAGE};
use core::cell::Cell;
use ipc_schema::abi::{Kind, Status};

/// A run of pages.
#[repr(C)]
pub struct Memory {
    header: Header,
    /// First physical address.
    pub phys: u64,
    /// Bytes.
    pub len: u64,
    /// Device registers: uncached, never a Pool.
    pub device: bool,
    /// Rights that no capability to it can exceed (read-only firmware tables).
    pub limit: u16,
    in_pool: Cell<bool>,
    parent: Cell<Option<Obj<Memory>>>,
    parts: List<Memory, 0>,
    sibling: Link<Memory>,
    /// Its mappings.
    pub mappings: List<Mapping, 0>,
}
object!(Memory, Kind::Memory);
impl Linked<0> for Memory {
    fn link(&self) -> &Link<Self> {
        &self.sibling
    }
}

impl Memory {
    /// A Memory for a range that no other Memory has (boot).
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(
        pool: &Pool,
        phys: u64,
        len: u64,
        device: bool,
        limit: u16,
    ) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self {
            header,
            phys,
            len,
            device,
            limit,
            in_pool: Cell::new(false),
            parent: Cell::new(None),
            parts: List::default(),
            sibling: Link::default(),
            mappings: List::default(),
        })
    }

    /// Whether it can be mapped now.
    pub fn mappable(&self) -> Result<(), Status> {
        if self.in_pool.get() || !self.parts.is_empty() {
            Err(Status::Busy)
        } else {
            Ok(())
        }
    }

    /// Makes a part of it.
    ///
    /// # Errors
    /// `Misaligned`, `OutOfRange`, `Overlap` with another part, `Busy` while mapped or a Pool, `NoMemory`.
    pub fn divide(&self, offset: u64, len: u64, pool: &Pool) -> Result<Obj<Self>, Status> {
        if !(offset | len).is_multiple_of(PAGE) {
            return Err(Status::Misaligned);
        }
        if len == 0 || offset > self.len || len > self.len - offset {
            return Err(Status::OutOfRange);
        }
        if self.in_pool.get() || !self.mappings.is_empty() {
            return Err(Status::Busy);
        }
        let phys = self.phys + offset;
        let mut part = self.parts.first();
        while let Some(p) = part {
            if phys < p.phys + p.len && p.phys < phys + len {
                return Err(Status::Overlap);
            }
            part = List::<Self, 0>::after(p);
        }
        let part = Self::create(pool, phys, len, self.device, self.limit)?;
        part.parent.set(Some(Obj::of(self)));
        self.parts.push_back(part);
        Ok(part)
    }

    /// Takes it, and its parts, out of every mapping. Pools made of parts stay: they are the kernel's.
    pub fn revoke(&self) {
        while let Some(m) = self.mappings.first() {
            m.get().destroy();
        }
        let mut part = self.parts.first();
        while let Some(p) = part {
            p.get().revoke();
            part = List::<Self, 0>::after(p);
        }
    }

    /// Gives it to the kernel as a Pool.
    ///
    /// # Errors
    /// `Busy`: it has parts or is a Pool already; `InvalidArg`: device registers; as [`Pool::create`].
    pub fn make_pool(&self) -> Result<super::Cap, Status> {
        self.mappable()?;
        if self.device {
            return Err(Status::InvalidArg);
        }
        self.revoke();
        // SAFETY: RAM, without parts, not a Pool, and now without mappings: nothing refers to it, and `in_pool` keeps it so. No
        // ancestor can be mapped, since it has parts.
        let cap =
            unsafe { Pool::create(self.phys, self.len / PAGE, super::Cap::new(self.header())) }?;
        self.in_pool.set(true);
        Ok(cap)
    }

    /// The Pool made from it is gone.
    pub(super) fn leave_pool(&self) {
        self.in_pool.set(false);
    }

    /// Ends it and its parts.
    ///
    /// # Errors
    /// `Busy`: it, or a part, is a Pool; destroy that first.
    pub fn destroy(&self) -> Result<(), Status> {
        if self.has_pool() {
            return Err(Status::Busy);
        }
        self.destroy_now();
        Ok(())
    }

    fn has_pool(&self) -> bool {
        let mut part = self.parts.first();
        while let Some(p) = part {
            if p.get().has_pool() {
                return true;
            }
            part = List::<Self, 0>::after(p);
        }
        self.in_pool.get()
    }

    fn destroy_now(&self) {
        self.revoke();
        while let Some(p) = self.parts.first() {
            p.get().destroy_now();
        }
        if let Some(parent) = self.parent.take() {
            parent.get().parts.remove(Obj::of(self));
        }
        pool_of(&self.header).free_object(Obj::of(self));
    }

    /// The Pool that it lives in is being destroyed. If it backs another Pool, or a part does, the pages stay out of reach for good:
    /// the parent keeps it as a part.
    pub fn destroy_with_pool(&self) {
        if !self.has_pool() {
            self.destroy_now();
        }
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/memory.rs"]
pub(crate) mod check;
