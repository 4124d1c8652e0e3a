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
    /// One of `abi::cpu_state`.
    pub state: u64,
}

/// What a Cpu has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// TSC cycles in which it was neither idle nor ran on any Budget.
    pub unattributed: u64,
    /// Acquisitions of shared locks.
    pub locks: u64,
    /// Times that it stopped for another processor.
    pub stops: u64,
    /// Longest time with interrupts off so far, in TSC cycles; 0 if the kernel does not measure it.
    pub longest_off: u64,
}

/// The steps of starting a processor, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Step {
    /// Sends INIT; then 10 ms.
    Init = 0,
    /// Sends the start-up message; then until the state is WAITING.
    Startup = 1,
    /// Compares the time-stamp counters and admits it.
    Admit = 2,
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
            state: w[3],
        })
    }

    /// What it has done.
    pub fn stat(self) -> Result<Stat> {
        // SAFETY: asking changes nothing.
        let [unattributed, locks, stops, longest_off] =
            unsafe { invoke(self.0, cpu::STAT, [0; 4]) }?;
        Ok(Stat {
            unattributed,
            locks,
            stops,
            longest_off,
        })
    }

    /// Makes the Cpu of the machine's processor with this local APIC id, which stays off until it is started; answers its number.
    /// `payer` pays for the object. Any Cpu will do to ask.
    pub fn add(self, apic_id: u32, dest: Slot, payer: Pool) -> Result<(Cpu, u64)> {
        let words = [u64::from(dest), u64::from(payer.0), u64::from(apic_id), 0];
        // SAFETY: it changes no mapping.
        let w = unsafe { invoke(self.0, cpu::ADD, words) }?;
        Ok((Cpu(dest), w[0]))
    }

    /// One step of starting it; answers its `abi::cpu_state` afterwards.
    pub fn start(self, step: Step) -> Result<u64> {
        // SAFETY: the kernel starts the processor in its own code.
        let w = unsafe { invoke(self.0, cpu::START, [step as u64, 0, 0, 0]) }?;
        Ok(w[0])
    }
}
