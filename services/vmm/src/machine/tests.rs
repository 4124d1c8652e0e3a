//! The machine against a scripted kernel.

mod exits;
mod fake;
mod functions;
mod interrupts;
mod ports;
