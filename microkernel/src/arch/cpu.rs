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

crate::mem::begins! {
    /// A processor. Its address is in the GS base while the kernel runs on it.
    #[repr(C)]
    pub struct Cpu {
        /// The thread that runs, or ran last.
        pub current: Cell<Option<Obj<Thread>>> = Cell::new(None),
        /// Top of the kernel stack.
        pub stack: Cell<u64> = Cell::new(0),
        /// Its own address.
        pub this: Cell<u64> = Cell::new(0),
        /// Page-table root that is loaded.
        pub root: Cell<u64> = Cell::new(0),
        /// Physical address of the VMCB that holds the host's own FS to SYSENTER state, with the host save area behind it; or of the VMXON region.
        pub host_control: Cell<u64> = Cell::new(0),
        /// Number, from 0.
        pub number: u32 = 0,
        /// Somebody with precedence may be ready.
        pub reschedule: Cell<bool> = Cell::new(false),
        /// Another processor has changed what its timer depends on.
        pub retime: Cell<bool> = Cell::new(false),
        /// The Budget that runs.
        pub budget: Cell<Option<Obj<Budget>>> = Cell::new(None),
        /// When it ends; [`NEVER`] while nobody else wants the processor.
        pub budget_end: Cell<u64> = Cell::new(NEVER),
        /// Until when time has been booked.
        pub booked: Cell<u64> = Cell::new(0),
        /// TSC cycles idle.
        pub idle_cycles: Cell<u64> = Cell::new(0),
        /// TSC cycles of the kernel's own, for no Budget: between idleness and who runs then, and when who ran has been stopped or destroyed.
        pub own_cycles: Cell<u64> = Cell::new(0),
        /// When the hardware timer comes.
        pub programmed: Cell<u64> = Cell::new(NEVER),
        /// VMX: the deadline that the preemption timer of the VMCS that is current has been set for; 0: it is to be set anew.
        pub until: Cell<u64> = Cell::new(0),
        /// Budgets that could run.
        pub ready: Ready = Ready::new(),
        /// Deadlines.
        pub timers: Timers = Timers::new(),
        /// Whose FPU state and debug registers are in the processor.
        pub fpu_owner: Cell<Option<Obj<Vcpu>>> = Cell::new(None),
        /// Next address space identifier.
        pub next_asid: Cell<u32> = Cell::new(1),
        /// Round of identifiers: a vCPU of an earlier round takes a new one.
        pub asid_round: Cell<u64> = Cell::new(1),
        /// Identifiers there are.
        pub asids: Cell<u32> = Cell::new(2),
        /// Who has which vector.
        pub irqs: [Cell<Option<Obj<Irq>>>; IRQS] = [const { Cell::new(None) }; IRQS],
        /// Copies of capabilities read from tables that several processors use.
        pub copies: [Cell<Cap>; 8] = [const { Cell::new(Cap::EMPTY) }; 8],
        /// The next of them to be used.
        pub next_copy: Cell<usize> = Cell::new(0),
        /// Acquisitions of shared locks.
        pub locks: Cell<u64> = Cell::new(0),
        /// Times that it has stopped for another processor.
        pub stops: Cell<u64> = Cell::new(0),
        /// Local APIC id.
        pub apic_id: Cell<u32> = Cell::new(0),
        /// [`cpu_state`].
        pub state: AtomicU64 = AtomicU64::new(cpu_state::OFF),
        /// Signals from other processors.
        pub mail: Mailbox<Notification> = Mailbox::new(),
        /// Its part in stops.
        pub stop: Stop = Stop::new(0),
        /// Its time, when asked for it at admission (by 0).
        pub stamp: AtomicU64 = AtomicU64::new(1),
        /// VMX: stack pointer at the entry of a guest.
        pub guest_stack: Cell<u64> = Cell::new(0),
        /// VMX: limit and base of the GDT, as LGDT takes them (from the seventh byte on), since an exit leaves another limit.
        pub gdt: Cell<[u64; 2]> = Cell::new([0; 2]),
    }
}

impl Cpu {
    /// Processor `number`, with nothing to do.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self {
            number,
            ..Self::NEW
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
