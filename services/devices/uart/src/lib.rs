//! The 16550A UART that a VM sees: the model only, pure.
//!
//! Job: register reads and writes in, bytes and an interrupt level out. Place: one `device-uart` server per UART of a
//! VM; the kernel routes the guest's port accesses straight to it. Trust: the guest is hostile; every access of every
//! kind has a defined, bounded answer. What a state page holds is checked on the way back in.
//!
//! Source: National Semiconductor PC16550D data sheet (section numbers below are its own), and the PC/AT's wiring of
//! OUT2, which gates the interrupt line.
//!
//! Where the model is faster than hardware, on purpose: the line has no baud rate. A byte written is ready to leave at
//! once, a loop-back arrives at once, and the time-out of section 8.4.1 ("four character times") passes at once.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod fifo;
pub mod server;
mod state;
#[cfg(test)]
mod tests;

use fifo::{DEPTH, Fifo};
pub use state::STATE_WORDS;

/// Ports that a UART occupies.
pub const PORTS: u16 = 8;

/// Register offsets (data sheet table I).
pub mod register {
    /// Receive buffer (read), transmit holding (write), divisor low (DLAB).
    pub const DATA: u8 = 0;
    /// Interrupt enable; divisor high (DLAB).
    pub const IER: u8 = 1;
    /// Interrupt identification (read).
    pub const IIR: u8 = 2;
    /// FIFO control (write).
    pub const FCR: u8 = 2;
    /// Line control.
    pub const LCR: u8 = 3;
    /// Modem control.
    pub const MCR: u8 = 4;
    /// Line status.
    pub const LSR: u8 = 5;
    /// Modem status.
    pub const MSR: u8 = 6;
    /// Scratch.
    pub const SCR: u8 = 7;
}

const IER_RECEIVED: u8 = 0x01;
const IER_TRANSMIT_EMPTY: u8 = 0x02;
const IER_LINE_STATUS: u8 = 0x04;
const IER_MODEM_STATUS: u8 = 0x08;
const IER_MASK: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIME_OUT: u8 = 0x0c;
const IIR_FIFOS: u8 = 0xc0;

const FCR_ENABLE: u8 = 0x01;
const FCR_RESET_RECEIVE: u8 = 0x02;
const FCR_RESET_TRANSMIT: u8 = 0x04;
/// The bits that stay: enable, DMA mode (without effect), trigger level.
const FCR_KEPT: u8 = 0xc9;

const LCR_DLAB: u8 = 0x80;

const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
const MCR_MASK: u8 = 0x1f;

const LSR_DATA_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_HOLDING_EMPTY: u8 = 0x20;
const LSR_TRANSMITTER_EMPTY: u8 = 0x40;

const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RING: u8 = 0x40;
const MSR_CARRIER: u8 = 0x80;
const MSR_LINES: u8 = 0xf0;
const MSR_DELTA_RING: u8 = 0x04;

/// The UART. `Default` is its state after reset (section 8.0, table II).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// A receive overrun that LSR has not reported yet.
    overrun: bool,
    /// The transmit-empty interrupt stands: set by its event, reset by an IIR read that reports it or by a THR write.
    transmit_event: bool,
    received: Fifo,
    to_send: Fifo,
    /// The state has changed since [`Uart::take_dirty`].
    dirty: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            // A null modem to a terminal that is always there.
            msr: MSR_CARRIER | MSR_DSR | MSR_CTS,
            scratch: 0,
            // 9600 baud of 1.8432 MHz; the data sheet leaves it undefined.
            divisor: [12, 0],
            overrun: false,
            transmit_event: false,
            received: Fifo::default(),
            to_send: Fifo::default(),
            dirty: false,
        }
    }
}

