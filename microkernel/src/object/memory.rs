//! Memory: a run of physical pages, its parts, and a record of each range of it that is mapped.
//!
//! A Memory with parts can't be mapped, and parts don't overlap: each page is reachable through at most one Memory that can be mapped,
//! so that taking that one out of its mappings takes the page away from everybody.
//!
//! So that no operation has to look through all of a tree of parts, each Memory knows how many of its parts are mapped somewhere below
//! (they come first in its list), and how many Pools there are below it. The depth of the tree is bounded.

use super::step::Step;
use super::{Header, Mapping, Object, Pool, object, pool::pool_of, refuse_if};
use crate::list::{Link, Linked, List};
use crate::mem::{Obj, PAGE};
use crate::tree::{Branches, Keyed, Tree};
use core::cell::Cell;
use ipc_schema::abi::{Kind, Status};

/// Parts of parts of parts at most.
pub const MAX_DEPTH: u8 = 32;

/// `Header::flags`.
mod flag {
    /// It is a Pool.
    pub const POOL: u16 = 1;
    /// It is being destroyed.
    pub const DYING: u16 = 2;
    /// It is being taken out of its mappings: until it is out of all, none is added.
    pub const REVOKING: u16 = 4;
}

/// A run of pages.
#[repr(C)]
#[derive(Default)]
pub struct Memory {
    header: Header,
    /// First physical address.
    pub phys: u64,
    /// Bytes.
    pub len: u64,
    /// Its mappings.
    pub mappings: List<Mapping, 0>,
    parent: Cell<Option<Obj<Memory>>>,
    /// Those that are mapped, or have parts that are, come first.
    parts: List<Memory, 0>,
    /// The same by address, unless it is being destroyed.
    by_address: Tree<Memory>,
    sibling: Link<Memory>,
    branches: Branches<Memory>,
    /// Parts that are mapped, or have parts that are.
    used_parts: Cell<u32>,
    /// Pools among it, its parts, theirs and so on.
    pools: Cell<u32>,
    /// Rights that no capability to it can exceed (read-only firmware tables).
    pub limit: u16,
    /// Device registers: uncached, never a Pool.
    pub device: bool,
    depth: u8,
}
object!(Memory, Kind::Memory);
impl Linked<0> for Memory {
    fn link(&self) -> &Link<Self> {
        &self.sibling
    }
}
impl Keyed for Memory {
    /// Its first page.
    fn key(&self) -> u64 {
        self.phys / PAGE
    }
    /// Physical addresses have 52 bits.
    fn bits(key: u64) -> u64 {
        key << 24
    }
    fn branches(&self) -> &Branches<Self> {
        &self.branches
    }
}

