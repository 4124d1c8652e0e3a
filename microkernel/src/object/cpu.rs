//! Cpu capabilities: the right to give out a processor's time and interrupt vectors.

use super::{Header, Pool, object};
use crate::mem::Obj;
use ipc_schema::abi::{Kind, Status};

/// What a Cpu capability names.
#[repr(C)]
pub struct CpuObject {
    header: Header,
    /// Number of the processor.
    pub number: u32,
}
object!(CpuObject, Kind::Cpu);

impl CpuObject {
    /// For processor `number` (boot).
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool, number: u32) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self { header, number })
    }
}
