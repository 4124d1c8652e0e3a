//! Irqs: an interrupt vector of a processor, and whom it wakes.

use super::{Cap, Header, Pool, object, pool::pool_of};
use crate::arch::Cpu;
use crate::mem::Obj;
use core::cell::Cell;
use ipc_schema::abi::{Kind, Status};

/// An interrupt vector.
#[repr(C)]
pub struct Irq {
    header: Header,
    /// The vector.
    pub vector: u8,
    /// Number of the processor.
    pub cpu: u32,
    /// Signalled at each interrupt.
    pub target: Cell<Cap>,
}
object!(Irq, Kind::Irq);

impl Irq {
    /// Takes a free vector.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(cpu: &Cpu, pool: &Pool) -> Result<Obj<Self>, Status> {
        let (i, slot) = cpu
            .irqs
            .iter()
            .enumerate()
            .find(|(_, s)| s.get().is_none())
            .ok_or(Status::NoMemory)?;
        let vector = crate::arch::FIRST_IRQ + i as u8;
        let irq = pool.create_object(|header| Self {
            header,
            vector,
            cpu: cpu.number,
            target: Cell::new(Cap::EMPTY),
        })?;
        slot.set(Some(irq));
        Ok(irq)
    }

    /// Ends it; its vector is free again. The other processors are stopped.
    pub fn destroy(&self) {
        if let Some(slot) = Cpu::all()[self.cpu as usize % crate::arch::MAX_CPUS]
            .irqs
            .get(usize::from(self.vector - crate::arch::FIRST_IRQ))
        {
            slot.set(None);
        }
        pool_of(&self.header).free_object(Obj::of(self));
    }
}
