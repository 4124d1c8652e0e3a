//! What is on the PCI buses, and how a function is handed to its driver, by configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2).

use alloc::vec::Vec;

use ipc_schema::proto::{PciBar, PciDevice, PciFunction};

use crate::hardware::{Hardware, Width};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Most functions that are listed.
const MAX_FUNCTIONS: usize = 256;

/// Reads an aligned 32-bit register of a function (bus 8..16, device 3..8, function 0..3).
fn read(machine: &mut impl Hardware, function: u16, register: u8) -> Option<u32> {
    let address = ENABLE | u32::from(function) << 8 | u32::from(register & 0xfc);
    machine.port_out(ADDRESS, Width::Long, address)?;
    machine.port_in(DATA, Width::Long)
}

/// Writes one.
fn write(machine: &mut impl Hardware, function: u16, register: u8, value: u32) -> Option<()> {
    let address = ENABLE | u32::from(function) << 8 | u32::from(register & 0xfc);
    machine.port_out(ADDRESS, Width::Long, address)?;
    machine.port_out(DATA, Width::Long, value)
}

/// Registers of a function (6.1), and their bits (6.2.2, 6.2.3).
const COMMAND: u8 = 0x04;
const MEMORY: u32 = 1 << 1;
const MASTER: u32 = 1 << 2;
const NO_INTX: u32 = 1 << 10;
const HAS_LIST: u32 = 1 << 20;
const BARS: u8 = 0x10;
const LIST: u8 = 0x34;
/// MSI-X: its capability (6.8.2), and the bits that switch it on and mask all of it.
const MSIX: u32 = 0x11;
const MSIX_ON: u32 = 1 << 31;
const MSIX_MASKED: u32 = 1 << 30;
/// Most capabilities that fit.
const MAX_CAPABILITIES: usize = 48;
/// Where messages go (Intel SDM, 3A 11.11.1): processors' local APICs.
const MESSAGES: u32 = 0xfee0_0000;

/// Where a function's MSI-X capability is.
fn msix(machine: &mut impl Hardware, function: u16) -> Option<u8> {
    if read(machine, function, COMMAND)? & HAS_LIST == 0 {
        return None;
    }
    let mut at = read(machine, function, LIST)? as u8 & !3;
    // A list that leads in a circle ends all the same.
    for _ in 0..MAX_CAPABILITIES {
        if at == 0 {
            break;
        }
        let capability = read(machine, function, at)?;
        if capability & 0xff == MSIX {
            return Some(at);
        }
        at = (capability >> 8) as u8 & !3;
    }
    None
}

/// A function's ranges of memory (6.2.5.1). It does not answer there meanwhile.
fn bars(machine: &mut impl Hardware, function: u16) -> Option<Vec<PciBar>> {
    let command = read(machine, function, COMMAND)? & 0xffff;
    write(machine, function, COMMAND, command & !MEMORY)?;
    let mut found = Vec::new();
    let mut number = 0;
    while number < 6 {
        let register = BARS + 4 * number;
        let this = number;
        number += 1;
        let low = read(machine, function, register)?;
        if low & 1 != 0 {
            continue;
        }
        let wide = low >> 1 & 3 == 2 && number < 6;
        let mut halves = Vec::from([(register, low)]);
        if wide {
            halves.push((register + 4, read(machine, function, register + 4)?));
            number += 1;
        }
        let mut masks = [0, u32::MAX];
        for (&(register, value), mask) in halves.iter().zip(&mut masks) {
            write(machine, function, register, u32::MAX)?;
            *mask = read(machine, function, register)?;
            write(machine, function, register, value)?;
        }
        let high = halves.get(1).map_or(0, |half| half.1);
        let mask = u64::from(masks[0] & !0xf) | u64::from(masks[1]) << 32;
        let base = u64::from(low & !0xf) | u64::from(high) << 32;
        if masks[0] & !0xf != 0 && base != 0 {
            found.push(PciBar {
                number: this,
                base,
                len: (!mask).wrapping_add(1),
            });
        }
    }
    write(machine, function, COMMAND, command)?;
    Some(found)
}

/// What a function's driver has to know. It can do without the range that the messages' table is in, which is not its own.
pub fn describe(machine: &mut impl Hardware, function: u16) -> Option<PciFunction> {
    let mut config = Vec::new();
    for register in (0..=0xfc).step_by(4) {
        config.extend(read(machine, function, register)?.to_le_bytes());
    }
    let mut bars = bars(machine, function)?;
    if let Some(at) = msix(machine, function) {
        let table = read(machine, function, at + 4)? & 7;
        bars.retain(|bar| u32::from(bar.number) != table);
    }
    Some(PciFunction {
        address: function,
        config,
        bars,
    })
}

