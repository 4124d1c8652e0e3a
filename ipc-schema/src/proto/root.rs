//! What the manager and VMMs ask root, and what VMMs report to the manager.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use super::{
    Cause, DeathRecord, LogRecord, MAX_MESSAGE, Refusal, ServerInfo, VmEnd, VmInfo, encode,
};

/// What the manager asks root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootRequest {
    /// The VMs, from number `first` on. Answer: [`RootResponse::Vms`].
    Vms {
        /// Where to go on when not all fitted into one message.
        first: u32,
    },
    /// Starts a VM that is stopped. Answer: [`RootResponse::Done`].
    Start {
        /// Its name.
        vm: String,
    },
    /// Presses a VM's ACPI power button. Answer: [`RootResponse::Done`].
    Stop {
        /// Its name.
        vm: String,
    },
    /// Ends a VM and all its servers at once. Answer: [`RootResponse::Done`].
    Kill {
        /// Its name.
        vm: String,
    },
    /// The servers, from number `first` on. Answer: [`RootResponse::Servers`].
    Servers {
        /// Where to go on when not all fitted into one message.
        first: u32,
    },
    /// The last death of a server. Answer: [`RootResponse::Death`].
    Death {
        /// Its name.
        server: String,
    },
    /// Kills a server and starts it again. Answer: [`RootResponse::Done`].
    Restart {
        /// Its name.
        server: String,
    },
    /// The last so many log records, as many as fit, oldest first. Answer: [`RootResponse::Log`].
    LogTail {
        /// How many.
        records: u32,
    },
    /// Log records from a position on, which an earlier answer gave. Answer: [`RootResponse::Log`].
    Log {
        /// The position.
        position: u64,
    },
    /// Takes what has happened since the last time; root signals the manager when there is something. Answer:
    /// [`RootResponse::Events`].
    Events,
    /// A VM's VMM has reported its end: root takes the VM's servers down and follows the system's idle policy.
    /// Answer: [`RootResponse::Done`].
    Ended {
        /// Its name.
        vm: String,
        /// How it ended.
        end: VmEnd,
    },
    /// Switches the machine off, with this code for an emulator. Answered only if it failed.
    PowerOff {
        /// The code.
        code: u32,
    },
    /// A VMM only: a device of its VM took an access and did not answer within the route's time limit. Root looks for
    /// itself, ends it if it still serves, and starts it again. Answer: [`RootResponse::Done`]; `NotRunning`: it is
    /// being restarted already; `Busy`: it has answered meanwhile.
    Hung {
        /// The device's number in the VM.
        device: u32,
    },
    /// Suspends a server and does nothing else, to see what hangs on it: for tests. Answer: [`RootResponse::Done`].
    Hang {
        /// Its name.
        server: String,
    },
    /// The processors. Answer: [`RootResponse::Cpus`].
    Cpus,
    /// Where the processors' time has gone. Answer: [`RootResponse::Accounts`].
    Accounts,
    /// A device with a disk only: `store` has not answered it for a second. Root looks for itself, and when the same is said a second later
    /// again, ends one that neither waits nor gets on, and starts it again. Answer: [`RootResponse::Done`]; `Busy`: it seems well.
    Unanswered,
    /// Has a server run in a circle for ever, to see who notices: for tests. Answer: [`RootResponse::Done`].
    Spin {
        /// Its name.
        server: String,
    },
    /// Has a server write noise over its own heap, its own data and its state page, if it has one, and go on with that, to see whom it
    /// harms: for tests. Answer: [`RootResponse::Done`]; `Failed`: it is in a call just now, try again.
    Scribble {
        /// Its name.
        server: String,
        /// All of its state page, and not only the slot with its newest record.
        all: bool,
    },
}

/// What root answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootResponse {
    /// Done.
    Done,
    /// Not done.
    Refused(Refusal),
    /// VMs.
    Vms {
        /// Those that fitted.
        vms: Vec<VmInfo>,
        /// How many there are in all.
        total: u32,
    },
    /// Servers.
    Servers {
        /// Those that fitted.
        servers: Vec<ServerInfo>,
        /// How many there are in all.
        total: u32,
    },
    /// The last death; `None` if the server has never died.
    Death(Option<Box<DeathRecord>>),
    /// Log records, oldest first; none: the end has been reached.
    Log {
        /// The records.
        records: Vec<LogRecord>,
        /// The position after them.
        next: u64,
        /// Bytes lost before them because the ring had wrapped.
        lost: u64,
    },
    /// Events, oldest first.
    Events(Vec<RootEvent>),
    /// The processors that have a Cpu, by number.
    Cpus(Vec<CpuInfo>),
    /// The processors that run threads.
    Accounts(Vec<Account>),
}

