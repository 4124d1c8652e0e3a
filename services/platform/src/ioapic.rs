//! I/O APICs: which interrupt input goes to which processor and vector (Intel 82093AA datasheet, 3.2).

use crate::hardware::{Hardware, Width};
use crate::madt::Mode;

/// Offset of the register that selects.
const SELECT: u64 = 0;
/// Offset of the register selected.
const WINDOW: u64 = 0x10;
/// Number of the version register: bits 16..24 are the number of the last input.
const VERSION: u32 = 1;
/// Number of the first redirection entry's low half.
const REDIRECTION: u32 = 0x10;
/// Bit of an entry: masked.
const MASKED: u32 = 1 << 16;
/// Bit of an entry: level-triggered.
const LEVEL: u32 = 1 << 15;
/// Bit of an entry: active low.
const ACTIVE_LOW: u32 = 1 << 13;
/// Most inputs that the selector can reach.
const MAX_LINES: u32 = 120;

/// An I/O APIC that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its id in the MADT.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// The global system interrupt of its first input.
    pub gsi_base: u32,
    /// Inputs.
    pub lines: u32,
}

impl IoApic {
    /// Looks how many inputs it has, and masks them all. `None`: nothing answers there.
    pub fn start(machine: &mut impl Hardware, of: &crate::madt::IoApic) -> Option<Self> {
        let mut this = Self {
            id: of.id,
            address: of.address,
            gsi_base: of.gsi_base,
            lines: 0,
        };
        let version = this.read(machine, VERSION)?;
        if version == u32::MAX {
            return None;
        }
        this.lines = ((version >> 16) & 0xff).saturating_add(1).min(MAX_LINES);
        for line in 0..this.lines {
            this.write(machine, REDIRECTION + 2 * line, MASKED)?;
        }
        Some(this)
    }

    fn read(&self, machine: &mut impl Hardware, number: u32) -> Option<u32> {
        machine.register_out(self.address.checked_add(SELECT)?, Width::Long, number)?;
        machine.register_in(self.address.checked_add(WINDOW)?, Width::Long)
    }

    fn write(&self, machine: &mut impl Hardware, number: u32, value: u32) -> Option<()> {
        machine.register_out(self.address.checked_add(SELECT)?, Width::Long, number)?;
        machine.register_out(self.address.checked_add(WINDOW)?, Width::Long, value)
    }

    /// The number of the input that a global system interrupt is.
    fn line(&self, gsi: u32) -> Option<u32> {
        gsi.checked_sub(self.gsi_base).filter(|&l| l < self.lines)
    }

    /// Whether the global system interrupt is one of its inputs.
    #[must_use]
    pub fn has(&self, gsi: u32) -> bool {
        self.line(gsi).is_some()
    }

    /// Sends an input to a processor's vector: fixed delivery, physical destination. It is masked while it changes.
    pub fn route(
        &self,
        machine: &mut impl Hardware,
        gsi: u32,
        mode: Mode,
        vector: u8,
        apic_id: u8,
    ) -> Option<()> {
        let low = REDIRECTION + 2 * self.line(gsi)?;
        let level = if mode.level { LEVEL } else { 0 };
        let polarity = if mode.active_low { ACTIVE_LOW } else { 0 };
        self.write(machine, low, MASKED)?;
        self.write(machine, low + 1, u32::from(apic_id) << 24)?;
        self.write(machine, low, u32::from(vector) | level | polarity)
    }

    /// Lets an input through again that was masked.
    pub fn unmask(&self, machine: &mut impl Hardware, gsi: u32) -> Option<()> {
        let low = REDIRECTION + 2 * self.line(gsi)?;
        let entry = self.read(machine, low)?;
        self.write(machine, low, entry & !MASKED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{IOAPIC, Machine};

    fn machine() -> (Machine, IoApic) {
        let mut machine = Machine::with_ioapic(24);
        let of = crate::madt::IoApic {
            id: 7,
            address: IOAPIC,
            gsi_base: 16,
        };
        let ioapic = IoApic::start(&mut machine, &of).unwrap();
        (machine, ioapic)
    }

    #[test]
    fn all_masked_at_first() {
        let (machine, ioapic) = machine();
        assert_eq!(ioapic.lines, 24);
        assert!((0..24).all(|l| machine.redirection(l) & u64::from(MASKED) != 0));
        assert!(ioapic.has(16) && ioapic.has(39) && !ioapic.has(15) && !ioapic.has(40));
    }

    #[test]
    fn entries() {
        let (mut machine, ioapic) = machine();
        ioapic.route(&mut machine, 20, Mode::ISA, 0x41, 3).unwrap();
        assert_eq!(machine.redirection(4), 3 << 56 | 0x41);
        ioapic.route(&mut machine, 21, Mode::PCI, 0x42, 0).unwrap();
        assert_eq!(machine.redirection(5), 0xa042);
        assert_eq!(ioapic.route(&mut machine, 40, Mode::ISA, 0x43, 0), None);
        assert_eq!(ioapic.route(&mut machine, 15, Mode::ISA, 0x43, 0), None);
        machine.set_redirection(5, 0x1_a042);
        ioapic.unmask(&mut machine, 21).unwrap();
        assert_eq!(machine.redirection(5), 0xa042);
    }

    /// In between, no interrupt can go to a half-written destination.
    #[test]
    fn masked_while_it_changes() {
        let (mut machine, ioapic) = machine();
        ioapic.route(&mut machine, 20, Mode::ISA, 0x41, 3).unwrap();
        machine.forget();
        ioapic.route(&mut machine, 20, Mode::ISA, 0x42, 5).unwrap();
        assert_eq!(
            machine.history(4),
            [3 << 56 | 0x1_0000, 5 << 56 | 0x1_0000, 5 << 56 | 0x42]
        );
    }

    #[test]
    fn nothing_there() {
        let of = crate::madt::IoApic {
            id: 0,
            address: 0x1234_0000,
            gsi_base: 0,
        };
        assert_eq!(IoApic::start(&mut Machine::default(), &of), None);
        let of = crate::madt::IoApic {
            address: u64::MAX,
            ..of
        };
        assert_eq!(IoApic::start(&mut Machine::default(), &of), None);
    }
}
