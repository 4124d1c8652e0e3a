//! Pools: kernel memory that its owner paid for, and the slots in it that objects live in.
//!
//! A Pool is one physically contiguous run of pages. Its first pages hold a map, a byte a page. Objects live in *slab pages*, cut into
//! slots of one size; a page that has become a slab page stays one until the Pool is destroyed, so that a stale capability always
//! meets a slot header. Pool numbers are never freed either, only their generation moves on. Each Pool has a quota of them, which it
//! hands down to Pools that are made of Memory objects in it, so that nobody uses up the numbers of all.

use super::cap::Cap;
use super::{Header, Memory, Object, step::Step};
use crate::mem::{self, Global, Obj, PAGE};
use core::cell::Cell;
use core::ptr::NonNull;
use ipc_schema::abi::{Kind, Status};

/// Pools at most; a power of two.
pub const MAX_POOLS: usize = 512;

/// Sizes of slots.
const CLASSES: [u64; 5] = [64, 128, 256, 512, 1024];

/// The smallest class that an object of `size` bytes fits into.
const fn class_of(size: usize) -> usize {
    let mut class = 0;
    while CLASSES[class] < size as u64 {
        class += 1;
    }
    class
}

/// The byte of the map for each page.
mod kind {
    /// Inside a free block.
    pub const INNER: u8 = 0;
    /// Slots of class 0; the others follow.
    pub const SLAB: u8 = 1;
    /// In use as a page.
    pub const RAW: u8 = 16;
    /// The first page of a free block of one page; those of larger blocks follow.
    pub const FREE: u8 = 32;
}

/// Blocks of free pages are of 1, 2, 4 or 8 pages, at a multiple of their size.
const ORDERS: usize = 4;
/// Neighbouring pages that can be had at most.
pub const MAX_RUN: u64 = 1 << (ORDERS - 1);

/// What the kernel knows of a Pool. The table of them exists from boot on and is never freed. The first two words are read at each use
/// of a capability: a power of two as size, so that they are found by a shift.
#[repr(C, align(256))]
pub struct Pool {
    /// Even while unused, odd while live: a capability made for a live Pool never matches a later one.
    pub generation: Cell<u64>,
    /// Kernel address of the first byte.
    pub virt: Cell<u64>,
    phys: Cell<u64>,
    pages: Cell<u64>,
    free: Cell<u64>,
    /// Pages from here on have never been used, nor has their part of the map.
    frontier: Cell<u64>,
    /// First free block of each size (0: none; page 0 is the Pool's own).
    blocks: [Cell<u32>; ORDERS],
    /// Memory objects in it that are Pools themselves, or have parts that are.
    backing_others: Cell<u32>,
    /// Pools that can yet be made of Memory objects in it.
    pub quota: Cell<u64>,
    /// Heads of the lists of free slots (0: none; slot 0 is the Pool's own).
    slots: [Cell<u32>; CLASSES.len()],
    /// The Memory it was made from.
    backing: Cell<Cap>,
    /// Where an unfinished destruction goes on.
    cursor: Cell<u64>,
    dying: Cell<bool>,
    /// A Pool made of Memory of this one, or of one made of such, and so on, that goes first: number and generation.
    inner: Cell<Option<(u16, u64)>>,
    /// Numbers below this have been looked through for such.
    searched: Cell<usize>,
    number: Cell<u16>,
}

/// All Pools.
pub static POOLS: Global<[Pool; MAX_POOLS]> = Global([const { Pool::empty() }; MAX_POOLS]);

/// The slot 0 of each Pool: what a capability for the Pool itself names.
#[repr(C)]
pub struct PoolObject {
    pub(super) header: Header,
}

impl Pool {
    const fn empty() -> Self {
        Self {
            generation: Cell::new(0),
            virt: Cell::new(0),
            phys: Cell::new(0),
            pages: Cell::new(0),
            free: Cell::new(0),
            frontier: Cell::new(0),
            blocks: [const { Cell::new(0) }; ORDERS],
            backing_others: Cell::new(0),
            quota: Cell::new(0),
            slots: [const { Cell::new(0) }; CLASSES.len()],
            backing: Cell::new(Cap::EMPTY),
            cursor: Cell::new(0),
            dying: Cell::new(false),
            inner: Cell::new(None),
            searched: Cell::new(0),
            number: Cell::new(0),
        }
    }

    /// A place in the table for a Pool of so many pages.
    ///
    /// # Errors
    /// As [`Pool::create`].
    pub fn possible(pages: u64) -> Result<(usize, &'static Self), Status> {
        if !(2..1 << 20).contains(&pages) {
            return Err(Status::OutOfRange);
        }
        POOLS
            .iter()
            .enumerate()
            .find(|(_, p)| p.generation.get() & 1 == 0)
            .ok_or(Status::NoMemory)
    }

