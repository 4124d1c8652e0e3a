//! Messages: the thin, inlined side of `call`, `reply_recv`, `signal` and `wait`.
//!
//! Four words travel in registers. Payload and capabilities go through [`crate::utcb`] and are announced in the tag.

use ipc_schema::abi::{NEVER, Status, Syscall, Tag};

use crate::slots::Slot;
use crate::sys::{Registers, syscall};

/// What a call or a reply says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Label, and what comes through the UTCB.
    pub tag: Tag,
    /// Words in registers.
    pub words: [u64; 4],
}

impl Message {
    /// A message of a label and words.
    #[inline(always)]
    #[must_use]
    pub const fn new(label: u64, words: [u64; 4]) -> Self {
        Self {
            tag: Tag::new(label),
            words,
        }
    }
}

#[inline(always)]
fn status(r: &Registers) -> Result<(), Status> {
    if r.status == Status::Ok as u64 {
        Ok(())
    } else {
        Err(Status::from_raw(r.status))
    }
}

/// A capability to call a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint(pub Slot);

impl Endpoint {
    /// Calls and waits for the reply, however long it takes.
    #[inline(always)]
    pub fn call(self, message: Message) -> Result<Message, Status> {
        self.call_until(message, NEVER)
    }

    /// Calls and waits for the reply or the deadline (absolute TSC).
    #[inline(always)]
    pub fn call_until(self, message: Message, deadline: u64) -> Result<Message, Status> {
        // SAFETY: a call on an Endpoint changes nothing of this server's but the UTCB, to which no reference exists.
        // On another kind of object it is an operation: `Endpoint`s are made from capabilities to Endpoints, and an
        // operation that could take memory away needs an argument that names it, as the wrappers in `object` give.
        let r = unsafe {
            syscall(
                Syscall::Call,
                u64::from(self.0),
                message.tag.0,
                message.words,
                deadline,
            )
        };
        status(&r)?;
        Ok(Message {
            tag: Tag(r.tag),
            words: r.words,
        })
    }
}

/// Why [`reply_recv`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A call, with the badge of the capability that was used; the next [`reply_recv`] answers it.
    Call {
        /// Badge of the caller's capability: who it is.
        badge: u64,
        /// What it says.
        message: Message,
    },
    /// Bits of the bound Notification.
    Signal(u64),
    /// The deadline has passed.
    Timeout,
}

/// Answers the call being served, if there is one, and waits for the next event on `endpoint`, the bound
/// Notification or the deadline. `Endpoint(0)` answers only and waits for the Notification.
#[inline(always)]
pub fn reply_recv(endpoint: Endpoint, reply: Message, deadline: u64) -> Result<Event, Status> {
    // SAFETY: it changes nothing of this server's but the UTCB, to which no reference exists.
    let r = unsafe {
        syscall(
            Syscall::ReplyRecv,
            u64::from(endpoint.0),
            reply.tag.0,
            reply.words,
            deadline,
        )
    };
    if r.status == Status::Ok as u64 {
        let message = Message {
            tag: Tag(r.tag),
            words: r.words,
        };
        return Ok(Event::Call {
            badge: r.value,
            message,
        });
    }
    match Status::from_raw(r.status) {
        Status::Signal => Ok(Event::Signal(r.value)),
        Status::Timeout => Ok(Event::Timeout),
        other => Err(other),
    }
}

/// A capability to a word of pending bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification(pub Slot);

impl Notification {
    /// Sets the bits of this capability's badge. Never blocks.
    #[inline(always)]
    pub fn signal(self) -> Result<(), Status> {
        // SAFETY: signalling changes nothing of this server's.
        status(&unsafe { syscall(Syscall::Signal, u64::from(self.0), 0, [0; 4], NEVER) })
    }

    /// Waits for bits and takes them; [`Status::Timeout`] when the deadline passes first.
    #[inline(always)]
    pub fn wait(self, deadline: u64) -> Result<u64, Status> {
        // SAFETY: waiting changes nothing of this server's.
        let r = unsafe { syscall(Syscall::Wait, u64::from(self.0), 0, [0; 4], deadline) };
        match Status::from_raw(r.status) {
            Status::Ok | Status::Signal => Ok(r.value),
            other => Err(other),
        }
    }
}
