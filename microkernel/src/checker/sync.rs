//! What the host's tests do to the object lock.

use super::{ENDED, OBJECTS, ONLINE};
use crate::arch::Cpu;
use ipc_schema::abi::cpu_state;
use std::sync::atomic::Ordering;

/// For the next test case: one processor, nothing held.
pub fn renew() {
    OBJECTS.store(false, Ordering::Relaxed);
    ENDED.store(0, Ordering::Relaxed);
    ONLINE.store(1, Ordering::Relaxed);
    Cpu::current()
        .state
        .store(cpu_state::ONLINE, Ordering::Relaxed);
}

/// Another processor has the object lock, or has it no more.
pub fn hold(held: bool) {
    OBJECTS.store(held, Ordering::Relaxed);
}

/// Number of the stop that is going on, or comes next.
pub fn number() -> u32 {
    ENDED.load(Ordering::Relaxed).wrapping_add(1)
}
