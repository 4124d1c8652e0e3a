//! The machine against a scripted kernel.

mod exits;
mod fake;
mod interrupts;
mod ports;
