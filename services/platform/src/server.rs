//! The server's state and its answers.

use alloc::vec::Vec;

use ipc_schema::proto::{
    self, CpuState, Machine, PciDevice, PlatformRequest, PlatformResponse, Refusal,
};
use runtime::abi::{CapTransfer, rights};
use runtime::{ReplyCaps, Service};

use crate::fadt::Fadt;
use crate::hardware::Hardware;
use crate::ioapic::IoApic;
use crate::madt::{self, Madt};
use crate::processors::Processor;
use crate::s5::SleepType;
use crate::tables::{self, Tables, TablesError};
use crate::{pci, power};

/// Vectors below are exceptions.
const FIRST_VECTOR: u8 = 0x20;
/// Badges of root's own capability: unbadged, or its number in the log.
const ROOT: [u64; 2] = [0, 1];

/// Tables that describe IOMMUs: Intel's and AMD's.
pub const IOMMU_TABLES: [&[u8; 4]; 2] = [b"DMAR", b"IVRS"];

/// What the machine has, and the registers that are for all of it.
pub struct Platform<H> {
    hardware: H,
    /// Signatures of the tables, for the log.
    pub signatures: Vec<[u8; 4]>,
    /// Why there are no tables.
    pub error: Option<TablesError>,
    /// Tables that could not be read.
    pub skipped: usize,
    /// The MADT.
    pub madt: Madt,
    /// I/O APICs that answer.
    pub ioapics: Vec<IoApic>,
    /// The FADT.
    pub fadt: Option<Fadt>,
    /// How to switch off.
    pub s5: Option<SleepType>,
    /// PCI functions.
    pub pci: Vec<PciDevice>,
    /// Processors beside the first, with the slots of their Cpus' capabilities.
    pub processors: Vec<(Processor, u32)>,
}

impl<H: Hardware> Platform<H> {
    /// Looks at the machine and masks all interrupts. A machine without tables has no I/O APIC that is known.
    pub fn new(mut hardware: H, rsdp: u64) -> Self {
        let (tables, error) = match tables::read(&mut hardware, rsdp) {
            Ok(tables) => (tables, None),
            Err(error) => (Tables::default(), Some(error)),
        };
        let start = |of| IoApic::start(&mut hardware, of);
        let ioapics = tables.madt.ioapics.iter().filter_map(start).collect();
        let pci = pci::list(&mut hardware);
        Self {
            hardware,
            signatures: tables.signatures,
            error,
            skipped: tables.skipped,
            madt: tables.madt,
            ioapics,
            fadt: tables.fadt,
            s5: tables.s5,
            pci,
            processors: Vec::new(),
        }
    }

    /// A processor, with its capability if it may be used.
    fn processor(&self, index: u32, caps: &mut ReplyCaps) -> Result<PlatformResponse, Refusal> {
        let index = usize::try_from(index).map_err(|_| Refusal::Unknown)?;
        let (found, slot) = self.processors.get(index).ok_or(Refusal::Unknown)?;
        if found.state == CpuState::Online {
            // The first of at most four.
            caps.add(CapTransfer {
                slot: *slot,
                rights: rights::CONTROL | rights::GRANT,
                badge: 0,
            });
        }
        Ok(PlatformResponse::Processor {
            number: found.number,
            apic_id: found.apic_id,
            state: found.state,
        })
    }

    fn ioapic_of(&self, line: u32) -> Result<(IoApic, u32, madt::Mode), Refusal> {
        let (gsi, mode) = self.madt.input(line).ok_or(Refusal::Unknown)?;
        let found = self.ioapics.iter().find(|i| i.has(gsi));
        let ioapic = found.ok_or(Refusal::Unknown)?;
        Ok((*ioapic, gsi, mode))
    }

    fn route(&mut self, line: u32, vector: u8, apic_id: u32) -> Result<PlatformResponse, Refusal> {
        if vector < FIRST_VECTOR {
            return Err(Refusal::Malformed);
        }
        // An entry has 8 bits for it; 0xff are all processors.
        let apic_id = u8::try_from(apic_id).map_err(|_| Refusal::Unsupported)?;
        if apic_id == u8::MAX {
            return Err(Refusal::Unsupported);
        }
        let (ioapic, gsi, mode) = self.ioapic_of(line)?;
        let routed = ioapic.route(&mut self.hardware, gsi, mode, vector, apic_id);
        routed.ok_or(Refusal::Failed)?;
        Ok(PlatformResponse::Irq {
            level: mode.level,
            active_low: mode.active_low,
        })
    }

