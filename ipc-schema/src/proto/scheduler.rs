//! What root asks the scheduler.

use alloc::string::String;
use serde::{Deserialize, Serialize};

use super::Refusal;

/// What a thread is for, which says how the scheduler ranks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// Root, platform, scheduler: little work, always needed.
    Core,
    /// A driver of the machine's hardware.
    Driver,
    /// A device model of a VM.
    Device,
    /// A VMM, and the guest in it.
    Vm,
    /// The manager: the operator must get through to a busy machine.
    Manager,
    /// Everything that can wait.
    Background,
}

impl Class {
    /// The priority of its threads. Root itself is above them all. A device model is above all VMMs: a guest waits for
    /// it, and its turns are short; the manager is above them so that the operator gets through to a machine whose
    /// guests and devices are all busy.
    #[must_use]
    pub const fn priority(self) -> u8 {
        match self {
            Self::Core => 28,
            Self::Driver => 24,
            Self::Manager => 20,
            Self::Device => 16,
            Self::Vm => 8,
            Self::Background => 4,
        }
    }
}

/// What root asks the scheduler. The Budget comes with the call, right CONTROL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchedulerRequest {
    /// Takes a Budget under its rule. Answer: [`SchedulerResponse::Admitted`].
    Admit {
        /// Whose it is, for people.
        name: String,
        /// What it is for.
        class: Class,
        /// Weight against others of the class when processors are short.
        shares: u32,
        /// Guaranteed part in percent of one processor; 0 is none.
        reservation: u32,
        /// Most it may use, in percent of one processor; `None` is no limit.
        limit: Option<u32>,
        /// Those it must share a processor with; `None`: it stays on the first.
        group: Option<Group>,
    },
    /// Forgets a Budget, which is about to be destroyed. Answer: [`SchedulerResponse::Done`].
    Release {
        /// The number that [`SchedulerResponse::Admitted`] gave.
        number: u32,
    },
    /// A processor beside the first, whose Cpu comes with the call, right CONTROL. Answer: [`SchedulerResponse::Done`].
    Processor {
        /// Its number in the kernel.
        number: u32,
    },
}

/// Budgets that share one processor, because calls stay on theirs: a VM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Which.
    pub id: u32,
    /// Weight of all of it when a processor is chosen.
    pub shares: u32,
    /// What all of it is guaranteed, in percent of one processor.
    pub reservation: u32,
    /// The processor to take: where others of the group run already, or what the system's description says.
    pub cpu: Option<u32>,
}

/// What the scheduler answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchedulerResponse {
    /// Done.
    Done,
    /// Not done; `Busy`: the reservations would exceed the processors.
    Refused(Refusal),
    /// The Budget is configured.
    Admitted {
        /// The scheduler's number for it.
        number: u32,
        /// The processor that it is on.
        cpu: u32,
    },
}
