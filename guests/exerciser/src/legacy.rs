//! The PC's old parts: 8259A PICs, 8254 PIT, MC146818 real-time clock.

use crate::cpu::{inb, outb};
use crate::idt::PIC;

/// The PIT's clock in Hz.
pub const PIT_HZ: u64 = 1_193_182;

/// Sets both PICs up (ICW1-4: edge, cascade on 2, vectors from [`PIC`], 8086 mode) and masks all.
pub fn mask_all() {
    for (port, second, third) in [(0x20, PIC, 4), (0xa0, PIC + 8, 2)] {
        outb(port, 0x11);
        outb(port + 1, second);
        outb(port + 1, third);
        outb(port + 1, 1);
        outb(port + 1, 0xff);
    }
}

/// Lets one interrupt of the PICs through (and the cascade), no other.
pub fn unmask_only(irq: u8) {
    let mask = !(1u16 << (irq & 15) | u16::from(irq >= 8) << 2);
    outb(0x21, mask as u8);
    outb(0xa1, (mask >> 8) as u8);
}

/// Ends the interrupt `irq` by a non-specific EOI.
pub fn acknowledge(irq: u8) {
    if irq >= 8 {
        outb(0xa0, 0x20);
    }
    outb(0x20, 0x20);
}

/// In-service bits of the first (low byte) and the second PIC.
pub fn in_service() -> u16 {
    outb(0x20, 0x0b);
    outb(0xa0, 0x0b);
    u16::from(inb(0x20)) | u16::from(inb(0xa0)) << 8
}

/// Request bits of the first (low byte) and the second PIC.
pub fn requests() -> u16 {
    outb(0x20, 0x0a);
    outb(0xa0, 0x0a);
    u16::from(inb(0x20)) | u16::from(inb(0xa0)) << 8
}

/// Programs a channel: mode 0 to 5, 16-bit binary count (0 means 65,536).
pub fn pit(channel: u8, mode: u8, count: u16) {
    outb(0x43, channel << 6 | 0x30 | mode << 1);
    outb(0x40 + u16::from(channel), count as u8);
    outb(0x40 + u16::from(channel), (count >> 8) as u8);
}

/// A channel's count, latched.
pub fn pit_count(channel: u8) -> u16 {
    outb(0x43, channel << 6);
    let low = inb(0x40 + u16::from(channel));
    u16::from(low) | u16::from(inb(0x40 + u16::from(channel))) << 8
}

/// Starts channel 2 in mode 0 with its gate open and the speaker off; see [`pit2_done`].
pub fn pit2_start(count: u16) {
    outb(0x61, inb(0x61) & !3);
    pit(2, 0, count);
    outb(0x61, inb(0x61) & !3 | 1);
}

/// Whether channel 2's output is high: in mode 0, the count has run out.
pub fn pit2_done() -> bool {
    inb(0x61) & 0x20 != 0
}

/// Reads a register of the real-time clock.
pub fn rtc(register: u8) -> u8 {
    outb(0x70, register);
    inb(0x71)
}

/// Writes a register of the real-time clock.
pub fn set_rtc(register: u8, value: u8) {
    outb(0x70, register);
    outb(0x71, value);
}
