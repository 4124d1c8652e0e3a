//! The few ACPI tables that the tests need (ACPI 6.5 §5.2: RSDP, RSDT/XSDT, FADT, MADT), and
//! the sleep type out of `\_S5_`, which is found in the DSDT's bytes without an AML interpreter.
//!
//! The hypervisor wrote these tables, so they are under test: lengths are bounded, checksums
//! are verified, and whatever does not hold makes the table absent.

/// Physical memory, byte by byte.
pub trait Memory {
    /// The byte at `address`; anything where there is no memory.
    fn byte(&self, address: u64) -> u8;
}

/// A number of `N` little-endian bytes.
fn number<const N: usize>(memory: &impl Memory, address: u64) -> u64 {
    (0..N as u64).rev().fold(0, |sum, index| {
        sum << 8 | u64::from(memory.byte(address + index))
    })
}

/// Whether `length` bytes at `address` sum up to 0.
fn sums_to_zero(memory: &impl Memory, address: u64, length: u64) -> bool {
    (0..length).fold(0u8, |sum, index| {
        sum.wrapping_add(memory.byte(address + index))
    }) == 0
}

/// Whether `text` stands at `address`.
fn stands(memory: &impl Memory, address: u64, text: &[u8]) -> bool {
    text.iter()
        .zip(address..)
        .all(|(byte, at)| memory.byte(at) == *byte)
}

/// How one ISA interrupt reaches the IOAPIC (MADT, interrupt source override).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The ISA interrupt.
    pub irq: u8,
    /// The global system interrupt it is wired to.
    pub gsi: u32,
    /// MPS INTI flags: polarity in bits 0-1, trigger mode in bits 2-3.
    pub flags: u16,
}

/// What the tables said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// PM timer I/O port (FADT PM_TMR_BLK), 0 if none.
    pub pm_timer: u16,
    /// PM1a control block's port, 0 if none.
    pub pm1a_control: u16,
    /// SMI command port and the value that switches ACPI mode on, (0, 0) if always on.
    pub smi_command: (u16, u8),
    /// SLP_TYPa of `\_S5_`, if the DSDT has it.
    pub s5: Option<u8>,
    /// The reset register's port and value, if it is one in I/O space.
    pub reset: Option<(u16, u8)>,
    /// The first IOAPIC's address, 0 if none.
    pub ioapic: u64,
    /// Interrupt source overrides, as many as fit.
    pub overrides: [Option<Override>; 8],
}

impl Tables {
    /// The wiring of an ISA interrupt: its override or the identity.
    pub fn wiring(&self, irq: u8) -> Override {
        let found = self
            .overrides
            .iter()
            .flatten()
            .find(|entry| entry.irq == irq);
        found.copied().unwrap_or(Override {
            irq,
            gsi: u32::from(irq),
            flags: 0,
        })
    }

    /// Reads the tables. `rsdp` is where the boot protocol says the RSDP is; without that it is
    /// looked for in the BIOS area (ACPI 6.5 §5.2.5.1). `None` if there is no valid RSDP.
    pub fn read(memory: &impl Memory, rsdp: Option<u64>) -> Option<Self> {
        let rsdp = match rsdp.filter(|at| is_rsdp(memory, *at)) {
            Some(at) => at,
            None => (0xe_0000..0x10_0000)
                .step_by(16)
                .find(|at| is_rsdp(memory, *at))?,
        };
        let mut tables = Self::default();
        let extended = memory.byte(rsdp + 15) >= 2 && number::<8>(memory, rsdp + 24) != 0;
        let (root, width) = if extended {
            (number::<8>(memory, rsdp + 24), 8)
        } else {
            (number::<4>(memory, rsdp + 16), 4)
        };
        let length = table(memory, root, if extended { b"XSDT" } else { b"RSDT" })?;
        for entry in (root + 36..root + length).step_by(width) {
            let at = if extended {
                number::<8>(memory, entry)
            } else {
                number::<4>(memory, entry)
            };
            if let Some(length) = table(memory, at, b"FACP") {
                tables.read_fadt(memory, at, length);
            } else if let Some(length) = table(memory, at, b"APIC") {
                tables.read_madt(memory, at, length);
            }
        }
        Some(tables)
    }

    /// The Fixed ACPI Description Table (ACPI 6.5 §5.2.9).
    fn read_fadt(&mut self, memory: &impl Memory, at: u64, length: u64) {
        let flags = number::<4>(memory, at + 112);
        self.pm_timer = number::<4>(memory, at + 76) as u16;
        self.pm1a_control = number::<4>(memory, at + 64) as u16;
        self.smi_command = (number::<4>(memory, at + 48) as u16, memory.byte(at + 52));
        // RESET_REG_SUP, and the register lies in system I/O space.
        if length >= 129 && flags & 1 << 10 != 0 && memory.byte(at + 116) == 1 {
            self.reset = Some((number::<8>(memory, at + 120) as u16, memory.byte(at + 128)));
        }
        let wide = if length >= 148 {
            number::<8>(memory, at + 140)
        } else {
            0
        };
        let dsdt = if wide != 0 {
            wide
        } else {
            number::<4>(memory, at + 40)
        };
        self.s5 = table(memory, dsdt, b"DSDT").and_then(|length| s5(memory, dsdt, length));
    }

