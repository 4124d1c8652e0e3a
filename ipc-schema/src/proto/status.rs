//! What root tells of VMs and servers: how they are, and how they ended.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::{MAX_BACKTRACE, MAX_LOG_BYTES};

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
    /// What its memory is for.
    pub kinds: MemoryKinds,
    /// The number of the VM whose own it is.
    pub vm: Option<u32>,
}

/// What a server's memory is for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryKinds {
    /// Its program's own pages.
    pub image: u64,
    /// The stack of its first thread, and what it was told at its start.
    pub stack: u64,
    /// Its heap.
    pub heap: u64,
    /// Kernel objects and page tables.
    pub objects: u64,
    /// As much of those as nothing has been made of yet.
    pub objects_free: u64,
    /// What it shares with others or holds beside all that; of a VM, without the guest's memory.
    pub other: u64,
    /// Its program's code and constants: one copy for all instances, however many, which is nobody's own.
    pub code: u64,
}

impl MemoryKinds {
    /// All that is its own.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.image + self.stack + self.heap + self.objects + self.other
    }
}

impl core::ops::AddAssign for MemoryKinds {
    fn add_assign(&mut self, more: Self) {
        self.image += more.image;
        self.stack += more.stack;
        self.heap += more.heap;
        self.objects += more.objects;
        self.objects_free += more.objects_free;
        self.other += more.other;
        self.code += more.code;
    }
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
