//! What a Space and a GuestSpace have in common: a page table, and a record of each range that is mapped in it.

use super::{Header, Mapping, Pool, pool::pool_of};
use crate::arch::{paging, paging::Table, pcid};
use crate::tree::Tree;
use core::cell::Cell;

/// A page table with what is mapped in it: the first part of the object whose table it is.
#[repr(C)]
pub struct Domain {
    /// The object's.
    pub header: Header,
    /// The table.
    pub table: Table,
    /// What is loaded for it, if it is a Space's.
    pub loaded: u64,
    /// What is mapped in it.
    pub mappings: Tree<Mapping>,
    /// The processors, a bit each, where a thread or vCPU of it is or has been: where the table may be cached.
    pub cpus: Cell<u32>,
    /// Whether it is a guest's.
    pub guest: bool,
    /// What an entry for a page of it has whatever its rights.
    pub base: paging::Base,
    /// Of a guest: moves on whenever something was taken out of the table; each vCPU flushes before it next enters.
    pub flushes: Cell<u64>,
}

impl Domain {
    /// With an empty table at `root`.
    pub fn new(header: Header, root: u64, guest: bool) -> Self {
        Self {
            header,
            table: Table { root },
            loaded: if guest { 0 } else { pcid::tag(root) },
            mappings: Tree::default(),
            cpus: Cell::new(0),
            guest,
            base: [paging::HOST, paging::EXTENDED]
                [usize::from(guest && crate::virt::vmx::HERE.get())],
            flushes: Cell::new(1),
        }
    }

    /// The Pool that pays for it.
    #[inline(always)]
    pub fn pool(&self) -> &'static Pool {
        pool_of(&self.header)
    }

    /// A thread or vCPU of it is, or will be, on processor `cpu`.
    pub fn used_on(&self, cpu: u32) {
        self.cpus.set(self.cpus.get() | 1 << cpu);
    }

    /// Something was taken out of the table: makes this processor see it. Others that may have it cached are stopped (`cpus`).
    pub fn flush(&self) {
        if self.guest {
            self.flushes.set(self.flushes.get() + 1);
        } else {
            pcid::flush_space(self.loaded);
        }
    }
}
