//! Interrupt lines, from the devices to the controllers; and the known ways of their edges, straight to one vector of one vCPU.
//!
//! Job: take a line's level to the 8259 pair and to its IOAPIC pin, and remember where an edge ends, so that the next one need not go
//! through the pair, the IOAPIC and the bus. What a way depends on (the pin's redirection entry, the pair's masks and ELCR, the APICs'
//! enabling and logical IDs) guests change a few times in their lives, and whoever changes any of it forgets all ways:
//! [`Ways::forget`]. A way that is wrong is a lost interrupt; the tests compare each with [`Chipset::work_out`] after every step.

use super::message::Message;
use super::{Chipset, map};

/// Lines that the platform's own devices drive too: what such a line does depends on those.
const SHARED: u32 = 1 << map::PIT_IRQ | 1 << map::PIT_GSI | 1 << map::SCI_GSI;
const _: () = assert!(map::IOAPIC_PINS <= 32);

/// Where an edge goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The vCPU.
    pub cpu: u32,
    /// The vector that its APIC requests.
    pub vector: u8,
}

/// The ways of all lines.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// Lines that have one, and lines for which it has been worked out that they have none.
    direct: u32,
    none: u32,
    to: [Way; map::IOAPIC_PINS],
}

impl Ways {
    /// Something that a way can depend on may have changed.
    #[inline]
    pub fn forget(&mut self) {
        self.direct = 0;
        self.none = 0;
    }

    /// The way of an edge of line `gsi`, if it is known and direct.
    #[inline]
    pub fn get(&self, gsi: u32) -> Option<Way> {
        if self.direct.checked_shr(gsi).unwrap_or(0) & 1 == 0 {
            return None;
        }
        self.to.get(gsi as usize).copied()
    }

    fn learn(&mut self, gsi: u32, way: Option<Way>) {
        let bit = 1u32.checked_shl(gsi).unwrap_or(0);
        match (way, self.to.get_mut(gsi as usize)) {
            (Some(way), Some(to)) => {
                *to = way;
                self.direct |= bit;
            }
            _ => self.none |= bit,
        }
    }

    /// Whether [`Ways::get`] says all that there is to know of `gsi`. Lines from 32 on are no lines.
    pub fn knows(&self, gsi: u32) -> bool {
        (self.direct | self.none)
            .checked_shr(gsi)
            .is_none_or(|known| known & 1 != 0)
    }
}

impl Chipset {
    /// A device server's line `gsi` now has this `level`, and has risen (`rose`) since it was last heard of, perhaps more than once and
    /// fallen in between. Lines that do not exist are ignored.
    #[inline]
    pub fn line(&mut self, gsi: u32, rose: bool, level: bool) {
        let Some(way) = self.bus.ways.get(gsi) else {
            return self.line_unknown(gsi, rose, level);
        };
        let was = self.external(gsi);
        if level != was {
            self.set_external(gsi, level);
            self.pic.set_level(gsi, level);
            self.ioapic.set_level(gsi, level);
        }
        // The pair has it masked: it only latches the edge.
        if rose || level && !was {
            self.pic.latch(gsi);
            self.bus.interrupt(way);
        }
    }

    /// The same, all the way; then works out the line's way for the next time.
    #[inline(never)]
    fn line_unknown(&mut self, gsi: u32, rose: bool, level: bool) {
        if rose {
            // Had it been high, it has fallen since.
            if self.external(gsi) {
                self.set_line(gsi, false);
            }
            self.set_line(gsi, true);
        }
        self.set_line(gsi, level);
        if !self.bus.ways.knows(gsi) {
            let way = self.work_out(gsi);
            self.bus.ways.learn(gsi, way);
        }
    }

    /// The way that an edge of line `gsi` takes, from all that it depends on.
    pub(super) fn work_out(&self, gsi: u32) -> Option<Way> {
        let shared = SHARED.checked_shr(gsi).unwrap_or(1) & 1 != 0;
        if shared || !self.pic.only_latches(gsi) {
            return None;
        }
        self.bus.only_receiver(&self.ioapic.edge(gsi as usize)?)
    }

    /// The level of a device server's line as it was last heard of.
    #[inline]
    fn external(&self, gsi: u32) -> bool {
        self.external_lines.checked_shr(gsi).unwrap_or(0) & 1 != 0
    }

    #[inline]
    fn set_external(&mut self, gsi: u32, level: bool) {
        let bit = 1u32.checked_shl(gsi).unwrap_or(0);
        self.external_lines = if level {
            self.external_lines | bit
        } else {
            self.external_lines & !bit
        };
    }

    /// Takes a device server's line to wherever it leads.
    pub fn set_line(&mut self, gsi: u32, level: bool) {
        self.set_external(gsi, level);
        self.drive(gsi);
    }

    /// Takes line `gsi` to the 8259 pair and to its IOAPIC pin.
    pub(super) fn drive(&mut self, gsi: u32) {
        let bit = 1u32.checked_shl(gsi).unwrap_or(0);
        let level = (self.external_lines | self.own_lines) & bit != 0;
        if gsi < 16 && self.pic.set_line(gsi as u8, level) {
            self.pic_changed();
        }
        // IRQ 0 is at pin 2, and pin 0 is the 8259 pair's.
        let pin = if gsi == u32::from(map::PIT_IRQ) {
            map::PIT_GSI
        } else {
            gsi
        };
        self.set_pin(pin as usize, level);
    }

    fn set_pin(&mut self, pin: usize, level: bool) {
        let bus = &mut self.bus;
        self.ioapic
            .set_line(pin, level, |message: &Message| bus.deliver(message, None));
    }

    /// Passes a change of the 8259 pair's INTR on to LINT0 and IOAPIC pin 0.
    pub(super) fn pic_changed(&mut self) {
        let intr = self.pic.pending().is_some();
        if intr != self.intr {
            self.intr = intr;
            self.bus.set_lint0(intr);
            self.set_pin(0, intr);
        }
    }
}