    fn unmask(&mut self, line: u32) -> Result<PlatformResponse, Refusal> {
        let (ioapic, gsi, _) = self.ioapic_of(line)?;
        let done = ioapic.unmask(&mut self.hardware, gsi);
        done.map(|()| PlatformResponse::Done).ok_or(Refusal::Failed)
    }

    /// What the machine has; of PCI as much as fits into a message.
    #[must_use]
    pub fn describe(&self) -> Machine {
        const MAX: usize = 128;
        let ioapic = |i: &IoApic| proto::IoApic {
            id: i.id,
            address: i.address,
            gsi_base: i.gsi_base,
            lines: i.lines,
        };
        let control = self.fadt.and_then(|f| f.pm1a_control);
        Machine {
            processors: self.madt.processors.iter().take(MAX).copied().collect(),
            ioapics: self.ioapics.iter().take(16).map(ioapic).collect(),
            pci: self.pci.iter().take(MAX).copied().collect(),
            acpi_power_off: self.s5.is_some() && control.is_some(),
        }
    }

    /// Switches off; comes back only if that failed.
    pub fn power_off(&mut self, code: u32) {
        power::power_off(&mut self.hardware, self.fadt.as_ref(), self.s5, code);
    }

    /// One of the functions that a driver looks for.
    fn function(
        &mut self,
        vendor: u16,
        devices: &[u16],
        index: u32,
    ) -> Result<PlatformResponse, Refusal> {
        let mut fits = self
            .pci
            .iter()
            .filter(|d| d.vendor == vendor && devices.contains(&d.device));
        let index = usize::try_from(index).map_err(|_| Refusal::Unknown)?;
        let address = fits.nth(index).ok_or(Refusal::Unknown)?.address;
        let found = pci::describe(&mut self.hardware, address).ok_or(Refusal::Failed)?;
        Ok(PlatformResponse::Function(found))
    }

    fn start_function(
        &mut self,
        address: u16,
        vector: u8,
        apic_id: u32,
    ) -> Result<PlatformResponse, Refusal> {
        if vector < FIRST_VECTOR {
            return Err(Refusal::Malformed);
        }
        // A message has 8 bits for it; 0xff are all processors.
        let apic_id = u8::try_from(apic_id).map_err(|_| Refusal::Unsupported)?;
        if apic_id == u8::MAX {
            return Err(Refusal::Unsupported);
        }
        if self.pci.iter().all(|d| d.address != address) {
            return Err(Refusal::Unknown);
        }
        let done = pci::start(&mut self.hardware, address, vector, apic_id);
        done.map(|()| PlatformResponse::Done).ok_or(Refusal::Failed)
    }

    fn answer(
        &mut self,
        badge: u64,
        request: &PlatformRequest,
        caps: &mut ReplyCaps,
    ) -> Result<PlatformResponse, Refusal> {
        if *request == PlatformRequest::Describe {
            return Ok(PlatformResponse::Machine(self.describe()));
        }
        if !ROOT.contains(&badge) {
            return Err(Refusal::Forbidden);
        }
        match *request {
            PlatformRequest::RouteIrq {
                gsi,
                vector,
                apic_id,
            } => self.route(gsi, vector, apic_id),
            PlatformRequest::Unmask { gsi } => self.unmask(gsi),
            PlatformRequest::Processor { index } => self.processor(index, caps),
            PlatformRequest::PowerOff { code } => {
                self.power_off(code);
                Err(Refusal::Failed)
            }
            PlatformRequest::Function {
                vendor,
                ref devices,
                index,
            } => self.function(vendor, devices, index),
            PlatformRequest::StartFunction {
                address,
                vector,
                apic_id,
            } => self.start_function(address, vector, apic_id),
            PlatformRequest::Reset => {
                power::reset(&mut self.hardware, self.fadt.as_ref());
                Err(Refusal::Failed)
            }
            // Vectors are root's to give.
            PlatformRequest::ClaimIrq { .. } | PlatformRequest::Describe => {
                Err(Refusal::Unsupported)
            }
        }
    }
}

impl<H: Hardware> Service for Platform<H> {
    type Request = PlatformRequest;
    type Response = PlatformResponse;

