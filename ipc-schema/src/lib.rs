//! The whole contract of the system: the kernel's ABI and every server's protocol.
//!
//! Job: types and constants only, shared by the kernel, the servers and xtask. Place: every crate depends on it, it
//! depends on none of ours. Trust: what it decodes comes from other protection domains, so every reader checks.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "protocols")]
extern crate alloc;

pub mod abi;
#[cfg(feature = "protocols")]
pub mod archive;
#[cfg(feature = "protocols")]
pub mod disk;
#[cfg(feature = "protocols")]
pub mod interrupt_page;
#[cfg(feature = "protocols")]
pub mod link;
#[cfg(feature = "protocols")]
pub mod manifest;
#[cfg(feature = "protocols")]
pub mod proto;
#[cfg(feature = "protocols")]
pub mod ring;
#[cfg(feature = "protocols")]
pub mod state_page;
pub mod virtio;
