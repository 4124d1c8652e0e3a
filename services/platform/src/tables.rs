//! From the RSDP to what the tables say (ACPI 6.5, 5.2.5 to 5.2.8).

use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use acpi::AmlTable;

use crate::copies;
use crate::fadt::{self, Fadt};
use crate::hardware::{Hardware, u32_at, u64_at};
use crate::madt::{self, Madt};
use crate::s5::{self, SleepType};

/// Where BIOS firmware puts the RSDP, on a boundary of 16 bytes (ACPI 6.5, 5.2.5.1).
const BIOS_AREA: core::ops::Range<u64> = 0xe_0000..0x10_0000;
/// Bytes of an RSDP of revision 0, and of one of revision 2.
const RSDP_V1: usize = 20;
const RSDP_V2: usize = 36;

/// Why there are no tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TablesError {
    /// No RSDP where it should be.
    NoRsdp,
    /// The RSDT or XSDT cannot be read or is damaged.
    NoRoot,
}

/// What the tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Signatures, in the order of the RSDT or XSDT.
    pub signatures: Vec<[u8; 4]>,
    /// Entries that were skipped: unreadable or damaged.
    pub skipped: usize,
    /// The MADT; empty if there is none.
    pub madt: Madt,
    /// The FADT.
    pub fadt: Option<Fadt>,
    /// How to switch off.
    pub s5: Option<SleepType>,
}

/// The root table that an RSDP names: address, and whether it is an XSDT. This is not left to the crate, which sums up
/// as many bytes as the RSDP says it has, of whatever looks like one.
fn root_of(rsdp: &[u8]) -> Option<(u64, bool)> {
    let first = rsdp.get(..RSDP_V1)?;
    if !first.starts_with(b"RSD PTR ") || !copies::checksum_good(first) {
        return None;
    }
    let revision = *first.get(15)?;
    let whole = rsdp.get(..RSDP_V2)?;
    let xsdt = u64_at(whole, 24).filter(|&a| a != 0);
    if let (true, true, Some(xsdt)) = (revision >= 2, copies::checksum_good(whole), xsdt) {
        return Some((xsdt, true));
    }
    let rsdt = u32_at(first, 16).filter(|&a| a != 0)?;
    Some((u64::from(rsdt), false))
}

/// Finds the root table: through the RSDP at `rsdp`, or, if that is 0 or none, by a search where BIOS firmware puts it.
fn root(machine: &mut impl Hardware, rsdp: u64) -> Option<(u64, bool)> {
    let mut at = |address: u64| {
        let mut found = [0; RSDP_V2];
        machine.copy(address, &mut found)?;
        root_of(&found)
    };
    if let Some(root) = Some(rsdp).filter(|&a| a != 0).and_then(&mut at) {
        return Some(root);
    }
    let mut area = vec![0; (BIOS_AREA.end - BIOS_AREA.start) as usize];
    // Not all of it need be there for this server.
    for (page, address) in area.chunks_mut(4096).zip(BIOS_AREA.step_by(4096)) {
        let _ = machine.copy(address, page);
    }
    // An RSDP of revision 0 may lie in the last 20 bytes.
    area.resize(area.len() + RSDP_V2, 0);
    (0..area.len())
        .step_by(16)
        .find_map(|offset| root_of(area.get(offset..)?))
}

