//! Spaces: a host address space with its capability table.

use super::cap::{Cap, cell_at};
use super::mapping::{Mapping, Request, Target};
use super::step::Step;
use super::{Header, Pool, Thread, object, pool::pool_of};
use crate::arch::paging::{Access, Entry, Table};
use crate::list::List;
use crate::mem::{self, Obj, PAGE};
use crate::tree::Tree;
use crate::writes::Writes;
use core::cell::Cell;
use ipc_schema::abi::{Kind, Status, layout, rights};

/// One protection domain.
#[repr(C)]
pub struct Space {
    header: Header,
    /// Its page table.
    pub table: Table,
    /// Kernel address of the capability table.
    pub caps: u64,
    /// Its slots.
    pub caps_len: u64,
    caps_phys: u64,
    /// Mappings in it.
    pub mappings: Tree<Mapping>,
    /// Threads in it.
    pub threads: List<Thread, 1>,
    /// The processors, a bit each, where threads of it have been: where its page table may be cached.
    pub cpus: Cell<u32>,
    /// Who writes the capability table.
    pub writes: Writes,
}

/// A slot of a capability table, to be written.
#[derive(Clone, Copy)]
pub struct Slot<'a> {
    cell: &'a Cell<Cap>,
    writes: &'a Writes,
}

impl Slot<'_> {
    /// What is in it.
    #[must_use]
    pub fn get(&self) -> Cap {
        self.writes.read(|| self.cell.get())
    }
    /// Puts `cap` in.
    pub fn set(&self, cap: Cap) {
        self.writes.write(|| self.cell.set(cap));
    }
}
object!(Space, Kind::Space);

/// Entries of the root page that are user level's.
const USER_ENTRIES: usize = 256;
/// `Header::flags`: it is being destroyed.
const DYING: u16 = 1;

impl Space {
    /// A Space that holds the kernel's half, the stub page, and an empty table of `slots` capabilities.
    ///
    /// # Errors
    /// `OutOfRange`, `NoMemory`.
    pub fn create(pool: &Pool, slots: u64) -> Result<Obj<Self>, Status> {
        if slots == 0 || slots > 1024 {
            return Err(Status::OutOfRange);
        }
        let caps_pages = (slots * 32).div_ceil(PAGE);
        let caps_phys = pool.take_pages(caps_pages)?;
        let made = pool.take_pages(1).and_then(|root| {
            Self::create_with(pool, root, caps_phys, caps_pages)
                .inspect_err(|_| pool.give_pages(root, 1))
        });
        let space = made.inspect_err(|_| pool.give_pages(caps_phys, caps_pages))?;
        crate::arch::share_kernel_half(space.table.root);
        Ok(space)
    }

    fn create_with(pool: &Pool, root: u64, caps: u64, pages: u64) -> Result<Obj<Self>, Status> {
        let table = Table { root };
        let stub = crate::arch::stub_page();
        let access = Access::new(rights::READ | rights::EXEC, false);
        table.map_page(pool, layout::STUB, stub, access)?;
        pool.create_object(|header| Self {
            header,
            table,
            caps: mem::virt(caps),
            caps_len: pages * PAGE / 32,
            caps_phys: caps,
            mappings: Tree::default(),
            threads: List::default(),
            cpus: Cell::new(0),
            writes: Writes::new(),
        })
        .inspect_err(|_| Table { root }.clear_page(pool, layout::STUB))
    }

    /// Whether anything can be added to it.
    ///
    /// # Errors
    /// `Busy`: it is being destroyed.
    pub fn alive(&self) -> Result<(), Status> {
        if self.header.flags.get() & DYING != 0 {
            Err(Status::Busy)
        } else {
            Ok(())
        }
    }

    /// Maps a range of a Memory.
    ///
    /// # Errors
    /// As [`Mapping::create`].
    #[inline(always)]
    pub fn map(&self, r: &Request, step: &Step, stop: impl Fn()) -> Result<(), Status> {
        self.alive()?;
        let access = Access::new(r.rights, r.memory.get().device);
        Mapping::create(r, Target::Space(Obj::of(self)), access, step, stop)
    }

