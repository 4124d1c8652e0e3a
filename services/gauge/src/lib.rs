//! Measures on a running machine what the kernel promises: of time, of deaths, of registers.
//!
//! Job: have threads burn their Budgets in every way there is and see what they get (`shares`); add up where all the time of the
//! processors has gone (`accounts`); kill a server again and again while it works, at moments that no terminal can hit (`reap`); carry
//! vCPUs full of secrets from processor to processor (`roam`); change what a guest has between two runs and beside one (`stale`). Place: a further server of a test system, never of a product's. Trust:
//! root gives such a server RAM, the processors, and the right to ask it for anything, so that it can set Budgets above all others.
//!
//! Figures are logged, and judged by the test that reads them.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod args;
pub mod judge;
