//! Fixed ACPI Description Table: the registers of power management (ACPI 6.5, 5.2.9).

use acpi::AcpiError;
use acpi::address::{AddressSpace, GenericAddress};

use crate::hardware::Register;

/// What of the table is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fadt {
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

/// A register; `None` when there is none, or in an address space where no fixed register can be.
fn register(found: Result<GenericAddress, AcpiError>) -> Option<Register> {
    let found = found.ok().filter(|r| r.address != 0 && r.bit_offset == 0)?;
    match found.address_space {
        AddressSpace::SystemMemory => Some(Register::Memory(found.address)),
        AddressSpace::SystemIo => u16::try_from(found.address).ok().map(Register::Port),
        _ => None,
    }
}

/// Reads the table, of any revision: fields beyond its end are empty.
#[must_use]
pub fn parse(table: &acpi::fadt::Fadt) -> Fadt {
    // The table is packed: its fields are copied.
    let (flags, smi_command) = (table.flags, table.smi_cmd_port);
    let fixed = !flags.system_is_hw_reduced_acpi();
    let pm1b = table.pm1b_control_block().transpose();
    let reset = register(table.reset_register()).map(|r| (r, table.reset_value));
    Fadt {
        sci: table.sci_interrupt,
        smi_command: u16::try_from(smi_command).unwrap_or(0),
        acpi_enable: table.acpi_enable,
        pm1a_control: register(table.pm1a_control_block()).filter(|_| fixed),
        pm1b_control: pm1b.and_then(register).filter(|_| fixed),
        reset: reset.filter(|_| flags.supports_system_reset_via_fadt()),
        century: table.century,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copies::HEADER;
    use crate::testing::{fadt as parse, qemu_fadt, try_fadt};
    use proptest::prelude::*;

    #[test]
    fn qemu_q35() {
        let fadt = parse(&qemu_fadt());
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
        old[8] = 1;
        old[68..72].copy_from_slice(&0x704u32.to_le_bytes());
        let fadt = parse(&old);
        assert_eq!(fadt.pm1a_control, Some(Register::Port(0x604)));
        assert_eq!(fadt.pm1b_control, Some(Register::Port(0x704)));
        assert_eq!(fadt.reset, None);
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
        // PCI configuration space, and bits in the middle of a register: not for fixed registers.
        for (at, value) in [(172, 2), (174, 1), (175, 9)] {
            let mut odd = table.clone();
            odd[at] = value;
            assert_eq!(parse(&odd).pm1a_control, None, "byte {at}");
        }
        // An empty one: the old field counts.
        table[172..184].fill(0);
        assert_eq!(parse(&table).pm1a_control, Some(Register::Port(0x604)));
        // Registers of 32 bytes and more.
        table[89] = 32;
        assert_eq!(try_fadt(&table), None);
        table[89] = 2;
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
            let fadt = try_fadt(&[&[0; HEADER][..], &table].concat());
            prop_assert!(table.len() + HEADER >= 129 || fadt.is_none_or(|f| f.reset.is_none()));
        }
    }
}
