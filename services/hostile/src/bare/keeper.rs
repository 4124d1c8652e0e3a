//! Keepers: a thread of this server on each further processor, which takes the attackers' faults and calls there.
//!
//! A call is taken on the processor where it is made. Keepers run in this server's own Space, but use neither its heap nor its log
//! nor its UTCB: words in registers, and the statics below.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use runtime::abi::layout::slot;
use runtime::abi::{NEVER, Status, Syscall, Tag, op};
use runtime::sys::{invoke, syscall};

use super::arena::FAULTS;
use hostile::args::MAX_THREADS;

#[allow(
    clippy::declare_interior_mutable_const,
    reason = "what an array begins with"
)]
const NONE: AtomicU64 = AtomicU64::new(0);
/// By number of an attacker: its Thread's slot, and rip, rsp and rdi to start it with.
pub static RESTARTS: [[AtomicU64; 4]; MAX_THREADS as usize] =
    [const { [NONE; 4] }; MAX_THREADS as usize];
/// Faults and calls that keepers have answered.
pub static ANSWERED: AtomicU64 = AtomicU64::new(0);
/// Restarts left in this round.
pub static PATIENCE: AtomicU64 = AtomicU64::new(0);

/// Answers for ever.
pub extern "C" fn keep() -> ! {
    let mut reply = 0;
    loop {
        // SAFETY: it changes nothing of this server's but this thread's own UTCB.
        let r = unsafe {
            syscall(
                Syscall::ReplyRecv,
                slot::ENDPOINT.into(),
                Tag::new(reply).0,
                [0; 4],
                NEVER,
            )
        };
        reply = 0;
        if r.status != Status::Ok as u64 {
            continue;
        }
        ANSWERED.fetch_add(1, Relaxed);
        if Tag(r.tag).label() != Tag::FAULT {
            continue;
        }
        // Label 1 stops it; with a deadline that is past nothing else is waited for. Then it can be started anew.
        // SAFETY: as above.
        unsafe { syscall(Syscall::ReplyRecv, 0, Tag::new(1).0, [0; 4], 0) };
        let number = r.value.wrapping_sub(FAULTS) as usize;
        let Some([thread, rip, rsp, rdi]) = RESTARTS.get(number) else {
            continue;
        };
        let left = PATIENCE.load(Relaxed);
        if left == 0 {
            continue;
        }
        PATIENCE.store(left - 1, Relaxed);
        let words = [rip.load(Relaxed), rsp.load(Relaxed), rdi.load(Relaxed), 0];
        // SAFETY: the attacker is not in this server's Space, and of its memory this server has no references.
        let _ = unsafe { invoke(thread.load(Relaxed) as u32, op::thread::START, words) };
    }
}
