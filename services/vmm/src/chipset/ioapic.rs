//! The IOAPIC: 24 pins turned into interrupt messages (Intel 82093AA datasheet; the EOI register of the ICH).

use super::map::{IOAPIC_ID, IOAPIC_PINS};
use super::message::{Delivery, Destination, Message};

/// Register select, byte offset.
const SELECT: u64 = 0x00;
/// Register window, byte offset.
const WINDOW: u64 = 0x10;
/// EOI register, byte offset.
const EOI: u64 = 0x40;

/// Index of the ID register.
const INDEX_ID: u8 = 0;
/// Index of the version register.
const INDEX_VERSION: u8 = 1;
/// Index of the arbitration ID register.
const INDEX_ARBITRATION: u8 = 2;
/// Index of the first redirection entry's low half.
const INDEX_ENTRIES: u8 = 0x10;

/// Version 0x20 (it has an EOI register), highest pin in bits 23:16.
const VERSION: u32 = (IOAPIC_PINS as u32 - 1) << 16 | 0x20;

/// Redirection entry: logical destination.
const LOGICAL: u64 = 1 << 11;
/// Redirection entry: a level-triggered interrupt was accepted and not ended yet (read-only).
const REMOTE_IRR: u64 = 1 << 14;
/// Redirection entry: level-triggered.
const LEVEL: u64 = 1 << 15;
/// Redirection entry: masked.
const MASKED: u64 = 1 << 16;
/// Redirection entry: writable bits. Polarity (bit 13) is kept but means nothing: lines are logical levels.
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

/// Where the IOAPIC's messages go: true if an APIC took it.
pub trait Deliver: FnMut(&Message) -> bool {}
impl<F: FnMut(&Message) -> bool> Deliver for F {}

/// The IOAPIC.
#[derive(Clone, Debug)]
pub struct Ioapic {
    id: u32,
    select: u8,
    entries: [u64; IOAPIC_PINS],
    /// Levels of the pins.
    lines: u32,
}

impl Default for Ioapic {
    fn default() -> Self {
        Self {
            id: u32::from(IOAPIC_ID) << 24,
            select: 0,
            entries: [MASKED; IOAPIC_PINS],
            lines: 0,
        }
    }
}

impl Ioapic {
    /// Whether `pin` is masked, so that nobody sees its edges.
    pub fn masked(&self, pin: usize) -> bool {
        self.entries
            .get(pin)
            .is_none_or(|entry| entry & MASKED != 0)
    }

    /// Where the 8259 pair's interrupts go, if pin 0 passes them on as ExtINT.
    pub fn external(&self) -> Option<Destination> {
        let [entry, ..] = self.entries;
        (entry & MASKED == 0 && Delivery::from_bits(entry) == Delivery::External)
            .then(|| destination(entry))
    }

    /// Sets the level of `pin`. An edge at a masked pin is lost (82093AA, 3.2.4, bit 16).
    pub fn set_line(&mut self, pin: usize, level: bool, deliver: impl Deliver) {
        let Some(&entry) = self.entries.get(pin) else {
            return;
        };
        let bit = 1 << pin;
        let rising = level && self.lines & bit == 0;
        self.lines = if level {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        if rising || (level && entry & LEVEL != 0) {
            self.service(pin, deliver);
        }
    }

    /// Sends the interrupt of `pin`, unless it is masked or, level-triggered, not asserted or already in service.
    fn service(&mut self, pin: usize, mut deliver: impl Deliver) {
        let Some(entry) = self.entries.get_mut(pin) else {
            return;
        };
        let level = *entry & LEVEL != 0;
        if *entry & MASKED != 0
            || (level && (self.lines >> pin & 1 == 0 || *entry & REMOTE_IRR != 0))
        {
            return;
        }
        let Some(message) = message(*entry) else {
            return;
        };
        // A vector below 16 is taken as an error only, and nobody would ever end it.
        if deliver(&message) && message.level && message.vector >= 16 {
            *entry |= REMOTE_IRR;
        }
    }

    /// The level of `pin`, where no more is to come of it: the pin is edge-triggered.
    #[inline]
    pub fn set_level(&mut self, pin: u32, level: bool) {
        let bit = 1u32.checked_shl(pin).unwrap_or(0);
        self.lines = if level {
            self.lines | bit
        } else {
            self.lines & !bit
        };
    }

    /// The message that a rising edge of `pin` is, whatever came before: none if the pin is masked or level-triggered, or does something
    /// else than request a vector.
    pub fn edge(&self, pin: usize) -> Option<Message> {
        let entry = *self.entries.get(pin)?;
        let message = message(entry)?;
        let requests = matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority);
        (entry & (MASKED | LEVEL) == 0 && requests && message.vector >= 16).then_some(message)
    }

