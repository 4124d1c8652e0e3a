//! Multiple APIC Description Table: processors and interrupt controllers (ACPI 6.5, 5.2.12).

use alloc::vec::Vec;
use core::pin::Pin;

use acpi::madt::{EntryHeader, MadtEntry};

/// Polarity and trigger mode of an interrupt input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Level-triggered, else edge-triggered.
    pub level: bool,
    /// Active low, else active high.
    pub active_low: bool,
}

impl Mode {
    /// What the ISA bus has.
    pub const ISA: Self = Self {
        level: false,
        active_low: false,
    };
    /// What the PCI bus has.
    pub const PCI: Self = Self {
        level: true,
        active_low: true,
    };

    /// From MPS INTI flags (ACPI 6.5, table 5.26); what "conforms to the bus" is the bus's.
    fn from_flags(flags: u16, bus: Self) -> Self {
        Self {
            active_low: match flags & 3 {
                1 => false,
                3 => true,
                _ => bus.active_low,
            },
            level: match (flags >> 2) & 3 {
                1 => false,
                3 => true,
                _ => bus.level,
            },
        }
    }
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// Its first global system interrupt.
    pub gsi_base: u32,
}

/// An ISA interrupt that is wired otherwise than one to one, edge-triggered and active high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The ISA interrupt.
    pub source: u8,
    /// The global system interrupt that it is.
    pub gsi: u32,
    /// How it is signalled.
    pub mode: Mode,
}

/// What the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Madt {
    /// Local APIC ids of the processors that are enabled, in the order of the table: the first is the boot processor's.
    pub processors: Vec<u32>,
    /// I/O APICs.
    pub ioapics: Vec<IoApic>,
    /// Overrides of ISA interrupts.
    pub overrides: Vec<Override>,
    /// There is a pair of 8259s too.
    pub pics: bool,
}

/// An entry, if it is as long as its kind has to be.
fn whole<T>(entry: &T, header: EntryHeader) -> Option<&T> {
    (usize::from(header.length) >= size_of::<T>()).then_some(entry)
}

/// Reads the table.
#[must_use]
pub fn parse(table: Pin<&acpi::madt::Madt>) -> Madt {
    let mut madt = Madt {
        pics: table.supports_8259(),
        ..Madt::default()
    };
    for entry in table.entries() {
        // An entry that is too short for its kind says nothing.
        let _ = take(&mut madt, &entry);
    }
    madt
}

fn take(madt: &mut Madt, entry: &MadtEntry<'_>) -> Option<()> {
    const ENABLED: u32 = 1;
    match *entry {
        MadtEntry::LocalApic(e) => {
            let e = whole(e, e.header).filter(|e| e.flags & ENABLED != 0)?;
            madt.processors.push(u32::from(e.apic_id));
        }
        MadtEntry::LocalX2Apic(e) => {
            let e = whole(e, e.header).filter(|e| e.flags & ENABLED != 0)?;
            madt.processors.push(e.x2apic_id);
        }
        MadtEntry::IoApic(e) => {
            let e = whole(e, e.header)?;
            madt.ioapics.push(IoApic {
                id: e.io_apic_id,
                address: u64::from(e.io_apic_address),
                gsi_base: e.global_system_interrupt_base,
            });
        }
        // Bus 0 is ISA, the only one.
        MadtEntry::InterruptSourceOverride(e) => {
            let e = whole(e, e.header).filter(|e| e.bus == 0)?;
            madt.overrides.push(Override {
                source: e.irq,
                gsi: e.global_system_interrupt,
                mode: Mode::from_flags(e.flags, Mode::ISA),
            });
        }
        _ => {}
    }
    Some(())
}

impl Madt {
    /// The input that an interrupt is: lines below 16 are ISA's, the others PCI's. `None`: nothing is wired there as the
    /// caller means it, because another ISA interrupt has that input.
    #[must_use]
    pub fn input(&self, line: u32) -> Option<(u32, Mode)> {
        if line >= 16 {
            // The firmware says how an input is signalled that has an ISA interrupt.
            let there = self.overrides.iter().find(|o| o.gsi == line);
            return Some((line, there.map_or(Mode::PCI, |o| o.mode)));
        }
        let own = self.overrides.iter().find(|o| u32::from(o.source) == line);
        match own {
            Some(own) => Some((own.gsi, own.mode)),
            None if self.overrides.iter().any(|o| o.gsi == line) => None,
            None => Some((line, Mode::ISA)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{QEMU_MADT, madt};
    use proptest::prelude::*;

    #[test]
    fn qemu_q35() {
        let madt = madt(&QEMU_MADT);
        assert_eq!(madt.processors, [0, 1]);
        let ioapic = IoApic {
            id: 0,
            address: 0xfec0_0000,
            gsi_base: 0,
        };
        assert_eq!(madt.ioapics, [ioapic]);
        assert!(madt.pics);
        let level_high = Mode {
            level: true,
            active_low: false,
        };
        assert_eq!(madt.input(0), Some((2, Mode::ISA)));
        assert_eq!(madt.input(2), None, "the timer has it");
        assert_eq!(madt.input(4), Some((4, Mode::ISA)));
        assert_eq!(madt.input(9), Some((9, level_high)));
        assert_eq!(madt.input(16), Some((16, Mode::PCI)));
    }

    #[test]
    fn flags() {
        let of = |flags| Mode::from_flags(flags, Mode::ISA);
        assert_eq!(of(0), Mode::ISA);
        assert_eq!(of(0b1111), Mode::PCI);
        assert_eq!(of(0b0101), Mode::ISA);
        assert!(of(0b1101).level && !of(0b1101).active_low);
        assert_eq!(Mode::from_flags(0, Mode::PCI), Mode::PCI);
        assert_eq!(Mode::from_flags(0b0101, Mode::PCI), Mode::ISA);
    }

    #[test]
    fn x2apic_and_disabled_processors() {
        let entries = [
            &[0u8, 8, 0, 5, 0, 0, 0, 0][..],
            &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            &[9, 16, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        let body = [&[0u8; 8][..], &entries.concat()].concat();
        let madt = madt(&body);
        assert_eq!(madt.processors, [256]);
        assert!(!madt.pics);
    }

    #[test]
    fn an_entry_of_no_length_ends_the_table() {
        let body = [&QEMU_MADT[..], &[1, 0], &[0, 8, 0, 9, 1, 0, 0, 0]].concat();
        assert_eq!(madt(&body).processors, [0, 1]);
    }

    #[test]
    fn an_entry_that_is_too_long_or_too_short_is_none() {
        let entry = |len: u8, bytes: usize| {
            let entry = [&[9, len, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0][..], &[0; 4]].concat();
            let body = [&QEMU_MADT[..], &entry[..bytes]].concat();
            madt(&body).processors
        };
        assert_eq!(entry(16, 16), [0, 1, 7]);
        // Past the end of the table, by a byte and by many.
        assert_eq!(entry(17, 16), [0, 1]);
        assert_eq!(entry(255, 16), [0, 1]);
        assert_eq!(entry(16, 12), [0, 1]);
        // Of the kind's fields there are not all.
        assert_eq!(entry(12, 12), [0, 1]);
        assert_eq!(entry(2, 2), [0, 1]);
    }

    proptest! {
        #[test]
        fn any_bytes(table in proptest::collection::vec(any::<u8>(), 0..300), line in any::<u32>()) {
            let madt = madt(&table);
            prop_assert!(madt.ioapics.len() <= table.len() / 12);
            let _ = madt.input(line);
        }
    }
}
