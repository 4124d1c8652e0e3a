//! The kernel's side of a VM, as a trait: the logic is tested against a scripted one.

use crate::emulate::Unsupported;
use ipc_schema::abi::Status;
use ipc_schema::abi::vm::{Event, Exit, PortAccess, Post, VcpuState};

pub use runtime::object::vcpu::Ran;

/// What the machine asks of the kernel and of its surroundings. There is one vCPU.
pub trait Kernel {
    /// Runs the guest (`runtime::object::Vcpu::run`).
    ///
    /// # Errors
    /// The kernel's refusal: the guest did not run and never will.
    fn run(&mut self, dirty: u64, post: Post, inject: Event, deadline: u64) -> Result<Ran, Status>;
    /// The state page.
    fn state(&self) -> &VcpuState;
    /// The state page, to be changed.
    fn state_mut(&mut self) -> &mut VcpuState;
    /// The host's TSC.
    fn now(&self) -> u64;
    /// Waits for the bound Notification's bits until `deadline` (host's TSC); 0 if none came.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn wait(&mut self, deadline: u64) -> Result<u64, Status>;
    /// Asks for these state groups at an exit.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn on_exit(&mut self, exit: Exit, groups: u64) -> Result<(), Status>;
    /// Routes `count` ports from `first` on to device `device`, with `limit` cycles for an answer.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn route(&mut self, device: usize, first: u16, count: u16, limit: u64) -> Result<(), Status>;
    /// Makes writes to `count` ports from `first` on ring doorbell `bell` of device `device`.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn doorbell(
        &mut self,
        device: usize,
        bell: usize,
        first: u16,
        count: u16,
    ) -> Result<(), Status>;
    /// Rings doorbell `bell` of device `device`, as the guest would. Who is gone looks by itself when it is back.
    fn ring(&mut self, device: usize, bell: usize);
    /// Takes away the route or doorbell that begins at `first`.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn unroute(&mut self, first: u16) -> Result<(), Status>;
    /// Makes the call that a route would make, with `limit` cycles for the answer.
    ///
    /// # Errors
    /// No answer came.
    fn call_device(
        &mut self,
        device: usize,
        access: PortAccess,
        value: u32,
        limit: u64,
    ) -> Result<u32, Status>;
    /// Tells whoever supervises device `device` that it does not answer in time, to be looked at and started again.
    fn silent(&mut self, device: usize);
    /// Something for the log. A fatal note comes with the registers of [`Kernel::state`].
    fn note(&mut self, note: &Note);
}

/// What goes to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The description asks for more vCPUs than there can be: one is used.
    OneVcpu {
        /// How many were asked for.
        asked: u32,
    },
    /// The processor keeps the vectors of the guest's local APIC from now on.
    HardwareApic,
    /// An access to a guest-physical address where nothing is.
    Unmapped {
        /// The address.
        gpa: u64,
        /// Bytes.
        width: u8,
        /// True for a write.
        write: bool,
    },
    /// #GP for an MSR that the guest does not have, or for a value that it may not write.
    RefusedMsr {
        /// Its number.
        index: u32,
        /// The value written; `None` for RDMSR.
        value: Option<u64>,
    },
    /// A device did not answer an access.
    Lost {
        /// Number of the device.
        device: usize,
        /// The access.
        access: PortAccess,
        /// How often that has happened in this spell.
        times: u32,
    },
    /// A device died of the same access time and again: it went nowhere, as where no device is.
    Dropped {
        /// Number of the device.
        device: usize,
        /// The access.
        access: PortAccess,
    },
    /// The ports that a guest has given a PCI function have no route of their own: the VMM forwards each access.
    Unrouted {
        /// Number of the device.
        device: usize,
        /// What the kernel said.
        status: Status,
    },
    /// HLT with interrupts disabled.
    Halted,
    /// The VM cannot go on.
    Fatal(Fatal),
}

/// Why a VM cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// Triple fault.
    Shutdown,
    /// A machine check in the guest.
    MachineCheck,
    /// A task switch: the processor leaves it to software, and nobody uses it.
    TaskSwitch([u64; 3]),
    /// The processor refused the state.
    EntryFailed([u64; 3]),
    /// An exit that has no handler.
    Other([u64; 3]),
    /// An instruction beyond the emulator, at this guest-physical address (or port).
    Unsupported {
        /// The instruction.
        what: Unsupported,
        /// What it accessed.
        gpa: u64,
    },
    /// The delivery of an event needed memory that is not there.
    Delivery {
        /// The event.
        event: u64,
        /// The address.
        gpa: u64,
    },
    /// An instruction exits again and again and never fits its exit.
    Stuck,
    /// The kernel refused to run it.
    Kernel(Status),
}