    /// Makes a Pool of `pages` pages at `phys`, which nothing maps any more; `quota` Pools can be made of Memory objects in it.
    ///
    /// # Errors
    /// `NoMemory`: all Pool numbers are in use. `OutOfRange`: fewer than two pages, or more than 4 GiB.
    ///
    /// # Safety
    /// The pages are RAM that nothing else refers to until the Pool is destroyed.
    pub unsafe fn create(phys: u64, pages: u64, backing: Cap, quota: u64) -> Result<Cap, Status> {
        let (number, pool) = Self::possible(pages)?;
        let map_pages = (64 + pages).div_ceil(PAGE);
        pool.virt.set(mem::virt(phys));
        pool.phys.set(phys);
        pool.pages.set(pages);
        pool.free.set(pages - map_pages);
        pool.frontier.set(map_pages);
        pool.backing_others.set(0);
        pool.quota.set(quota);
        pool.backing.set(backing);
        pool.cursor.set(0);
        pool.dying.set(false);
        pool.inner.set(None);
        pool.searched.set(0);
        pool.number.set(number as u16);
        for list in pool.slots.iter().chain(&pool.blocks) {
            list.set(0);
        }
        // The map of what is behind the frontier is made as the frontier moves. At most 257 pages are the map's own.
        for i in 0..map_pages {
            pool.map(i).set(kind::RAW);
        }
        // Odd: live.
        pool.generation.set(pool.generation.get() + 1);
        let header = Header {
            word: Cell::new((Kind::Pool as u64) << 32 | 1),
            slot: 0,
            pool: number as u16,
            flags: Cell::new(0),
        };
        // SAFETY: slot 0 is in the first page, before the map.
        let object = unsafe {
            let at = NonNull::new_unchecked(pool.virt.get() as *mut PoolObject);
            at.write(PoolObject { header });
            Obj::from_ptr(at)
        };
        Ok(Cap::new(&object.get().header))
    }

    /// Pages that hold slots, and pages of the map: those that an empty Pool does not have free.
    #[cfg(test)]
    pub fn overhead(&self) -> u64 {
        let slabs = (0..self.frontier.get())
            .filter(|&i| (kind::SLAB..kind::RAW).contains(&self.map(i).get()))
            .count();
        slabs as u64 + (64 + self.pages.get()).div_ceil(PAGE)
    }

