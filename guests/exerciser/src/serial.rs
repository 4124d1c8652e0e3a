//! The 16550 at 0x3f8, polled: where the guest's report goes.

use core::fmt;

use crate::cpu::{inb, outb};

/// First port of the UART.
pub const UART: u16 = 0x3f8;
/// Line status: the transmitter holding register is empty.
const THRE: u8 = 1 << 5;
/// Line status: a byte has come in.
const DATA_READY: u8 = 1;

/// 8N1 at 115,200 baud, FIFOs on, no interrupts.
pub fn init() {
    outb(UART + 1, 0);
    outb(UART + 3, 0x80);
    outb(UART, 1);
    outb(UART + 1, 0);
    outb(UART + 3, 0x03);
    outb(UART + 2, 0x07);
    outb(UART + 4, 0x0b);
}

/// Sends one byte, when there is room; a line that stays busy loses it.
pub fn send(byte: u8) {
    for _ in 0..1_000_000 {
        if inb(UART + 5) & THRE != 0 {
            break;
        }
    }
    outb(UART, byte);
}

/// Waits until everything sent has left, so that a test may change the UART.
pub fn drain() {
    for _ in 0..1_000_000 {
        if inb(UART + 5) & 0x40 != 0 {
            break;
        }
    }
}

/// The next byte that came in, if any.
pub fn receive() -> Option<u8> {
    (inb(UART + 5) & DATA_READY != 0).then(|| inb(UART))
}

/// The line as something to format into.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}

/// Prints a line on the serial line.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => {{
        use core::fmt::Write as _;
        // The serial line cannot fail.
        let _ = writeln!($crate::serial::Serial, $($part)*);
    }};
}
