//! What Vireo's own guests share: the way from the boot loader to 64-bit Rust code, and the
//! machine's parts that a test needs in its hand (serial line, interrupts, APICs, clocks,
//! page tables, and [`exec`], which runs instructions given as bytes and catches their faults).
//!
//! Place: inside a VM, as the only program there. It trusts nothing about the hypervisor: that
//! is what it tests. The same image boots under QEMU alone (by Multiboot 1 or PVH), which is
//! the reference for how the devices behave.
//!
//! One processor, one thread of control and its interrupt handlers; hence the statics here are
//! atomics or are touched by the main flow only.
#![cfg_attr(not(test), no_std)]

pub mod acpi;
pub mod cmdline;
pub mod stats;
pub mod text;

#[cfg(target_os = "none")]
pub mod apic;
#[cfg(target_os = "none")]
pub mod boot;
#[cfg(target_os = "none")]
pub mod clock;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod exec;
#[cfg(target_os = "none")]
pub mod idt;
#[cfg(target_os = "none")]
pub mod ioapic;
#[cfg(target_os = "none")]
pub mod legacy;
#[cfg(target_os = "none")]
pub mod paging;
#[cfg(target_os = "none")]
pub mod serial;
