//! A machine for tests: memory, ports, one I/O APIC, PCI configuration space; and tables as QEMU 7.2's q35 has them.

use std::collections::{BTreeMap, BTreeSet};

use crate::copies::HEADER;
use crate::fadt::Fadt;
use crate::hardware::{Hardware, Width};
use crate::madt::Madt;
use crate::tables::{self, Tables};

/// Where the I/O APIC is.
pub const IOAPIC: u64 = 0xfec0_0000;

/// Local APIC address, flags and entries of a q35 with two processors.
pub const QEMU_MADT: [u8; 86] = [
    0x00, 0x00, 0xe0, 0xfe, 1, 0, 0, 0, // local APIC address, PCAT_COMPAT
    0, 8, 0, 0, 1, 0, 0, 0, // processor 0
    0, 8, 1, 1, 1, 0, 0, 0, // processor 1
    1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0, // I/O APIC
    2, 10, 0, 0, 2, 0, 0, 0, 0, 0, // timer
    2, 10, 0, 5, 5, 0, 0, 0, 0xd, 0, //
    2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0, //
    2, 10, 0, 10, 10, 0, 0, 0, 0xd, 0, //
    2, 10, 0, 11, 11, 0, 0, 0, 0xd, 0, //
];

fn seal(table: &mut [u8], at: usize) {
    table[at] = 0;
    let sum = table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    table[at] = 0u8.wrapping_sub(sum);
}

/// A table with its length and checksum right.
pub fn sealed(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = vec![0; HEADER];
    table[..4].copy_from_slice(signature);
    table.extend_from_slice(body);
    let len = table.len() as u32;
    table[4..8].copy_from_slice(&len.to_le_bytes());
    seal(&mut table, 9);
    table
}

/// An RSDT.
pub fn rsdt(tables: &[u32]) -> Vec<u8> {
    let body: Vec<u8> = tables.iter().flat_map(|t| t.to_le_bytes()).collect();
    sealed(b"RSDT", &body)
}

/// An XSDT.
pub fn xsdt(tables: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = tables.iter().flat_map(|t| t.to_le_bytes()).collect();
    sealed(b"XSDT", &body)
}

