//! What belongs to one processor: all that IPC and VM exits touch.

use super::IRQS;
use crate::mail::Mailbox;
use crate::mem::Obj;
use crate::object::irq::Irq;
use crate::object::{Budget, Cap, Notification, Thread, Vcpu};
use crate::sched::Ready;
use crate::sched::timer::Timers;
use crate::stop::Stop;
use core::cell::Cell;
use core::sync::atomic::AtomicU64;
use ipc_schema::abi::{NEVER, cpu_state};

/// A processor. Its address is in the GS base while the kernel runs on it.
#[repr(C)]
pub struct Cpu {
    /// The thread that runs, or ran last.
    pub current: Cell<Option<Obj<Thread>>>,
    /// Top of the kernel stack.
    pub stack: Cell<u64>,
    /// Its own address.
    pub this: Cell<u64>,
    /// Page-table root that is loaded.
    pub root: Cell<u64>,
    /// Physical address of the VMCB that holds the host's own FS to SYSENTER state, with the host save area behind it; or of the VMXON region.
    pub host_control: Cell<u64>,
    /// Number, from 0.
    pub number: u32,
    /// Somebody with precedence may be ready.
    pub reschedule: Cell<bool>,
    /// Another processor has changed what its timer depends on.
    pub retime: Cell<bool>,
    /// The Budget that runs.
    pub budget: Cell<Option<Obj<Budget>>>,
    /// When it ends; [`NEVER`] while nobody else wants the processor.
    pub budget_end: Cell<u64>,
    /// Until when time has been booked.
    pub booked: Cell<u64>,
    /// TSC cycles idle.
    pub idle_cycles: Cell<u64>,
    /// TSC cycles of the kernel's own, for no Budget: between idleness and who runs then, and when who ran has been stopped or destroyed.
    pub own_cycles: Cell<u64>,
    /// When the hardware timer comes.
    pub programmed: Cell<u64>,
    /// Budgets that could run.
    pub ready: Ready,
    /// Deadlines.
    pub timers: Timers,
    /// Whose FPU state and debug registers are in the processor.
    pub fpu_owner: Cell<Option<Obj<Vcpu>>>,
    /// Next address space identifier.
    pub next_asid: Cell<u32>,
    /// Round of identifiers: a vCPU of an earlier round takes a new one.
    pub asid_round: Cell<u64>,
    /// Identifiers there are.
    pub asids: Cell<u32>,
    /// Who has which vector.
    pub irqs: [Cell<Option<Obj<Irq>>>; IRQS],
    /// Copies of capabilities read from tables that several processors use.
    pub copies: [Cell<Cap>; 8],
    /// The next of them to be used.
    pub next_copy: Cell<usize>,
    /// Acquisitions of shared locks.
    pub locks: Cell<u64>,
    /// Times that it has stopped for another processor.
    pub stops: Cell<u64>,
    /// Local APIC id.
    pub apic_id: Cell<u32>,
    /// [`cpu_state`].
    pub state: AtomicU64,
    /// Signals from other processors.
    pub mail: Mailbox<Notification>,
    /// Its part in stops.
    pub stop: Stop,
    /// Its time, when asked for it at admission (by 0).
    pub stamp: AtomicU64,
    /// VMX: stack pointer at the entry of a guest.
    pub guest_stack: Cell<u64>,
    /// VMX: limit and base of the GDT, as LGDT takes them (from the seventh byte on), since an exit leaves another limit.
    pub gdt: Cell<[u64; 2]>,
}

impl Cpu {
    /// Processor `number`, with nothing to do.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self {
            current: Cell::new(None),
            stack: Cell::new(0),
            this: Cell::new(0),
            root: Cell::new(0),
            host_control: Cell::new(0),
            number,
            reschedule: Cell::new(false),
            retime: Cell::new(false),
            budget: Cell::new(None),
            budget_end: Cell::new(NEVER),
            booked: Cell::new(0),
            idle_cycles: Cell::new(0),
            own_cycles: Cell::new(0),
            programmed: Cell::new(NEVER),
            ready: Ready::new(),
            timers: Timers::new(),
            fpu_owner: Cell::new(None),
            next_asid: Cell::new(1),
            asid_round: Cell::new(1),
            asids: Cell::new(2),
            irqs: [const { Cell::new(None) }; IRQS],
            copies: [const { Cell::new(Cap::EMPTY) }; 8],
            next_copy: Cell::new(0),
            locks: Cell::new(0),
            stops: Cell::new(0),
            apic_id: Cell::new(0),
            state: AtomicU64::new(cpu_state::OFF),
            mail: Mailbox::new(),
            stop: Stop::new(0),
            stamp: AtomicU64::new(1),
            guest_stack: Cell::new(0),
            gdt: Cell::new([0; 2]),
        }
    }

    /// `t` is being destroyed or moved: it is not what runs any more.
    pub fn forget(&self, t: Obj<Thread>) {
        if self.current.get() == Some(t) {
            self.current.set(None);
            self.reschedule.set(true);
        }
    }
}