/// What a processor is doing, as [`crate::abi::cpu_state`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuState {
    /// Never started, or refused.
    Off,
    /// On its way up.
    Starting,
    /// It runs threads.
    Online,
}

impl CpuState {
    /// From the number that the kernel gives.
    #[must_use]
    pub const fn from_abi(state: u64) -> Self {
        match state {
            crate::abi::cpu_state::ONLINE => Self::Online,
            crate::abi::cpu_state::INIT
            | crate::abi::cpu_state::STARTING
            | crate::abi::cpu_state::WAITING => Self::Starting,
            _ => Self::Off,
        }
    }
}

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuInfo {
    /// Its number.
    pub number: u32,
    /// Its local APIC id.
    pub apic_id: u32,
    /// What it is doing.
    pub state: CpuState,
    /// TSC cycles since root has had it.
    pub time: u64,
    /// How many of them it was idle.
    pub idle: u64,
    /// Acquisitions of shared locks.
    pub locks: u64,
    /// Times that it stopped for another processor.
    pub stops: u64,
    /// Longest time with interrupts off so far, in TSC cycles; 0 if the kernel does not measure it.
    pub longest_off: u64,
}

/// Where a processor's time has gone: between two of these `time` grows by as much as the other three together, but for what has used
/// Budgets that root knows nothing of: those that servers made themselves, and those that are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its number.
    pub cpu: u32,
    /// Its TSC.
    pub time: u64,
    /// TSC cycles that the Budgets on it have used: root's own, and those that root made for servers.
    pub budgets: u64,
    /// TSC cycles idle.
    pub idle: u64,
    /// TSC cycles of the kernel's own, for no Budget.
    pub unattributed: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootEvent {
    /// A VM runs now.
    VmStarted {
        /// Its name.
        vm: String,
    },
    /// A VM has ended.
    VmStopped {
        /// Its name.
        vm: String,
        /// How.
        end: VmEnd,
    },
    /// A server has died; it is started again unless its state says otherwise.
    ServerDied {
        /// Its name.
        server: String,
        /// Why.
        cause: Cause,
    },
    /// A server was started again.
    ServerRestarted {
        /// Its name.
        server: String,
    },
}

/// What a VMM reports to the manager, whose Endpoint it calls; the badge is the VM's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmReport {
    /// The guest is about to run.
    Running,
    /// The guest has ended.
    Ended(VmEnd),
}

/// What the manager answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmReportResponse {
    /// Noted.
    Done,
    /// Not noted.
    Refused(Refusal),
}

/// As many of `items` from `first` on as fit into one message with some room for the rest of it.
fn fitting<T: Serialize + Clone>(items: &[T], first: u32, limit: usize) -> Vec<T> {
    let mut scratch = [0; MAX_MESSAGE];
    let mut used = 0usize;
    let from = usize::try_from(first).unwrap_or(usize::MAX);
    let later = items.get(from..).unwrap_or(&[]).iter();
    later
        .take_while(|item| {
            used = used.saturating_add(encode(item, &mut scratch).unwrap_or(usize::MAX));
            used <= limit
        })
        .cloned()
        .collect()
}

impl RootResponse {
    const ROOM: usize = MAX_MESSAGE - 32;

    /// The answer to [`RootRequest::Vms`], with as many as fit.
    #[must_use]
    pub fn vms(all: &[VmInfo], first: u32) -> Self {
        let total = u32::try_from(all.len()).unwrap_or(u32::MAX);
        Self::Vms {
            vms: fitting(all, first, Self::ROOM),
            total,
        }
    }

    /// The answer to [`RootRequest::Servers`], with as many as fit.
    #[must_use]
    pub fn servers(all: &[ServerInfo], first: u32) -> Self {
        let total = u32::try_from(all.len()).unwrap_or(u32::MAX);
        Self::Servers {
            servers: fitting(all, first, Self::ROOM),
            total,
        }
    }
}
