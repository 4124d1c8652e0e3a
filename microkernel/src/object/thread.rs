//! Threads: an execution context, bound to one processor at a time.

use super::{
    Budget, Cap, Endpoint, Header, Notification, Pool, Space, Vcpu, object, pool::pool_of,
    refuse_if,
};
use crate::arch::{Cpu, MAX_CPUS};
use crate::list::{Link, Linked};
use crate::mem::{self, Obj};
use crate::sched::timer::Timer;
use core::cell::Cell;
use core::ops::Deref;
use ipc_schema::abi::{Kind, NEVER, Status, Syscall, Utcb, layout};

/// Registers as saved at kernel entry. After a system call only those that the ABI preserves or uses are current.
#[repr(C)]
#[derive(Default)]
pub struct Regs {
    /// Architectural numbers: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub gpr: [Cell<u64>; 16],
    /// Instruction pointer (after an interrupt or exception).
    pub rip: Cell<u64>,
    /// Flags (after an interrupt or exception).
    pub rflags: Cell<u64>,
}

/// Numbers of registers in [`Regs::gpr`].
#[allow(missing_docs, reason = "they are the architecture's names")]
pub mod reg {
    pub const RAX: usize = 0;
    pub const RSP: usize = 4;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
}

/// How the thread goes on when it is next picked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug, Default)]
#[repr(u8)]
pub enum Resume {
    /// Returns from its system call.
    Syscall = 0,
    /// Goes on where an interrupt or exception stopped it.
    #[default]
    Interrupt = 1,
    /// Enters its guest, with SVM.
    Guest = 2,
    /// Enters its guest, with VMX.
    GuestVmx = 3,
}

/// What the thread is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum State {
    /// Not started, or suspended.
    #[default]
    Stopped,
    /// Running, or ready to.
    Ready,
    /// In a queue of an Endpoint: its call has not been taken.
    Queued,
    /// Its call has been taken and not been answered.
    Calling,
    /// Waits in `reply_recv`.
    Receiving,
    /// Waits in `wait`.
    Waiting,
}

/// A thread.
#[repr(C)]
pub struct Thread {
    header: Header,
    /// What it is at; its fields are reached as if they were the thread's own.
    pub progress: Progress,
    /// Its Space.
    pub space: Obj<Space>,
    /// Kernel address of its UTCB.
    pub utcb: u64,
    utcb_at: u64,
    utcb_phys: u64,
}
object!(Thread, Kind::Thread);

/// What of a [`Thread`] changes while it lives.
#[repr(C)]
#[derive(Default)]
pub struct Progress {
    /// Its registers.
    pub regs: Regs,
    /// What is loaded for its Space's page table.
    pub root: Cell<u64>,
    /// Number of its processor.
    pub cpu: Cell<u32>,
    /// How it goes on.
    pub resume: Cell<Resume>,
    /// What it does.
    pub state: Cell<State>,
    /// It has been started: there is something that it can go on with.
    pub started: Cell<bool>,
    /// It faulted, and its call to the supervisor carries the fault.
    pub faulted: Cell<bool>,
    /// Its call is a routed port access of its guest.
    pub routed: Cell<bool>,
    /// The deadline of `run` came while the guest could not be left.
    pub expired: Cell<bool>,
    /// Calls that lead to it: bounds the chain that a donated Budget may go along.
    pub depth: Cell<u8>,
    /// Suspended while in a call: goes to `Stopped` instead of running.
    pub suspended: Cell<bool>,
    /// The first page of its Space's capability table: kernel address.
    pub caps: Cell<u64>,
    /// Slots of it; 0 if several processors use the table (they go through the Space, with care).
    pub caps_len: Cell<u64>,
    /// The Budget that it runs on now.
    pub budget: Cell<Option<Obj<Budget>>>,
    /// Its own Budget.
    pub own_budget: Cell<Option<Obj<Budget>>>,
    /// Whose call it is serving.
    pub caller: Cell<Option<Obj<Thread>>>,
    /// Who serves its call; while it is `Queued`: who goes on with its Budget until it comes to that.
    pub callee: Cell<Option<Obj<Thread>>>,
    /// The Endpoint in whose queue it is, while it is `Queued` or `Receiving`.
    pub endpoint: Cell<Option<Obj<Endpoint>>>,
    /// Slot of the Endpoint where it last received.
    pub served: Cell<u64>,
    /// The Endpoint's badge in the capability that it called by.
    pub badge: Cell<u64>,
    /// The message of the call that the kernel makes for it (fault, routed port access): tag and four words.
    pub message: [Cell<u64>; 5],
    /// The Notification that ends its `reply_recv` and `run`.
    pub bound: Cell<Option<Obj<Notification>>>,
    /// The Notification that it waits for in `wait`.
    pub waits_for: Cell<Option<Obj<Notification>>>,
    /// When what it does now ends by itself.
    pub deadline: Cell<u64>,
    /// The deadline of its `run`.
    pub run_deadline: Cell<u64>,
    /// The queue element that brings the deadline about.
    pub timer: Timer,
    /// The guest that it is in.
    pub vcpu: Cell<Option<Obj<Vcpu>>>,
    /// Who gets its faults.
    pub supervisor: Cell<Cap>,
    /// And under which badge.
    pub supervisor_badge: Cell<u64>,
    /// Signalled when it could go on and has no Budget.
    pub event: Cell<Cap>,
    queue: Link<Thread>,
    in_space: Link<Thread>,
}
impl Deref for Thread {
    type Target = Progress;
    #[inline(always)]
    fn deref(&self) -> &Progress {
        &self.progress
    }
}
impl Linked<0> for Thread {
    #[inline(always)]
    fn link(&self) -> &Link<Self> {
        &self.queue
    }
}
impl Linked<1> for Thread {
    fn link(&self) -> &Link<Self> {
        &self.in_space
    }
}

