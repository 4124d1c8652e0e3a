//! The machine as this server's capabilities give it, and the start.

extern crate alloc;

use alloc::vec::Vec;

use platform::pci::class_name;
use platform::processors::{self, Processors, Standing, Step, Why};
use platform::server::IOMMU_TABLES;
use platform::{Hardware, Platform, Width};
use runtime::abi::layout::{self, slot};
use runtime::abi::rights::{READ, WRITE};
use runtime::abi::{Status, cpu_state};
use runtime::object::{self, Cpu, Memory, Pool, Ports, Space};
use runtime::start::{PlatformConfig, StartError};
use runtime::{Endpoint, Notification, Slots, StartInfo, serve, time};

runtime::entry!(main);

const PAGE: u64 = 4096;
/// Where firmware's memory is mapped while it is copied.
const WINDOW: u64 = layout::SHARED;
/// Bytes of it at a time.
const WINDOW_LEN: u64 = 64 << 10;
/// Where pages of registers are mapped, for good.
const REGISTERS: u64 = layout::SHARED + (1 << 30);
/// Most such pages: I/O APICs and a few ACPI registers.
const MAX_PAGES: usize = 64;
const SPACE: Space = Space(slot::SPACE);

/// A Memory of the machine.
struct Range {
    memory: Memory,
    base: u64,
    len: u64,
    /// Registers of devices, which may be written.
    device: bool,
}

/// The capabilities.
struct Capabilities {
    ranges: Vec<Range>,
    /// With first port and number of ports.
    ports: Vec<(Ports, u16, u32)>,
    /// Physical addresses of the pages mapped from [`REGISTERS`] on.
    pages: Vec<u64>,
    /// Slots for those pages' Memory: what is mapped cannot be divided, and drivers are to have their parts of the same ranges.
    slots: Slots,
}

impl Capabilities {
    fn new(start: &StartInfo, config: &PlatformConfig, slots: Slots) -> Result<Self, StartError> {
        let range = |(name, base, len): &(alloc::string::String, u64, u64)| {
            Ok(Range {
                memory: Memory(start.cap(name)?),
                base: *base,
                len: *len,
                device: name.starts_with("device"),
            })
        };
        let ports = |(name, first, count): &(alloc::string::String, u16, u32)| {
            Ok((Ports(start.cap(name)?), *first, *count))
        };
        Ok(Self {
            ranges: config
                .memories
                .iter()
                .map(range)
                .collect::<Result<_, _>>()?,
            ports: config.ports.iter().map(ports).collect::<Result<_, _>>()?,
            pages: Vec::new(),
            slots,
        })
    }

    /// The range that an address is in.
    fn range(&self, address: u64) -> Option<&Range> {
        let within = |r: &&Range| address.checked_sub(r.base).is_some_and(|o| o < r.len);
        self.ranges.iter().find(within)
    }

    fn port(&self, port: u16, width: Width) -> Option<Ports> {
        let within = |first: u16, count: u32| {
            let offset = port.checked_sub(first).map(u32::from);
            offset.is_some_and(|o| o + u32::from(width.bytes()) <= count)
        };
        let found = self.ports.iter().find(|(_, f, c)| within(*f, *c));
        found.map(|(ports, ..)| *ports)
    }

    /// Where the register at a physical address is mapped.
    fn register(&mut self, address: u64, width: Width) -> Option<*mut u8> {
        if !address.is_multiple_of(u64::from(width.bytes())) {
            return None;
        }
        let (page, offset) = (address & !(PAGE - 1), address & (PAGE - 1));
        let known = self.pages.iter().position(|&p| p == page);
        let number = match known {
            Some(number) => number,
            None => {
                let number = self.pages.len();
                let range = self.range(page).filter(|r| r.device)?;
                if number >= MAX_PAGES {
                    return None;
                }
                let va = REGISTERS + number as u64 * PAGE;
                let (memory, from) = (range.memory, page - range.base);
                let dest = self.slots.take()?;
                let part = memory.divide(from, PAGE, dest, Pool(slot::POOL)).ok()?;
                SPACE.map(va, part, READ | WRITE, 0, PAGE).ok()?;
                self.pages.push(page);
                number
            }
        };
        let va = REGISTERS + number as u64 * PAGE + offset;
        Some(core::ptr::with_exposed_provenance_mut(va as usize))
    }

