//! The guest's ACPI tables (ACPI Specification 6.5, chapters 4, 5 and 6; PCI Firmware Specification 3.3, 4.1, for PCI's).
//!
//! Job: describe the platform of [`crate::chipset::map`] and this VM's devices. Place: written once, before the guest
//! starts, into the BIOS area, which the memory map reserves. Trust: nothing here comes from the guest.

use crate::chipset::{map, pci::pirq};
use crate::memory::{GuestMemory, OutOfRange};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml, facs::FACS};
use alloc::vec::Vec;

/// Where the tables are put. Within the area that a guest searches for the RSDP if nobody tells it (5.2.5.1).
pub const TABLES: u64 = 0xE_0000;
/// End of that area.
pub const TABLES_END: u64 = 0x10_0000;

const OEM: [u8; 6] = *b"VIREO ";
const OEM_TABLE: [u8; 8] = *b"VIREOVM ";
const OEM_REVISION: u32 = 1;
/// The FACS asks for this alignment; the others get it too (5.2.10).
const ALIGNMENT: u64 = 64;
/// Header of every table but RSDP and FACS.
const HEADER: u32 = 36;

/// What the tables describe beside the fixed platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Processors, with local APIC IDs 0 to `vcpus - 1`.
    pub vcpus: u8,
    /// Serial ports that are there: their first port and interrupt, COM1 first.
    pub com: [Option<(u16, u8)>; 4],
    /// Whether there is an RTC at port 0x70, interrupt 8.
    pub rtc: bool,
    /// Ports that PCI functions can be given: first and last of each window.
    pub pci_ports: Vec<(u16, u16)>,
    /// The input of the 8259 pair that PCI functions' pins lead to.
    pub pci_irq: Option<u8>,
}

impl Config {
    /// COM1's usual place.
    pub const COM1: (u16, u8) = (0x3F8, 4);
}

/// Writes all tables; gives the guest-physical address of the RSDP.
///
/// # Errors
/// If the guest's memory does not hold the BIOS area.
pub fn build(memory: &GuestMemory, config: &Config) -> Result<u64, OutOfRange> {
    // The RSDP comes first: its size is fixed, and it is what a search should find.
    let mut place = Place {
        memory,
        next: TABLES + ALIGNMENT,
    };
    let facs = place.put(&bytes(&FACS::new()))?;
    let dsdt = place.put(&dsdt(config))?;
    let fadt = place.put(&fadt(config, facs, dsdt))?;
    let madt = place.put(&madt(config))?;
    let mcfg = place.put(&mcfg())?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    xsdt.add_entry(mcfg);
    let xsdt = place.put(&bytes(&xsdt))?;
    memory.write(TABLES, &bytes(&Rsdp::new(OEM, xsdt)))?;
    Ok(TABLES)
}

