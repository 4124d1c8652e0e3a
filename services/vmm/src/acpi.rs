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
#[path = "acpi_tests.rs"]
mod tests;
