//! What the servers say to each other: postcard in the UTCB's payload, one request and one response a call.
//!
//! Job: the types of the protocols manager <-> root, anyone <-> platform, root <-> scheduler, and their encoding.
//! Trust: every message comes from another protection domain; [`decode`] refuses what is not exactly one message, and
//! names in it are allegations that the receiver looks up.
//!
//! Enums are append-only and fields are never reordered; the golden bytes below pin the encoding.

use serde::{Deserialize, Serialize};

mod platform;
mod root;
mod scheduler;
mod status;

pub use platform::*;
pub use root::*;
pub use scheduler::*;
pub use status::*;

/// Most bytes of an encoded message: the UTCB's payload.
pub const MAX_MESSAGE: usize = crate::abi::Utcb::PAYLOAD;
/// Most addresses in a backtrace.
pub const MAX_BACKTRACE: usize = 32;
/// Most bytes of log records in one message, counting 4 more for each record.
pub const MAX_LOG_BYTES: usize = 2048;

/// A message could not be encoded (too long) or decoded (not one of ours).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMessage;

/// Encodes a message into `into`; returns its length.
pub fn encode<T: Serialize>(message: &T, into: &mut [u8]) -> Result<usize, BadMessage> {
    postcard::to_slice(message, into)
        .map(|used| used.len())
        .map_err(|_| BadMessage)
}

/// Decodes exactly one message.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, BadMessage> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(BadMessage),
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No VM, server, device or interrupt of that name or number.
    Unknown,
    /// The VM runs already, or the resource is taken.
    Busy,
    /// The VM or server does not run.
    NotRunning,
    /// Not enough memory.
    NoMemory,
    /// The message could not be decoded or makes no sense.
    Malformed,
    /// The caller may not ask for this.
    Forbidden,
    /// This machine, or this system's description, cannot do it.
    Unsupported,
    /// Something went wrong that the log tells.
    Failed,
}

#[cfg(test)]
#[path = "proto_tests.rs"]
mod tests;