    /// Maps a page of the kernel's (UTCB, vCPU state) that is shared with this Space.
    ///
    /// # Errors
    /// `Misaligned`, `OutOfRange`, `Overlap`, `NoMemory`, `Busy`.
    pub fn share_page(&self, at: u64, phys: u64) -> Result<(), Status> {
        self.alive()?;
        if !at.is_multiple_of(PAGE) {
            return Err(Status::Misaligned);
        }
        if at >= layout::USER_END {
            return Err(Status::OutOfRange);
        }
        let access = Entry::PRESENT | Entry::USER | Entry::WRITE | Entry::NO_EXECUTE;
        self.table
            .map_page(pool_of(&self.header), at, phys, Access(access))
    }

    /// Ends [`Space::share_page`].
    pub fn unshare_page(&self, at: u64) {
        self.table.clear_page(pool_of(&self.header), at);
        self.flush();
    }

    /// A slot of its capability table.
    ///
    /// # Errors
    /// `InvalidCap`: outside; slot 0 is always empty.
    pub fn slot(&self, slot: u64) -> Result<Slot<'_>, Status> {
        if slot == 0 {
            return Err(Status::InvalidCap);
        }
        Ok(Slot {
            cell: cell_at(self.caps, self.caps_len, slot)?,
            writes: &self.writes,
        })
    }

    /// A slot that can take a capability: empty, or holding a dead one.
    ///
    /// # Errors
    /// `InvalidCap`, `Occupied`.
    pub fn empty_slot(&self, slot: u64) -> Result<Slot<'_>, Status> {
        let cell = self.slot(slot)?;
        if cell.get().is_dead() {
            Ok(cell)
        } else {
            Err(Status::Occupied)
        }
    }

    /// A thread of it is, or will be, on processor `cpu`. With a second processor the threads read the capability table in the way
    /// that others may write it; the other processors are stopped then.
    pub fn used_on(&self, cpu: u32) {
        self.cpus.set(self.cpus.get() | 1 << cpu);
        if self.cpus.get().count_ones() > 1 {
            let mut t = self.threads.first();
            while let Some(o) = t {
                o.caps_len.set(0);
                t = List::<Thread, 1>::after(o);
            }
        }
    }

    /// The processor, as a bit, that reads the capability table as if nobody else wrote it: whoever does from elsewhere stops it first.
    pub fn read_in_place(&self) -> u32 {
        let cpus = self.cpus.get();
        if cpus.is_power_of_two() { cpus } else { 0 }
    }

    /// Makes a change of the table seen by this processor. Where others may have it cached, they are stopped (`cpus`).
    pub fn flush(&self) {
        crate::arch::flush_space(self.table.root);
    }

    /// Ends it, its mappings and its threads. A thread of its own that does this comes last: until then it can make its call again,
    /// from the stub page.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn destroy(&self, step: &Step) -> Result<(), Status> {
        self.header.flags.set(DYING);
        let own = crate::arch::Cpu::current().current.get();
        loop {
            let mut t = self.threads.first();
            if t.is_some() && t == own {
                t = t.and_then(List::<Thread, 1>::after);
            }
            let Some(t) = t else { break };
            step.spend(1000)?;
            t.get().destroy();
        }
        while let Some(m) = self.mappings.any() {
            m.get().destroy(step)?;
        }
        step.spend(1000)?;
        let pool = pool_of(&self.header);
        if let Some(t) = self.threads.first() {
            t.get().destroy();
        }
        crate::arch::leave_space(self.table.root);
        self.table.clear_page(pool, layout::STUB);
        // Pages that vCPUs share with it may be left; each vCPU finds out that the Space is gone.
        self.table.destroy(pool, USER_ENTRIES, step)?;
        pool.give_pages(self.caps_phys, self.caps_len * 32 / PAGE);
        pool.free_object(Obj::of(self));
        Ok(())
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/space.rs"]
pub(crate) mod check;
