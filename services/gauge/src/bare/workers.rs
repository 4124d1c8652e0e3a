//! What threads do: nothing here uses the heap, the log or the UTCB.

use core::hint::black_box;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::abi::layout::slot;
use runtime::abi::vm::{Exit, ExitWord, Groups, VcpuState};
use runtime::abi::{NEVER, Syscall};
use runtime::object::{Memory, Space};
use runtime::{Endpoint, Message, Notification, reply_recv, sys};

use super::guests;
use super::lab::READ_WRITE;

/// Exits of guests that nobody expected, the last one's number and 1 more.
pub static STRANGE: AtomicU64 = AtomicU64::new(0);
/// Exits of guests that their runner has answered.
pub static ANSWERED: AtomicU64 = AtomicU64::new(0);
/// Calls that came back.
pub static CALLS: AtomicU64 = AtomicU64::new(0);

/// Where `map` maps, and how much: small pages only, since the offset fits no large one.
const SCRATCH: u64 = 0x2_0000_0000;
const SCRATCH_OFFSET: u64 = 4096;
const SCRATCH_LEN: u64 = 2 << 20;
/// Rounds of a server that works for a while: a part of a millisecond.
const WORK: u64 = 1 << 16;

/// Runs at user level.
pub extern "sysv64" fn spin(_: u64) -> ! {
    let mut n = 0u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

/// Makes the cheapest system call again and again.
pub extern "sysv64" fn poll(notification: u64) -> ! {
    loop {
        let _ = Notification(notification as u32).wait(0);
    }
}

/// Makes system calls that take many steps each: maps and unmaps hundreds of pages.
pub extern "sysv64" fn map(ram: u64) -> ! {
    let space = Space(slot::SPACE);
    loop {
        let _ = space.map(
            SCRATCH,
            Memory(ram as u32),
            READ_WRITE,
            SCRATCH_OFFSET,
            SCRATCH_LEN,
        );
        // SAFETY: nobody has references into it.
        let _ = unsafe { space.unmap(SCRATCH) };
    }
}

/// Calls again and again.
pub extern "sysv64" fn call(endpoint: u64) -> ! {
    loop {
        if Endpoint(endpoint as u32).call(Message::default()).is_ok() {
            CALLS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Answers at once.
pub extern "sysv64" fn answer(endpoint: u64) -> ! {
    loop {
        let _ = reply_recv(Endpoint(endpoint as u32), Message::default(), NEVER);
    }
}

/// Works for a while before it answers.
pub extern "sysv64" fn work(endpoint: u64) -> ! {
    loop {
        let _ = reply_recv(Endpoint(endpoint as u32), Message::default(), NEVER);
        for n in 0..WORK {
            black_box(n);
        }
    }
}

/// Runs a guest: slot of the Vcpu, and number of the state page above it.
pub extern "sysv64" fn guest(argument: u64) -> ! {
    let (vcpu, page) = (argument & 0xffff_ffff, argument >> 32);
    let rip = guests::word(page, offset_of!(VcpuState, rip) / 8);
    let mut dirty = 0;
    loop {
        // SAFETY: it changes nothing but the state page, which only this thread uses now.
        let r = unsafe { sys::syscall(Syscall::Run, vcpu, dirty, [0; 4], NEVER) };
        if r.status == 0 && ExitWord(r.tag).exit() == Exit::Cpuid {
            ANSWERED.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the state page, which the kernel mapped there.
            unsafe { rip.write_volatile(rip.read_volatile() + 2) };
            dirty = Groups::RIP;
        } else {
            STRANGE.store(1 + (r.tag & 0xff) + (r.status << 8), Ordering::Relaxed);
        }
    }
}
