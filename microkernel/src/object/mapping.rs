//! Mappings: a range of a Memory in a Space or a GuestSpace. Known to both ends, so that either can end it.
//!
//! A range is mapped and taken away in steps. While it is being made or ended it belongs to its two ends like any other: a range is
//! ended for good by whoever gets to it, at any moment, and nothing else is mapped there before.

use super::step::Step;
use super::{Domain, Header, Memory, Thread, object, refuse_if};
use crate::arch::paging::{Access, Run};
use crate::list::{Link, Linked};
use crate::mem::{Obj, PAGE};
use crate::sync::Operation;
use crate::tree::{Branches, Keyed};
use core::cell::Cell;
use ipc_schema::abi::{Kind, Status, layout, rights};

/// What becomes of a Mapping: `Header::flags`, its lower half.
mod state {
    /// All of it is there.
    pub const LIVE: u16 = 0;
    /// Being made, in steps.
    pub const MAKING: u16 = 1;
    /// Being taken away, in steps; the upper half is why it could not be made, if it could not.
    pub const ENDING: u16 = 2;
}

/// One mapped range.
#[repr(C)]
pub struct Mapping {
    header: Header,
    memory: Obj<Memory>,
    domain: Obj<Domain>,
    run: Run,
    access: Access,
    /// Bytes that have been mapped.
    made: Cell<u64>,
    /// Bytes of them that have been taken away again.
    gone: Cell<u64>,
    in_memory: Link<Mapping>,
    in_domain: Branches<Mapping>,
    /// Address of the thread whose `MAP` it is: only compared.
    maker: u32,
}
object!(Mapping, Kind::Mapping);
impl Linked<0> for Mapping {
    #[inline(always)]
    fn link(&self) -> &Link<Self> {
        &self.in_memory
    }
}
impl Keyed for Mapping {
    #[inline(always)]
    fn key(&self) -> u64 {
        self.run.va
    }
    /// Any order does: spread out, so that the way to an address is short.
    #[inline(always)]
    fn bits(key: u64) -> u64 {
        key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    #[inline(always)]
    fn branches(&self) -> &Branches<Self> {
        &self.in_domain
    }
}

/// What a `MAP` asks for, decoded and checked.
pub struct Request {
    /// The Memory.
    pub memory: Obj<Memory>,
    /// Where to.
    pub at: u64,
    /// From where in it.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// READ, WRITE, EXEC.
    pub rights: u32,
    /// The thread that asks.
    pub by: Obj<Thread>,
}

impl Request {
    /// Checks it against the Memory, the capability's rights and where it is to be mapped; answers the access that it gives.
    ///
    /// # Errors
    /// `Misaligned`, `OutOfRange`, `InvalidArg` (no access at all; writable and executable for a server; device registers for a guest),
    /// `MissingRight`, `Busy`.
    #[inline(always)]
    fn check(&self, cap_rights: u32, domain: &Domain) -> Result<Access, Status> {
        if (self.at | self.offset | self.len) & (PAGE - 1) != 0 {
            return Err(Status::Misaligned);
        }
        let m = self.memory.get();
        // A Memory is smaller than what an address below the end can overflow by.
        if self.len.wrapping_sub(1) >= m.len
            || self.offset > m.len - self.len
            || self.at >= layout::USER_END
            || self.at + self.len > layout::USER_END
        {
            return Err(Status::OutOfRange);
        }
        let all = rights::READ | rights::WRITE | rights::EXEC;
        if self.rights & !all != 0 || self.rights & rights::READ == 0 {
            return Err(Status::InvalidArg);
        }
        if self.rights & cap_rights & u32::from(m.limit) != self.rights {
            return Err(Status::MissingRight);
        }
        m.mappable()?;
        refuse_if(self.rights == all && !domain.guest, Status::InvalidArg)?;
        domain.header.alive()?;
        refuse_if(m.device && domain.guest, Status::InvalidArg)?;
        Ok(Access::new(&domain.base, self.rights, m.device))
    }
}

impl Mapping {
    /// Maps; the record and the page tables come out of the target's Pool. The record comes first, so that what is half done can be
    /// found: by this thread, which goes on; by who unmaps, revokes or destroys, who ends it. Before something that was mapped is taken
    /// away again, `op` stops the other processors that may use it.
    ///
    /// # Errors
    /// `Again`: there is more to do. `Overlap`, `NoMemory`: nothing is mapped then. `Busy`: something else is being mapped there, or
    /// taken away. As [`Request::check`].
    #[inline(always)]
    pub fn create(
        r: &Request,
        cap_rights: u32,
        domain: &Domain,
        step: &Step,
        op: &Operation,
    ) -> Result<(), Status> {
        let access = r.check(cap_rights, domain)?;
        let m = r.memory.get();
        let pool = domain.pool();
        let run = Run {
            va: r.at,
            phys: m.phys + r.offset,
            len: r.len,
        };
        let place = domain.mappings.place(r.at);
        let record = match place.get() {
            None => {
                let record = pool.create_object(|header| Self {
                    header,
                    memory: r.memory,
                    domain: Obj::of(domain),
                    run,
                    access,
                    made: Cell::new(0),
                    gone: Cell::new(0),
                    in_memory: Link::default(),
                    in_domain: Default::default(),
                    maker: r.by.addr() as u32,
                })?;
                if let Err(e) = m.add_mapping(record) {
                    pool.free_object(record);
                    return Err(e);
                }
                place.set(Some(record));
                record
            }
            Some(old) => old.get().go_on(r, run, access, step, op)?,
        };
        // The frequent case apart: no steps, no tables to be made.
        if run.len == PAGE && domain.table.fill_page(run.va, run.phys, access) {
            record.made.set(PAGE);
            return Ok(());
        }
        let filled = domain.table.fill(pool, run, access, &record.made, step);
        filled.or_else(|why| record.get().interrupted(why, step, op))
    }

