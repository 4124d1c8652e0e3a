//! Budget: a scheduling context.

use super::Result;
use crate::abi::op::budget;
use crate::ipc::Notification;
use crate::object::Cpu;
use crate::slots::Slot;
use crate::sys::invoke;

/// A capability to a Budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(pub Slot);

/// What a Budget is and has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// TSC cycles used in all.
    pub used: u64,
    /// Priority, 0 lowest to 31.
    pub priority: u64,
    /// TSC cycles a period.
    pub budget: u64,
    /// The period in TSC cycles.
    pub period: u64,
}

impl Budget {
    /// Priority (0 lowest to 31), budget and period in TSC cycles; equal ones mean that it is never exhausted.
    pub fn configure(self, cpu: Cpu, priority: u64, budget: u64, period: u64) -> Result<()> {
        // SAFETY: it changes no mapping.
        unsafe {
            invoke(
                self.0,
                budget::CONFIGURE,
                [u64::from(cpu.0), priority, budget, period],
            )
        }
        .map(|_| ())
    }

    /// What it is and has used.
    pub fn stat(self) -> Result<Stat> {
        // SAFETY: asking changes nothing.
        let [used, priority, budget, period] = unsafe { invoke(self.0, budget::STAT, [0; 4]) }?;
        Ok(Stat {
            used,
            priority,
            budget,
            period,
        })
    }

    /// The Notification that is signalled each time it is exhausted.
    pub fn bind_event(self, notification: Option<Notification>) -> Result<()> {
        let slot = u64::from(notification.map_or(0, |n| n.0));
        // SAFETY: it changes no mapping.
        unsafe { invoke(self.0, budget::BIND_EVENT, [slot, 0, 0, 0]) }.map(|_| ())
    }
}
