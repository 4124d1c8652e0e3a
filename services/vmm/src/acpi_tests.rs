//! The tables, read back.

use super::*;

fn built(config: Config) -> (GuestMemory, u64) {
    let memory = GuestMemory::owned(&[(0, 1 << 20)]);
    let rsdp = build(&memory, &config).unwrap();
    (memory, rsdp)
}

const CONFIG: Config = Config {
    vcpus: 3,
    com: [Some(Config::COM1), None, None, None],
    rtc: true,
    pci_ports: Vec::new(),
    pci_irq: Some(11),
};

/// A table's bytes, with signature and checksum verified.
fn table(memory: &GuestMemory, at: u64, signature: &[u8; 4]) -> Vec<u8> {
    let len = memory.read_u32(at + 4).unwrap() as usize;
    let mut table = alloc::vec![0; len];
    memory.read(at, &mut table).unwrap();
    assert_eq!(&table[..4], signature);
    if signature != b"FACS" {
        assert_eq!(
            table.iter().fold(0u8, |a, b| a.wrapping_add(*b)),
            0,
            "{signature:?}"
        );
    }
    table
}

fn word(table: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
}

/// FADT and MADT, found as a guest finds them.
fn tables(memory: &GuestMemory, rsdp: u64) -> (Vec<u8>, Vec<u8>) {
    let mut root = [0u8; 36];
    memory.read(rsdp, &mut root).unwrap();
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!(root[15], 2);
    for range in [0..20, 0..36] {
        assert_eq!(root[range].iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
    }
    let xsdt = table(memory, word(&root, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 24);
    // One entry: base, segment group, first and last bus (PCI Firmware Specification 3.3, table 4-3).
    let mcfg = table(memory, word(&xsdt, 52), b"MCFG");
    assert_eq!(
        (mcfg.len(), word(&mcfg, 44), word(&mcfg, 52)),
        (60, 0xE000_0000, 0)
    );
    (
        table(memory, word(&xsdt, 36), b"FACP"),
        table(memory, word(&xsdt, 44), b"APIC"),
    )
}

#[test]
fn fadt_says_what_the_chipset_has() {
    let (memory, rsdp) = built(CONFIG);
    let (fadt, _) = tables(&memory, rsdp);
    let u16_at = |at: usize| u16::from_le_bytes(fadt[at..at + 2].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap());
    // Offsets: ACPI 6.5, table 5.9.
    assert_eq!(fadt.len(), 276);
    assert_eq!(u16_at(46), 9);
    assert_eq!(u32_at(48), 0);
    assert_eq!(
        (u32_at(56), u32_at(64), u32_at(76), u32_at(80)),
        (0x600, 0x604, 0x608, 0x620)
    );
    assert_eq!(fadt[88..93], [4, 2, 0, 4, 4]);
    assert_eq!(u16_at(109), 0b101);
    let flags = u32_at(112);
    assert_eq!(flags & 1 << 4, 0, "the power button is fixed hardware");
    assert_ne!(flags & 1 << 10, 0, "the reset register is there");
    assert_eq!(flags & (1 << 8 | 1 << 20), 0, "24-bit timer, full hardware");
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((word(&fadt, 120), fadt[128]), (0xCF9, 6));
    assert_eq!(u64::from(u32_at(40)), word(&fadt, 140));
    table(&memory, u32_at(36).into(), b"FACS");
    assert_eq!(u32_at(36) % 64, 0);
    table(&memory, u32_at(40).into(), b"DSDT");
    // X_PM1a_EVT_BLK: system I/O, 32 bits.
    assert_eq!(
        (fadt[148..150].to_vec(), word(&fadt, 152)),
        (alloc::vec![1, 32], 0x600)
    );
}

#[test]
fn madt_lists_every_controller() {
    let (memory, rsdp) = built(CONFIG);
    let (_, madt) = tables(&memory, rsdp);
    assert_eq!(madt[36..44], [0, 0, 0xE0, 0xFE, 1, 0, 0, 0]);
    let mut seen = Vec::new();
    let mut at = 44;
    while at < madt.len() {
        let len = usize::from(madt[at + 1]);
        seen.push(madt[at..at + len].to_vec());
        at += len;
    }
    assert_eq!(seen.len(), 3 + 1 + 2 + 1);
    assert_eq!(seen[2], [0, 8, 2, 2, 1, 0, 0, 0]);
    assert_eq!(seen[3], [1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]);
    assert_eq!(seen[4], [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(seen[5], [2, 10, 0, 9, 9, 0, 0, 0, 0xD, 0]);
    assert_eq!(seen[6], [4, 6, 0xFF, 0, 0, 1]);
}

#[test]
fn dsdt_has_only_what_is_configured() {
    let has = |config, name: &[u8]| {
        let (memory, rsdp) = built(config);
        let (fadt, _) = tables(&memory, rsdp);
        let dsdt = table(&memory, word(&fadt, 140), b"DSDT");
        dsdt.windows(name.len()).any(|w| w == name)
    };
    let bare = Config {
        vcpus: 1,
        com: [None; 4],
        rtc: false,
        pci_ports: Vec::new(),
        pci_irq: None,
    };
    assert!(has(CONFIG, b"COM1") && has(CONFIG, b"RTC_") && has(CONFIG, b"PCI0"));
    assert!(!has(CONFIG, b"COM2"));
    assert!(!has(bare.clone(), b"COM1") && !has(bare.clone(), b"RTC_"));
    // The window of ports: word address space, I/O, fixed, all of it; granularity, first, last, offset, length.
    let ports = b"\x88\x0D\x00\x01\x0C\x03\x00\x00\x00\xC0\xFF\xCF\x00\x00\x00\x10";
    let windows = Config {
        pci_ports: alloc::vec![(0xC000, 0xCFFF)],
        ..CONFIG
    };
    assert!(has(windows, ports) && !has(bare.clone(), ports));
    // Package (4) { 0x0003FFFF, 0, 0, 19 }, and what it is for the 8259 pair.
    let entry = |gsi: u8| [b"\x12\x0B\x04\x0C\xFF\xFF\x03\x00\x00\x00\x0A", &[gsi][..]].concat();
    assert!(has(CONFIG, &entry(19)) && has(CONFIG, &entry(11)));
    assert!(has(bare.clone(), &entry(19)) && !has(bare.clone(), &entry(11)));
    // Name (_S5, Package (4) { 5, 5, 0, 0 })
    assert!(has(bare, b"\x08_S5_\x12\x08\x04\x0A\x05\x0A\x05\x00\x00"));
}

#[test]
fn most_processors_fit_and_no_memory_is_an_error() {
    built(Config {
        vcpus: 254,
        ..CONFIG
    });
    assert!(build(&GuestMemory::owned(&[(0, 0x8_0000)]), &CONFIG).is_err());
}
