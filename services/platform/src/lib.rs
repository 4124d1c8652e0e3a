//! What the machine has, and the few things that belong to all of it: interrupt routing, power, reset.
//!
//! Job: read the firmware's ACPI tables and the PCI configuration space; start the processors beside the first; program the
//! I/O APICs for root; switch the machine off or start it again. Place: a server that alone holds the I/O APICs, the ACPI registers and the PCI
//! configuration ports; root is its client, others may only ask what there is. Trust: clients are not believed (typed
//! refusals), and neither is the firmware: its tables are read by the crate `acpi` from copies, whose checksums and lengths
//! are checked first, and nothing in them can make this server panic ([`copies`]).
//!
//! AML is not interpreted: of it only `\_S5` is needed, which [`s5`] finds as the specification encodes it.
//!
//! Everything here works through the trait [`Hardware`]; the binary implements it with capabilities, tests with a machine of
//! their own.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod copies;
pub mod fadt;
pub mod hardware;
pub mod ioapic;
pub mod madt;
pub mod pci;
pub mod power;
pub mod processors;
pub mod s5;
pub mod server;
pub mod tables;

pub use hardware::{Hardware, Width};
pub use server::Platform;

#[cfg(test)]
mod testing;
