//! The whole contract of the system: the kernel's ABI and every server's protocol.
//!
//! Job: types and constants only, shared by the kernel, the servers and xtask. Place: every crate depends on it, it
//! depends on none of ours. Trust: what it decodes comes from other protection domains, so every reader checks.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod abi;
pub mod archive;
pub mod interrupt_page;
pub mod manifest;
pub mod proto;
pub mod ring;
pub mod state_page;