/// Lets a function answer, reach memory, and send its first message to a processor's vector; all others are masked.
pub fn start(machine: &mut impl Hardware, function: u16, vector: u8, apic_id: u8) -> Option<()> {
    let at = msix(machine, function)?;
    let table = read(machine, function, at.checked_add(4)?)?;
    let control = read(machine, function, at)?;
    let bars = bars(machine, function)?;
    let bar = bars.iter().find(|bar| u32::from(bar.number) == table & 7)?;
    let first = bar.base.checked_add(u64::from(table & !7))?;
    let command = read(machine, function, COMMAND)? & 0xffff;
    let on = command | MEMORY | NO_INTX;
    write(machine, function, COMMAND, on)?;
    write(machine, function, at, control | MSIX_ON | MSIX_MASKED)?;
    let entries = (control >> 16 & 0x7ff) + 1;
    for entry in 0..u64::from(entries) {
        let at = first.checked_add(entry * 16)?;
        let message = [
            MESSAGES | u32::from(apic_id) << 12,
            0,
            vector.into(),
            u32::from(entry != 0),
        ];
        for (word, value) in (0u64..).zip(message) {
            machine.register_out(at.checked_add(word * 4)?, Width::Long, value)?;
        }
    }
    write(machine, function, at, (control | MSIX_ON) & !MSIX_MASKED)?;
    write(machine, function, COMMAND, on | MASTER)
}

fn function(machine: &mut impl Hardware, address: u16) -> Option<(PciDevice, u8)> {
    let id = read(machine, address, 0)?;
    // No vendor has these ids: nothing answers.
    if matches!(id & 0xffff, 0xffff | 0) {
        return None;
    }
    let class = read(machine, address, 8)? >> 8;
    let header = (read(machine, address, 12)? >> 16) as u8;
    let device = PciDevice {
        address,
        vendor: id as u16,
        device: (id >> 16) as u16,
        class,
    };
    Some((device, header))
}

/// All functions: bus 0 and what its bridges lead to, in the order in which they are met.
pub fn list(machine: &mut impl Hardware) -> Vec<PciDevice> {
    let mut found = Vec::new();
    let mut met = [false; 256];
    let mut buses = Vec::from([0u8]);
    while let Some(bus) = buses.pop() {
        // Bridges that firmware has numbered badly lead in a circle.
        match met.get_mut(usize::from(bus)) {
            Some(met) if !*met => *met = true,
            _ => continue,
        }
        for device in 0..32u16 {
            let mut functions = 1;
            let mut number = 0;
            while number < functions && found.len() < MAX_FUNCTIONS {
                let address = u16::from(bus) << 8 | device << 3 | number;
                number += 1;
                let Some((pci, header)) = function(machine, address) else {
                    continue;
                };
                found.push(pci);
                if header & 0x80 != 0 {
                    functions = 8;
                }
                // PCI-to-PCI bridge: its secondary bus.
                if header & 0x7f == 1
                    && let Some(numbers) = read(machine, address, 0x18)
                {
                    buses.push((numbers >> 8) as u8);
                }
            }
        }
    }
    found
}

