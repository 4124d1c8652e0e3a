//! Pools: kernel memory that its owner paid for, and the slots in it that objects live in.
//!
//! A Pool is one physically contiguous run of pages. Its first pages hold a map, a byte a page. Objects live in *slab pages*, cut into
//! slots of one size; a page that has become a slab page stays one until the Pool is destroyed, so that a stale capability always
//! meets a slot header. Pool numbers are never freed either, only their generation moves on.

use super::cap::Cap;
use super::{Header, Memory, Object};
use crate::mem::{self, Global, Obj, PAGE};
use core::cell::Cell;
use core::ptr::NonNull;
use ipc_schema::abi::{Kind, Status};

/// Pools at most; a power of two.
pub const MAX_POOLS: usize = 512;

/// Sizes of slots.
const CLASSES: [u64; 5] = [64, 128, 256, 512, 1024];

mod kind {
    pub const FREE: u8 = 0;
    pub const SLAB: u8 = 1;
    pub const RAW: u8 = 16;
}

/// What the kernel knows of a Pool. The table of them exists from boot on and is never freed.
pub struct Pool {
    /// Even while unused, odd while live: a capability made for a live Pool never matches a later one.
    pub generation: Cell<u64>,
    /// Kernel address of the first byte.
    pub virt: Cell<u64>,
    phys: Cell<u64>,
    pages: Cell<u64>,
    free: Cell<u64>,
    hint: Cell<u64>,
    /// Heads of the lists of free slots (0: none; slot 0 is the Pool's own).
    slots: [Cell<u32>; CLASSES.len()],
    /// The Memory it was made from.
    backing: Cell<Cap>,
    /// Where an unfinished destruction goes on.
    cursor: Cell<u64>,
    dying: Cell<bool>,
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
            hint: Cell::new(0),
            slots: [const { Cell::new(0) }; CLASSES.len()],
            backing: Cell::new(Cap::EMPTY),
            cursor: Cell::new(0),
            dying: Cell::new(false),
            number: Cell::new(0),
        }
    }

    /// Makes a Pool of `pages` pages at `phys`, which nothing maps any more.
    ///
    /// # Errors
    /// `NoMemory`: all Pool numbers are in use. `OutOfRange`: fewer than two pages, or more than 4 GiB.
    ///
    /// # Safety
    /// The pages are RAM that nothing else refers to until the Pool is destroyed.
    pub unsafe fn create(phys: u64, pages: u64, backing: Cap) -> Result<Cap, Status> {
        if !(2..1 << 20).contains(&pages) {
            return Err(Status::OutOfRange);
        }
        let (number, pool) = POOLS
            .iter()
            .enumerate()
            .find(|(_, p)| p.generation.get() & 1 == 0)
            .ok_or(Status::NoMemory)?;
        let map_pages = (64 + pages).div_ceil(PAGE);
        pool.virt.set(mem::virt(phys));
        pool.phys.set(phys);
        pool.pages.set(pages);
        pool.free.set(pages - map_pages);
        pool.hint.set(map_pages);
        pool.backing.set(backing);
        pool.cursor.set(0);
        pool.dying.set(false);
        pool.number.set(number as u16);
        for s in &pool.slots {
            s.set(0);
        }
        for i in 0..map_pages {
            // SAFETY: the first pages of the run, which the caller gave.
            unsafe { mem::page(phys + i * PAGE) }
                .0
                .iter()
                .for_each(|w| w.set(0));
        }
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

    /// The Pool that a capability names.
    ///
    /// # Errors
    /// As [`Cap::typed`]; `Busy` while it is being destroyed.
    pub fn from_cap(cap: &Cap, need: u32) -> Result<&'static Self, Status> {
        let object = cap.typed::<PoolObject>(need)?;
        let pool = &POOLS[object.get().header.pool as usize & (MAX_POOLS - 1)];
        if pool.dying.get() {
            Err(Status::Busy)
        } else {
            Ok(pool)
        }
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

    /// Takes `n` neighbouring pages, cleared; physical address of the first.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn take_pages(&self, n: u64) -> Result<u64, Status> {
        self.take(n, kind::RAW)
    }

    fn take(&self, n: u64, as_kind: u8) -> Result<u64, Status> {
        if n == 0 || n > self.free.get() {
            return Err(Status::NoMemory);
        }
        let pages = self.pages.get();
        let mut from = self.hint.get();
        for _pass in 0..2 {
            let mut run = 0;
            for i in from..pages {
                run = if self.map(i).get() == kind::FREE {
                    run + 1
                } else {
                    0
                };
                if run == n {
                    let first = i + 1 - n;
                    for p in first..=i {
                        self.map(p).set(as_kind);
                        // SAFETY: a free page of this Pool.
                        unsafe { mem::page(self.phys.get() + p * PAGE) }
                            .0
                            .iter()
                            .for_each(|w| w.set(0));
                    }
                    self.free.set(self.free.get() - n);
                    if n == 1 {
                        self.hint.set(i + 1);
                    }
                    return Ok(self.phys.get() + first * PAGE);
                }
            }
            from = 0;
        }
        Err(Status::NoMemory)
    }

    /// Gives back `n` pages from [`Pool::take_pages`].
    pub fn give_pages(&self, phys: u64, n: u64) {
        let first = phys.wrapping_sub(self.phys.get()) / PAGE;
        for i in first..first.saturating_add(n).min(self.pages.get()) {
            debug_assert!(self.map(i).get() == kind::RAW);
            self.map(i).set(kind::FREE);
            self.free.set(self.free.get() + 1);
        }
        self.hint.set(self.hint.get().min(first));
    }

    /// Puts a new object into a slot.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create_object<T: Object>(
        &self,
        make: impl FnOnce(Header) -> T,
    ) -> Result<Obj<T>, Status> {
        const { assert!(core::mem::size_of::<T>() <= 1024 && core::mem::align_of::<T>() <= 64) };
        let class = CLASSES
            .iter()
            .position(|&c| c >= core::mem::size_of::<T>() as u64)
            .ok_or(Status::NoMemory)?;
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
        let Some(class) = CLASSES
            .iter()
            .position(|&c| c >= core::mem::size_of::<T>() as u64)
        else {
            return;
        };
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
            free.next.set(self.slots[class].replace(slot as u32));
        }
        Ok(())
    }

    /// Destroys a bounded number of the Pool's objects; `Again` until nothing is left. `destroy` ends one object by its header.
    pub fn destroy_step(&self, destroy: impl Fn(Obj<Header>)) -> Status {
        if !self.dying.replace(true) {
            self.cursor.set(0);
        }
        let pages = self.pages.get();
        let mut budget = 8;
        while self.cursor.get() < pages {
            let i = self.cursor.get();
            let k = self.map(i).get();
            if (kind::SLAB..kind::RAW).contains(&k) {
                if budget == 0 {
                    return Status::Again;
                }
                budget -= 1;
                let size = CLASSES[(k - kind::SLAB) as usize];
                for s in 0..PAGE / size {
                    // SAFETY: a slot of a slab page; its header is always initialised.
                    let header = unsafe {
                        Obj::from_ptr(NonNull::new_unchecked(
                            (self.virt.get() + i * PAGE + s * size) as *mut Header,
                        ))
                    };
                    if header.word.get() >> 32 != 0 {
                        destroy(header);
                    }
                }
            }
            self.cursor.set(i + 1);
        }
        // Even: dead. Every capability into the Pool, its own included, is now refused before a byte of it is read.
        self.generation.set(self.generation.get() + 1);
        self.dying.set(false);
        if let Ok(memory) = self.backing.replace(Cap::EMPTY).typed::<Memory>(0) {
            memory.leave_pool();
        }
        Status::Ok
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
