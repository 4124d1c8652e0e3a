//! Log: the ring of log records.

use super::Result;
use crate::abi::{Status, Tag, Utcb, op::log};
use crate::ipc::Notification;
use crate::slots::Slot;
use crate::sys::{invoke, invoke_tag};
use crate::utcb;

/// Longest record in bytes.
pub const MAX_RECORD: usize = 255;

/// A capability to the Log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log(pub Slot);

/// What a look at the ring brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Bytes of whole records {u16 length, u8 source, bytes}.
    pub len: usize,
    /// Where to go on.
    pub next: u64,
    /// Bytes that were lost because the ring had wrapped.
    pub lost: u64,
}

impl Log {
    /// Adds a record. What is in the UTCB's payload stays there, so that a server can log at any point.
    pub fn write(self, record: &[u8]) -> Result<()> {
        if record.len() > MAX_RECORD {
            return Err(Status::OutOfRange);
        }
        let mut saved = [0; MAX_RECORD];
        utcb::read(&mut saved);
        // At most 255 bytes always fit.
        utcb::write(record);
        let tag = Tag::new(log::WRITE).with_payload(record.len());
        // SAFETY: it changes no mapping.
        let done = unsafe { invoke_tag(self.0, tag, [0; 4]) };
        utcb::write(&saved);
        done.map(|_| ())
    }

    /// Reads records from position `from` (0 at first) into `into`, which should be a payload long.
    pub fn read(self, from: u64, into: &mut [u8; Utcb::PAYLOAD]) -> Result<Read> {
        // SAFETY: asking changes nothing but the UTCB.
        let r = unsafe { invoke_tag(self.0, Tag::new(log::READ), [from, 0, 0, 0]) }?;
        let len = Tag(r.tag).payload().min(into.len());
        if let Some(part) = into.get_mut(..len) {
            utcb::read(part);
        }
        Ok(Read {
            len,
            next: r.words[0],
            lost: r.words[1],
        })
    }

    /// The Notification that is signalled when records are added.
    pub fn bind(self, notification: Option<Notification>) -> Result<()> {
        let slot = u64::from(notification.map_or(0, |n| n.0));
        // SAFETY: it changes no mapping.
        unsafe { invoke(self.0, log::BIND, [slot, 0, 0, 0]) }.map(|_| ())
    }
}

/// The records in what [`Log::read`] brought: source and bytes of each. Ends at the first that is cut short.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    core::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<3>()?;
        let len = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let (record, rest) = rest.split_at_checked(len)?;
        bytes = rest;
        Some((head[2], record))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_a_read() {
        let bytes = [2, 0, 7, b'a', b'b', 0, 0, 9, 5, 0, 1, b'c'];
        let all: Vec<_> = records(&bytes).collect();
        assert_eq!(all, [(7, &b"ab"[..]), (9, &b""[..])]);
    }

    #[test]
    fn logging_keeps_the_payload() {
        utcb::write(b"a request being read").unwrap();
        assert!(Log(6).write(b"xxxxxxxxx").is_err(), "no kernel on the host");
        utcb::with_payload(9, |p| assert_eq!(p, b"a request"));
        assert_eq!(Log(6).write(&[0; 256]), Err(Status::OutOfRange));
    }
}
