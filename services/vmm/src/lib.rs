//! The virtual machine monitor of one VM: its platform devices, its loader, and the policy of its exits.
//!
//! Job: answer every VM exit that no device server takes by an exit route. Place: one process a VM, between the
//! kernel's `run` and the device servers' interrupt pages. Trust: holds this VM's memory and vCPUs and nothing else;
//! all that the guest hands it is hostile.
#![cfg_attr(not(test), no_std)]
#![warn(missing_docs)]

extern crate alloc;

pub mod acpi;
pub mod chipset;
pub mod cpu;
pub mod emulate;
pub mod loader;
pub mod machine;
pub mod memory;
