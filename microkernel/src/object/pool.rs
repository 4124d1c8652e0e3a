//! Pools: kernel memory that its owner paid for, and the slots in it that objects live in.
//!
//! A Pool is one physically contiguous run of pages. Its first pages hold a map, a byte a page. Objects live in *slab pages*, cut into
//! slots of one size; a page that has become a slab page stays one until the Pool is destroyed, so that a stale capability always
//! meets a slot header. Pool numbers are never freed either, only their generation moves on. Each Pool has a quota of them, which it
//! hands down to Pools that are made of Memory objects in it, so that nobody uses up the numbers of all.

use super::cap::Cap;
use super::{Header, Memory, Object, refuse_if, step::Step};
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
    /// Free.
    pub const FREE: u8 = 0;
    /// Slots of class 0; the others follow.
    pub const SLAB: u8 = 1;
    /// In use as a page.
    pub const RAW: u8 = 16;
}

crate::mem::begins! {
    /// What the kernel knows of a Pool. The table of them exists from boot on and is never freed. The first two words are read at each use
    /// of a capability: a power of two as size, so that they are found by a shift.
    #[repr(C, align(256))]
    pub struct Pool {
        /// Even while unused, odd while live: a capability made for a live Pool never matches a later one.
        pub generation: Cell<u64> = Cell::new(0),
        /// Kernel address of the first byte.
        pub virt: Cell<u64> = Cell::new(0),
        phys: Cell<u64> = Cell::new(0),
        pages: Cell<u64> = Cell::new(0),
        free: Cell<u64> = Cell::new(0),
        /// Pages from here on have never been used, nor has their part of the map.
        frontier: Cell<u64> = Cell::new(0),
        /// First of the free pages before it (0: none; page 0 is the Pool's own). Each begins with the number of the next.
        pages_free: Cell<u64> = Cell::new(0),
        /// Memory objects in it that are Pools themselves, or have parts that are.
        backing_others: Cell<u32> = Cell::new(0),
        /// Pools that can yet be made of Memory objects in it.
        pub quota: Cell<u64> = Cell::new(0),
        /// Heads of the lists of free slots (0: none; slot 0 is the Pool's own).
        slots: [Cell<u32>; CLASSES.len()] = [const { Cell::new(0) }; CLASSES.len()],
        /// The Memory it was made from.
        backing: Cell<Cap> = Cell::new(Cap::EMPTY),
        /// Where an unfinished destruction goes on.
        cursor: Cell<u64> = Cell::new(0),
        dying: Cell<bool> = Cell::new(false),
        /// A Pool made of Memory of this one, or of one made of such, and so on, that goes first: number and generation.
        inner: Cell<Option<(u16, u64)>> = Cell::new(None),
        /// Numbers below this have been looked through for such.
        searched: Cell<usize> = Cell::new(0),
        number: Cell<u16> = Cell::new(0),
    }
}

/// All Pools.
pub static POOLS: Global<[Pool; MAX_POOLS]> = Global([const { Pool::NEW }; MAX_POOLS]);

/// The slot 0 of each Pool: what a capability for the Pool itself names.
#[repr(C)]
pub struct PoolObject {
    pub(super) header: Header,
}

impl Pool {
    /// A place in the table for a Pool of so many pages.
    ///
    /// # Errors
    /// As [`Pool::create`].
    pub fn possible(pages: u64) -> Result<(usize, &'static Self), Status> {
        refuse_if(!(2..1 << 20).contains(&pages), Status::OutOfRange)?;
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
        pool.quota.set(quota);
        pool.backing.set(backing);
        pool.number.set(number as u16);
        pool.pages_free.set(0);
        pool.slots.iter().for_each(|list| list.set(0));
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
    #[inline]
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
        refuse_if(self.dying.get(), Status::Busy)
    }

    /// A Memory that lives in this Pool has begun (or ceased) to be a Pool, or to have such a part.
    pub(super) fn backs_other(&self, begins: bool) {
        let n = self.backing_others.get();
        self.backing_others.set(if begins { n + 1 } else { n - 1 });
    }

