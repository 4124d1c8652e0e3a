//! Spaces: a host address space with its capability table.

use super::cap::{Cap, cell_at};
use super::step::Step;
use super::{Domain, Object, Pool, Thread, is_domain, refuse_if};
use crate::arch::paging::{Access, Entry, HOST, Table};
use crate::list::List;
use crate::mem::{self, Obj, PAGE};
use crate::writes::Writes;
use core::cell::Cell;
use ipc_schema::abi::{Kind, Status, layout, rights};

/// One protection domain.
#[repr(C)]
pub struct Space {
    domain: Domain,
    /// Slots of its capability table.
    pub caps_len: u64,
    /// The pages of the table, by physical address.
    pub caps: [u64; CAP_PAGES],
    /// Threads in it.
    pub threads: List<Thread, 1>,
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
is_domain!(Space, Kind::Space);

/// Pages of a capability table at most.
pub const CAP_PAGES: usize = 8;
/// Slots in a page of it.
pub const PAGE_SLOTS: u64 = PAGE / 32;
/// Entries of the root page that are user level's.
const USER_ENTRIES: usize = 256;

impl Space {
    /// A Space that holds the kernel's half, the stub page, and an empty table of `slots` capabilities.
    ///
    /// # Errors
    /// `OutOfRange`, `NoMemory`.
    pub fn create(pool: &Pool, slots: u64) -> Result<Obj<Self>, Status> {
        let pages = slots.div_ceil(PAGE_SLOTS) as usize;
        refuse_if(slots == 0 || pages > CAP_PAGES, Status::OutOfRange)?;
        let mut taken = [0; CAP_PAGES + 1];
        let taken = &mut taken[..pages + 1];
        pool.take_pages(taken)?;
        let made = Self::create_with(pool, taken);
        let space = made.inspect_err(|_| pool.give_pages(taken))?;
        crate::arch::share_kernel_half(space.table.root);
        Ok(space)
    }

    /// `pages`: the root of the page table, then the capability table.
    fn create_with(pool: &Pool, pages: &[u64]) -> Result<Obj<Self>, Status> {
        let table = Table { root: pages[0] };
        let stub = crate::arch::stub_page();
        let access = Access::new(&HOST, rights::READ | rights::EXEC, false);
        table.map_page(pool, layout::STUB, stub, access)?;
        let mut caps = [0; CAP_PAGES];
        caps[..pages.len() - 1].copy_from_slice(&pages[1..]);
        pool.create_object(|header| Self {
            domain: Domain::new(header, table.root, false),
            caps_len: (pages.len() - 1) as u64 * PAGE_SLOTS,
            caps,
            threads: List::default(),
            writes: Writes::new(),
        })
        .inspect_err(|_| table.clear_page(pool, layout::STUB))
    }

    /// The pages of its capability table.
    pub fn cap_pages(&self) -> impl Iterator<Item = u64> {
        self.caps.into_iter().take_while(|&p| p != 0)
    }

    /// Kernel address and slots of the part of its capability table that threads look into first.
    pub fn first_slots(&self) -> (u64, u64) {
        (mem::virt(self.caps[0]), PAGE_SLOTS)
    }

    /// A slot of its capability table.
    ///
    /// # Errors
    /// `InvalidCap`: outside.
    pub fn cell(&self, slot: u64) -> Result<&Cell<Cap>, Status> {
        let pages = self.caps.get((slot / PAGE_SLOTS) as usize);
        match pages {
            Some(&p) if p != 0 => cell_at(mem::virt(p), PAGE_SLOTS, slot % PAGE_SLOTS),
            _ => Err(Status::InvalidCap),
        }
    }

    /// Maps a page of the kernel's (UTCB, vCPU state) that is shared with this Space.
    ///
    /// # Errors
    /// `Misaligned`, `OutOfRange`, `Overlap`, `NoMemory`, `Busy`.
    pub fn share_page(&self, at: u64, phys: u64) -> Result<(), Status> {
        self.alive()?;
        refuse_if(!at.is_multiple_of(PAGE), Status::Misaligned)?;
        refuse_if(at >= layout::USER_END, Status::OutOfRange)?;
        let access = Entry::PRESENT | Entry::USER | Entry::WRITE | Entry::NO_EXECUTE;
        self.table.map_page(self.pool(), at, phys, Access(access))
    }

    /// Ends [`Space::share_page`].
    pub fn unshare_page(&self, at: u64) {
        self.table.clear_page(self.pool(), at);
        self.flush();
    }

    /// A slot of its capability table.
    ///
    /// # Errors
    /// `InvalidCap`: outside; slot 0 is always empty.
    pub fn slot(&self, slot: u64) -> Result<Slot<'_>, Status> {
        refuse_if(slot == 0, Status::InvalidCap)?;
        Ok(Slot {
            cell: self.cell(slot)?,
            writes: &self.writes,
        })
    }

    /// A slot that can take a capability: empty, or holding a dead one.
    ///
    /// # Errors
    /// `InvalidCap`, `Occupied`.
    pub fn empty_slot(&self, slot: u64) -> Result<Slot<'_>, Status> {
        let cell = self.slot(slot)?;
        refuse_if(!cell.get().is_dead(), Status::Occupied).map(|()| cell)
    }

    /// A thread of it is, or will be, on processor `cpu`. With a second processor the threads read the capability table in the way
    /// that others may write it; the other processors are stopped then.
    pub fn used_on(&self, cpu: u32) {
        let before = self.cpus.get();
        self.domain.used_on(cpu);
        if before != 0 && self.cpus.get() != before {
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

    /// Ends it, its mappings and its threads. A thread of its own that does this comes last: until then it can make its call again,
    /// from the stub page.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn destroy(&self, step: &Step) -> Result<(), Status> {
        self.dies();
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
        let pool = self.pool();
        if let Some(t) = self.threads.first() {
            t.get().destroy();
        }
        crate::arch::leave_space(self.loaded);
        self.table.clear_page(pool, layout::STUB);
        // Pages that vCPUs share with it may be left; each vCPU finds out that the Space is gone.
        self.table.destroy(pool, USER_ENTRIES, step)?;
        self.cap_pages().for_each(|p| pool.give_page(p));
        crate::arch::pcid::untag(self.loaded);
        pool.free_object(Obj::of(self));
        Ok(())
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/space.rs"]
pub(crate) mod check;