/// Puts one table behind the other.
struct Place<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Place<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, OutOfRange> {
        let gpa = self.next;
        let len = table.len() as u64;
        if gpa + len > TABLES_END {
            return Err(OutOfRange { gpa, len });
        }
        self.memory.write(gpa, table)?;
        self.next = (gpa + len).next_multiple_of(ALIGNMENT);
        Ok(gpa)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// An I/O register block of `len` bytes.
fn block(port: u16, len: u8, access: AccessSize) -> GAS {
    GAS::new(Space::SystemIo, len * 8, 0, access, port.into())
}

/// Fixed hardware (5.2.9).
fn fadt(config: &Config, facs: u64, dsdt: u64) -> Vec<u8> {
    /// Latencies that say: no C2, no C3.
    const NO_C_STATE: u16 = 0xFFFF;
    /// IAPC_BOOT_ARCH (5.2.9.3): devices on an ISA bus; no VGA; no CMOS RTC. The 8042 bit stays clear.
    const LEGACY_DEVICES: u16 = 1 << 0;
    const NO_VGA: u16 = 1 << 2;
    const NO_RTC: u16 = 1 << 5;
    let mut boot = NO_VGA;
    if config.com.iter().any(Option::is_some) {
        boot |= LEGACY_DEVICES;
    }
    if !config.rtc {
        boot |= NO_RTC;
    }
    // No flag for the power button: it is fixed hardware. A sleep button there is not, nor an RTC wake-up in a register.
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    // Both: a 32-bit guest may know only this one.
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = (map::SCI_GSI as u16).into();
    fadt.smi_cmd = u32::from(map::SMI_COMMAND).into();
    fadt.pm1a_evt_blk = u32::from(map::PM1A_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(map::PM1A_CONTROL).into();
    fadt.pm_tmr_blk = u32::from(map::PM_TIMER).into();
    fadt.gpe0_blk = u32::from(map::GPE0).into();
    fadt.pm1_evt_len = map::PM1_EVENT_LEN;
    fadt.pm1_cnt_len = map::PM1_CONTROL_LEN;
    fadt.pm_tmr_len = map::PM_TIMER_LEN;
    fadt.gpe0_blk_len = map::GPE0_LEN;
    fadt.x_pm1a_evt_blk = block(map::PM1A_EVENT, map::PM1_EVENT_LEN, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = block(
        map::PM1A_CONTROL,
        map::PM1_CONTROL_LEN,
        AccessSize::WordAccess,
    );
    fadt.x_pm_tmr_blk = block(map::PM_TIMER, map::PM_TIMER_LEN, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = block(map::GPE0, map::GPE0_LEN, AccessSize::ByteAccess);
    fadt.p_lvl2_lat = NO_C_STATE.into();
    fadt.p_lvl3_lat = NO_C_STATE.into();
    fadt.iapc_boot_arch = boot.into();
    fadt.reset_reg = block(map::RESET, 1, AccessSize::ByteAccess);
    fadt.reset_value = map::RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"Vireo\0\0\0").into();
    bytes(&fadt.finalize())
}

/// Interrupt controllers (5.2.12).
fn madt(config: &Config) -> Vec<u8> {
    /// The platform has 8259s as well.
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    /// MPS INTI flags (5.2.12.5): active high 1, level-triggered 3 << 2; 0 is "as the bus says".
    const AS_BUS: u16 = 0;
    const LEVEL_HIGH: u16 = 0xD;
    /// LINT pin of NMIs.
    const LINT1: u8 = 1;
    const ALL_PROCESSORS: u8 = 0xFF;

    let mut body = Vec::new();
    body.extend_from_slice(&(map::LAPIC_BASE as u32).to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..config.vcpus {
        // Type 0: processor local APIC.
        body.extend_from_slice(&[0, 8, id, id]);
        body.extend_from_slice(&ENABLED.to_le_bytes());
    }
    // Type 1: I/O APIC.
    body.extend_from_slice(&[1, 12, map::IOAPIC_ID, 0]);
    body.extend_from_slice(&(map::IOAPIC_BASE as u32).to_le_bytes());
    body.extend_from_slice(&map::IOAPIC_GSI_BASE.to_le_bytes());
    // Type 2: interrupt source overrides.
    for (irq, gsi, flags) in [
        (map::PIT_IRQ, map::PIT_GSI, AS_BUS),
        (map::SCI_GSI as u8, map::SCI_GSI, LEVEL_HIGH),
    ] {
        body.extend_from_slice(&[2, 10, 0, irq]);
        body.extend_from_slice(&gsi.to_le_bytes());
        body.extend_from_slice(&flags.to_le_bytes());
    }
    // Type 4: local APIC NMI.
    body.extend_from_slice(&[4, 6, ALL_PROCESSORS]);
    body.extend_from_slice(&AS_BUS.to_le_bytes());
    body.push(LINT1);
    sdt(*b"APIC", 5, &body)
}

/// Where configuration space is in memory (PCI Firmware Specification 3.3, 4.1.2): that of bus 0.
fn mcfg() -> Vec<u8> {
    const RESERVED: [u8; 8] = [0; 8];
    let mut body = Vec::from(RESERVED);
    body.extend_from_slice(&map::ECAM_BASE.to_le_bytes());
    // Segment group 0, buses 0 to 0.
    body.extend_from_slice(&RESERVED);
    sdt(*b"MCFG", 1, &body)
}

fn sdt(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut sdt = Sdt::new(signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION);
    sdt.append_slice(body);
    sdt.as_slice().to_vec()
}

/// The devices that cannot be found otherwise, and soft-off.
fn dsdt(config: &Config) -> Vec<u8> {
    let mut body = Vec::new();
    let kind = map::S5_SLEEP_TYPE;
    aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(alloc::vec![&kind, &kind, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut body);
    pci_root(config, &mut body);
    ecam(&mut body);
    const COM: [&str; 4] = ["_SB_.COM1", "_SB_.COM2", "_SB_.COM3", "_SB_.COM4"];
    for ((uid, path), com) in (1u8..).zip(COM).zip(config.com) {
        if let Some((port, irq)) = com {
            isa(path, "PNP0501", uid, (port, 8), irq, &mut body);
        }
    }
    if config.rtc {
        isa("_SB_.RTC_", "PNP0B00", 0, (0x70, 2), 8, &mut body);
    }
    sdt(*b"DSDT", 2, &body)
}

/// AML that is made already: it lets a resource template's parts be temporaries.
struct Made(Vec<u8>);

impl Aml for Made {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// `Name (_CRS, ResourceTemplate () { .. })`.
fn crs(resources: Vec<&dyn Aml>) -> Made {
    Made(bytes(&aml::Name::new(
        "_CRS".into(),
        &aml::ResourceTemplate::new(resources),
    )))
}

/// The PCI host bridge: one with configuration space in memory, of which a kernel that does not know such thinks it is a plain one.
fn pci_root(config: &Config, body: &mut Vec<u8>) {
    let ports: Vec<_> = config
        .pci_ports
        .iter()
        .map(|&(first, last)| aml::AddressSpace::<u16>::new_io(first, last, None))
        .collect();
    let bus = aml::AddressSpace::<u16>::new_bus_number(0, 0);
    let mechanism = aml::IO::new(map::PCI_CONFIG_ADDRESS, map::PCI_CONFIG_ADDRESS, 1, 8);
    let memory = aml::AddressSpace::<u32>::new_memory(
        aml::AddressSpaceCacheable::NotCacheable,
        true,
        map::PCI_BASE as u32,
        (map::PCI_BARS_END - 1) as u32,
        None,
    );
    let mut resources: Vec<&dyn Aml> = alloc::vec![&bus, &mechanism];
    resources.extend(ports.iter().map(|window| window as &dyn Aml));
    resources.push(&memory);
    let resources = crs(resources);
    let routes = pci_routes(config, body);
    aml::Device::new(
        "_SB_.PCI0".into(),
        alloc::vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &resources,
            &routes,
        ],
    )
    .to_aml_bytes(body);
}

/// Where INTA of each device leads (6.2.13): to an IOAPIC pin or, for a guest that has not said by `_PIC` (5.8.1) that it uses that, to
/// the 8259 pair. What the guest has said is put into `body`.
fn pci_routes(config: &Config, body: &mut Vec<u8>) -> Made {
    const APIC_MODE: u8 = 1;
    aml::Name::new("PICM".into(), &aml::ZERO).to_aml_bytes(body);
    aml::Method::new(
        "_PIC".into(),
        1,
        false,
        alloc::vec![&aml::Store::new(&aml::Path::new("PICM"), &aml::Arg(0))],
    )
    .to_aml_bytes(body);
    let table = |line: &dyn Fn(u8) -> Option<u32>| {
        let entry = |device: u8| {
            let address = u32::from(device) << 16 | 0xFFFF;
            let gsi = line(device)?;
            let fields: Vec<&dyn Aml> = alloc::vec![&address, &aml::ZERO, &aml::ZERO, &gsi];
            Some(Made(bytes(&aml::Package::new(fields))))
        };
        let entries: Vec<Made> = (1..32).filter_map(entry).collect();
        let entries = entries.iter().map(|entry| entry as &dyn Aml).collect();
        Made(bytes(&aml::Package::new(entries)))
    };
    let by_apic = table(&|device| Some(map::PIRQ_GSI + pirq(device)));
    let by_pic = table(&|_| config.pci_irq.map(u32::from));
    Made(bytes(&aml::Method::new(
        "_PRT".into(),
        0,
        false,
        alloc::vec![
            &aml::If::new(
                &aml::Equal::new(&aml::Path::new("PICM"), &APIC_MODE),
                alloc::vec![&aml::Return::new(&by_apic)],
            ),
            &aml::Return::new(&by_pic),
        ],
    )))
}

/// ECAM is nobody else's memory: a motherboard resource says so (PCI Firmware Specification 3.3, 4.1.2).
fn ecam(body: &mut Vec<u8>) {
    let memory = aml::Memory32Fixed::new(true, map::ECAM_BASE as u32, map::ECAM_SIZE as u32);
    aml::Device::new(
        "_SB_.ECAM".into(),
        alloc::vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &crs(alloc::vec![&memory]),
        ],
    )
    .to_aml_bytes(body);
}

/// A device on the ISA bus with `len` ports and an edge-triggered, active high, unshared interrupt.
fn isa(path: &str, hid: &str, uid: u8, (port, len): (u16, u8), irq: u8, body: &mut Vec<u8>) {
    let resources = crs(alloc::vec![
        &aml::IO::new(port, port, 1, len),
        &aml::Interrupt::new(true, true, false, false, irq.into()),
    ]);
    aml::Device::new(
        path.into(),
        alloc::vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new(hid)),
            &aml::Name::new("_UID".into(), &uid),
            &resources,
        ],
    )
    .to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
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
        let entry =
            |gsi: u8| [b"\x12\x0B\x04\x0C\xFF\xFF\x03\x00\x00\x00\x0A", &[gsi][..]].concat();
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
}