impl Thread {
    /// A stopped thread in `space`, on processor `cpu`, with its UTCB mapped at `utcb_at`.
    ///
    /// # Errors
    /// As [`Space::share_page`].
    pub fn create(
        pool: &Pool,
        space: Obj<Space>,
        utcb_at: u64,
        cpu: &Cpu,
    ) -> Result<Obj<Self>, Status> {
        let (caps, caps_len) = space.get().first_slots();
        let utcb_phys = pool.take_page()?;
        let made = pool
            .create_object(|header| Self {
                header,
                progress: Progress {
                    root: Cell::new(space.loaded),
                    cpu: Cell::new(cpu.number),
                    caps: Cell::new(caps),
                    caps_len: Cell::new(caps_len * u64::from(space.cpus.get().count_ones() < 2)),
                    deadline: Cell::new(NEVER),
                    ..Progress::default()
                },
                space,
                utcb: mem::virt(utcb_phys),
                utcb_at,
                utcb_phys,
            })
            .and_then(|t| {
                let shared = space.share_page(utcb_at, utcb_phys).map(|()| t);
                shared.inspect_err(|_| pool.free_object(t))
            });
        let t = made.inspect_err(|_| pool.give_page(utcb_phys))?;
        // Whatever lets it go on, it is never with interrupts off.
        t.regs.rflags.set(crate::arch::USER_FLAGS);
        space.threads.push_back(t);
        space.used_on(cpu.number);
        Ok(t)
    }

