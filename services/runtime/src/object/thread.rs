//! Thread: an execution context.
//!
//! The runtime serves a server's first thread. Further threads in the same Space must use neither heap, log nor
//! payloads; four words in registers are free to them.

use super::Result;
use crate::abi::{Tag, ThreadRegs, op::thread};
use crate::ipc::{Endpoint, Notification};
use crate::object::Budget;
use crate::slots::Slot;
use crate::sys::{invoke, invoke_tag};
use crate::utcb;

const REGS_BYTES: usize = ThreadRegs::WORDS * 8;

/// A capability to a Thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread(pub Slot);

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doing {
    /// One of `abi::thread_state`.
    pub state: u64,
    /// It has taken a call and not answered it.
    pub serving: bool,
    /// That call: badge, tag, words 0 to 3.
    pub call: [u64; 6],
}

impl Thread {
    /// Gives it a Budget, an Endpoint for its faults with a badge, and a bound Notification; `None` for none.
    pub fn configure(
        self,
        budget: Option<Budget>,
        faults: Option<Endpoint>,
        fault_badge: u64,
        bound: Option<Notification>,
    ) -> Result<()> {
        let budget = u64::from(budget.map_or(0, |b| b.0));
        let faults = u64::from(faults.map_or(0, |e| e.0));
        let bound = u64::from(bound.map_or(0, |n| n.0));
        // SAFETY: it changes no mapping.
        unsafe {
            invoke(
                self.0,
                thread::CONFIGURE,
                [budget, faults, fault_badge, bound],
            )
        }
        .map(|_| ())
    }

    /// Starts a stopped thread.
    ///
    /// # Safety
    ///
    /// If it is in the caller's Space, the code at `rip` must be sound with that stack and argument, and must share
    /// neither UTCB, heap nor log with this thread.
    pub unsafe fn start(self, rip: u64, rsp: u64, argument: u64) -> Result<()> {
        // SAFETY: the caller's obligation.
        unsafe { invoke(self.0, thread::START, [rip, rsp, argument, 0]) }.map(|_| ())
    }

    /// Stops it where it is.
    pub fn suspend(self) -> Result<()> {
        // SAFETY: it changes no mapping; a thread may stop for any length of time at any instruction.
        unsafe { invoke(self.0, thread::SUSPEND, [0; 4]) }.map(|_| ())
    }

    /// Lets it go on.
    pub fn resume(self) -> Result<()> {
        // SAFETY: as for `suspend`.
        unsafe { invoke(self.0, thread::RESUME, [0; 4]) }.map(|_| ())
    }

    /// The Notification that is signalled each time it could go on and has no Budget.
    pub fn bind_event(self, notification: Option<Notification>) -> Result<()> {
        let slot = u64::from(notification.map_or(0, |n| n.0));
        // SAFETY: asking for signals changes nothing else.
        unsafe { invoke(self.0, thread::BIND_EVENT, [slot, 0, 0, 0]) }.map(|_| ())
    }

    /// Its registers and what it does.
    pub fn read_regs(self) -> Result<(ThreadRegs, Doing)> {
        // SAFETY: asking changes nothing but the UTCB.
        let r = unsafe { invoke_tag(self.0, Tag::new(thread::READ_REGS), [0; 4]) }?;
        let mut bytes = [0; REGS_BYTES + 48];
        utcb::read(&mut bytes);
        let (regs, call) = bytes.split_at(REGS_BYTES);
        let mut words = [0; 6];
        for (word, bytes) in words.iter_mut().zip(call.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.first_chunk::<8>().copied().unwrap_or_default());
        }
        Ok((
            decode_regs(regs.first_chunk().unwrap_or(&[0; REGS_BYTES])),
            Doing {
                state: r.words[0],
                serving: r.words[1] != 0,
                call: words,
            },
        ))
    }

    /// Sets the registers of a stopped or faulted thread.
    ///
    /// # Safety
    ///
    /// As [`Thread::start`].
    pub unsafe fn write_regs(self, regs: &ThreadRegs) -> Result<()> {
        let words = regs.gpr.iter().chain([&regs.rip, &regs.rflags]);
        for (i, word) in words.enumerate() {
            // 18 words always fit.
            utcb::write_at(i * 8, &word.to_le_bytes());
        }
        let tag = Tag::new(thread::WRITE_REGS).with_payload(REGS_BYTES);
        // SAFETY: the caller's obligation.
        unsafe { invoke_tag(self.0, tag, [0; 4]) }.map(|_| ())
    }
}

fn decode_regs(bytes: &[u8; REGS_BYTES]) -> ThreadRegs {
    let mut words = bytes.chunks_exact(8).map(|c| {
        let word = c.first_chunk::<8>().copied().unwrap_or_default();
        u64::from_le_bytes(word)
    });
    let mut regs = ThreadRegs::default();
    for to in &mut regs.gpr {
        *to = words.next().unwrap_or(0);
    }
    regs.rip = words.next().unwrap_or(0);
    regs.rflags = words.next().unwrap_or(0);
    regs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_in_order() {
        let mut bytes = [0; REGS_BYTES];
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&(i as u64).to_le_bytes());
        }
        let regs = decode_regs(&bytes);
        assert_eq!(
            (regs.gpr[0], regs.gpr[15], regs.rip, regs.rflags),
            (0, 15, 16, 17)
        );
    }
}
