//! The UART's state as words for a state page.

use crate::fifo::Fifo;
use crate::{FCR_ENABLE, FCR_KEPT, IER_MASK, MCR_MASK, Uart};

/// Words of state.
pub const STATE_WORDS: usize = 6;
/// What is configuration of the first one: all registers but MSR, whose deltas come and go.
const CONFIGURATION: u64 = !(0xff << 32);

impl Uart {
    /// The whole state: registers, flags and FIFO lengths, receive FIFO (2 words), transmit FIFO (2 words).
    #[must_use]
    pub fn state(&self) -> [u64; STATE_WORDS] {
        let registers = [
            self.ier,
            self.fcr,
            self.lcr,
            self.mcr,
            self.msr,
            self.scratch,
            self.divisor[0],
            self.divisor[1],
        ];
        let flags = u64::from(self.received.len())
            | u64::from(self.to_send.len()) << 8
            | u64::from(self.overrun) << 16
            | u64::from(self.transmit_event) << 17;
        let (received, to_send) = (self.received.words(), self.to_send.words());
        [
            u64::from_le_bytes(registers),
            flags,
            received.0,
            received.1,
            to_send.0,
            to_send.1,
        ]
    }

    /// What of [`Uart::state`]'s words the guest's driver has set, and nobody else knows.
    #[must_use]
    pub const fn configuration(words: &[u64; STATE_WORDS + 1]) -> u64 {
        let [registers, ..] = *words;
        registers & CONFIGURATION
    }

    /// As [`Uart::restore`], from a record of which only the configuration is known to be the newest: what was in the FIFOs is lost, and
    /// the guest is told that the transmitter has become empty.
    #[must_use]
    pub fn restore_configuration(words: &[u64]) -> Option<Self> {
        let uart = Self::restore(words)?;
        Some(Self {
            overrun: false,
            transmit_event: true,
            received: Fifo::default(),
            to_send: Fifo::default(),
            ..uart
        })
    }

    /// Rebuilds a UART from [`Uart::state`]'s words; `None` if they are not a state that a UART can have.
    #[must_use]
    pub fn restore(words: &[u64]) -> Option<Self> {
        let &[
            registers,
            flags,
            received_low,
            received_high,
            send_low,
            send_high,
        ] = words
        else {
            return None;
        };
        let [ier, fcr, lcr, mcr, msr, scratch, divisor_low, divisor_high] = registers.to_le_bytes();
        let [received_len, send_len, bits, rest @ ..] = flags.to_le_bytes();
        let uart = Self {
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scratch,
            divisor: [divisor_low, divisor_high],
            overrun: bits & 1 != 0,
            transmit_event: bits & 2 != 0,
            received: Fifo::from_words(received_low, received_high, received_len)?,
            to_send: Fifo::from_words(send_low, send_high, send_len)?,
            dirty: false,
        };
        let possible = ier & !IER_MASK == 0
            && fcr & !FCR_KEPT == 0
            && (fcr == 0 || fcr & FCR_ENABLE != 0)
            && mcr & !MCR_MASK == 0
            && bits & !3 == 0
            && rest == [0; 5]
            && received_len <= uart.depth()
            && send_len <= uart.depth();
        possible.then_some(uart)
    }
}