    /// It could not be filled in one step, or not at all.
    #[cold]
    #[inline(never)]
    fn interrupted(&self, why: Status, step: &Step, op: &Operation) -> Result<(), Status> {
        if why == Status::Again {
            self.header.flags.set(state::MAKING);
            return Err(why);
        }
        self.header.flags.set(state::ENDING | (why as u16) << 8);
        op.stop_for(self.domain.cpus.get());
        self.destroy(step).and(Err(why))
    }

    /// What it has mapped now: its range and how much of it, where to.
    #[cfg(test)]
    pub fn extent(&self) -> (std::ops::Range<u64>, u64, bool) {
        let va = self.run.va;
        let range = va + self.gone.get()..va + self.made.get();
        (
            range,
            self.run.phys + self.gone.get(),
            self.run.len == self.made.get(),
        )
    }

    /// A `MAP` found this one at its address.
    #[cold]
    #[inline(never)]
    fn go_on(
        &self,
        r: &Request,
        run: Run,
        access: Access,
        step: &Step,
        op: &Operation,
    ) -> Result<Obj<Self>, Status> {
        let flags = self.header.flags.get();
        let same = self.maker == r.by.addr() as u32
            && self.memory == r.memory
            && (self.run.phys, self.run.len, self.access.0) == (run.phys, run.len, access.0);
        match flags & 0xff {
            state::LIVE => Err(Status::Overlap),
            state::MAKING if same => {
                // As one that is made anew: if it does not come to its end this time, `interrupted` says so.
                self.header.flags.set(state::LIVE);
                Ok(Obj::of(self))
            }
            state::ENDING if same && flags >> 8 != 0 => {
                let why = Status::from_raw(u64::from(flags >> 8));
                op.stop_for(self.domain.cpus.get());
                self.destroy(step).and(Err(why))
            }
            _ => Err(Status::Busy),
        }
    }

    /// Takes the range away; no processor can use it any more when this is done.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn destroy(&self, step: &Step) -> Result<(), Status> {
        let this = Obj::of(self);
        let domain = self.domain.get();
        let pool = domain.pool();
        if self.header.flags.get() & 0xff != state::ENDING {
            self.header.flags.set(state::ENDING);
        }
        let done = domain
            .table
            .clear(pool, self.run.va, self.made.get(), &self.gone, step);
        domain.flush();
        done?;
        step.spend(100)?;
        domain.mappings.remove(this);
        self.memory.get().remove_mapping(this);
        pool.free_object(this);
        Ok(())
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/mapping.rs"]
pub(crate) mod check;