    /// Its processor.
    #[inline(always)]
    #[must_use]
    pub fn home(&self) -> &'static Cpu {
        &Cpu::all()[self.cpu.get() as usize % MAX_CPUS]
    }

    /// Whether it can move to another processor now: it is in no call, serves none, and its own Budget is lent to nobody.
    ///
    /// # Errors
    /// `Busy`.
    pub fn movable(&self) -> Result<(), Status> {
        let waits = matches!(self.state.get(), State::Queued | State::Calling);
        if waits || self.caller.get().is_some() || self.budget.get() != self.own_budget.get() {
            return Err(Status::Busy);
        }
        Ok(())
    }

    /// It goes on at `rip` when it next runs, never with interrupts off.
    pub fn go_on_at(&self, rip: u64, rflags: u64) {
        self.regs.rip.set(rip);
        self.regs.rflags.set(rflags | crate::arch::USER_FLAGS);
        self.resume.set(Resume::Interrupt);
    }

    /// It executes system call `call`, whose arguments are in its registers, again when it next runs.
    pub fn restart(&self, call: Syscall) {
        self.set(reg::RAX, call as u64);
        self.go_on_at(layout::STUB, 0);
    }

    /// Its UTCB.
    #[must_use]
    pub fn utcb(&self) -> &mem::Words {
        const { assert!(core::mem::size_of::<Utcb>() == core::mem::size_of::<mem::Words>()) };
        // SAFETY: a page of the thread's Pool for as long as the thread lives; user level writes it too, so it is read and written in cells.
        unsafe { &*(self.utcb as *const mem::Words) }
    }

    /// A register.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, r: usize) -> u64 {
        self.regs.gpr[r].get()
    }
    /// Sets a register.
    #[inline(always)]
    pub fn set(&self, r: usize, value: u64) {
        self.regs.gpr[r].set(value);
    }
    /// Sets the result of its system call, which it then returns from.
    #[inline(always)]
    pub fn finish(&self, status: Status) {
        self.set(reg::RAX, status as u64);
        self.resume.set(Resume::Syscall);
    }

    /// Whether it can have `b` as its own Budget, and `n` bound.
    ///
    /// # Errors
    /// `Busy`: another thread has one of them.
    pub fn can_have(
        &self,
        b: Option<Obj<Budget>>,
        n: Option<Obj<Notification>>,
    ) -> Result<(), Status> {
        let owners = [b.and_then(|b| b.owner.get()), n.and_then(|n| n.bound.get())];
        let another = |t| t != Obj::of(self);
        refuse_if(owners.into_iter().flatten().any(another), Status::Busy)
    }

    /// Binds a Notification, which no other thread has, or none.
    pub fn bind(&self, n: Option<Obj<Notification>>) {
        if let Some(old) = self.bound.replace(n) {
            old.bound.set(None);
        }
        if let Some(n) = n {
            n.bound.set(Some(Obj::of(self)));
            n.move_to(self.cpu.get());
        }
    }

    /// Gives it a Budget of its own, which no other thread has, or none; of its own processor, which is stopped if it is another.
    pub fn set_own_budget(&self, b: Option<Obj<Budget>>) {
        let (cpu, this) = (self.home(), Obj::of(self));
        if self.own_budget.get() == b {
            return;
        }
        let old = self.own_budget.replace(b);
        if let Some(old) = old {
            old.owner.set(None);
            // Also while it serves on a Budget that it was lent.
            if old.thread.get() == Some(this) {
                crate::sched::detach(cpu, old);
            }
        }
        if let Some(b) = b {
            b.owner.set(Some(this));
        }
        if self.budget.get() == old {
            let lent_to = self.payee();
            crate::sched::change_budget(cpu, this, b);
            // Lent along a chain of calls: its members go on with their own, so that the next owner takes it from nobody.
            if let (Some(s), Some(_)) = (lent_to, old) {
                crate::sched::end_loan(cpu, s, old);
            }
        } else if self.state.get() == State::Ready {
            // The one that it was lent may have run out.
            crate::sched::make_ready(cpu, this);
        }
    }

    /// Who runs on its Budget, which is about to be another: one who does so before taking its call loses it for good.
    pub fn payee(&self) -> Option<Obj<Self>> {
        if self.state.get() == State::Queued {
            self.callee.take()
        } else {
            self.callee.get()
        }
    }

    /// Ends it: out of every queue, its call dropped, the call it serves answered `Dead`. The other processors are stopped.
    pub fn destroy(&self) {
        let cpu = self.home();
        let this = Obj::of(self);
        crate::ipc::leave(cpu, this);
        crate::ipc::fail_caller(cpu, this);
        self.state.set(State::Stopped);
        crate::sched::change_budget(cpu, this, None);
        self.set_own_budget(None);
        self.bind(None);
        cpu.timers.cancel(&self.timer);
        if let Some(v) = self.vcpu.take() {
            v.runner.set(None);
        }
        self.space.threads.remove(this);
        self.space.unshare_page(self.utcb_at);
        cpu.forget(this);
        let pool = pool_of(&self.header);
        pool.give_page(self.utcb_phys);
        pool.free_object(this);
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/thread.rs"]
pub(crate) mod check;
