//! Driver of a real 16550A: the operator's serial terminal.
//!
//! Job: moves bytes between the UART's FIFOs and two shared rings, by interrupts alone. Place: one `driver-uart`
//! server a machine UART, which holds just that UART's ports and its Irq; the manager is at the other end of the
//! rings. Trust: neither the hardware nor the manager: every loop is bounded, a missing or broken UART costs bytes,
//! never the server.
//!
//! Source: National Semiconductor PC16550D data sheet.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use ipc_schema::ring::{Consumer, Producer};

/// The UART's eight ports.
pub trait Ports {
    /// Reads the port at `offset`.
    fn inb(&mut self, offset: u8) -> u8;
    /// Writes the port at `offset`.
    fn outb(&mut self, offset: u8, value: u8);
    /// Writes bytes to the port at `offset`, one after the other.
    fn outb_all(&mut self, offset: u8, bytes: &[u8]) {
        for &byte in bytes {
            self.outb(offset, byte);
        }
    }
}

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const SCRATCH: u8 = 7;

/// Received data, transmitter empty, line status.
const IER_USED: u8 = 0x07;
const IIR_NONE: u8 = 0x01;
const IIR_SOURCE: u8 = 0x0e;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIME_OUT: u8 = 0x0c;
/// Enable, reset both, trigger at 8 bytes: room for 8 more before a late interrupt loses one.
const FCR_SET_UP: u8 = 0x87;
const LCR_8N1: u8 = 0x03;
const LCR_DLAB: u8 = 0x80;
/// DTR, RTS, and OUT2, which opens the PC's gate to the interrupt line.
const MCR_SET_UP: u8 = 0x0b;
const LSR_DATA_READY: u8 = 0x01;
const LSR_ERRORS: u8 = 0x1e;
const LSR_HOLDING_EMPTY: u8 = 0x20;

/// 1.8432 MHz / 16 / 115,200.
const DIVISOR_115200: u8 = 1;
/// Bytes that the transmit FIFO takes when it is empty.
const FIFO_BYTES: usize = 16;
/// Most sources served in one interrupt, and most bytes drained at a time: far beyond what a sane UART has, so that a
/// stuck one cannot hold the server.
const ROUNDS: usize = 64;

/// No UART answers at the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPresent;

/// What happened on the line so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Overruns, parity and framing errors and breaks that the UART reported.
    pub line_errors: u64,
    /// Bytes received that the manager had no room for.
    pub dropped: u64,
}

/// What an interrupt handler achieved: whom to signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes were put into the input ring.
    pub received: bool,
    /// Bytes were taken from the output ring.
    pub sent: bool,
}

impl Progress {
    /// What either achieved.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            received: self.received | other.received,
            sent: self.sent | other.sent,
        }
    }
}

/// The driver of one UART.
#[derive(Debug)]
pub struct Driver<P> {
    ports: P,
    figures: Figures,
    /// Bytes have been given to the transmitter, and its interrupt will say that they are gone.
    busy: bool,
}

impl<P: Ports> Driver<P> {
    /// Looks for the UART and sets it up: 115,200 baud, 8N1, FIFOs and interrupts on. What waits in the receiver, for
    /// instance from before a restart of this server, is dropped.
    pub fn new(mut ports: P) -> Result<Self, NotPresent> {
        for pattern in [0x5a, 0xa5] {
            ports.outb(SCRATCH, pattern);
            if ports.inb(SCRATCH) != pattern {
                return Err(NotPresent);
            }
        }
        ports.outb(IER, 0);
        ports.outb(LCR, LCR_DLAB);
        ports.outb(DATA, DIVISOR_115200);
        ports.outb(IER, 0);
        ports.outb(LCR, LCR_8N1);
        ports.outb(FCR, FCR_SET_UP);
        ports.outb(MCR, MCR_SET_UP);
        // Clear what stands from before.
        for register in [LSR, DATA, MSR] {
            ports.inb(register);
        }
        ports.outb(IER, IER_USED);
        Ok(Self {
            ports,
            figures: Figures::default(),
            busy: false,
        })
    }

    /// The interrupt handler. Also to be called once after [`Driver::new`], for an edge that came too early.
    pub fn interrupt(&mut self, input: &mut Producer<'_>, output: &mut Consumer<'_>) -> Progress {
        let mut progress = Progress::default();
        for _ in 0..ROUNDS {
            let identification = self.ports.inb(IIR);
            if identification & IIR_NONE != 0 {
                break;
            }
            progress = progress.merge(match identification & IIR_SOURCE {
                IIR_LINE_STATUS | IIR_RECEIVED | IIR_TIME_OUT => self.drain(input),
                IIR_TRANSMIT_EMPTY => self.send(output),
                // Modem status is not enabled; reading it acknowledges it all the same.
                _ => {
                    self.ports.inb(MSR);
                    Progress::default()
                }
            });
        }
        progress
    }

    /// There is something new in the output ring: starts sending unless the transmitter is busy, in which case its
    /// interrupt goes on with it.
    pub fn kick(&mut self, input: &mut Producer<'_>, output: &mut Consumer<'_>) -> Progress {
        let status = self.line_status();
        let drained = if status & LSR_DATA_READY != 0 {
            self.drain(input)
        } else {
            Progress::default()
        };
        let sent = if status & LSR_HOLDING_EMPTY != 0 {
            self.send(output)
        } else {
            Progress::default()
        };
        drained.merge(sent)
    }

    /// The transmitter's interrupt will come. If not, the caller announces its sleep on the output ring, and calls
    /// [`Driver::kick`] when it is woken.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.busy
    }

    /// What happened on the line so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Reads LSR, which clears its error bits: they are counted here.
    fn line_status(&mut self) -> u8 {
        let status = self.ports.inb(LSR);
        if status & LSR_ERRORS != 0 {
            self.figures.line_errors += 1;
        }
        status
    }

    fn drain(&mut self, input: &mut Producer<'_>) -> Progress {
        let mut progress = Progress::default();
        for _ in 0..ROUNDS {
            if self.line_status() & LSR_DATA_READY == 0 {
                break;
            }
            let byte = self.ports.inb(DATA);
            // Without room the byte is dropped: leaving it would keep the interrupt up for ever.
            if input.push(&[byte]) == 1 {
                self.figures.received += 1;
                progress.received = true;
            } else {
                self.figures.dropped += 1;
            }
        }
        progress
    }

    /// Fills the empty transmit FIFO. With nothing to send, the transmitter stays idle until [`Driver::kick`].
    fn send(&mut self, output: &mut Consumer<'_>) -> Progress {
        let mut bytes = [0; FIFO_BYTES];
        let count = output.peek(&mut bytes);
        if count != 0 {
            self.ports.outb_all(DATA, bytes.get(..count).unwrap_or(&[]));
        }
        output.advance(count);
        self.busy = count != 0;
        self.figures.sent += count as u64;
        Progress {
            received: false,
            sent: count != 0,
        }
    }
}