impl Memory {
    /// A Memory for a range that no other Memory has (boot; `depth` 0), or that is a part.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(
        pool: &Pool,
        (phys, len): (u64, u64),
        device: bool,
        limit: u16,
        depth: u8,
    ) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self {
            header,
            phys,
            len,
            limit,
            device,
            depth,
            ..Self::default()
        })
    }

    fn has(&self, flags: u16) -> bool {
        self.header.flags.get() & flags != 0
    }
    fn set(&self, flags: u16) {
        self.header.flags.set(self.header.flags.get() | flags);
    }
    fn unset(&self, flags: u16) {
        self.header.flags.set(self.header.flags.get() & !flags);
    }
    /// Whether it or a part is mapped.
    fn in_use(&self) -> bool {
        !self.mappings.is_empty() || self.used_parts.get() != 0
    }
    /// It, the Memory that it is a part of, and so on.
    fn upwards(&self) -> impl Iterator<Item = Obj<Self>> {
        core::iter::successors(Some(Obj::of(self)), |m| m.parent.get())
    }

    /// Whether it can be mapped now.
    #[inline(always)]
    pub fn mappable(&self) -> Result<(), Status> {
        // No flag: not a Pool, not being destroyed, not being taken out of its mappings.
        self.header.alive()?;
        refuse_if(!self.parts.is_empty(), Status::Busy)
    }

    /// Adds a mapping. Only with the first one does anything change further up.
    ///
    /// # Errors
    /// `Busy`: what it is a part of is being destroyed or taken out of its mappings.
    #[inline(always)]
    pub fn add_mapping(&self, m: Obj<Mapping>) -> Result<(), Status> {
        if self.mappings.is_empty() {
            self.begins_use()?;
        }
        self.mappings.push_back(m);
        Ok(())
    }

    #[inline(never)]
    fn begins_use(&self) -> Result<(), Status> {
        let ends = |m: Obj<Self>| m.has(flag::DYING | flag::REVOKING);
        refuse_if(self.upwards().any(ends), Status::Busy)?;
        self.now_used();
        Ok(())
    }

    /// It is about to be in use, which it was not.
    fn now_used(&self) {
        let mut part = Obj::of(self);
        while let Some(p) = part.parent.get() {
            let before = p.in_use();
            p.used_parts.set(p.used_parts.get() + 1);
            p.parts.remove(part);
            p.parts.push_front(part);
            if before {
                break;
            }
            part = p;
        }
    }

    /// It is not in use any more, which it was.
    fn now_unused(&self) {
        let mut part = Obj::of(self);
        part.unset(flag::REVOKING);
        while let Some(p) = part.parent.get() {
            p.used_parts.set(p.used_parts.get() - 1);
            p.parts.remove(part);
            p.parts.push_back(part);
            if p.in_use() {
                break;
            }
            p.unset(flag::REVOKING);
            part = p;
        }
    }

    /// Takes a mapping out of its list.
    pub fn remove_mapping(&self, m: Obj<Mapping>) {
        self.mappings.remove(m);
        if self.mappings.is_empty() {
            self.now_unused();
        }
    }

    /// Makes a part of it.
    ///
    /// # Errors
    /// `Misaligned`; `OutOfRange` (also: the 32nd part of a part); `Overlap` with another part; `Busy` while mapped, a Pool, or being
    /// destroyed; `NoMemory`.
    pub fn divide(&self, offset: u64, len: u64, pool: &Pool) -> Result<Obj<Self>, Status> {
        refuse_if(!(offset | len).is_multiple_of(PAGE), Status::Misaligned)?;
        if len == 0 || offset > self.len || len > self.len - offset || self.depth + 1 >= MAX_DEPTH {
            return Err(Status::OutOfRange);
        }
        if self.has(flag::POOL)
            || !self.mappings.is_empty()
            || self.upwards().any(|m| m.has(flag::DYING))
        {
            return Err(Status::Busy);
        }
        let phys = self.phys + offset;
        if let Some(p) = self.by_address.at_most((phys + len) / PAGE - 1)
            && phys < p.phys + p.len
        {
            return Err(Status::Overlap);
        }
        let depth = self.depth + 1;
        let part = Self::create(pool, (phys, len), self.device, self.limit, depth)?;
        part.parent.set(Some(Obj::of(self)));
        self.parts.push_back(part);
        self.by_address.insert(part);
        Ok(part)
    }

    /// Takes it, and its parts, out of every mapping. Pools made of parts stay: they are the kernel's.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn revoke(&self, step: &Step) -> Result<(), Status> {
        while self.in_use() {
            self.set(flag::REVOKING);
            let mut m = self;
            while m.used_parts.get() != 0
                && let Some(p) = m.parts.first()
            {
                m = p.get();
            }
            step.spent(20 + 10 * u32::from(m.depth));
            m.set(flag::REVOKING);
            match m.mappings.first() {
                Some(mapping) => mapping.get().destroy(step)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Gives it to the kernel as a Pool, of whose Memory objects `quota` Pools can be made: out of the quota of the Pool that it is in.
    ///
    /// # Errors
    /// `Busy`: it has parts, is a Pool already, or is being destroyed; `InvalidArg`: device registers; `NoMemory`: the quota is too
    /// small; `Again`; as [`Pool::create`].
    pub fn make_pool(&self, quota: u64, step: &Step) -> Result<super::Cap, Status> {
        if self.has(flag::POOL | flag::DYING) || !self.parts.is_empty() {
            return Err(Status::Busy);
        }
        refuse_if(self.device, Status::InvalidArg)?;
        let ends = |m: Obj<Self>| m.has(flag::DYING) || pool_of(&m.header).alive().is_err();
        refuse_if(self.upwards().any(ends), Status::Busy)?;
        Pool::possible(self.len / PAGE)?;
        let payer = &pool_of(&self.header).quota;
        refuse_if(quota >= payer.get(), Status::NoMemory)?;
        self.revoke(step)?;
        // SAFETY: RAM, without parts, not a Pool, and now without mappings: nothing refers to it, and `POOL` keeps it so. No
        // ancestor can be mapped, since it has parts.
        let cap = unsafe {
            Pool::create(
                self.phys,
                self.len / PAGE,
                super::Cap::new(self.header()),
                quota,
            )
        }?;
        payer.set(payer.get() - quota - 1);
        self.set(flag::POOL);
        for m in self.upwards() {
            if m.pools.replace(m.pools.get() + 1) == 0 {
                pool_of(&m.get().header).backs_other(true);
            }
        }
        Ok(cap)
    }

    /// Whether its record, or that of what it is a part of, is in the Pool with this number.
    pub(super) fn lives_in(&self, pool: u16) -> bool {
        self.upwards().any(|m| m.get().header.pool == pool)
    }

    /// The Pool made from it is gone; its quota was `quota`, of which nothing is in use.
    pub(super) fn leave_pool(&self, quota: u64) {
        let payer = &pool_of(&self.header).quota;
        payer.set(payer.get() + quota + 1);
        self.unset(flag::POOL);
        for m in self.upwards() {
            m.pools.set(m.pools.get() - 1);
            if m.pools.get() == 0 {
                pool_of(&m.get().header).backs_other(false);
            }
        }
    }

    /// Ends it and its parts.
    ///
    /// # Errors
    /// `Busy`: it, or a part, is a Pool; destroy that first. `Again`: there is more to do.
    pub fn destroy(&self, step: &Step) -> Result<(), Status> {
        refuse_if(self.pools.get() != 0, Status::Busy)?;
        loop {
            self.dies();
            let part = self.parts.first();
            let victim = part.map_or(self, Obj::get);
            victim.dies();
            if let Some(m) = victim.mappings.first() {
                m.get().destroy(step)?;
                continue;
            }
            step.spend(40 + 20 * u32::from(victim.depth))?;
            // A part's own parts become this one's, so that there is always a part without parts: no recursion.
            if part.is_some()
                && let Some(p) = victim.parts.first()
            {
                victim.remove_part(p);
                self.adopt(p);
                continue;
            }
            if let Some(parent) = victim.parent.get() {
                parent.get().remove_part(Obj::of(victim));
            }
            pool_of(&victim.header).free_object(Obj::of(victim));
            if part.is_none() {
                return Ok(());
            }
        }
    }

    /// From now on nothing is made of it.
    fn dies(&self) {
        if !self.has(flag::DYING) {
            self.set(flag::DYING);
            self.by_address.forget();
        }
    }

    /// Takes a part out.
    fn remove_part(&self, part: Obj<Self>) {
        if part.in_use() {
            part.get().now_unused();
        }
        if !self.has(flag::DYING) {
            self.by_address.remove(part);
        }
        self.parts.remove(part);
        part.parent.set(None);
    }

    /// Takes a part of a part over, both being destroyed.
    fn adopt(&self, part: Obj<Self>) {
        part.parent.set(Some(Obj::of(self)));
        self.parts.push_back(part);
        if part.in_use() {
            part.get().now_used();
        }
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/memory.rs"]
pub(crate) mod check;