/// An RSDP, 36 bytes in any revision.
pub fn rsdp(revision: u8, rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut rsdp = vec![0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[15] = revision;
    rsdp[16..20].copy_from_slice(&rsdt.to_le_bytes());
    rsdp[20] = 36;
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    seal(&mut rsdp[..20], 8);
    seal(&mut rsdp, 32);
    rsdp
}

/// What is read on a machine that has this table alone.
fn alone(table: Vec<u8>) -> Tables {
    let mut machine = Machine::default();
    machine.memory(0x1000, table);
    machine.memory(0x8000, rsdt(&[0x1000]));
    machine.memory(0x9000, rsdp(0, 0x8000, 0));
    tables::read(&mut machine, 0x9000).unwrap()
}

/// A MADT with this body as it is read.
pub fn madt(body: &[u8]) -> Madt {
    alone(sealed(b"APIC", body)).madt
}

/// A FADT as it is read: its length and checksum are made right.
pub fn try_fadt(table: &[u8]) -> Option<Fadt> {
    let mut table = table.to_vec();
    table[..4].copy_from_slice(b"FACP");
    let len = table.len() as u32;
    table[4..8].copy_from_slice(&len.to_le_bytes());
    seal(&mut table, 9);
    alone(table).fadt
}

/// As [`try_fadt`], of one that is good.
pub fn fadt(table: &[u8]) -> Fadt {
    try_fadt(table).unwrap()
}

/// The FADT of a q35, revision 3.
pub fn qemu_fadt() -> Vec<u8> {
    let mut fadt = sealed(b"FACP", &[0; 244 - HEADER]);
    fadt[8] = 3;
    let mut put = |at: usize, bytes: &[u8]| fadt[at..at + bytes.len()].copy_from_slice(bytes);
    put(40, &0x7fe_0040u32.to_le_bytes());
    put(46, &[9, 0, 0xb2, 0, 0, 0, 2, 3]);
    put(56, &0x600u32.to_le_bytes());
    put(64, &0x604u32.to_le_bytes());
    put(108, &[0x32]);
    put(112, &0x84a5u32.to_le_bytes());
    put(116, &[1, 8, 0, 0]);
    put(120, &0xcf9u64.to_le_bytes());
    put(128, &[0xf]);
    put(140, &0x7fe_0040u64.to_le_bytes());
    put(172, &[1, 16, 0, 0]);
    put(176, &0x604u64.to_le_bytes());
    fadt
}

/// A machine. By default it has nothing and every access is refused.
#[derive(Default)]
pub struct Machine {
    memory: BTreeMap<u64, Vec<u8>>,
    /// Ports answer.
    pub ports: bool,
    values: BTreeMap<u16, u32>,
    writes: Vec<(u16, u32)>,
    reactions: Vec<((u16, u32), (u16, u32))>,
    pci: BTreeMap<(u16, u8), u32>,
    pci_present: BTreeSet<u16>,
    /// Which bits of PCI registers can be written.
    pci_masks: BTreeMap<(u16, u8), u32>,
    /// Registers of a device: where they are, and what was written there.
    pub device: core::ops::Range<u64>,
    pub stored: Vec<(u64, u32)>,
    has_pci: bool,
    entries: Vec<u64>,
    log: Vec<(u32, u64)>,
    select: u32,
    /// Microseconds waited.
    pub waited: u64,
}

impl Machine {
    pub fn with_ports() -> Self {
        Self {
            ports: true,
            ..Self::default()
        }
    }

    pub fn with_pci() -> Self {
        Self {
            has_pci: true,
            ..Self::with_ports()
        }
    }

    pub fn with_ioapic(lines: usize) -> Self {
        Self {
            entries: vec![0xdead; lines],
            ..Self::default()
        }
    }

    pub fn memory(&mut self, at: u64, bytes: Vec<u8>) {
        self.memory.insert(at, bytes);
    }

    pub fn set_port(&mut self, port: u16, value: u32) {
        self.values.insert(port, value);
    }

    /// Writing `value` to `port` sets another port.
    pub fn on_write(&mut self, port: u16, value: u32, then: (u16, u32)) {
        self.reactions.push(((port, value), then));
    }

    /// All port writes.
    pub fn written(&self) -> Vec<(u16, u32)> {
        let config = |p: &(u16, u32)| !self.has_pci || p.0 & !7 != 0xcf8;
        let pci_probe = |p: &(u16, u32)| *p != (0xcf8, p.1 | 1 << 31);
        let all = self.writes.iter().copied();
        all.filter(|p| config(p) && pci_probe(p)).collect()
    }

    pub fn function(&mut self, address: u16, id: u32, class: u32, header: u8, secondary: u8) {
        self.pci_present.insert(address);
        self.pci.insert((address, 0), id);
        self.pci.insert((address, 8), class);
        self.pci.insert((address, 12), u32::from(header) << 16);
        self.pci.insert((address, 0x18), u32::from(secondary) << 8);
    }

    /// A PCI register with a value, of which these bits can be written.
    pub fn pci_register(&mut self, function: u16, register: u8, value: u32, mask: u32) {
        self.pci.insert((function, register), value);
        self.pci_masks.insert((function, register), mask);
    }

    /// Such a register as it is.
    pub fn pci_value(&self, function: u16, register: u8) -> u32 {
        self.pci.get(&(function, register)).copied().unwrap_or(0)
    }

    pub fn redirection(&self, line: usize) -> u64 {
        self.entries[line]
    }

    pub fn set_redirection(&mut self, line: usize, entry: u64) {
        self.entries[line] = entry;
    }

    pub fn forget(&mut self) {
        self.log.clear();
    }

    /// The values that an entry went through.
    pub fn history(&self, line: u32) -> Vec<u64> {
        let of = self.log.iter().filter(|(l, _)| *l == line);
        of.map(|(_, e)| *e).collect()
    }

    fn entry(&mut self) -> Option<(usize, bool)> {
        let n = self.select.checked_sub(0x10)? as usize;
        (n / 2 < self.entries.len()).then_some((n / 2, n % 2 == 1))
    }
}

impl Hardware for Machine {
    fn port_in(&mut self, port: u16, width: Width) -> Option<u32> {
        if !self.ports {
            return None;
        }
        if port == 0xcfc && width == Width::Long {
            let at = self.values.get(&0xcf8).copied().unwrap_or(0);
            assert_ne!(at & 1 << 31, 0);
            let found = self.pci.get(&((at >> 8) as u16, at as u8));
            return Some(found.copied().unwrap_or(u32::MAX));
        }
        Some(self.values.get(&port).copied().unwrap_or(0))
    }

    fn port_out(&mut self, port: u16, _: Width, value: u32) -> Option<()> {
        if !self.ports {
            return None;
        }
        if self.has_pci && port == 0xcfc {
            let at = self.values.get(&0xcf8).copied().unwrap_or(0);
            let key = ((at >> 8) as u16, at as u8);
            let mask = self.pci_masks.get(&key).copied().unwrap_or(0);
            let register = self.pci.entry(key).or_insert(0);
            *register = *register & !mask | value & mask;
            return Some(());
        }
        self.writes.push((port, value));
        self.values.insert(port, value);
        for (on, then) in &self.reactions {
            if *on == (port, value) {
                self.values.insert(then.0, then.1);
            }
        }
        Some(())
    }

    fn copy(&mut self, address: u64, into: &mut [u8]) -> Option<()> {
        let (at, bytes) = self.memory.range(..=address).next_back()?;
        let offset = usize::try_from(address - at).ok()?;
        into.copy_from_slice(bytes.get(offset..)?.get(..into.len())?);
        Some(())
    }

    fn register_in(&mut self, address: u64, width: Width) -> Option<u32> {
        assert_eq!(address % u64::from(width.bytes()), 0);
        if self.entries.is_empty() || address != IOAPIC + 0x10 {
            return None;
        }
        match self.entry() {
            Some((n, false)) => Some(self.entries[n] as u32),
            Some((n, true)) => Some((self.entries[n] >> 32) as u32),
            None if self.select == 1 => Some(((self.entries.len() as u32 - 1) << 16) | 0x20),
            None => Some(0),
        }
    }

    fn register_out(&mut self, address: u64, width: Width, value: u32) -> Option<()> {
        assert_eq!(width, Width::Long);
        if self.device.contains(&address) {
            self.stored.push((address, value));
            return Some(());
        }
        if self.entries.is_empty() {
            return None;
        }
        match address {
            IOAPIC => self.select = value,
            a if a == IOAPIC + 0x10 => {
                if let Some((n, high)) = self.entry() {
                    let e = self.entries[n];
                    let value = u64::from(value);
                    let new = if high {
                        e & 0xffff_ffff | value << 32
                    } else {
                        e & !0xffff_ffff | value
                    };
                    self.entries[n] = new;
                    self.log.push((n as u32, new));
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn delay(&mut self, microseconds: u64) {
        self.waited += microseconds;
    }
}
