//! Ports: a range of the machine's I/O ports.

use super::Result;
use crate::abi::{Status, Tag, Utcb, op::ports};
use crate::object::Pool;
use crate::slots::Slot;
use crate::sys::{invoke, invoke_tag};
use crate::utcb;

/// A capability to Ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports(pub Slot);

impl Ports {
    fn input(self, port: u16, width: u64) -> Result<u64> {
        // SAFETY: a device that could write to this server's memory is confined by its DmaSpace, not by this call.
        unsafe { invoke(self.0, ports::IN, [u64::from(port) | width << 16, 0, 0, 0]) }.map(|w| w[0])
    }

    fn output(self, port: u16, width: u64, value: u64) -> Result<()> {
        // SAFETY: as in `input`.
        unsafe {
            invoke(
                self.0,
                ports::OUT,
                [u64::from(port) | width << 16, value, 0, 0],
            )
        }
        .map(|_| ())
    }

    /// Reads a byte.
    pub fn in8(self, port: u16) -> Result<u8> {
        self.input(port, 1).map(|v| v as u8)
    }

    /// Reads two bytes.
    pub fn in16(self, port: u16) -> Result<u16> {
        self.input(port, 2).map(|v| v as u16)
    }

    /// Reads four bytes.
    pub fn in32(self, port: u16) -> Result<u32> {
        self.input(port, 4).map(|v| v as u32)
    }

    /// Writes a byte.
    pub fn out8(self, port: u16, value: u8) -> Result<()> {
        self.output(port, 1, u64::from(value))
    }

    /// Writes two bytes.
    pub fn out16(self, port: u16, value: u16) -> Result<()> {
        self.output(port, 2, u64::from(value))
    }

    /// Writes four bytes.
    pub fn out32(self, port: u16, value: u32) -> Result<()> {
        self.output(port, 4, u64::from(value))
    }

    /// Writes bytes to one port, one after the other, in one system call; at most a payload's worth.
    pub fn out_bytes(self, port: u16, bytes: &[u8]) -> Result<()> {
        utcb::write(bytes).ok_or(Status::OutOfRange)?;
        const { assert!(Utcb::PAYLOAD < 4096) };
        let tag = Tag::new(ports::OUT_BYTES).with_payload(bytes.len());
        // SAFETY: as in `input`.
        unsafe { invoke_tag(self.0, tag, [u64::from(port), 0, 0, 0]) }.map(|_| ())
    }

    /// A part of the range. `payer` pays for the object.
    pub fn divide(self, first: u16, count: u32, dest: Slot, payer: Pool) -> Result<Ports> {
        let words = [
            u64::from(first),
            u64::from(count),
            u64::from(dest),
            u64::from(payer.0),
        ];
        // SAFETY: it changes no mapping.
        unsafe { invoke(self.0, ports::DIVIDE, words) }?;
        Ok(Ports(dest))
    }
}