    /// Sends what level-triggered pins could not send before: a local APIC was enabled.
    pub fn retry(&mut self, mut deliver: impl Deliver) {
        for pin in 0..IOAPIC_PINS {
            if self
                .entries
                .get(pin)
                .is_some_and(|entry| entry & LEVEL != 0)
            {
                self.service(pin, &mut deliver);
            }
        }
    }

    /// A level-triggered interrupt with `vector` ended: a pin that is still asserted interrupts again.
    pub fn end_of_interrupt(&mut self, vector: u8, mut deliver: impl Deliver) {
        for pin in 0..IOAPIC_PINS {
            let Some(entry) = self.entries.get_mut(pin) else {
                continue;
            };
            if *entry as u8 == vector && *entry & REMOTE_IRR != 0 {
                *entry &= !REMOTE_IRR;
                self.service(pin, &mut deliver);
            }
        }
    }

    /// Reads the register at byte `offset` of the IOAPIC's page.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => u32::from(self.select),
            WINDOW => match self.select {
                INDEX_ID | INDEX_ARBITRATION => self.id,
                INDEX_VERSION => VERSION,
                index => {
                    let Some((pin, high)) = entry_index(index) else {
                        return 0;
                    };
                    let entry = self.entries.get(pin).copied().unwrap_or(0);
                    (if high { entry >> 32 } else { entry }) as u32
                }
            },
            _ => 0,
        }
    }

    /// Writes the register at byte `offset` of the IOAPIC's page.
    pub fn write(&mut self, offset: u64, value: u32, deliver: impl Deliver) {
        match offset {
            SELECT => self.select = value as u8,
            WINDOW if self.select == INDEX_ID => self.id = value & 0x0F00_0000,
            WINDOW => self.write_entry(value, deliver),
            EOI => self.end_of_interrupt(value as u8, deliver),
            _ => {}
        }
    }

    fn write_entry(&mut self, value: u32, deliver: impl Deliver) {
        let Some((pin, high)) = entry_index(self.select) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(pin) else {
            return;
        };
        let written = if high {
            *entry & 0xFFFF_FFFF | u64::from(value) << 32
        } else {
            *entry & !0xFFFF_FFFF | u64::from(value)
        };
        *entry = written & WRITABLE | *entry & REMOTE_IRR;
        if *entry & LEVEL == 0 {
            // Software ends an interrupt this way where there is no EOI register.
            *entry &= !REMOTE_IRR;
        } else {
            self.service(pin, deliver);
        }
    }
}

/// What a redirection entry sends; `None` if nothing comes of it.
fn message(entry: u64) -> Option<Message> {
    let delivery = Delivery::from_bits(entry);
    let [vector, ..] = entry.to_le_bytes();
    match delivery {
        Delivery::External | Delivery::Reserved | Delivery::StartUp => None,
        _ => Some(Message {
            destination: destination(entry),
            delivery,
            vector,
            // Only fixed and lowest-priority interrupts can be level-triggered (82093AA, 3.2.4, bits 10:8).
            level: entry & LEVEL != 0
                && matches!(delivery, Delivery::Fixed | Delivery::LowestPriority),
        }),
    }
}

/// The pin and half of redirection table register `index`.
fn entry_index(index: u8) -> Option<(usize, bool)> {
    let offset = index.checked_sub(INDEX_ENTRIES)?;
    let pin = usize::from(offset >> 1);
    (pin < IOAPIC_PINS).then_some((pin, offset & 1 != 0))
}

