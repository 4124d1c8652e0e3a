//! Operations on kernel objects: the label of a `call` on a capability that is not an Endpoint's.
//!
//! Every operation is decoded in full before anything changes. `w0` to `w3` are the message words; a *slot* is a slot
//! in the caller's own table; *dest* slots must be empty. Results come in the words of the reply.

/// Operations on a Pool (right CONTROL).
pub mod pool {
    /// w0: [`crate::abi::Kind`] of the new object, w1: dest slot, w2 and w3 by kind:
    /// Space: w2 = slots in its capability table (1 to 1024).
    /// Thread: w2 = slot of its Space (CONTROL), w3 = address of its UTCB page there.
    /// Budget, Endpoint, Notification, GuestSpace: none.
    /// Vcpu: w0 bits 32..64 = slot of its GuestSpace (CONTROL), w2 = slot of the VMM's Space (CONTROL), w3 = address of its state
    /// page there.
    pub const CREATE: u64 = 1;
    /// Answers w0 = free pages, w1 = all pages, w2 = Pools that can yet be made of Memory that lives in it.
    pub const STAT: u64 = 2;
    /// Destroys the Pool and all that was made from it (right DESTROY), Pools made of Memory that lives in it included. The Memory
    /// it was made from can then be used again.
    pub const DESTROY: u64 = 3;
}

/// Operations on a Memory.
pub mod memory {
    /// w0: offset, w1: length (bytes, page multiples), w2: dest slot, w3: slot of the Pool (CONTROL) that pays. Right CONTROL.
    /// The part must not overlap another part, and the Memory must not be mapped.
    pub const DIVIDE: u64 = 1;
    /// Takes it out of every mapping, its parts' included. Right CONTROL.
    pub const REVOKE: u64 = 2;
    /// w0: dest slot, w1: how many Pools can be made of Memory that lives in the new one. Gives it, all of it, to the kernel as a Pool.
    /// Needs RAM, READ, WRITE, CONTROL; revokes it first. The new Pool and those w1 are taken off the number of the Pool that this
    /// Memory lives in, until the new one is destroyed.
    pub const MAKE_POOL: u64 = 3;
    /// Answers w0 = bytes, w1 = 0 RAM / 1 device; w2 = physical address (with CONTROL, else 0).
    pub const INFO: u64 = 4;
}

/// Operations on a Space (right CONTROL).
pub mod space {
    /// w0: address, w1: slot of a Memory | rights (READ, WRITE, EXEC) << 32, w2: offset, w3: length. All page multiples.
    pub const MAP: u64 = 1;
    /// w0: the address that a `MAP` was called with; takes all of that mapping away.
    pub const UNMAP: u64 = 2;
    /// w0: source slot (GRANT), w1: dest slot in this Space, w2: rights to keep, w3: new badge (0 keeps the old).
    pub const COPY_CAP: u64 = 3;
    /// w0: slot in this Space, which becomes empty.
    pub const DROP_CAP: u64 = 4;
    /// w0: slot *in the caller's table* of an object of any kind but Pool (right DESTROY), which is destroyed.
    pub const DESTROY_OBJECT: u64 = 5;
}

/// Operations on a Thread (right CONTROL).
pub mod thread {
    /// w0: slot of its Budget, or 0; w1: slot of the Endpoint that gets its faults (SEND), or 0; w2: badge of fault messages, which is
    /// the capability's own (or 0 for that) unless it has none and the right GRANT, else `MissingRight`;
    /// w3: slot of the Notification to bind (RECV), or 0. The thread moves to the Budget's processor: `Busy` while it is in a call or
    /// serves one.
    pub const CONFIGURE: u64 = 1;
    /// w0: rip, w1: rsp, w2: value of rdi. Starts a stopped thread.
    pub const START: u64 = 2;
    /// Stops it where it is; a call that it serves stays unanswered.
    pub const SUSPEND: u64 = 3;
    /// Lets it go on, if it has been started.
    pub const RESUME: u64 = 4;
    /// Payload of the reply: [`crate::abi::ThreadRegs`], then six words of the call that it has taken: badge, tag, words 0 to 3;
    /// w0: [`crate::abi::thread_state`], w1: 1 if it has taken a call.
    pub const READ_REGS: u64 = 5;
    /// Payload: [`crate::abi::ThreadRegs`], for a stopped or faulted thread.
    pub const WRITE_REGS: u64 = 6;
    /// w0: slot of a Notification (SEND), signalled each time the thread could go on and has no Budget: its own is gone, or it has
    /// none and was serving a client that has left or has no time left; 0 for none.
    pub const BIND_EVENT: u64 = 7;
}