impl Uart {
    /// Reads the register at `offset` (0 to 7; beyond reads as an empty bus).
    #[inline]
    pub fn read(&mut self, offset: u8) -> u8 {
        let latch = self.lcr & LCR_DLAB != 0;
        match offset {
            register::DATA if latch => self.divisor[0],
            register::DATA => self.read_received(),
            register::IER if latch => self.divisor[1],
            register::IER => self.ier,
            register::IIR => self.read_identification(),
            register::LCR => self.lcr,
            register::MCR => self.mcr,
            register::LSR => self.read_line_status(),
            register::MSR => self.read_modem_status(),
            register::SCR => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes the register at `offset` (0 to 7; others do nothing).
    pub fn write(&mut self, offset: u8, value: u8) {
        let latch = self.lcr & LCR_DLAB != 0;
        self.dirty = true;
        match offset {
            register::DATA if latch => self.divisor[0] = value,
            register::DATA => self.write_holding(value),
            register::IER if latch => self.divisor[1] = value,
            register::IER => self.write_enable(value),
            register::FCR => self.write_fifo_control(value),
            register::LCR => self.lcr = value,
            register::MCR => {
                self.mcr = value & MCR_MASK;
                self.update_modem_lines();
            }
            register::SCR => self.scratch = value,
            // LSR and MSR are meant for factory tests (8.5, 8.7): not writable here.
            _ => {}
        }
    }

    /// An IN of 1, 2 or 4 bytes at `offset`: the bus splits it into bytes, lowest port first.
    pub fn read_wide(&mut self, offset: u8, width: u8) -> u32 {
        let mut value = 0;
        for i in 0..width.min(4) {
            value |= u32::from(self.read(offset.saturating_add(i))) << (u32::from(i) * 8);
        }
        value
    }

    /// An OUT of 1, 2 or 4 bytes at `offset`.
    pub fn write_wide(&mut self, offset: u8, width: u8, value: u32) {
        for (i, byte) in (0..width.min(4)).zip(value.to_le_bytes()) {
            self.write(offset.saturating_add(i), byte);
        }
    }

    /// Bytes arrive on the line. Takes as many as the receiver has room for and returns how many: the rest should be
    /// offered again after the guest has read. Nothing is taken while the receiver is looped back.
    #[must_use]
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.input_room());
        for &byte in bytes.iter().take(count) {
            self.received.push(byte);
        }
        self.dirty |= count != 0;
        count
    }

    /// Bytes that [`Uart::input`] would take now.
    #[must_use]
    pub fn input_room(&self) -> usize {
        if self.mcr & MCR_LOOP != 0 {
            return 0;
        }
        usize::from(self.depth().saturating_sub(self.received.len()))
    }

    /// Takes bytes that leave on the line; returns how many. The transmitter is empty, and says so to the guest, once
    /// all have been taken.
    #[must_use]
    pub fn take_output(&mut self, into: &mut [u8]) -> usize {
        let mut count = 0;
        for slot in into {
            let Some(byte) = self.to_send.pop() else {
                break;
            };
            *slot = byte;
            count += 1;
        }
        if count != 0 {
            self.dirty = true;
            self.transmit_event |= self.to_send.is_empty();
        }
        count
    }

    /// Bytes that wait to leave.
    #[must_use]
    pub fn output_len(&self) -> usize {
        usize::from(self.to_send.len())
    }

    /// The level of the interrupt line. As on a PC, OUT2 opens the gate to it; loop-back forces OUT2 off (8.6).
    #[must_use]
    pub fn irq(&self) -> bool {
        self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.source() != IIR_NONE
    }

    /// Whether [`Uart::take_dirty`] would be true.
    #[must_use]
    #[inline]
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// True if the state has changed since the last call: it should be committed.
    #[must_use]
    #[inline]
    pub fn take_dirty(&mut self) -> bool {
        core::mem::take(&mut self.dirty)
    }