fn destination(entry: u64) -> Destination {
    let [.., id] = entry.to_le_bytes();
    Destination::short(id, entry & LOGICAL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// An IOAPIC with everything it sent.
    #[derive(Default)]
    struct Rig {
        ioapic: Ioapic,
        sent: Vec<Message>,
        refuse: bool,
    }

    impl Rig {
        fn with_entry(pin: u8, entry: u64) -> Self {
            let mut rig = Self::default();
            rig.write_entry(pin, entry);
            rig
        }
        fn write(&mut self, offset: u64, value: u32) {
            let (sent, refuse) = (&mut self.sent, self.refuse);
            self.ioapic.write(offset, value, |message: &Message| {
                if !refuse {
                    sent.push(*message);
                }
                !refuse
            });
        }
        fn write_entry(&mut self, pin: u8, entry: u64) {
            self.write(SELECT, u32::from(0x11 + 2 * pin));
            self.write(WINDOW, (entry >> 32) as u32);
            self.write(SELECT, u32::from(0x10 + 2 * pin));
            self.write(WINDOW, entry as u32);
        }
        fn entry(&mut self, pin: u8) -> u64 {
            self.write(SELECT, u32::from(0x11 + 2 * pin));
            let high = u64::from(self.ioapic.read(WINDOW));
            self.write(SELECT, u32::from(0x10 + 2 * pin));
            high << 32 | u64::from(self.ioapic.read(WINDOW))
        }
        fn set(&mut self, pin: usize, level: bool) {
            let (sent, refuse) = (&mut self.sent, self.refuse);
            self.ioapic.set_line(pin, level, |message: &Message| {
                if !refuse {
                    sent.push(*message);
                }
                !refuse
            });
        }
        fn eoi(&mut self, vector: u8) {
            let sent = &mut self.sent;
            self.ioapic.end_of_interrupt(vector, |message: &Message| {
                sent.push(*message);
                true
            });
        }
    }

    #[test]
    fn identification() {
        let mut rig = Rig::default();
        rig.write(SELECT, 1);
        assert_eq!(rig.ioapic.read(WINDOW), 0x0017_0020);
        rig.write(SELECT, 0);
        rig.write(WINDOW, 0xFFFF_FFFF);
        assert_eq!(rig.ioapic.read(WINDOW), 0x0F00_0000);
        for pin in 0..24 {
            assert_eq!(rig.entry(pin), MASKED);
        }
        rig.write(SELECT, 0x40);
        rig.write(WINDOW, 0);
        assert_eq!(rig.ioapic.read(WINDOW), 0);
    }

    #[test]
    fn an_edge_is_one_message_and_a_masked_edge_is_lost() {
        let mut rig = Rig::with_entry(4, 0x0300_0000_0000_0931);
        rig.set(4, true);
        rig.set(4, true);
        assert_eq!(
            rig.sent,
            [Message {
                destination: Destination::Logical(3),
                delivery: Delivery::LowestPriority,
                vector: 0x31,
                level: false
            }]
        );
        rig.set(4, false);
        rig.write_entry(4, 0x31 | MASKED);
        rig.set(4, true);
        rig.write_entry(4, 0x31);
        assert_eq!(rig.sent.len(), 1);
        rig.set(4, false);
        rig.set(4, true);
        assert_eq!(rig.sent.len(), 2);
    }

    #[test]
    fn a_level_interrupts_until_it_drops() {
        let mut rig = Rig::with_entry(9, 0x50 | LEVEL);
        rig.set(9, true);
        rig.set(9, true);
        assert_eq!(rig.sent.len(), 1);
        assert!(rig.sent[0].level);
        assert_eq!(rig.entry(9), 0x50 | LEVEL | REMOTE_IRR);
        rig.eoi(0x51);
        assert_eq!(rig.sent.len(), 1);
        rig.eoi(0x50);
        assert_eq!(rig.sent.len(), 2);
        rig.set(9, false);
        rig.write(EOI, 0x50);
        assert_eq!((rig.sent.len(), rig.entry(9)), (2, 0x50 | LEVEL));
    }

    #[test]
    fn a_masked_level_waits_and_an_edge_rewrite_ends_it() {
        let mut rig = Rig::with_entry(9, 0x50 | LEVEL | MASKED);
        rig.set(9, true);
        assert!(rig.sent.is_empty());
        rig.write_entry(9, 0x50 | LEVEL);
        assert_eq!(rig.sent.len(), 1);
        // Remote IRR is read-only, and cleared by edge mode.
        rig.write_entry(9, 0x50 | LEVEL);
        assert_eq!(
            (rig.sent.len(), rig.entry(9)),
            (1, 0x50 | LEVEL | REMOTE_IRR)
        );
        rig.write_entry(9, 0x50 | MASKED);
        assert_eq!(rig.entry(9), 0x50 | MASKED);
    }

    #[test]
    fn a_refused_level_is_sent_again() {
        let mut rig = Rig {
            refuse: true,
            ..Rig::default()
        };
        rig.write_entry(5, 0x60 | LEVEL);
        rig.set(5, true);
        assert_eq!(rig.entry(5), 0x60 | LEVEL);
        let sent = &mut rig.sent;
        rig.ioapic.retry(|message: &Message| {
            sent.push(*message);
            true
        });
        assert_eq!(
            (rig.sent.len(), rig.entry(5)),
            (1, 0x60 | LEVEL | REMOTE_IRR)
        );
    }

    #[test]
    fn pin_0_may_pass_on_the_8259() {
        let mut rig = Rig::with_entry(0, 0x0200_0000_0000_0700);
        assert_eq!(rig.ioapic.external(), Some(Destination::Physical(2)));
        rig.set(0, true);
        assert!(rig.sent.is_empty());
        rig.write_entry(0, 0x700 | MASKED);
        assert_eq!(rig.ioapic.external(), None);
    }

    #[test]
    fn pins_that_do_not_exist() {
        let mut rig = Rig::default();
        rig.set(24, true);
        rig.set(usize::MAX, true);
        assert!(rig.sent.is_empty() && rig.ioapic.masked(24));
    }
}