    /// Takes a page, cleared; its physical address.
    ///
    /// # Errors
    /// `NoMemory`; `Busy` while the Pool is being destroyed.
    pub fn take_page(&self) -> Result<u64, Status> {
        self.take(kind::RAW)
    }

    /// Takes as many pages as there is room for in `pages`; all or none.
    ///
    /// # Errors
    /// As [`Pool::take_page`].
    pub fn take_pages(&self, pages: &mut [u64]) -> Result<(), Status> {
        for i in 0..pages.len() {
            let page = self.take_page();
            pages[i] = page.inspect_err(|_| self.give_pages(&pages[..i]))?;
        }
        Ok(())
    }

    fn take(&self, as_kind: u8) -> Result<u64, Status> {
        self.alive()?;
        let i = match (self.pages_free.get(), self.frontier.get()) {
            (0, end) if end == self.pages.get() => return Err(Status::NoMemory),
            (0, end) => {
                self.frontier.set(end + 1);
                end
            }
            (i, _) => {
                self.pages_free.set(self.page(i).0[0].get());
                i
            }
        };
        self.map(i).set(as_kind);
        self.free.set(self.free.get() - 1);
        if as_kind == kind::RAW {
            self.page(i).0.iter().for_each(|w| w.set(0));
        }
        Ok(self.phys.get() + i * PAGE)
    }

    /// Gives pages back, each by itself.
    pub fn give_pages(&self, pages: &[u64]) {
        pages.iter().for_each(|&p| self.give_page(p));
    }

    /// Gives a page from [`Pool::take_page`] back.
    pub fn give_page(&self, phys: u64) {
        let i = phys.wrapping_sub(self.phys.get()) / PAGE;
        if i < self.frontier.get() {
            debug_assert!(self.map(i).get() == kind::RAW);
            self.map(i).set(kind::FREE);
            self.page(i).0[0].set(self.pages_free.replace(i));
            self.free.set(self.free.get() + 1);
        }
    }

    /// A page of its own, by number.
    fn page(&self, i: u64) -> &mem::Words {
        debug_assert!(i < self.pages.get());
        // SAFETY: a page of this Pool's, all of which are kernel memory; `i` is below `pages` (from the list, the frontier or a caller).
        unsafe { mem::page(self.phys.get() + i * PAGE) }
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
        let slot = match list.get() {
            0 => self.add_slab(class)?,
            slot => slot,
        };
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

    /// Makes free slots; answers the first.
    #[cold]
    #[inline(never)]
    fn add_slab(&self, class: usize) -> Result<u32, Status> {
        let phys = self.take(kind::SLAB + class as u8)?;
        let size = CLASSES[class];
        let first = (phys - self.phys.get()) / 64;
        for i in (0..PAGE / size).rev() {
            let slot = first + i * size / 64;
            // SAFETY: inside the page just taken.
            let free = unsafe { &*((self.virt.get() + slot * 64) as *const FreeSlot) };
            free.word.set(0);
            free.next.set(self.slots[class].replace(slot as u32));
        }
        Ok(self.slots[class].get())
    }

    /// Destroys the Pools that were made of Memory of this one, then its objects, then itself.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn destroy_step(&self, step: &Step) -> Result<(), Status> {
        // Somebody else may have destroyed it since, and its number may be another's.
        let known = self.inner.get().and_then(|(n, generation)| {
            let p = &POOLS[usize::from(n) % MAX_POOLS];
            (p.generation.get() == generation).then_some(p)
        });
        let victim = known.unwrap_or(self);
        if !victim.dying.replace(true) {
            victim.cursor.set(0);
            victim.searched.set(0);
        }
        if victim.backing_others.get() != 0 {
            let inner = victim.made_of_its_memory(step)?;
            self.inner
                .set(Some((inner.number.get(), inner.generation.get())));
            return Err(Status::Again);
        }
        victim.destroy_objects(step)?;
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

    fn destroy_objects(&self, step: &Step) -> Result<(), Status> {
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
                        super::destroy(header, step)?;
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