    fn fifos_enabled(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn depth(&self) -> u8 {
        if self.fifos_enabled() { DEPTH } else { 1 }
    }

    /// The receive trigger level (8.4).
    fn trigger(&self) -> u8 {
        match (self.fifos_enabled(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// The interrupt of highest priority (table IV).
    fn source(&self) -> u8 {
        let enabled = |bit| self.ier & bit != 0;
        if enabled(IER_LINE_STATUS) && self.overrun {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && self.received.len() >= self.trigger() {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && !self.received.is_empty() {
            IIR_TIME_OUT
        } else if enabled(IER_TRANSMIT_EMPTY) && self.transmit_event {
            IIR_TRANSMIT_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.msr & !MSR_LINES != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn read_received(&mut self) -> u8 {
        // An empty receiver reads as 0.
        self.received
            .pop()
            .inspect(|_| self.dirty = true)
            .unwrap_or(0)
    }

    fn read_identification(&mut self) -> u8 {
        let source = self.source();
        if source == IIR_TRANSMIT_EMPTY {
            self.transmit_event = false;
            self.dirty = true;
        }
        source | if self.fifos_enabled() { IIR_FIFOS } else { 0 }
    }

    fn read_line_status(&mut self) -> u8 {
        let mut status = 0;
        if !self.received.is_empty() {
            status |= LSR_DATA_READY;
        }
        if self.to_send.is_empty() {
            status |= LSR_HOLDING_EMPTY | LSR_TRANSMITTER_EMPTY;
        }
        if self.overrun {
            status |= LSR_OVERRUN;
            self.overrun = false;
            self.dirty = true;
        }
        status
    }

    fn read_modem_status(&mut self) -> u8 {
        let status = self.msr;
        if status & !MSR_LINES != 0 {
            self.msr &= MSR_LINES;
            self.dirty = true;
        }
        status
    }

    fn write_holding(&mut self, byte: u8) {
        self.transmit_event = false;
        if self.mcr & MCR_LOOP != 0 {
            self.receive_looped(byte);
            self.transmit_event = true;
        } else if self.to_send.len() < self.depth() {
            self.to_send.push(byte);
        }
        // Else the guest wrote without looking at THRE: the byte is lost, as on hardware.
    }

    fn receive_looped(&mut self, byte: u8) {
        if self.received.len() < self.depth() {
            self.received.push(byte);
            return;
        }
        // 8.3: with FIFOs the new character is lost; without, it replaces the old one.
        self.overrun = true;
        if !self.fifos_enabled() {
            self.received = Fifo::default();
            self.received.push(byte);
        }
    }

    fn write_enable(&mut self, value: u8) {
        let value = value & IER_MASK;
        // Enabling the interrupt while the holding register is empty raises it; Linux relies on it to start sending.
        if value & !self.ier & IER_TRANSMIT_EMPTY != 0 && self.to_send.is_empty() {
            self.transmit_event = true;
        }
        self.ier = value;
    }

    fn write_fifo_control(&mut self, value: u8) {
        // 8.4: changing the enable bit clears both FIFOs; the other bits count only together with it.
        let switched = (value ^ self.fcr) & FCR_ENABLE != 0;
        let enabled = value & FCR_ENABLE != 0;
        if switched || enabled && value & FCR_RESET_RECEIVE != 0 {
            self.received = Fifo::default();
        }
        if (switched || enabled && value & FCR_RESET_TRANSMIT != 0) && !self.to_send.is_empty() {
            self.to_send = Fifo::default();
            self.transmit_event = true;
        }
        self.fcr = if enabled { value & FCR_KEPT } else { 0 };
    }

    /// Recomputes the modem lines after MCR changed, and the deltas that follow (8.6, 8.7).
    fn update_modem_lines(&mut self) {
        let lines = if self.mcr & MCR_LOOP != 0 {
            // DTR -> DSR, RTS -> CTS, OUT1 -> RI, OUT2 -> DCD.
            (self.mcr & 0x01) << 5 | (self.mcr & 0x02) << 3 | (self.mcr & 0x0c) << 4
        } else {
            MSR_CARRIER | MSR_DSR | MSR_CTS
        };
        let changed = (self.msr ^ lines) >> 4;
        let mut deltas = self.msr & !MSR_LINES | changed & !MSR_DELTA_RING;
        // Ring counts on its trailing edge only.
        if self.msr & MSR_RING != 0 && lines & MSR_RING == 0 {
            deltas |= MSR_DELTA_RING;
        }
        self.msr = lines | deltas;
    }
}
