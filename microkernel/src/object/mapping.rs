//! Mappings: a range of a Memory in a Space or a GuestSpace. Known to both ends, so that either can end it.

use super::{GuestSpace, Header, Memory, Pool, Space, object, pool::pool_of};
use crate::arch::paging::{Access, Table};
use crate::list::{Link, Linked, List};
use crate::mem::{Obj, PAGE};
use ipc_schema::abi::{Kind, Status, rights};

/// Where a Mapping is.
#[derive(Clone, Copy)]
pub enum Target {
    /// A host address space.
    Space(Obj<Space>),
    /// A VM.
    Guest(Obj<GuestSpace>),
}

/// One mapped range.
#[repr(C)]
pub struct Mapping {
    header: Header,
    memory: Obj<Memory>,
    target: Target,
    /// First address.
    pub at: u64,
    len: u64,
    in_memory: Link<Mapping>,
    in_target: Link<Mapping>,
}
object!(Mapping, Kind::Mapping);
impl Linked<0> for Mapping {
    fn link(&self) -> &Link<Self> {
        &self.in_memory
    }
}
impl Linked<1> for Mapping {
    fn link(&self) -> &Link<Self> {
        &self.in_target
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
}

impl Request {
    /// Checks the numbers against the Memory, the capability's rights and the end of the address space.
    ///
    /// # Errors
    /// `Misaligned`, `OutOfRange`, `MissingRight`, `InvalidArg` (no access at all, or writable and executable), `Busy`.
    pub fn check(&self, cap_rights: u32, end: u64) -> Result<(), Status> {
        if !(self.at | self.offset | self.len).is_multiple_of(PAGE) {
            return Err(Status::Misaligned);
        }
        let m = self.memory.get();
        if self.len == 0
            || self.offset > m.len
            || self.len > m.len - self.offset
            || self.at >= end
            || self.len > end - self.at
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
        m.mappable()
    }
}

impl Mapping {
    /// Maps; the record and the page tables come out of `pool`, which is the target's.
    ///
    /// # Errors
    /// `Overlap`, `NoMemory`. Nothing is mapped then.
    pub fn create(
        pool: &Pool,
        r: &Request,
        target: Target,
        table: &Table,
        access: Access,
    ) -> Result<Obj<Self>, Status> {
        let m = r.memory.get();
        table.prepare(pool, r.at, m.phys + r.offset, r.len)?;
        let record = pool.create_object(|header| Self {
            header,
            memory: r.memory,
            target,
            at: r.at,
            len: r.len,
            in_memory: Link::default(),
            in_target: Link::default(),
        })?;
        table.fill(r.at, m.phys + r.offset, r.len, access);
        m.mappings.push_back(record);
        match target {
            Target::Space(s) => s.get().mappings.push_back(record),
            Target::Guest(g) => g.get().mappings.push_back(record),
        }
        Ok(record)
    }

    /// Takes the range away; no processor can use it any more when this returns.
    pub fn destroy(&self) {
        let this = Obj::of(self);
        self.memory.get().mappings.remove(this);
        match self.target {
            Target::Space(s) => {
                s.get().mappings.remove(this);
                s.get().table.clear(self.at, self.len);
                s.get().flush();
            }
            Target::Guest(g) => {
                g.get().mappings.remove(this);
                g.get().table.clear(self.at, self.len);
                g.get().flush();
            }
        }
        pool_of(&self.header).free_object(this);
    }

    /// The one that begins at `at`.
    pub fn find(list: &List<Self, 1>, at: u64) -> Option<Obj<Self>> {
        let mut m = list.first();
        while let Some(o) = m {
            if o.at == at {
                return Some(o);
            }
            m = List::<Self, 1>::after(o);
        }
        None
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/mapping.rs"]
pub(crate) mod check;