    /// Copies a part that is within one range and one window; answers its length.
    fn copy_part(&mut self, address: u64, into: &mut [u8]) -> Option<usize> {
        let range = self.range(address)?;
        let end = range.base.checked_add(range.len)?;
        let page = address & !(PAGE - 1);
        let wanted = address.checked_add(into.len() as u64)?;
        let to = wanted.min(end).min(page + WINDOW_LEN);
        let mapped = to.next_multiple_of(PAGE).min(end) - page;
        let part = into.get_mut(..usize::try_from(to - address).ok()?)?;
        SPACE
            .map(WINDOW, range.memory, READ, page - range.base, mapped)
            .ok()?;
        let from = WINDOW + (address - page);
        let from = core::ptr::with_exposed_provenance::<u8>(from as usize);
        // SAFETY: the window has just been mapped, `mapped` bytes from `page` on, and `from` with the part's length lies
        // in it; nothing else is mapped there, so it does not overlap `part`.
        unsafe { core::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), part.len()) };
        // SAFETY: no reference points into the window: it was only read through `from`, above.
        unsafe { SPACE.unmap(WINDOW) }.ok()?;
        Some(part.len())
    }
}

impl Hardware for Capabilities {
    fn port_in(&mut self, port: u16, width: Width) -> Option<u32> {
        let ports = self.port(port, width)?;
        match width {
            Width::Byte => ports.in8(port).map(u32::from),
            Width::Word => ports.in16(port).map(u32::from),
            Width::Long => ports.in32(port),
        }
        .ok()
    }

    fn port_out(&mut self, port: u16, width: Width, value: u32) -> Option<()> {
        let ports = self.port(port, width)?;
        match width {
            Width::Byte => ports.out8(port, value as u8),
            Width::Word => ports.out16(port, value as u16),
            Width::Long => ports.out32(port, value),
        }
        .ok()
    }

    fn copy(&mut self, mut address: u64, mut into: &mut [u8]) -> Option<()> {
        while !into.is_empty() {
            let done = self.copy_part(address, into)?;
            // A part is never empty: its address is in its range.
            address = address.checked_add(done as u64)?;
            into = into.get_mut(done..)?;
        }
        Some(())
    }

    fn register_in(&mut self, address: u64, width: Width) -> Option<u32> {
        let at = self.register(address, width)?;
        // SAFETY: `at` is in a mapped page of registers, aligned to the width; it is no memory of Rust's.
        Some(unsafe {
            match width {
                Width::Byte => u32::from(at.read_volatile()),
                Width::Word => u32::from(at.cast::<u16>().read_volatile()),
                Width::Long => at.cast::<u32>().read_volatile(),
            }
        })
    }

    fn register_out(&mut self, address: u64, width: Width, value: u32) -> Option<()> {
        let at = self.register(address, width)?;
        // SAFETY: as in `register_in`.
        unsafe {
            match width {
                Width::Byte => at.write_volatile(value as u8),
                Width::Word => at.cast::<u16>().write_volatile(value as u16),
                Width::Long => at.cast::<u32>().write_volatile(value),
            }
        }
        Some(())
    }

    fn delay(&mut self, microseconds: u64) {
        delay(microseconds);
    }
}

fn delay(microseconds: u64) {
    // Nobody signals this server: it just sleeps until the deadline.
    let until = time::after(microseconds);
    while time::now() < until {
        let _ = Notification(slot::NOTIFICATION).wait(until);
    }
}

/// The processors, by their capabilities.
struct Cpus {
    /// Pays for the Cpus; it outlives this server.
    pool: Pool,
    slots: Slots,
    /// Number and capability of those that have been added.
    added: Vec<(u32, Cpu)>,
}

/// The processor that this server runs on.
const OWN_CPU: Cpu = Cpu(slot::CPU);

fn why(status: Status) -> Why {
    match status {
        Status::Busy => "it has been started before",
        Status::NoMemory => "the kernel has no room for it",
        Status::OutOfRange => "its local APIC id has more than 8 bits",
        Status::Unsupported => "its time-stamp counter differs, or it lacks what the first one has",
        Status::BadOperation => "the kernel knows no further processors",
        _ => "the kernel refuses",
    }
}

impl Cpus {
    fn cpu(&self, number: u32) -> Result<Cpu, Why> {
        let found = self.added.iter().find(|(n, _)| *n == number);
        found.map(|(_, cpu)| *cpu).ok_or("it has no Cpu")
    }
}

impl Processors for Cpus {
    fn own_apic_id(&mut self) -> Result<u32, Why> {
        let info = OWN_CPU.info().map_err(why)?;
        // Ids have 32 bits, by the architecture.
        Ok(info.apic_id as u32)
    }

    fn add(&mut self, apic_id: u32) -> Result<u32, Why> {
        let dest = self.slots.take().ok_or("no slot is left")?;
        let added = OWN_CPU.add(apic_id, dest, self.pool).map_err(why);
        let (cpu, number) = added.inspect_err(|_| self.slots.give_back(dest))?;
        self.added.push((number as u32, cpu));
        Ok(number as u32)
    }

