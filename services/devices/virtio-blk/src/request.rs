//! A guest's request (5.2.6): header, data, status.

use alloc::vec::Vec;
use ipc_schema::disk::{BLOCK, BlkConfig, SECTOR};
use virtio::{Chain, Error, Memory};

use crate::config::{MAX_CLEAR, MAX_SEGMENTS, SECTORS, max_zeroes};
use crate::content::{Span, take};

/// Bytes of the header.
const HEADER: u64 = 16;
/// Bytes of a segment to be discarded or cleared.
const SEGMENT: u64 = 16;
/// Bytes of a device's name.
pub const ID: usize = 20;

/// Request types.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Status bytes.
pub mod status {
    /// It is done.
    pub const OK: u8 = 0;
    /// It could not be done.
    pub const IOERR: u8 = 1;
    /// There is no such request.
    pub const UNSUPP: u8 = 2;
}

/// A request as it stands in the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    kind: u32,
    sector: u64,
    /// Data that the device reads.
    pub output: Vec<Span>,
    /// Data that the device writes.
    pub input: Vec<Span>,
    /// Where the status byte goes.
    pub status: u64,
}

/// What is to be done with a part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Read into the guest.
    Read,
    /// Write from the guest.
    Write,
    /// Write zeroes, and keep the place.
    Clear,
    /// Give the place up.
    Discard,
    /// Give the place up; it reads as zeroes.
    Zero,
    /// See that all that is done lasts.
    Flush,
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What is to be done.
    pub work: Work,
    /// First byte of the disk.
    pub from: u64,
    /// One past the last.
    pub to: u64,
    /// Where it begins in the request's data.
    pub at: u64,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// These, one after the other; it is done when all are.
    Parts(Vec<Part>),
    /// The device's name.
    Id,
    /// Nothing that can be done: this status.
    Refused(u8),
}

fn total(spans: &[Span]) -> u64 {
    // A chain is of less than 2^32 bytes.
    spans.iter().map(|span| span.len).sum()
}

impl Raw {
    /// Takes a request's buffer apart (any framing is allowed, 2.7.4.1).
    ///
    /// # Errors
    /// The chain is broken, or too short for header and status: no answer is possible.
    pub fn new(memory: &Memory, chain: &mut Chain<'_>) -> Result<Self, Error> {
        let (mut output, mut input) = (Vec::new(), Vec::new());
        for part in chain {
            let part = part?;
            let (gpa, len) = (part.gpa, u64::from(part.len));
            if len > 0 {
                let to = if part.writable {
                    &mut input
                } else {
                    &mut output
                };
                to.push(Span { gpa, len });
            }
        }
        let mut header = [0; HEADER as usize];
        take(memory, &output, 0, &mut header)?;
        drop_front(&mut output, HEADER);
        let last = input.last_mut().ok_or(Error::Length)?;
        last.len -= 1;
        let status = last.gpa + last.len;
        if last.len == 0 {
            input.pop();
        }
        let ([kind, ..], sector) = words(&header);
        Ok(Self {
            kind,
            sector,
            output,
            input,
            status,
        })
    }

    /// Bytes of the guest's memory that the device writes for it, the status included.
    #[must_use]
    pub fn written(&self) -> u32 {
        u32::try_from(total(&self.input) + 1).unwrap_or(u32::MAX)
    }

    /// Runs of memory that it has.
    #[must_use]
    pub const fn spans(&self) -> usize {
        self.output.len() + self.input.len()
    }

    /// What it asks for.
    pub fn asked(&self, memory: &Memory, config: &BlkConfig) -> Result<Asked, Error> {
        let writable = config.writable();
        let refuse = |status| Ok(Asked::Refused(status));
        Ok(match self.kind {
            kind::IN => self.data(Work::Read, &self.input, config),
            // 5.2.6.2: a read-only device fails each write.
            kind::OUT if !writable => return refuse(status::IOERR),
            kind::OUT => self.data(Work::Write, &self.output, config),
            kind::FLUSH => Asked::Parts(Vec::from([Part {
                work: Work::Flush,
                from: 0,
                to: 0,
                at: 0,
            }])),
            kind::GET_ID => Asked::Id,
            kind::DISCARD | kind::WRITE_ZEROES if writable => self.segments(memory, config)?,
            _ => return refuse(status::UNSUPP),
        })
    }