/// Reads them.
pub fn read(machine: &mut impl Hardware, rsdp: u64) -> Result<Tables, TablesError> {
    let (address, extended) = root(machine, rsdp).ok_or(TablesError::NoRsdp)?;
    let machine = RefCell::new(machine);
    let tables = copies::open(&machine, extended, address).ok_or(TablesError::NoRoot)?;
    let (present, absent): (Vec<_>, Vec<_>) = tables
        .headers()
        .map(|header| copies::letters(&header))
        .partition(|signature| *signature != [0; 4]);
    let madt = tables.find_table::<acpi::madt::Madt>();
    let fadt = tables.find_table::<acpi::fadt::Fadt>();
    let find_s5 = |block: AmlTable| {
        let mut aml = vec![0; usize::try_from(block.length).ok()?];
        let address = u64::try_from(block.address).ok()?;
        machine.borrow_mut().copy(address, &mut aml)?;
        s5::find(&aml)
    };
    let s5 = tables.dsdt().ok().and_then(find_s5);
    Ok(Tables {
        signatures: present,
        skipped: absent.len(),
        madt: madt.map(|t| madt::parse(t.get())).unwrap_or_default(),
        fadt: fadt.ok().map(|t| fadt::parse(&t)),
        s5: s5.or_else(|| tables.ssdts().find_map(find_s5)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copies::HEADER;
    use crate::testing::{Machine, QEMU_MADT, qemu_fadt, rsdp, rsdt, sealed, xsdt};

    /// Writes `\_S5` with these values.
    fn s5(a: u8, b: u8) -> Vec<u8> {
        vec![8, b'_', b'S', b'5', b'_', 0x12, 6, 2, 10, a, 10, b]
    }

    fn machine() -> Machine {
        let mut m = Machine::default();
        m.memory(0x1000, sealed(b"APIC", &QEMU_MADT));
        m.memory(0x2000, sealed(b"SSDT", &[4]));
        m.memory(0x3000, sealed(b"SSDT", &s5(3, 4)));
        m.memory(0x4000, rsdt(&[0x1000, 0x2000]));
        m.memory(0x5000, xsdt(&[0x1000, 0x2000, 0x7000, 0x3000, 0xdead_0000]));
        m.memory(0x7000, sealed(b"DMAR", &[6]));
        m
    }

    #[test]
    fn by_xsdt() {
        let mut m = machine();
        m.memory(0x6000, rsdp(2, 0x4000, 0x5000));
        let tables = read(&mut m, 0x6000).unwrap();
        assert_eq!(tables.skipped, 1);
        assert_eq!(tables.signatures, [*b"APIC", *b"SSDT", *b"DMAR", *b"SSDT"]);
        assert_eq!(tables.madt.processors, [0, 1]);
        assert_eq!(tables.fadt, None);
        assert_eq!(tables.s5, Some(SleepType { a: 3, b: 4 }));
    }

    #[test]
    fn by_rsdt_when_old_or_damaged() {
        for rsdp in [rsdp(0, 0x4000, 0x5000), {
            let mut damaged = rsdp(2, 0x4000, 0x5000);
            damaged[33] ^= 1;
            damaged
        }] {
            let mut m = machine();
            m.memory(0x6000, rsdp);
            assert_eq!(read(&mut m, 0x6000).unwrap().signatures.len(), 2);
        }
    }

    #[test]
    fn searched_for_up_to_the_last_byte() {
        for at in [0xe_0000u64, 0xf_5430, 0xf_ffe0] {
            let mut m = machine();
            let mut area = vec![0xffu8; 0x2_0000];
            let rsdp = &rsdp(0, 0x4000, 0)[..RSDP_V1];
            area[(at - 0xe_0000) as usize..][..RSDP_V1].copy_from_slice(rsdp);
            let page = (at as usize - 0xe_0000) & !0xfff;
            m.memory(0xe_0000 + page as u64, area[page..page + 4096].to_vec());
            let tables = read(&mut m, 0).unwrap();
            assert_eq!(tables.signatures.len(), 2, "{at:#x}");
            // An address that was given and is wrong does not prevent the search.
            assert_eq!(read(&mut m, 0x1000), Ok(tables));
        }
        assert_eq!(read(&mut machine(), 0), Err(TablesError::NoRsdp));
    }

    #[test]
    fn the_dsdt_comes_first() {
        let mut m = Machine::default();
        let mut fadt = qemu_fadt();
        fadt[40..44].copy_from_slice(&0x2000u32.to_le_bytes());
        fadt[140..148].fill(0);
        m.memory(0x1000, sealed(b"FACP", &fadt[HEADER..]));
        m.memory(0x2000, sealed(b"DSDT", &s5(1, 2)));
        m.memory(0x3000, sealed(b"SSDT", &s5(3, 4)));
        m.memory(0x4000, rsdt(&[0x3000, 0x1000]));
        m.memory(0x6000, rsdp(0, 0x4000, 0));
        let tables = read(&mut m, 0x6000).unwrap();
        assert_eq!(tables.s5, Some(SleepType { a: 1, b: 2 }));
        assert!(tables.fadt.is_some());
    }

    #[test]
    fn damaged_tables_are_skipped() {
        let mut m = Machine::default();
        let mut bad = sealed(b"APIC", &[1, 2, 3]);
        bad[HEADER] ^= 1;
        m.memory(0x1000, bad);
        let mut short = sealed(b"APIC", &[]);
        short[4] = 35;
        m.memory(0x2000, short);
        let mut long = sealed(b"APIC", &[]);
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        m.memory(0x3000, long);
        // Too short for its kind, and no kind.
        m.memory(0x8000, sealed(b"APIC", &[0; 7]));
        m.memory(0x9000, sealed(&[0xff; 4], &[]));
        m.memory(0x4000, rsdt(&[0x1000, 0x2000, 0x3000, 0, 0x8000, 0x9000]));
        m.memory(0x6000, rsdp(0, 0x4000, 0));
        let tables = read(&mut m, 0x6000).unwrap();
        let skipped = 6;
        assert_eq!(
            tables,
            Tables {
                skipped,
                ..Tables::default()
            }
        );
        // A root of the wrong kind is none, nor is one that is too long.
        m.memory(0x7000, rsdp(0, 0x1000, 0));
        assert_eq!(read(&mut m, 0x7000), Err(TablesError::NoRoot));
        m.memory(0x10_0000, rsdt(&[0; 513]));
        m.memory(0x7000, rsdp(0, 0x10_0000, 0));
        assert_eq!(read(&mut m, 0x7000), Err(TablesError::NoRoot));
        // Three bytes behind the last entry are none.
        m.memory(0x10_0000, sealed(b"RSDT", &[0x10, 0, 0]));
        assert_eq!(read(&mut m, 0x7000).unwrap().signatures.len(), 0);
    }

    /// A maker's name that is no text is no damage.
    #[test]
    fn names_that_are_no_text() {
        let mut m = machine();
        let mut table = sealed(b"APIC", &QEMU_MADT);
        table[10..24].fill(0xff);
        table[9] = table[9].wrapping_add(14);
        m.memory(0x1000, table);
        m.memory(0x6000, rsdp(0, 0x4000, 0));
        let tables = read(&mut m, 0x6000).unwrap();
        assert_eq!((tables.madt.processors.len(), tables.skipped), (2, 0));
    }
}
