//! What a Space and a GuestSpace have in common: a page table, and a record of each range that is mapped in it.

use super::{Mapping, Pool, pool::POOLS};
use crate::arch::paging::Table;
use crate::tree::Tree;
use core::cell::Cell;
use ipc_schema::abi::Status;

/// A page table with what is mapped in it. It is a part of the object whose table it is, and ends with it.
pub struct Domain {
    /// The table.
    pub table: Table,
    /// What is mapped in it.
    pub mappings: Tree<Mapping>,
    /// The processors, a bit each, where a thread or vCPU of it is or has been: where the table may be cached.
    pub cpus: Cell<u32>,
    /// Whether it is a guest's.
    pub guest: bool,
    dying: Cell<bool>,
    pool: u16,
    /// Of a guest: moves on whenever something was taken out of the table; each vCPU flushes before it next enters.
    pub flushes: Cell<u64>,
}

impl Domain {
    /// With an empty table at `root`, paid for by the Pool with this number.
    pub fn new(root: u64, pool: u16, guest: bool) -> Self {
        Self {
            table: Table { root },
            mappings: Tree::default(),
            cpus: Cell::new(0),
            guest,
            dying: Cell::new(false),
            pool,
            flushes: Cell::new(1),
        }
    }

    /// The Pool that pays for it.
    #[inline(always)]
    pub fn pool(&self) -> &'static Pool {
        &POOLS[usize::from(self.pool) % POOLS.len()]
    }

    /// Whether anything can be added to it.
    ///
    /// # Errors
    /// `Busy`: it is being destroyed.
    #[inline(always)]
    pub fn alive(&self) -> Result<(), Status> {
        if self.dying.get() {
            Err(Status::Busy)
        } else {
            Ok(())
        }
    }

    /// Nothing is added to it any more.
    pub fn dies(&self) {
        self.dying.set(true);
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
            crate::arch::flush_space(self.table.root);
        }
    }
}