    fn data(&self, work: Work, spans: &[Span], config: &BlkConfig) -> Asked {
        let len = total(spans);
        match range(self.sector, len, config) {
            Some((from, to)) => {
                let part = Part {
                    work,
                    from,
                    to,
                    at: 0,
                };
                let some = (to > from).then_some(part);
                Asked::Parts(some.into_iter().collect())
            }
            None => Asked::Refused(status::IOERR),
        }
    }

    fn segments(&self, memory: &Memory, config: &BlkConfig) -> Result<Asked, Error> {
        /// Flag: the place may be given up.
        const UNMAP: u32 = 1;
        let discards = self.kind == kind::DISCARD;
        let len = total(&self.output);
        let count = len / SEGMENT;
        if !len.is_multiple_of(SEGMENT) || count == 0 || count > MAX_SEGMENTS.into() {
            return Ok(Asked::Refused(status::IOERR));
        }
        let mut parts = Vec::new();
        for n in 0..count {
            let mut segment = [0; SEGMENT as usize];
            take(memory, &self.output, SEGMENT * n, &mut segment)?;
            let (sector, [.., sectors, flags]) = words_after(&segment);
            // 5.2.6.2: a flag that is not known, or not for this request.
            if flags & !UNMAP != 0 || discards && flags != 0 {
                return Ok(Asked::Refused(status::UNSUPP));
            }
            let range = range(sector, u64::from(sectors) * SECTOR, config);
            let most = match discards {
                true => MAX_CLEAR,
                false => max_zeroes(config),
            };
            let Some((from, to)) = range.filter(|_| sectors <= most) else {
                return Ok(Asked::Refused(status::IOERR));
            };
            let unmap = flags & UNMAP != 0 && config.zeroes();
            pieces(from, to, discards, unmap, &mut parts);
        }
        Ok(Asked::Parts(parts))
    }
}

/// Whole blocks are given up if they may be; the rest of what is to be zero is written, the rest of what is discarded stays.
fn pieces(from: u64, to: u64, discards: bool, unmap: bool, parts: &mut Vec<Part>) {
    let mut add = |work, from, to| {
        if to > from {
            let at = 0;
            parts.push(Part { work, from, to, at });
        }
    };
    let (first, last) = (from.next_multiple_of(BLOCK), to / BLOCK * BLOCK);
    match (discards, unmap) {
        (true, _) => add(Work::Discard, first, last),
        (false, true) if first < last => {
            add(Work::Clear, from, first);
            add(Work::Zero, first, last);
            add(Work::Clear, last, to);
        }
        (false, _) => add(Work::Clear, from, to),
    }
}

/// First byte and end of a part of the disk; `None`: there is no such part.
fn range(sector: u64, len: u64, config: &BlkConfig) -> Option<(u64, u64)> {
    let from = sector.checked_mul(SECTOR)?;
    let to = from.checked_add(len)?;
    let end = u64::from(config.disk.blocks) * u64::from(SECTORS) * SECTOR;
    (len.is_multiple_of(SECTOR) && to <= end).then_some((from, to))
}

fn drop_front(spans: &mut Vec<Span>, mut len: u64) {
    spans.retain_mut(|span| {
        let gone = len.min(span.len);
        len -= gone;
        span.gpa += gone;
        span.len -= gone;
        span.len > 0
    });
}

fn word(bytes: &[u8; 16], at: usize) -> u32 {
    let four = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>);
    four.map_or(0, |b| u32::from_le_bytes(*b))
}

/// Two words, then a long one: a header.
fn words(bytes: &[u8; 16]) -> ([u32; 2], u64) {
    let long = u64::from(word(bytes, 8)) | u64::from(word(bytes, 12)) << 32;
    ([word(bytes, 0), word(bytes, 4)], long)
}

/// A long word, then two: a segment.
fn words_after(bytes: &[u8; 16]) -> (u64, [u32; 2]) {
    let long = u64::from(word(bytes, 0)) | u64::from(word(bytes, 4)) << 32;
    (long, [word(bytes, 8), word(bytes, 12)])
}
