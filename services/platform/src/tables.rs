//! From the RSDP to copies of the tables (ACPI 6.5, 5.2.5 to 5.2.8).

use alloc::vec;
use alloc::vec::Vec;

use crate::hardware::{Hardware, bytes, u32_at, u64_at};

/// Bytes of a table's header (ACPI 6.5, 5.2.6).
pub const HEADER: usize = 36;
/// Longest table that is copied; real DSDTs stay below half of it.
const MAX_TABLE: usize = 1 << 20;
/// Most tables that are copied: firmware has some dozens.
const MAX_TABLES: usize = 128;
/// All copies together; with one more for the DSDT they fit into this server's heap.
const MAX_TOTAL: usize = 2 << 20;
/// Tables that are copied whole; of others the header is enough.
const WHOLE: [&[u8; 4]; 5] = [b"APIC", b"FACP", b"SSDT", b"RSDT", b"XSDT"];
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

/// A table, header included. If it is whole, its checksum is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its physical address.
    pub address: u64,
    /// Its bytes, at least [`HEADER`].
    pub bytes: Vec<u8>,
}

impl Table {
    /// Its signature.
    #[must_use]
    pub fn signature(&self) -> [u8; 4] {
        bytes(&self.bytes, 0).unwrap_or_default()
    }
}

/// The tables that could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// In the order of the RSDT or XSDT.
    pub tables: Vec<Table>,
    /// Entries that were skipped: unreadable, damaged, or too many.
    pub skipped: usize,
}

impl Tables {
    /// The first table of this signature.
    #[must_use]
    pub fn find(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        self.all(signature).next()
    }

    /// All tables of this signature.
    pub fn all<'a>(&'a self, signature: &[u8; 4]) -> impl Iterator<Item = &'a [u8]> {
        let signature = *signature;
        let same = self
            .tables
            .iter()
            .filter(move |t| t.signature() == signature);
        same.map(|t| t.bytes.as_slice())
    }
}

fn checksum_good(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

/// The root table that an RSDP names: address, and bytes of an entry.
fn root_of(rsdp: &[u8]) -> Option<(u64, usize)> {
    let first = rsdp.get(..RSDP_V1)?;
    if !first.starts_with(b"RSD PTR ") || !checksum_good(first) {
        return None;
    }
    let revision = *first.get(15)?;
    let whole = rsdp.get(..RSDP_V2)?;
    let xsdt = u64_at(whole, 24).filter(|&a| a != 0);
    if let (true, true, Some(xsdt)) = (revision >= 2, checksum_good(whole), xsdt) {
        return Some((xsdt, 8));
    }
    let rsdt = u32_at(first, 16).filter(|&a| a != 0)?;
    Some((u64::from(rsdt), 4))
}

/// Finds the root table: through the RSDP at `rsdp`, or, if that is 0 or none, by a search where BIOS firmware puts it.
fn root(machine: &mut impl Hardware, rsdp: u64) -> Option<(u64, usize)> {
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

/// Copies the table at `address`, if it is whole.
pub fn table(machine: &mut impl Hardware, address: u64) -> Option<Table> {
    let mut header = [0; HEADER];
    machine.copy(address, &mut header)?;
    let len = usize::try_from(u32_at(&header, 4)?).ok()?;
    if !(HEADER..=MAX_TABLE).contains(&len) {
        return None;
    }
    let mut bytes = vec![0; len];
    machine.copy(address, &mut bytes)?;
    checksum_good(&bytes).then_some(Table { address, bytes })
}

/// Copies a table that the root table names, or its header if no more is needed.
fn entry_of(machine: &mut impl Hardware, address: u64) -> Option<Table> {
    let mut header = [0; HEADER];
    machine.copy(address, &mut header)?;
    if WHOLE.iter().any(|s| header.starts_with(*s)) {
        return table(machine, address);
    }
    let bytes = header.to_vec();
    Some(Table { address, bytes })
}

/// Copies all tables.
pub fn read(machine: &mut impl Hardware, rsdp: u64) -> Result<Tables, TablesError> {
    let (address, entry) = root(machine, rsdp).ok_or(TablesError::NoRsdp)?;
    let root = table(machine, address).ok_or(TablesError::NoRoot)?;
    let expected = if entry == 8 { b"XSDT" } else { b"RSDT" };
    if root.signature() != *expected {
        return Err(TablesError::NoRoot);
    }
    let mut found = Tables::default();
    let mut total = 0;
    for chunk in root.bytes.get(HEADER..).unwrap_or(&[]).chunks_exact(entry) {
        let address = match entry {
            8 => u64_at(chunk, 0),
            _ => u32_at(chunk, 0).map(u64::from),
        };
        let room = found.tables.len() < MAX_TABLES && total < MAX_TOTAL - MAX_TABLE;
        let one = address.filter(|_| room).and_then(|a| entry_of(machine, a));
        match one {
            Some(table) => {
                total += table.bytes.len();
                found.tables.push(table);
            }
            None => found.skipped += 1,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Machine, rsdp, rsdt, sealed, xsdt};

    fn machine() -> Machine {
        let mut m = Machine::default();
        m.memory(0x1000, sealed(b"APIC", &[1, 2, 3]));
        m.memory(0x2000, sealed(b"SSDT", &[4]));
        m.memory(0x3000, sealed(b"SSDT", &[5]));
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
        assert_eq!(tables.all(b"SSDT").count(), 2);
        assert_eq!(tables.find(b"APIC").unwrap()[HEADER..], [1, 2, 3]);
        assert_eq!(tables.find(b"DMAR").unwrap().len(), HEADER);
        assert_eq!(tables.find(b"MCFG"), None);
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
            assert_eq!(read(&mut m, 0x6000).unwrap().tables.len(), 2);
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
            assert_eq!(read(&mut m, 0).unwrap().tables.len(), 2, "{at:#x}");
            // An address that was given and is wrong does not prevent the search.
            assert_eq!(read(&mut m, 0x1000).unwrap().tables.len(), 2);
        }
        assert_eq!(read(&mut machine(), 0), Err(TablesError::NoRsdp));
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
        m.memory(0x4000, rsdt(&[0x1000, 0x2000, 0x3000, 0]));
        m.memory(0x6000, rsdp(0, 0x4000, 0));
        let tables = read(&mut m, 0x6000).unwrap();
        assert_eq!((tables.tables.len(), tables.skipped), (0, 4));
        // A root of the wrong kind is none.
        m.memory(0x7000, rsdp(0, 0x1000, 0));
        assert_eq!(read(&mut m, 0x7000), Err(TablesError::NoRoot));
    }
}