/// Operations on a Budget (right CONTROL).
pub mod budget {
    /// w0: slot of a Cpu (CONTROL), w1: priority (0 lowest to 31), w2: budget, w3: period, in TSC cycles. A budget equal to
    /// its period is never exhausted. With another Cpu than before, its owner moves there: `Busy` while that thread is in a call or
    /// serves one, or while the Budget is lent to another; `Unsupported` while that processor is not online.
    pub const CONFIGURE: u64 = 1;
    /// Answers w0 = TSC cycles used in all, w1 = priority, w2 = budget, w3 = period.
    pub const STAT: u64 = 2;
    /// w0: slot of a Notification (SEND), signalled each time the Budget is exhausted; 0 for none.
    pub const BIND_EVENT: u64 = 3;
}

/// Operations on a GuestSpace (right CONTROL).
pub mod guest_space {
    /// As [`super::space::MAP`], with a guest-physical address.
    pub const MAP: u64 = 1;
    /// As [`super::space::UNMAP`].
    pub const UNMAP: u64 = 2;
    /// w0: first port | count << 16 | kind << 32 (1 Endpoint, 2 doorbell) | match << 40 (doorbells: 1 = only a
    /// write of the value in w2); w1: slot of an Endpoint or Notification (SEND), whose badge is used; w2: Endpoint: time limit in TSC
    /// cycles; doorbell: value. Ranges must not overlap.
    pub const ROUTE: u64 = 3;
    /// w0: first port of a route.
    pub const UNROUTE: u64 = 4;
}

/// Operations on a Vcpu (right CONTROL).
pub mod vcpu {
    /// w0: [`crate::abi::vm::Exit`] number, or !0 for all; w1: groups copied to the state page at that exit.
    pub const ON_EXIT: u64 = 1;
}

/// Operations on an Irq (right CONTROL).
pub mod irq {
    /// w0: slot of a Notification (SEND), signalled at each interrupt; 0 for none.
    pub const BIND: u64 = 1;
    /// Answers w0 = vector.
    pub const INFO: u64 = 2;
}

/// Operations on Ports (right CONTROL).
pub mod ports {
    /// w0: port | width in bytes << 16. Answers w0 = value.
    pub const IN: u64 = 1;
    /// w0: port | width in bytes << 16, w1: value.
    pub const OUT: u64 = 2;
    /// w0: port, w1: bytes of the payload to leave out; payload: bytes written to it one after the other.
    pub const OUT_BYTES: u64 = 3;
    /// w0: first port, w1: count, w2: dest slot, w3: slot of the Pool that pays.
    pub const DIVIDE: u64 = 4;
}

/// Operations on a Cpu (right CONTROL).
pub mod cpu {
    /// w0: dest slot, w1: slot of the Pool that pays. Takes a free interrupt vector of this processor; answers w0 =
    /// vector, w1 = local APIC id: what an interrupt controller is to be told.
    pub const CREATE_IRQ: u64 = 1;
    /// Answers w0 = number, w1 = local APIC id, w2 = TSC cycles idle, w3 = [`crate::abi::cpu_state`].
    pub const INFO: u64 = 2;
    /// w0: dest slot, w1: slot of the Pool that pays, w2: local APIC id. Makes the Cpu of another processor of the machine, which
    /// stays off until it is started. `Busy`: that processor has a Cpu already; `NoMemory`: the kernel knows no more processors;
    /// `OutOfRange`: no id of the local APIC in its memory-mapped form (8 bits). Answers w0 = number.
    pub const ADD: u64 = 3;
    /// One step of starting this processor; answers w0 = the [`crate::abi::cpu_state`] afterwards. The caller waits between the steps
    /// (Intel SDM vol. 3, 9.4.4), since the kernel never does: w0 = 0 sends INIT (then 10 ms), 1 sends the start-up message (then
    /// until the state is WAITING), 2 compares the time-stamp counters and admits the processor. `Busy`: not its turn; `Unsupported`:
    /// the counters differ, or the processor lacks what the first one has: it stays off.
    pub const START: u64 = 4;
    /// Answers w0 = TSC cycles that were neither idle nor any Budget's, w1 = acquisitions of shared locks, w2 = times stopped for another processor, w3 = longest time
    /// with interrupts off so far in TSC cycles (waiting for others apart), where the kernel was built to measure it.
    pub const STAT: u64 = 5;
}

/// Operations on the Log.
pub mod log {
    /// Payload: one record, at most 255 bytes (right WRITE). The capability's badge is its source number.
    pub const WRITE: u64 = 1;
    /// w0: position (0 at first). Payload of the reply: whole records {u16 length, u8 source, bytes}; w0 = next
    /// position, w1 = bytes lost because the ring had wrapped. Right READ.
    pub const READ: u64 = 2;
    /// w0: slot of a Notification (SEND), signalled when records are added; 0 for none. Right READ.
    pub const BIND: u64 = 3;
}
