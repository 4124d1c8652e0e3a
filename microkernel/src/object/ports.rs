//! Ports: a range of the machine's I/O ports.

use super::{Header, Pool, object, pool::pool_of, refuse_if};
use crate::mem::Obj;
use ipc_schema::abi::{Kind, Status};

/// A range of ports.
#[repr(C)]
pub struct Ports {
    header: Header,
    first: u64,
    count: u64,
}
object!(Ports, Kind::Ports);

impl Ports {
    /// A range.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool, first: u64, count: u64) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self {
            header,
            first,
            count,
        })
    }

    /// A part of it; parts may overlap (who may divide decides who shares).
    ///
    /// # Errors
    /// `OutOfRange`, `NoMemory`.
    pub fn divide(&self, first: u64, count: u64, pool: &Pool) -> Result<Obj<Self>, Status> {
        if count == 0
            || first < self.first
            || first > 0xffff
            || count > self.first + self.count - first
        {
            return Err(Status::OutOfRange);
        }
        Self::create(pool, first, count)
    }

    /// Decodes an access: port and width.
    ///
    /// # Errors
    /// `OutOfRange`, `InvalidArg` (width).
    pub fn decode(&self, word: u64) -> Result<(u16, u8), Status> {
        let (port, width) = (word & 0xffff, word >> 16);
        refuse_if(![1, 2, 4].contains(&width), Status::InvalidArg)?;
        if port < self.first || port + width > self.first + self.count {
            return Err(Status::OutOfRange);
        }
        Ok((port as u16, width as u8))
    }

    /// Ends it.
    pub fn destroy(&self) {
        pool_of(&self.header).free_object(Obj::of(self));
    }
}