/// Name of a class (PCI Code and ID Assignment Specification, 1), for the log.
#[must_use]
pub const fn class_name(class: u32) -> &'static str {
    match class >> 8 {
        0x0101 => "IDE controller",
        0x0106 => "SATA controller",
        0x0108 => "NVMe controller",
        0x0600 => "host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0c03 => "USB controller",
        0x0c05 => "SMBus",
        0x0806 => "IOMMU",
        _ => match class >> 16 {
            0x01 => "storage",
            0x02 => "network",
            0x03 => "display",
            0x04 => "multimedia",
            0x06 => "bridge",
            0x07 => "communication",
            0x08 => "system device",
            0x0c => "serial bus",
            _ => "other",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Machine;

    fn machine() -> Machine {
        let mut m = Machine::with_pci();
        m.function(0x0000, 0x29c0_8086, 0x0600_0000, 0, 0);
        m.function(0x0008, 0x1111_1234, 0x0300_0000, 0, 0);
        m.function(0x00f8, 0x2918_8086, 0x0601_0000, 0x80, 0);
        m.function(0x00fa, 0x2922_8086, 0x0106_0100, 0, 0);
        // A bridge to bus 2, and one that leads back to bus 0.
        m.function(0x0010, 0x1234_8086, 0x0604_0000, 1, 2);
        m.function(0x0018, 0x1235_8086, 0x0604_0000, 1, 0);
        m.function(0x0200, 0x1000_1af4, 0x0200_0000, 0, 0);
        m
    }

    #[test]
    fn functions_and_bridges() {
        let list = list(&mut machine());
        let addresses: Vec<u16> = list.iter().map(|d| d.address).collect();
        assert_eq!(addresses, [0, 8, 0x10, 0x18, 0xf8, 0xfa, 0x200]);
        let sata = list.iter().find(|d| d.address == 0xfa).unwrap();
        assert_eq!(
            (sata.vendor, sata.device, sata.class),
            (0x8086, 0x2922, 0x01_0601)
        );
        assert_eq!(class_name(sata.class), "SATA controller");
        assert_eq!(class_name(0xff_0000), "other");
    }

    /// A virtio disk as QEMU has it: registers in a 64-bit range, the messages' table in another, ports, a list of capabilities.
    fn disk() -> Machine {
        let mut m = machine();
        m.function(0x20, 0x1042_1af4, 0x0100_0000, 0, 0);
        let mut put = |register, value, mask| m.pci_register(0x20, register, value, mask);
        put(0x04, 0x0010_0003, 0xffff);
        put(0x10, 0xc001, 0xffff_ff80);
        put(0x14, 0xfebd_1000, 0xffff_f000);
        put(0x18, 0, 0);
        put(0x1c, 0, 0);
        put(0x20, 0xfe00_000c, 0xffff_c000);
        put(0x24, 0, u32::MAX);
        put(0x34, 0x98, 0);
        // MSI-X with two messages, at byte 0x800 of range 1; behind it a capability that leads back.
        put(0x98, 0x0001_7c11, 0xc000_0000);
        put(0x9c, 0x801, 0);
        put(0x7c, 0x9809, 0);
        m.device = 0xfebd_1000..0xfebd_2000;
        m
    }

    #[test]
    fn a_function_for_its_driver() {
        let mut m = disk();
        let found = describe(&mut m, 0x20).unwrap();
        let (number, base, len) = (4, 0xfe00_0000, 0x4000);
        assert_eq!(found.bars, [PciBar { number, base, len }]);
        assert_eq!((found.address, found.config.len()), (0x20, 256));
        assert_eq!(found.config[..4], [0xf4, 0x1a, 0x42, 0x10]);
        // As it was.
        assert_eq!(m.pci_value(0x20, 0x04) & 0xffff, 3);
        assert_eq!(m.pci_value(0x20, 0x20), 0xfe00_000c);
        assert_eq!(m.pci_value(0x20, 0x24), 0);
        start(&mut m, 0x20, 0x41, 3).unwrap();
        // Memory, bus master, no line; one message, unmasked, the other masked.
        assert_eq!(m.pci_value(0x20, 0x04) & 0xffff, 0x407);
        assert_eq!(m.pci_value(0x20, 0x98), 0x8001_7c11);
        let at = 0xfebd_1800;
        let words = |n: u64, control| {
            let words = [0xfee0_3000, 0, 0x41, control];
            (0u64..)
                .zip(words)
                .map(move |(i, w)| (at + n * 16 + i * 4, w))
        };
        let all: Vec<_> = words(0, 0).chain(words(1, 1)).collect();
        assert_eq!(m.stored, all);
    }

    #[test]
    fn functions_that_cannot_be_handed_over() {
        let mut m = disk();
        m.pci_register(0x20, 0x98, 0x9809, 0);
        assert_eq!(
            start(&mut m, 0x20, 0x41, 0),
            None,
            "no messages, in a circle"
        );
        assert_eq!(describe(&mut m, 0x20).unwrap().bars.len(), 2);
        let mut m = disk();
        m.pci_register(0x20, 0x9c, 0x806, 0);
        assert_eq!(start(&mut m, 0x20, 0x41, 0), None, "a table nowhere");
        let mut m = disk();
        m.device = 0..0;
        assert_eq!(
            start(&mut m, 0x20, 0x41, 0),
            None,
            "a table that is not ours"
        );
        assert_eq!(m.pci_value(0x20, 0x04) & 4, 0, "so it reaches no memory");
        assert!(describe(&mut Machine::default(), 0).is_none());
    }

    /// Function 1 of a device that says it has one function only is an echo.
    #[test]
    fn no_further_functions_of_a_single_one() {
        let mut m = machine();
        m.function(0x0009, 0x1111_1234, 0x0300_0000, 0, 0);
        assert!(list(&mut m).iter().all(|d| d.address != 9));
    }

    #[test]
    fn without_ports_nothing() {
        assert!(list(&mut Machine::default()).is_empty());
    }
}
