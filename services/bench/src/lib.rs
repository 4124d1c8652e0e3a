//! What the kernel costs and what it refuses: the bench server and its isolation test.
//!
//! Job: measure IPC, signals, faults and kernel operations in TSC ticks (instructions, where the emulator counts them so), and
//! let a partner in a Space of its own do what no server may, checking the fault that comes of each. Place: a further
//! server of test systems, never of a product's. Trust: it is given RAM and a processor to build the partner with; the partner has
//! nothing but an Endpoint and a Notification to wait on, and its supervisor is the bench.
//!
//! [`samples`] is the arithmetic, [`probe`] says what each forbidden act must lead to, [`args`] reads the manifest's text;
//! the binary holds the partner's code and does the measuring.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod args;
pub mod probe;
pub mod samples;