    /// The Pool that a capability names.
    ///
    /// # Errors
    /// As [`Cap::typed`]; `Busy` while it is being destroyed.
    pub fn from_cap(cap: &Cap, need: u32) -> Result<&'static Self, Status> {
        let object = cap.typed::<PoolObject>(need)?;
        let pool = &POOLS[object.get().header.pool as usize & (MAX_POOLS - 1)];
        pool.alive().map(|()| pool)
    }

    /// The byte of the map for page `i`.
    fn map(&self, i: u64) -> &Cell<u8> {
        debug_assert!(i < self.pages.get());
        // SAFETY: the map lies behind slot 0 in pages reserved for it at creation; `i` is a page of the Pool (callers loop over it).
        unsafe { &*((self.virt.get() + 64 + i) as *const Cell<u8>) }
    }

    /// Free and all pages.
    #[must_use]
    pub fn stat(&self) -> (u64, u64) {
        (self.free.get(), self.pages.get())
    }

    /// Whether it is being destroyed: nothing new is made from it.
    ///
    /// # Errors
    /// `Busy`.
    #[inline(always)]
    pub fn alive(&self) -> Result<(), Status> {
        if self.dying.get() {
            Err(Status::Busy)
        } else {
            Ok(())
        }
    }

    /// A Memory that lives in this Pool has begun (or ceased) to be a Pool, or to have such a part.
    pub(super) fn backs_other(&self, begins: bool) {
        let n = self.backing_others.get();
        self.backing_others.set(if begins { n + 1 } else { n - 1 });
    }

    /// Takes `n` neighbouring pages, cleared; physical address of the first.
    ///
    /// # Errors
    /// `NoMemory`; `Busy` while the Pool is being destroyed.
    pub fn take_pages(&self, n: u64) -> Result<u64, Status> {
        self.take(n, kind::RAW)
    }

    fn take(&self, n: u64, as_kind: u8) -> Result<u64, Status> {
        self.alive()?;
        if n == 0 || n > self.free.get().min(MAX_RUN) {
            return Err(Status::NoMemory);
        }
        let order = n.next_power_of_two().ilog2() as usize;
        let first = self.take_block(order).ok_or(Status::NoMemory)?;
        for i in first..first + n {
            self.map(i).set(as_kind);
            if as_kind == kind::RAW {
                // SAFETY: a free page of this Pool.
                let page = unsafe { mem::page(self.phys.get() + i * PAGE) };
                page.0.iter().for_each(|w| w.set(0));
            }
        }
        for i in first + n..first + (1 << order) {
            self.free_page(i);
        }
        self.free.set(self.free.get() - n);
        Ok(self.phys.get() + first * PAGE)
    }

    /// Takes `N` pages, each by itself.
    ///
    /// # Errors
    /// As [`Pool::take_pages`].
    pub fn take_each<const N: usize>(&self) -> Result<[u64; N], Status> {
        let mut pages = [0; N];
        for i in 0..N {
            let page = self.take_pages(1);
            pages[i] = page.inspect_err(|_| self.give_each(&pages[..i]))?;
        }
        Ok(pages)
    }

    /// Gives pages back, each by itself.
    pub fn give_each(&self, pages: &[u64]) {
        pages.iter().for_each(|&p| self.give_pages(p, 1));
    }

    /// Gives back `n` pages from [`Pool::take_pages`].
    pub fn give_pages(&self, phys: u64, n: u64) {
        let first = phys.wrapping_sub(self.phys.get()) / PAGE;
        for i in first..first.saturating_add(n).min(self.frontier.get()) {
            debug_assert!(self.map(i).get() == kind::RAW);
            self.free_page(i);
            self.free.set(self.free.get() + 1);
        }
    }

    /// A block of 2^`order` pages.
    fn take_block(&self, order: usize) -> Option<u64> {
        let mut o = (order..ORDERS).find(|&o| self.blocks[o].get() != 0);
        while o.is_none() {
            // Everything used so far is in use or in smaller pieces: on to new pages, in pieces as large as their place allows.
            let at = self.frontier.get();
            let most = (self.pages.get() - at).checked_ilog2()?;
            let piece = most.min(at.trailing_zeros()).min(ORDERS as u32 - 1) as usize;
            self.frontier.set(at + (1 << piece));
            for i in at..at + (1 << piece) {
                self.map(i).set(kind::INNER);
            }
            self.add_block(at, piece);
            if piece >= order {
                o = Some(piece);
            }
        }
        let mut o = o?;
        let at = u64::from(self.blocks[o].get());
        self.remove_block(at, o);
        while o > order {
            o -= 1;
            self.add_block(at + (1 << o), o);
        }
        Some(at)
    }

    /// Makes a page free, and one with its neighbours that are.
    fn free_page(&self, page: u64) {
        let (mut at, mut order) = (page, 0);
        self.map(page).set(kind::INNER);
        while order < ORDERS - 1 {
            let other = at ^ (1 << order);
            if other + (1 << order) > self.frontier.get()
                || self.map(other).get() != kind::FREE + order as u8
            {
                break;
            }
            self.remove_block(other, order);
            at = at.min(other);
            order += 1;
        }
        self.add_block(at, order);
    }

    /// The list pointers of a free block, in its first page: next, previous.
    fn block(&self, at: u64) -> &[Cell<u64>; 2] {
        // SAFETY: a free page of this Pool, which is nothing else's; callers have its number from the lists or the map.
        unsafe { &*((self.virt.get() + at * PAGE) as *const [Cell<u64>; 2]) }
    }

    fn add_block(&self, at: u64, order: usize) {
        self.map(at).set(kind::FREE + order as u8);
        let next = u64::from(self.blocks[order].replace(at as u32));
        let [n, p] = self.block(at);
        n.set(next);
        p.set(0);
        if next != 0 {
            self.block(next)[1].set(at);
        }
    }

    fn remove_block(&self, at: u64, order: usize) {
        self.map(at).set(kind::INNER);
        let [next, prev] = self.block(at).each_ref().map(Cell::get);
        match prev {
            0 => self.blocks[order].set(next as u32),
            p => self.block(p)[0].set(next),
        }
        if next != 0 {
            self.block(next)[1].set(prev);
        }
    }

    /// Puts a new object into a slot.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create_object<T: Object>(
        &self,
        make: impl FnOnce(Header) -> T,
    ) -> Result<Obj<T>, Status> {
        const { assert!(core::mem::align_of::<T>() <= 64) };
        self.alive()?;
        let class = const { class_of(core::mem::size_of::<T>()) };
        let list = &self.slots[class];
        if list.get() == 0 {
            self.add_slab(class)?;
        }
        let slot = list.get();
        let at = (self.virt.get() + u64::from(slot) * 64) as *mut T;
        // SAFETY: a free slot of this class: nothing refers to it, and it is large enough. `Header` comes first in every object.
        unsafe {
            let free = &*at.cast::<FreeSlot>();
            list.set(free.next.get());
            let generation = free.word.get() & 0xffff_ffff;
            let header = Header {
                word: Cell::new((T::KIND as u64) << 32 | generation),
                slot,
                pool: self.number.get(),
                flags: Cell::new(0),
            };
            at.write(make(header));
            Ok(Obj::from_ptr(NonNull::new_unchecked(at)))
        }
    }

    /// Makes the slot of an object free; every capability for it is dead from now on.
    pub fn free_object<T: Object>(&self, o: Obj<T>) {
        let class = const { class_of(core::mem::size_of::<T>()) };
        let header = o.get().header();
        let generation = (header.word.get() & 0xffff_ffff) + 1;
        let slot = header.slot;
        // SAFETY: the object's own slot; whoever held an `Obj` of it has given it up (the kind's `destroy` did that).
        let free = unsafe { &*o.ptr().cast::<FreeSlot>() };
        free.word.set(generation & 0xffff_ffff);
        // A slot whose generation has come full circle is never used again.
        if generation <= 0xffff_ffff {
            free.next.set(self.slots[class].replace(slot));
        }
    }

    fn add_slab(&self, class: usize) -> Result<(), Status> {
        let phys = self.take(1, kind::SLAB + class as u8)?;
        let size = CLASSES[class];
        let first = (phys - self.phys.get()) / 64;
        for i in (0..PAGE / size).rev() {
            let slot = first + i * size / 64;
            // SAFETY: inside the page just taken.
            let free = unsafe { &*((self.virt.get() + slot * 64) as *const FreeSlot) };
            free.word.set(0);
            free.next.set(self.slots[class].replace(slot as u32));
        }
        Ok(())
    }

    /// Destroys the Pools that were made of Memory of this one, then its objects, then itself. `destroy` ends one object by its header.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn destroy_step(
        &self,
        destroy: impl Fn(Obj<Header>, &Step) -> Result<(), Status>,
        step: &Step,
    ) -> Result<(), Status> {
        // Somebody else may have destroyed it since, and its number may be another's.
        let known = self.inner.get().and_then(|(n, generation)| {
            let p = &POOLS[usize::from(n) % MAX_POOLS];
            (p.generation.get() == generation).then_some(p)
        });
        let victim = known.unwrap_or(self);
        if !victim.dying.replace(true) {
            victim.cursor.set(0);
        }
        if victim.backing_others.get() != 0 {
            let inner = victim.made_of_its_memory(step)?;
            self.inner
                .set(Some((inner.number.get(), inner.generation.get())));
            return Err(Status::Again);
        }
        victim.destroy_objects(destroy, step)?;
        if core::ptr::eq(victim, self) {
            return Ok(());
        }
        self.inner.set(None);
        Err(Status::Again)
    }

    /// A Pool that was made of Memory of this one, or of a part of such. There is one, and none is added: this one is being destroyed.
    fn made_of_its_memory(&self, step: &Step) -> Result<&'static Self, Status> {
        loop {
            let p = POOLS.get(self.searched.get()).ok_or(Status::Busy)?;
            let backing = p.backing.get().typed::<Memory>(0);
            if backing.is_ok_and(|m| m.get().lives_in(self.number.get())) {
                return Ok(p);
            }
            self.searched.set(self.searched.get() + 1);
            step.spend(100)?;
        }
    }

    fn destroy_objects(
        &self,
        destroy: impl Fn(Obj<Header>, &Step) -> Result<(), Status>,
        step: &Step,
    ) -> Result<(), Status> {
        while self.cursor.get() < self.frontier.get() {
            let i = self.cursor.get();
            let k = self.map(i).get();
            if (kind::SLAB..kind::RAW).contains(&k) {
                let size = CLASSES[(k - kind::SLAB) as usize];
                step.spent((PAGE / size * 6) as u32);
                for s in 0..PAGE / size {
                    // SAFETY: a slot of a slab page; its header is always initialised.
                    let header = unsafe {
                        Obj::from_ptr(NonNull::new_unchecked(
                            (self.virt.get() + i * PAGE + s * size) as *mut Header,
                        ))
                    };
                    if header.word.get() >> 32 != 0 {
                        destroy(header, step)?;
                    }
                }
            }
            self.cursor.set(i + 1);
            step.spend(12)?;
        }
        // Even: dead. Every capability into the Pool, its own included, is now refused before a byte of it is read.
        self.generation.set(self.generation.get() + 1);
        self.dying.set(false);
        if let Ok(memory) = self.backing.replace(Cap::EMPTY).typed::<Memory>(0) {
            memory.get().leave_pool(self.quota.get());
        }
        Ok(())
    }
}

#[repr(C)]
struct FreeSlot {
    word: Cell<u64>,
    next: Cell<u32>,
}

/// The Pool an object was made from.
#[must_use]
pub fn pool_of(header: &Header) -> &'static Pool {
    &POOLS[header.pool as usize & (MAX_POOLS - 1)]
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/pool.rs"]
pub(crate) mod check;
