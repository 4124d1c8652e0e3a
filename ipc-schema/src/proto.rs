//! What the servers say to each other: postcard in the UTCB's payload, one request and one response a call.
//!
//! Job: the types of the protocols manager <-> root, anyone <-> platform, root <-> scheduler, and their encoding.
//! Trust: every message comes from another protection domain; [`decode`] refuses what is not exactly one message, and
//! names in it are allegations that the receiver looks up.
//!
//! Enums are append-only and fields are never reordered; the golden bytes below pin the encoding.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Most bytes of an encoded message: the UTCB's payload.
pub const MAX_MESSAGE: usize = crate::abi::Utcb::PAYLOAD;
/// Most addresses in a backtrace.
pub const MAX_BACKTRACE: usize = 32;
/// Most bytes of log records in one message, counting 4 more for each record.
pub const MAX_LOG_BYTES: usize = 2048;

/// A message could not be encoded (too long) or decoded (not one of ours).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMessage;

/// Encodes a message into `into`; returns its length.
pub fn encode<T: Serialize>(message: &T, into: &mut [u8]) -> Result<usize, BadMessage> {
    postcard::to_slice(message, into)
        .map(|used| used.len())
        .map_err(|_| BadMessage)
}

/// Decodes exactly one message.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, BadMessage> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(BadMessage),
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No VM, server, device or interrupt of that name or number.
    Unknown,
    /// The VM runs already, or the resource is taken.
    Busy,
    /// The VM or server does not run.
    NotRunning,
    /// Not enough memory.
    NoMemory,
    /// The message could not be decoded or makes no sense.
    Malformed,
    /// The caller may not ask for this.
    Forbidden,
    /// This machine, or this system's description, cannot do it.
    Unsupported,
    /// Something went wrong that the log tells.
    Failed,
}

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

/// State of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Not started, or ended.
    Stopped,
    /// Its servers are being built.
    Starting,
    /// It runs.
    Running,
    /// Its power button has been pressed.
    Stopping,
    /// It has ended by its own or its servers' fault.
    Failed,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: VmState,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// TSC cycles since it was started; 0 if it does not run.
    pub uptime: u64,
    /// The processor that its threads run on; `None` if it does not run.
    pub cpu: Option<u32>,
}

/// State of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerState {
    /// It runs.
    Running,
    /// It has died and will be started again.
    Restarting,
    /// It has ended as it should.
    Stopped,
    /// It died too often and was given up.
    Dead,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Its number, as in the log.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: ServerState,
    /// How often it was started again.
    pub restarts: u32,
    /// Memory that it holds, in bytes, kernel objects and its image included.
    pub memory_bytes: u64,
    /// TSC cycles that it has used, its predecessors' included.
    pub cpu_time: u64,
    /// The processor that its first thread runs on; `None` if it does not run.
    pub cpu: Option<u32>,
}

/// Why a server died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// An exception of the processor.
    Fault {
        /// Exception vector.
        vector: u8,
        /// Error code.
        error: u64,
        /// Address of a page fault.
        address: u64,
    },
    /// It panicked; the message is its last log line.
    Panic,
    /// It did not answer in time.
    Hung,
    /// The operator or root ended it.
    Killed,
    /// It gave up, with this code.
    Exited(u64),
}

/// Registers at a death.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

/// A call that was taken and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingCall {
    /// The badge of the caller's capability.
    pub badge: u64,
    /// The message's tag.
    pub tag: u64,
    /// The message's words.
    pub words: [u64; 4],
}

/// The last death of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeathRecord {
    /// The server's number, as in the log.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// Why it died.
    pub cause: Cause,
    /// When: TSC.
    pub time: u64,
    /// Its registers.
    pub registers: Registers,
    /// Return addresses, innermost first; at most [`MAX_BACKTRACE`].
    pub backtrace: Vec<u64>,
    /// Its last log records as defmt frames, oldest first; at most [`MAX_LOG_BYTES`] in all.
    pub last_log: Vec<Vec<u8>>,
    /// The call that it had taken.
    pub pending: Option<PendingCall>,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Number of the server that wrote it; 0 is the kernel.
    pub source: u8,
    /// One defmt frame.
    pub frame: Vec<u8>,
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmEnd {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The operator killed it.
    Killed,
    /// A triple fault.
    TripleFault,
    /// It wrote to the debug-exit port.
    DebugExit(u32),
    /// An exit that its VMM cannot handle, or the VMM died; the log tells.
    Failed,
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

/// What one asks the platform server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlatformRequest {
    /// Routes a global system interrupt to the caller; the Irq capability comes with the answer
    /// [`PlatformResponse::Irq`].
    ClaimIrq {
        /// The global system interrupt; ISA interrupts are translated by their overrides.
        gsi: u32,
    },
    /// Switches the machine off, or ends the emulator with this code. Answered only if it failed.
    PowerOff {
        /// The code.
        code: u32,
    },
    /// What the machine has. Answer: [`PlatformResponse::Machine`].
    Describe,
    /// The interrupt has been handled: a level-triggered one may come again. Answer: [`PlatformResponse::Done`].
    Unmask {
        /// The global system interrupt.
        gsi: u32,
    },
    /// Starts the machine again. Answered only if it failed.
    Reset,
    /// Routes a global system interrupt to a processor's vector, which root took for it. Answer:
    /// [`PlatformResponse::Irq`].
    RouteIrq {
        /// The global system interrupt; ISA interrupts are translated by their overrides.
        gsi: u32,
        /// The vector.
        vector: u8,
        /// The processor's local APIC id.
        apic_id: u32,
    },
    /// Root only: a processor beside the first, with its Cpu capability if it is online. The answer is
    /// [`PlatformResponse::Processor`]; `Unknown`: there are no more.
    Processor {
        /// Which, from 0 on.
        index: u32,
    },
}

/// What the platform server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlatformResponse {
    /// Done.
    Done,
    /// Not done.
    Refused(Refusal),
    /// The interrupt is the caller's.
    Irq {
        /// It is level-triggered: masked after each interrupt until [`PlatformRequest::Unmask`].
        level: bool,
        /// It is active low.
        active_low: bool,
    },
    /// What the machine has.
    Machine(Machine),
    /// A processor.
    Processor {
        /// Its number in the kernel.
        number: u32,
        /// Its local APIC id.
        apic_id: u32,
        /// Whether it came up.
        state: CpuState,
    },
}

/// What the machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Local APIC ids of its processors.
    pub processors: Vec<u32>,
    /// I/O APICs.
    pub ioapics: Vec<IoApic>,
    /// PCI devices, as many as fit.
    pub pci: Vec<PciDevice>,
    /// Whether it can be switched off through ACPI.
    pub acpi_power_off: bool,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// Its first global system interrupt.
    pub gsi_base: u32,
    /// How many it has.
    pub lines: u32,
}

/// A PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// Bus 8..16, device 3..8, function 0..3.
    pub address: u16,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass and programming interface: 16..24, 8..16, 0..8.
    pub class: u32,
}

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

#[cfg(test)]
#[path = "proto_tests.rs"]
mod tests;
