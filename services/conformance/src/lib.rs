//! Does the kernel keep its word? Each operation of each object tried right, and then wrong in every way there is.
//!
//! Job: derive cases from the ABI's table (`ipc_schema::abi::operations`), carry them out against the kernel, and count. Place: a
//! further server of a test system, never of a product's. Trust: root gives a server of this name far more than it gives others
//! (RAM, a processor, ports, the Log), so that there is something to be wrong with.
//!
//! A case is never allowed to hang: every blocking call has a deadline, and what blocks for others' sake does so in a [`partner`],
//! a thread in a Space of its own whose every system call is dictated. After each wrong call the figures must be what they were, and
//! the right call must still work.
//!
//! - [`derived`]: what follows from the table alone: each argument in each way wrong, alone and in pairs (the order of checks);
//! - [`right`]: the right call of each operation, and how to undo it;
//! - [`states`]: a case for each state that the table says an operation refuses;
//! - [`specials`]: what the table cannot say: time, donation, death in the middle, memory that is gone, pages' edges.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod case;
pub mod derived;
#[allow(
    unsafe_code,
    reason = "system calls, and words of pages that others write: all in one place"
)]
pub mod kernel;
pub mod kit;
pub mod partner;
pub mod right;
pub mod specials;
pub mod states;

use case::Report;
use kit::Kit;

/// Tries everything.
pub fn all(kit: &mut Kit, report: &mut Report) {
    derived::all(kit, report);
    states::all(kit, report);
    specials::all(kit, report);
}
