//! The processor: descriptor tables, entry stubs, local APIC and timer, per-CPU data.
//!
//! Everything that touches hardware has two forms: the real one, and for host tests one that only remembers.

pub mod cpu;
pub mod machine_check;
pub mod measure;
pub mod paging;
pub mod pcid;
pub mod protection;
pub mod speculation;

#[cfg(target_os = "none")]
pub mod apic;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod descriptors;
#[cfg(target_os = "none")]
pub mod entry;
#[cfg(target_os = "none")]
pub mod extended;
#[cfg(target_os = "none")]
mod hardware;
#[cfg(target_os = "none")]
pub mod start;
#[cfg(all(target_os = "none", feature = "unproven"))]
pub use {apic::tell_of_posted, entry::interrupt};
#[cfg(target_os = "none")]
pub use {
    apic::{call, call_others},
    hardware::*,
    machine_check::guest_machine_check,
    start::step as start_step,
};

#[cfg(not(target_os = "none"))]
#[path = "../checker/host.rs"]
mod host;
#[cfg(not(target_os = "none"))]
pub use host::*;

pub use cpu::Cpu;

/// Processors at most.
pub const MAX_CPUS: usize = 8;
/// RFLAGS of user level: interrupts on, and the bit that is always 1.
pub const USER_FLAGS: u64 = 0x202;
/// First vector that an [`crate::object::irq::Irq`] can have.
pub const FIRST_IRQ: u8 = 0x30;
/// How many there are.
pub const IRQS: usize = 160;
/// Vector of the local APIC's timer, the lowest: it gives way to all others.
pub const TIMER_VECTOR: u8 = 0x20;
/// Vector by which processors call each other: to join a stop, to collect signals.
pub const CALL_VECTOR: u8 = 0xf1;
/// Vector that tells a processor of what was posted to its guest; otherwise nobody's.
#[cfg(any(test, feature = "unproven"))]
pub const POSTED_VECTOR: u8 = 0xf2;
/// Vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 0xff;
