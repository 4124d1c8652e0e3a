//! Spaces: a host address space with its capability table.

use super::cap::{Cap, cell_at};
use super::mapping::{Mapping, Request, Target};
use super::{Header, Pool, Thread, object, pool::pool_of};
use crate::arch::paging::{Access, Entry, Table};
use crate::list::List;
use crate::mem::{self, Obj, PAGE};
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
    pub mappings: List<Mapping, 1>,
    /// Threads in it.
    pub threads: List<Thread, 1>,
}
object!(Space, Kind::Space);

/// Entries of the root page that are user level's.
const USER_ENTRIES: usize = 256;

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
            let table = Table { root };
            table.prepare(pool, layout::STUB, 0, PAGE)?;
            table.fill(
                layout::STUB,
                crate::arch::stub_page(),
                PAGE,
                Access::new(rights::READ | rights::EXEC, false),
            );
            pool.create_object(|header| Self {
                header,
                table,
                caps: mem::virt(caps_phys),
                caps_len: caps_pages * PAGE / 32,
                caps_phys,
                mappings: List::default(),
                threads: List::default(),
            })
            .inspect_err(|_| Table { root }.destroy(pool, USER_ENTRIES))
        });
        let space = made.inspect_err(|_| pool.give_pages(caps_phys, caps_pages))?;
        crate::arch::share_kernel_half(space.table.root);
        Ok(space)
    }

    /// Maps a range of a Memory.
    ///
    /// # Errors
    /// As [`Mapping::create`].
    pub fn map(&self, r: &Request) -> Result<(), Status> {
        let access = Access::new(r.rights, r.memory.get().device);
        let pool = pool_of(&self.header);
        Mapping::create(pool, r, Target::Space(Obj::of(self)), &self.table, access).map(|_| ())
    }

    /// Maps a page of the kernel's (UTCB, vCPU state) that is shared with this Space.
    ///
    /// # Errors
    /// `Misaligned`, `OutOfRange`, `Overlap`, `NoMemory`.
    pub fn share_page(&self, at: u64, phys: u64) -> Result<(), Status> {
        if !at.is_multiple_of(PAGE) {
            return Err(Status::Misaligned);
        }
        if at >= layout::USER_END {
            return Err(Status::OutOfRange);
        }
        self.table
            .prepare(pool_of(&self.header), at, phys | PAGE, PAGE)?;
        self.table.fill(
            at,
            phys,
            PAGE,
            Access(Entry::PRESENT | Entry::USER | Entry::WRITE | Entry::NO_EXECUTE),
        );
        Ok(())
    }

    /// Ends [`Space::share_page`].
    pub fn unshare_page(&self, at: u64) {
        self.table.clear(at, PAGE);
        self.flush();
    }

    /// A slot of its capability table.
    ///
    /// # Errors
    /// `InvalidCap`: outside; slot 0 is always empty.
    pub fn slot(&self, slot: u64) -> Result<&Cell<Cap>, Status> {
        if slot == 0 {
            Err(Status::InvalidCap)
        } else {
            cell_at(self.caps, self.caps_len, slot)
        }
    }

    /// A slot that can take a capability: empty, or holding a dead one.
    ///
    /// # Errors
    /// `InvalidCap`, `Occupied`.
    pub fn empty_slot(&self, slot: u64) -> Result<&Cell<Cap>, Status> {
        let cell = self.slot(slot)?;
        if cell.get().is_dead() {
            Ok(cell)
        } else {
            Err(Status::Occupied)
        }
    }

    /// Makes a change of the table seen by every processor that uses it.
    pub fn flush(&self) {
        crate::arch::flush_space(self.table.root);
    }

    /// Ends it, its mappings and its threads.
    pub fn destroy(&self) {
        while let Some(t) = self.threads.first() {
            t.get().destroy();
        }
        while let Some(m) = self.mappings.first() {
            m.get().destroy();
        }
        crate::arch::leave_space(self.table.root);
        let pool = pool_of(&self.header);
        self.table.destroy(pool, USER_ENTRIES);
        pool.give_pages(self.caps_phys, self.caps_len * 32 / PAGE);
        pool.free_object(Obj::of(self));
    }
}
