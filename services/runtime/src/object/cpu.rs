//! Cpu: a processor.

use super::Result;
use crate::abi::op::cpu;
use crate::object::{Irq, Pool};
use crate::slots::Slot;
use crate::sys::invoke;

/// A capability to a Cpu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu(pub Slot);

/// What an interrupt controller must be told, to raise an Irq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqTarget {
    /// Vector.
    pub vector: u64,
    /// Local APIC id of the processor.
    pub apic_id: u64,
}

/// What a Cpu is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its number.
    pub number: u64,
    /// Its local APIC id.
    pub apic_id: u64,
    /// TSC cycles that it has been idle.
    pub idle: u64,
}

impl Cpu {
    /// An Irq with a free vector. `payer` pays for the object.
    pub fn create_irq(self, dest: Slot, payer: Pool) -> Result<(Irq, IrqTarget)> {
        // SAFETY: it changes no mapping.
        let w = unsafe {
            invoke(
                self.0,
                cpu::CREATE_IRQ,
                [u64::from(dest), u64::from(payer.0), 0, 0],
            )
        }?;
        Ok((
            Irq(dest),
            IrqTarget {
                vector: w[0],
                apic_id: w[1],
            },
        ))
    }

    /// What it is.
    pub fn info(self) -> Result<Info> {
        // SAFETY: asking changes nothing.
        let w = unsafe { invoke(self.0, cpu::INFO, [0; 4]) }?;
        Ok(Info {
            number: w[0],
            apic_id: w[1],
            idle: w[2],
        })
    }
}
