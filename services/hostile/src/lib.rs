//! The hostile server: random and near-valid system calls against a kernel that must stay sound.
//!
//! Job: attack. Threads in Spaces of their own make all six system calls and every operation that they can reach, on capabilities
//! that are live, stale, of another kind, of another Pool or made up, with arguments right, nearly right and wrong, with garbage in
//! their UTCBs and vCPU pages, while others destroy what they use; one more executes random bytes. Round after round their Pool is
//! destroyed under them and made anew. Place: a further server of test systems, never of a product's. Trust: the attackers hold nothing
//! but what is made from one Pool and one piece of RAM, at a priority below every VM: what they may do by right harms nobody, so
//! that whatever harm comes is a bug. Their supervisor is this server's own thread, which they call, too.
//!
//! [`rng`] and [`attack`] say what is called, [`code`] what is executed, [`report`] counts, [`args`] reads the manifest's text; the
//! binary builds the arena and makes the calls. The same seed gives the same calls; under the emulator's `-icount` also the same
//! interleaving.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod args;
pub mod attack;
pub mod code;
pub mod ops;
pub mod report;
pub mod rng;