    fn request(
        &mut self,
        badge: u64,
        request: PlatformRequest,
        _received: u64,
        caps: &mut ReplyCaps,
    ) -> PlatformResponse {
        self.answer(badge, &request, caps)
            .unwrap_or_else(PlatformResponse::Refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copies::HEADER;
    use crate::testing::{self, QEMU_MADT, qemu_fadt, rsdp, rsdt, sealed};

    fn machine() -> testing::Machine {
        let mut m = testing::Machine::with_ioapic(24);
        m.ports = true;
        m.memory(0x1000, sealed(b"APIC", &QEMU_MADT));
        let mut fadt = qemu_fadt();
        fadt[40..44].copy_from_slice(&0x2000u32.to_le_bytes());
        fadt[140..148].copy_from_slice(&0u64.to_le_bytes());
        m.memory(0x3000, sealed(b"FACP", &fadt[HEADER..]));
        let dsdt = b"\x10\x08_S5_\x12\x06\x04\x00\x00\x00\x00";
        m.memory(0x2000, sealed(b"DSDT", dsdt));
        m.memory(0x4000, rsdt(&[0x1000, 0x3000]));
        m.memory(0x5000, rsdp(0, 0x4000, 0));
        m
    }

    fn platform() -> Platform<testing::Machine> {
        Platform::new(machine(), 0x5000)
    }

    fn ask(
        p: &mut Platform<testing::Machine>,
        badge: u64,
        request: PlatformRequest,
    ) -> PlatformResponse {
        p.request(badge, request, 0, &mut ReplyCaps::default())
    }

    fn route(gsi: u32, vector: u8, apic_id: u32) -> PlatformRequest {
        PlatformRequest::RouteIrq {
            gsi,
            vector,
            apic_id,
        }
    }

    #[test]
    fn routes_for_root_only() {
        let mut p = platform();
        let irq = |level| PlatformResponse::Irq {
            level,
            active_low: false,
        };
        assert_eq!(ask(&mut p, 0, route(4, 0x41, 1)), irq(false));
        assert_eq!(p.hardware.redirection(4), 1 << 56 | 0x41);
        assert_eq!(ask(&mut p, 1, route(9, 0x42, 0)), irq(true));
        assert_eq!(p.hardware.redirection(9), 0x8042);
        assert_eq!(ask(&mut p, 1, route(0, 0x43, 0)), irq(false));
        assert_eq!(p.hardware.redirection(2), 0x43, "the timer is on input 2");
        let refused = PlatformResponse::Refused;
        assert_eq!(
            ask(&mut p, 5, route(4, 0x44, 1)),
            refused(Refusal::Forbidden)
        );
        assert_eq!(
            ask(&mut p, 5, PlatformRequest::PowerOff { code: 0 }),
            refused(Refusal::Forbidden)
        );
        assert_eq!(
            ask(&mut p, 5, PlatformRequest::Reset),
            refused(Refusal::Forbidden)
        );
        assert_eq!(
            ask(&mut p, 0, route(4, 0x1f, 1)),
            refused(Refusal::Malformed)
        );
        assert_eq!(
            ask(&mut p, 0, route(4, 0x44, 255)),
            refused(Refusal::Unsupported)
        );
        assert_eq!(
            ask(&mut p, 0, route(4, 0x44, 256)),
            refused(Refusal::Unsupported)
        );
        assert_eq!(ask(&mut p, 0, route(2, 0x44, 0)), refused(Refusal::Unknown));
        assert_eq!(
            ask(&mut p, 0, route(24, 0x44, 0)),
            refused(Refusal::Unknown)
        );
        assert_eq!(
            p.hardware.redirection(4),
            1 << 56 | 0x41,
            "unchanged by refusals"
        );
        p.hardware.set_redirection(4, 0x1_0041);
        assert_eq!(
            ask(&mut p, 0, PlatformRequest::Unmask { gsi: 4 }),
            PlatformResponse::Done
        );
        assert_eq!(p.hardware.redirection(4), 0x41);
    }

    #[test]
    fn processors_with_their_capabilities() {
        let mut p = platform();
        let processor = |number, apic_id, state| Processor {
            number,
            apic_id,
            state,
        };
        p.processors = vec![
            (processor(1, 5, CpuState::Online), 40),
            (processor(2, 6, CpuState::Off), 41),
        ];
        let mut caps = ReplyCaps::default();
        let request = PlatformRequest::Processor { index: 0 };
        let answer = p.request(1, request.clone(), 0, &mut caps);
        let want = |number, apic_id, state| PlatformResponse::Processor {
            number,
            apic_id,
            state,
        };
        assert_eq!(answer, want(1, 5, CpuState::Online));
        let [cap] = caps.as_slice() else { panic!() };
        assert_eq!(
            (cap.slot, cap.rights),
            (40, rights::CONTROL | rights::GRANT)
        );
        let mut caps = ReplyCaps::default();
        let answer = p.request(1, PlatformRequest::Processor { index: 1 }, 0, &mut caps);
        assert_eq!(answer, want(2, 6, CpuState::Off));
        assert!(caps.as_slice().is_empty(), "it is of no use");
        let refused = PlatformResponse::Refused;
        let end = PlatformRequest::Processor { index: 2 };
        assert_eq!(ask(&mut p, 0, end), refused(Refusal::Unknown));
        let mut caps = ReplyCaps::default();
        let stranger = p.request(7, request, 0, &mut caps);
        assert_eq!(stranger, refused(Refusal::Forbidden));
        assert!(caps.as_slice().is_empty());
    }

    #[test]
    fn describes_to_anybody() {
        let mut p = platform();
        let PlatformResponse::Machine(m) = ask(&mut p, 9, PlatformRequest::Describe) else {
            panic!()
        };
        assert!(m.acpi_power_off);
        assert_eq!(m.processors, [0, 1]);
        assert_eq!((m.ioapics.len(), m.ioapics[0].lines), (1, 24));
    }

    /// Functions are root's to hand out, and messages have eight bits for a processor.
    #[test]
    fn functions() {
        let mut p = platform();
        let (address, vendor, device) = (0x20, 0x1af4, 0x1042);
        let class = 0x01_0000;
        p.pci = vec![PciDevice {
            address,
            vendor,
            device,
            class,
        }];
        let find = |devices: &[u16], index| PlatformRequest::Function {
            vendor,
            devices: devices.to_vec(),
            index,
        };
        let begin = |address, vector, apic_id| PlatformRequest::StartFunction {
            address,
            vector,
            apic_id,
        };
        let refused = PlatformResponse::Refused;
        let unknown = refused(Refusal::Unknown);
        let found = ask(&mut p, 1, find(&[1, device], 0));
        assert!(matches!(found, PlatformResponse::Function(f) if f.address == address));
        assert_eq!(ask(&mut p, 1, find(&[device], 1)), unknown);
        assert_eq!(ask(&mut p, 1, find(&[1], 0)), unknown);
        for request in [find(&[device], 0), begin(address, 0x41, 0)] {
            assert_eq!(ask(&mut p, 7, request), refused(Refusal::Forbidden));
        }
        for (request, why) in [
            (begin(address, 0x1f, 0), Refusal::Malformed),
            (begin(address, 0x41, 255), Refusal::Unsupported),
            (begin(8, 0x41, 0), Refusal::Unknown),
            (begin(address, 0x41, 0), Refusal::Failed),
        ] {
            assert_eq!(ask(&mut p, 0, request), refused(why));
        }
    }

    /// The largest description still goes into one message.
    #[test]
    fn the_description_fits() {
        let mut p = platform();
        let device = PciDevice {
            address: u16::MAX,
            vendor: u16::MAX,
            device: u16::MAX,
            class: u32::MAX,
        };
        p.pci = vec![device; 256];
        p.madt.processors = vec![u32::MAX; 256];
        p.ioapics = vec![p.ioapics[0]; 64];
        let mut message = vec![0; proto::MAX_MESSAGE];
        let response = PlatformResponse::Machine(p.describe());
        assert!(proto::encode(&response, &mut message).is_ok());
    }

    #[test]
    fn off() {
        let mut p = platform();
        assert_eq!(
            ask(&mut p, 0, PlatformRequest::PowerOff { code: 0 }),
            PlatformResponse::Refused(Refusal::Failed)
        );
        assert_eq!(p.hardware.written().last(), Some(&(0x604, 0x2000)));
    }

    #[test]
    fn a_machine_without_tables_refuses_and_does_not_panic() {
        let mut p = Platform::new(testing::Machine::default(), 0);
        assert_eq!(p.error, Some(TablesError::NoRsdp));
        for request in [
            route(4, 0x41, 0),
            PlatformRequest::Unmask { gsi: 4 },
            PlatformRequest::PowerOff { code: 7 },
            PlatformRequest::Reset,
            PlatformRequest::ClaimIrq { gsi: 4 },
        ] {
            assert!(matches!(
                ask(&mut p, 0, request),
                PlatformResponse::Refused(_)
            ));
        }
        assert!(!p.describe().acpi_power_off);
    }
}
