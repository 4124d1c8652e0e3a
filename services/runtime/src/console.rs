//! A byte stream over two rings and two Notifications, that blocks.

use ipc_schema::abi::{NEVER, Status};
use ipc_schema::ring::{Consumer, Producer};

use crate::ipc::Notification;

/// One end of a console.
pub struct Console<'a> {
    input: Consumer<'a>,
    output: Producer<'a>,
    /// Rings the other end.
    peer: Notification,
    /// Rung by the other end.
    own: Notification,
    /// Bits of `own` that came while waiting: others share it.
    bits: u64,
}

impl<'a> Console<'a> {
    /// Joins the parts. The other end is rung once, for its predecessor's last signal may have been lost.
    pub fn new(
        input: Consumer<'a>,
        output: Producer<'a>,
        peer: Notification,
        own: Notification,
    ) -> Self {
        // A dead peer's Notification lives on; a missing one shows at the first write.
        let _ = peer.signal();
        Self {
            input,
            output,
            peer,
            own,
            bits: 0,
        }
    }

    /// Takes the Notification's bits that have come while waiting here.
    pub fn take_bits(&mut self) -> u64 {
        core::mem::take(&mut self.bits)
    }

    /// Writes all bytes, waiting for room as long as it takes.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while !bytes.is_empty() {
            let done = self.output.push(bytes);
            if self.output.needs_signal() {
                self.peer.signal()?;
            }
            bytes = bytes.get(done..).unwrap_or(&[]);
            if !bytes.is_empty() && self.output.prepare_sleep() {
                self.bits |= self.own.wait(NEVER)?;
            }
        }
        Ok(())
    }

    /// Reads at least one byte, waiting for it until the deadline (absolute TSC).
    pub fn read(&mut self, into: &mut [u8], deadline: u64) -> Result<usize, Status> {
        loop {
            let count = self.input.pop(into);
            if self.input.needs_signal() {
                self.peer.signal()?;
            }
            if count != 0 || into.is_empty() {
                return Ok(count);
            }
            if self.input.prepare_sleep() {
                self.bits |= self.own.wait(deadline)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc_schema::ring::RingPage;

    #[test]
    fn bytes_pass_without_waiting() {
        let (there, back) = (RingPage::new(), RingPage::new());
        let none = Notification(0);
        let mut a = Console::new(Consumer::new(&back), Producer::new(&there), none, none);
        let mut b = Console::new(Consumer::new(&there), Producer::new(&back), none, none);
        a.write_all(b"hello").unwrap();
        let mut buffer = [0; 9];
        assert_eq!(b.read(&mut buffer, NEVER), Ok(5));
        assert_eq!(&buffer[..5], b"hello");
        // Empty: it would wait, which the host cannot.
        assert_eq!(b.read(&mut buffer, NEVER), Err(Status::Unsupported));
        assert_eq!(a.write_all(&[0; 5000]), Err(Status::Unsupported));
    }
}