    /// The Multiple APIC Description Table (ACPI 6.5 §5.2.12).
    fn read_madt(&mut self, memory: &impl Memory, at: u64, length: u64) {
        let mut entry = at + 44;
        let mut free = 0;
        while entry + 2 <= at + length {
            let size = u64::from(memory.byte(entry + 1));
            if size < 2 || entry + size > at + length {
                return;
            }
            match memory.byte(entry) {
                1 if self.ioapic == 0 => self.ioapic = number::<4>(memory, entry + 4),
                2 => {
                    if let Some(slot) = self.overrides.get_mut(free) {
                        *slot = Some(Override {
                            irq: memory.byte(entry + 3),
                            gsi: number::<4>(memory, entry + 4) as u32,
                            flags: number::<2>(memory, entry + 8) as u16,
                        });
                        free += 1;
                    }
                }
                _ => {}
            }
            entry += size;
        }
    }
}

/// Whether a valid RSDP stands at `at`.
fn is_rsdp(memory: &impl Memory, at: u64) -> bool {
    at != 0 && stands(memory, at, b"RSD PTR ") && sums_to_zero(memory, at, 20)
}

/// The length of the valid table with this signature at `at`.
fn table(memory: &impl Memory, at: u64, signature: &[u8; 4]) -> Option<u64> {
    if at == 0 || !stands(memory, at, signature) {
        return None;
    }
    let length = number::<4>(memory, at + 4);
    ((36..0x10_0000).contains(&length) && sums_to_zero(memory, at, length)).then_some(length)
}

/// SLP_TYPa out of `Name (\_S5_, Package { SLP_TYPa, ...})` (ACPI 6.5 §7.4.2.6, §20.2.5).
fn s5(memory: &impl Memory, dsdt: u64, length: u64) -> Option<u8> {
    let end = dsdt + length;
    let name = (dsdt + 36..end.saturating_sub(8)).find(|at| stands(memory, *at, b"_S5_\x12"))?;
    // Package length: the top two bits of its first byte count the bytes that follow.
    let elements = name + 5 + u64::from(memory.byte(name + 5) >> 6) + 1;
    let first = elements + 1;
    match memory.byte(first) {
        0x0a => Some(memory.byte(first + 1)),
        constant @ (0 | 1) => Some(constant),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<(u64, Vec<u8>)>);

    impl Memory for Bytes {
        fn byte(&self, address: u64) -> u8 {
            let find = |(at, bytes): &(u64, Vec<u8>)| {
                bytes
                    .get(usize::try_from(address.checked_sub(*at)?).ok()?)
                    .copied()
            };
            self.0.iter().find_map(find).unwrap_or(0xff)
        }
    }

    fn sealed(mut bytes: Vec<u8>, checksum_at: usize) -> Vec<u8> {
        bytes[checksum_at] = 0;
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[checksum_at] = 0u8.wrapping_sub(sum);
        bytes
    }

    fn table_of(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = signature.to_vec();
        bytes.extend((36 + body.len() as u32).to_le_bytes());
        bytes.resize(36, 0);
        bytes.extend(body);
        sealed(bytes, 9)
    }

    fn machine() -> Bytes {
        let mut rsdp = b"RSD PTR \0VIREO \0".to_vec();
        rsdp.extend(0x1000u32.to_le_bytes());
        let mut fadt = vec![0; 129 - 36];
        fadt[40 - 36..][..4].copy_from_slice(&0x4000u32.to_le_bytes());
        fadt[64 - 36..][..4].copy_from_slice(&0x604u32.to_le_bytes());
        fadt[76 - 36..][..4].copy_from_slice(&0x608u32.to_le_bytes());
        fadt[112 - 36..][..4].copy_from_slice(&(1u32 << 10).to_le_bytes());
        fadt[116 - 36] = 1;
        fadt[120 - 36..][..8].copy_from_slice(&0xcf9u64.to_le_bytes());
        fadt[128 - 36] = 6;
        let mut madt = vec![0; 8];
        madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        madt.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
        let mut pointers = 0x2000u32.to_le_bytes().to_vec();
        pointers.extend(0x3000u32.to_le_bytes());
        Bytes(vec![
            (0xf_0010, sealed(rsdp, 8)),
            (0x1000, table_of(b"RSDT", &pointers)),
            (0x2000, table_of(b"FACP", &fadt)),
            (0x3000, table_of(b"APIC", &madt)),
            (
                0x4000,
                table_of(b"DSDT", b"\x08_S5_\x12\x06\x04\x0a\x05\x00\x00\x00\x00"),
            ),
        ])
    }

    #[test]
    fn reads_what_it_needs() {
        let tables = Tables::read(&machine(), None).unwrap();
        assert_eq!(
            (tables.pm_timer, tables.pm1a_control, tables.s5),
            (0x608, 0x604, Some(5))
        );
        assert_eq!(
            (tables.reset, tables.ioapic),
            (Some((0xcf9, 6)), 0xfec0_0000)
        );
        assert_eq!(tables.wiring(0).gsi, 2);
        assert_eq!(
            tables.wiring(8),
            Override {
                irq: 8,
                gsi: 8,
                flags: 0
            }
        );
        assert_eq!(Tables::read(&machine(), Some(0x1234)), Some(tables));
    }

    #[test]
    fn a_broken_checksum_makes_the_table_absent() {
        let mut memory = machine();
        memory.0[2].1[50] ^= 1;
        assert_eq!(Tables::read(&memory, None).unwrap().pm_timer, 0);
        memory.0[0].1[9] ^= 1;
        assert_eq!(Tables::read(&memory, None), None);
    }
}
