//! The machine against a scripted kernel.

mod exits;
mod fake;
mod functions;
mod hardware_apic;
mod instructions;
mod interrupts;
mod ports;
mod rate;