    fn step(&mut self, number: u32, step: Step) -> Result<(), Why> {
        let step = match step {
            Step::Init => object::cpu::Step::Init,
            Step::Startup => object::cpu::Step::Startup,
            Step::Admit => object::cpu::Step::Admit,
        };
        self.cpu(number)?.start(step).map(drop).map_err(why)
    }

    fn standing(&mut self, number: u32) -> Result<Standing, Why> {
        let info = self.cpu(number)?.info().map_err(why)?;
        Ok(match info.state {
            cpu_state::WAITING => Standing::Waiting,
            cpu_state::ONLINE => Standing::Online,
            _ => Standing::NotYet,
        })
    }

    fn delay(&mut self, microseconds: u64) {
        delay(microseconds);
    }

    fn tell(&mut self, apic_id: u32, outcome: Result<u32, Why>) {
        match outcome {
            Ok(number) => defmt::info!("processor {=u32} online, APIC id {=u32}", number, apic_id),
            Err(why) => defmt::warn!(
                "processor with APIC id {=u32} is not used: {=str}",
                apic_id,
                why
            ),
        }
    }
}

fn main(start: &'static StartInfo) -> ! {
    let config: PlatformConfig = start.config().unwrap_or_else(|e| panic!("{e}"));
    let mut others = start.free_slots();
    let first = others.take_run(MAX_PAGES as u32);
    let of_pages = first.map_or(Slots::new(0, 0), |s| Slots::new(s, s + MAX_PAGES as u32));
    let machine = Capabilities::new(start, &config, of_pages).unwrap_or_else(|e| panic!("{e}"));
    let mut platform = Platform::new(machine, config.rsdp);
    report(&platform);
    let mut cpus = Cpus {
        pool: Pool(start.cap("processors").unwrap_or_else(|e| panic!("{e}"))),
        slots: others,
        added: Vec::new(),
    };
    let found = processors::start(&mut cpus, &platform.madt.processors);
    let slot = |number| cpus.cpu(number).map_or(0, |cpu| cpu.0);
    platform.processors = found.into_iter().map(|p| (p, slot(p.number))).collect();
    let status = serve(Endpoint(slot::ENDPOINT), &mut platform);
    panic!("the Endpoint is gone: {status:?}")
}

/// What was found, in the log.
fn report(platform: &Platform<Capabilities>) {
    if let Some(error) = platform.error {
        let why = match error {
            platform::tables::TablesError::NoRsdp => "no RSDP was found",
            platform::tables::TablesError::NoRoot => "the RSDT or XSDT is damaged",
        };
        defmt::error!("no ACPI tables: {=str}; no interrupt can be routed", why);
    }
    for signature in &platform.signatures {
        let name = core::str::from_utf8(signature).unwrap_or("????");
        let iommu = IOMMU_TABLES.contains(&signature);
        if iommu {
            defmt::info!(
                "ACPI table {=str}: the machine has an IOMMU, unused so far",
                name
            );
        } else {
            defmt::debug!("ACPI table {=str}", name);
        }
    }
    if platform.skipped > 0 {
        defmt::warn!("{=usize} ACPI tables cannot be read", platform.skipped);
    }
    defmt::debug!(
        "{=usize} processors are enabled",
        platform.madt.processors.len()
    );
    for i in &platform.ioapics {
        let (first, last) = (
            i.gsi_base,
            i.gsi_base.saturating_add(i.lines.saturating_sub(1)),
        );
        defmt::info!(
            "I/O APIC {=u8} at {=u64:#x}: interrupts {=u32} to {=u32}",
            i.id,
            i.address,
            first,
            last
        );
    }
    for o in &platform.madt.overrides {
        let (level, low) = (o.mode.level, o.mode.active_low);
        defmt::debug!(
            "ISA interrupt {=u8} is {=u32}, level {=bool}, active low {=bool}",
            o.source,
            o.gsi,
            level,
            low
        );
    }
    for d in &platform.pci {
        let (bus, device, function) = (d.address >> 8, (d.address >> 3) & 31, d.address & 7);
        let name = class_name(d.class);
        defmt::info!(
            "PCI {=u16:02x}:{=u16:02x}.{=u16} {=u16:04x}:{=u16:04x} {=str}",
            bus,
            device,
            function,
            d.vendor,
            d.device,
            name
        );
    }
    match platform.s5 {
        Some(s5) => defmt::info!("power off: S5 with SLP_TYP {=u8} and {=u8}", s5.a, s5.b),
        None => defmt::warn!("firmware does not say how to power off"),
    }
}
