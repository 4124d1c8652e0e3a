//! Who runs, and how long: the policy of the processors.
//!
//! Job: give each Budget that root brings its priority, budget and period, by the class of its owner and, within a class, by
//! shares, reservation and limit; choose a processor for each group of them that must share one, a VM's; do it again for all
//! of a processor when one comes or goes. Place: the only server that holds processors;
//! the kernel enforces what is set here and decides nothing. Trust: root alone calls it; what it is asked is checked all the
//! same, with typed refusals, because a wrong number here starves others.
//!
//! [`policy`] is the arithmetic, [`placement`] the choice of a processor, [`server`] keeps the Budgets. The binary only wires them to the kernel.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod placement;
pub mod policy;
pub mod server;

pub use server::{Kernel, Scheduler};
