//! Fixed ACPI Description Table: the registers of power management (ACPI 6.5, 5.2.9).

use crate::hardware::{Register, bytes, u16_at, u32_at, u64_at};

/// Bit of the feature flags: the reset register works.
const RESET_SUPPORTED: u32 = 1 << 10;
/// Bit of the feature flags: there are no fixed registers.
const HARDWARE_REDUCED: u32 = 1 << 20;
/// Bytes of a Generic Address Structure.
const GAS: usize = 12;

/// What of the table is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fadt {
    /// Physical address of the DSDT; 0 if none.
    pub dsdt: u64,
    /// ISA interrupt, or global system interrupt, of the SCI.
    pub sci: u16,
    /// SMI command port; 0 if the machine is always in ACPI mode.
    pub smi_command: u16,
    /// What to write there for ACPI mode; 0 if the machine is always in it.
    pub acpi_enable: u8,
    /// PM1a control register.
    pub pm1a_control: Option<Register>,
    /// PM1b control register.
    pub pm1b_control: Option<Register>,
    /// Reset register and the value to write.
    pub reset: Option<(Register, u8)>,
    /// Index of the century in the RTC's memory; 0 if it has none.
    pub century: u8,
}

/// A Generic Address Structure; `None` when empty or in another address space.
fn gas(table: &[u8], offset: usize) -> Option<Register> {
    let [space, _width, bit_offset, _access] = bytes::<4>(table, offset)?;
    let address = u64_at(table, offset + 4)?;
    match (space, bit_offset, address) {
        (_, _, 0) => None,
        (0, 0, _) => Some(Register::Memory(address)),
        (1, 0, _) => u16::try_from(address).ok().map(Register::Port),
        _ => None,
    }
}

/// A register that has a 32-bit port field, and since ACPI 2.0 an extended one, which counts if it is not empty.
fn block(table: &[u8], old: usize, extended: usize) -> Option<Register> {
    let old = u32_at(table, old).filter(|&port| port != 0);
    gas(table, extended).or_else(|| u16::try_from(old?).ok().map(Register::Port))
}

/// Reads the table, of any revision: fields beyond its end are empty.
#[must_use]
pub fn parse(table: &[u8]) -> Fadt {
    let flags = u32_at(table, 112).unwrap_or(0);
    let fixed = flags & HARDWARE_REDUCED == 0;
    let dsdt = u32_at(table, 40).map_or(0, u64::from);
    let reset = gas(table, 116).zip(table.get(116 + GAS).copied());
    Fadt {
        dsdt: u64_at(table, 140).filter(|&a| a != 0).unwrap_or(dsdt),
        sci: u16_at(table, 46).unwrap_or(0),
        smi_command: u32_at(table, 48)
            .and_then(|p| u16::try_from(p).ok())
            .unwrap_or(0),
        acpi_enable: table.get(52).copied().unwrap_or(0),
        pm1a_control: block(table, 64, 172).filter(|_| fixed),
        pm1b_control: block(table, 68, 184).filter(|_| fixed),
        reset: reset.filter(|_| flags & RESET_SUPPORTED != 0),
        century: table.get(108).copied().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::qemu_fadt;
    use proptest::prelude::*;

    #[test]
    fn qemu_q35() {
        let fadt = parse(&qemu_fadt());
        assert_eq!(fadt.dsdt, 0x7fe_0040);
        assert_eq!((fadt.sci, fadt.smi_command, fadt.acpi_enable), (9, 0xb2, 2));
        assert_eq!(fadt.pm1a_control, Some(Register::Port(0x604)));
        assert_eq!(fadt.pm1b_control, None);
        assert_eq!(fadt.reset, Some((Register::Port(0xcf9), 0xf)));
        assert_eq!(fadt.century, 0x32);
    }

    #[test]
    fn revision_1_has_ports_only() {
        let mut old = qemu_fadt();
        old.truncate(116);
        old[68..72].copy_from_slice(&0x704u32.to_le_bytes());
        let fadt = parse(&old);
        assert_eq!(fadt.pm1a_control, Some(Register::Port(0x604)));
        assert_eq!(fadt.pm1b_control, Some(Register::Port(0x704)));
        assert_eq!((fadt.reset, fadt.dsdt), (None, 0x7fe_0040));
    }

    #[test]
    fn extended_fields_count_and_odd_ones_do_not() {
        let mut table = qemu_fadt();
        table[172] = 0;
        table[176..184].copy_from_slice(&0xfed8_0804u64.to_le_bytes());
        assert_eq!(
            parse(&table).pm1a_control,
            Some(Register::Memory(0xfed8_0804))
        );
        // PCI configuration space: not for fixed registers; the old field stands.
        table[172] = 2;
        assert_eq!(parse(&table).pm1a_control, Some(Register::Port(0x604)));
        // No fixed hardware.
        table[114] |= 1 << 4;
        assert_eq!(parse(&table).pm1a_control, None);
        // A reset register that is not said to work.
        table[113] &= !(1 << 2);
        assert_eq!(parse(&table).reset, None);
    }

    proptest! {
        #[test]
        fn any_bytes(table in proptest::collection::vec(any::<u8>(), 0..300)) {
            let fadt = parse(&table);
            prop_assert!(table.len() >= 129 || fadt.reset.is_none());
        }
    }
}
