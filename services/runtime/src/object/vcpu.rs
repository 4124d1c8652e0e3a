//! Vcpu: a virtual processor.

use super::Result;
use crate::abi::op::vcpu;
use crate::abi::vm::{Event, Exit, ExitWord, POST, Post};
use crate::abi::{Status, Syscall};
use crate::shared::VcpuPage;
use crate::slots::Slot;
use crate::sys::{invoke, syscall};

/// A capability to a Vcpu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpu(pub Slot);

/// How `run` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The exit, whether the posted vector still waits, and CR8.
    pub word: ExitWord,
    /// Information by exit (see `abi::vm::Exit`).
    pub info: [u64; 3],
    /// Length of the instruction, or 0 if the processor did not tell.
    pub length: u64,
    /// The event that was not delivered: to be injected again.
    pub undelivered: Event,
}

impl Vcpu {
    /// Which state groups are copied to the state page at `exit`, or at all exits.
    pub fn on_exit(self, exit: Option<Exit>, groups: u64) -> Result<()> {
        let exit = exit.map_or(u64::MAX, |e| e as u64);
        // SAFETY: it changes no mapping.
        unsafe { invoke(self.0, vcpu::ON_EXIT, [exit, groups, 0, 0]) }.map(|_| ())
    }

    /// Posts a vector to the guest ([`POST`]). Right SEND.
    pub fn post(self, vector: u8) -> Result<()> {
        // SAFETY: it changes no mapping.
        unsafe { invoke(self.0, POST, [vector.into(), 0, 0, 0]) }.map(|_| ())
    }

    /// Runs the guest until an exit that is the VMM's, or the deadline (absolute TSC). `dirty` groups are first taken
    /// from the page; `inject` is delivered at once, `post` when the guest takes it.
    #[inline(always)]
    pub fn run(
        self,
        page: &mut VcpuPage,
        dirty: u64,
        post: Post,
        inject: Event,
        deadline: u64,
    ) -> Result<Ran> {
        // The page is the kernel's for the duration: held by the `&mut`.
        let _ = page;
        // SAFETY: it changes nothing of this server's but the state page and guest memory; to the page no reference
        // lives while it is borrowed mutably here, and guest memory is only reached through raw pointers.
        let r = unsafe {
            syscall(
                Syscall::Run,
                u64::from(self.0),
                dirty,
                [post.0, inject.0, 0, 0],
                deadline,
            )
        };
        if r.status != Status::Ok as u64 {
            return Err(refused(r.status));
        }
        Ok(Ran {
            word: ExitWord(r.tag),
            info: [r.words[0], r.words[1], r.words[2]],
            length: r.words[3],
            undelivered: Event(r.value),
        })
    }
}

/// By itself, so that there is but one comparison on the way of those that are not.
#[cold]
#[inline(never)]
fn refused(status: u64) -> Status {
    Status::from_raw(status)
}
