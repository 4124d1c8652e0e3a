//! Cpu capabilities: the right to give out a processor's time and interrupt vectors, and to start it.

use super::{Header, Pool, object, refuse_if};
use crate::arch::Cpu;
use crate::mem::Obj;
use core::sync::atomic::Ordering;
use ipc_schema::abi::{Kind, Status, cpu_state};

/// What a Cpu capability names.
#[repr(C)]
pub struct CpuObject {
    header: Header,
    /// Number of the processor.
    pub number: u32,
}
object!(CpuObject, Kind::Cpu);

impl CpuObject {
    /// For processor `number`.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool, number: u32) -> Result<Obj<Self>, Status> {
        pool.create_object(|header| Self { header, number })
    }

    /// For the next processor that the kernel does not know yet, with local APIC id `apic_id`. What is known of a processor is never
    /// forgotten, even if the Pool that paid for its capability goes.
    ///
    /// # Errors
    /// `OutOfRange`, `Busy`, `NoMemory` as `op::cpu::ADD` says.
    pub fn add(pool: &Pool, apic_id: u64) -> Result<Obj<Self>, Status> {
        let id = u32::try_from(apic_id)
            .ok()
            .filter(|&i| i < 255)
            .ok_or(Status::OutOfRange)?;
        let known = |c: &&Cpu| c.number == 0 || c.apic_id.get() & KNOWN != 0;
        if Cpu::all()
            .iter()
            .filter(known)
            .any(|c| c.apic_id.get() & !KNOWN == id)
        {
            return Err(Status::Busy);
        }
        let cpu = Cpu::all()
            .iter()
            .find(|c| !known(c))
            .ok_or(Status::NoMemory)?;
        let made = Self::create(pool, cpu.number)?;
        cpu.apic_id.set(id | KNOWN);
        Ok(made)
    }

    /// The processor.
    #[must_use]
    pub fn cpu(&self) -> &'static Cpu {
        &Cpu::all()[self.number as usize % crate::arch::MAX_CPUS]
    }

    /// The processor, if it runs threads.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn online(&self) -> Result<&'static Cpu, Status> {
        let cpu = self.cpu();
        let runs = cpu.state.load(Ordering::Acquire) == cpu_state::ONLINE;
        refuse_if(!runs, Status::Unsupported).map(|()| cpu)
    }
}

/// Set in [`Cpu::apic_id`] of a processor that has been added: id 0 is a valid one.
const KNOWN: u32 = 1 << 31;

/// The local APIC id of `cpu`.
#[must_use]
pub fn apic_id(cpu: &Cpu) -> u32 {
    cpu.apic_id.get() & !KNOWN
}
