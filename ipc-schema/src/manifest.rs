//! What a system consists of: the machine-readable form of the one TOML file that describes it.
//!
//! Job: the types, their check, and the names of files in the boot archive. Place: xtask makes a
//! [`System`] out of the TOML and packs it as the archive's file `manifest` (postcard); root and
//! the manager read it. The manager makes further VMs at run time from the same [`Vm`].
//! Trust: [`System::check`] is to be passed before any field is acted on.
//!
//! Enums are append-only and fields are never reordered; a golden-bytes test pins the encoding.

use alloc::{format, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

mod consoles;
mod device;
mod disks;
mod faults;
mod nets;
mod ports;

pub use crate::virtio::{MAX_PAIRS, MAX_QUEUES};
pub use consoles::{Channel, MAX_CONSOLE_PORTS, MAX_PORT_NAME, PortName, Ports};
pub use device::{Device, DeviceKind, Registers};
pub use disks::{Disk, Home, MAX_SERIAL, disk_file};
pub use faults::{CheckError, Fault, Place};
pub use ports::{DEBUG_EXIT_PORT, PortRange, VMM_PORTS};

use ports::check_ports;

/// The archive file that holds the encoded [`System`].
pub const MANIFEST_FILE: &str = "manifest";
/// Longest name of a system, device, driver or server in bytes.
pub const MAX_NAME: usize = 32;
/// Longest name of a VM in bytes; names of its devices start with it.
pub const MAX_VM_NAME: usize = 16;
/// Memory in bytes that the machine needs beside what VMs and the boot archive take.
pub const MACHINE_OVERHEAD: u64 = 64 << 20;
/// Least memory of a VM in bytes.
pub const MIN_VM_MEMORY: u64 = 1 << 20;
/// Device numbers on PCI bus 0 below this; number 0 is the host bridge.
pub const PCI_SLOTS: u8 = 32;
/// Most virtual processors of a VM.
pub const MAX_VCPUS: u32 = 64;
/// Most processors of the machine that Vireo uses.
pub const MAX_CPUS: u32 = 8;
/// A whole system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// The system's name, for people.
    pub name: String,
    /// Memory in bytes that the description was checked against.
    pub memory: u64,
    /// What the machine does when the last VM has ended.
    pub idle: Idle,
    /// Virtual machines, in the order of the TOML; the console is attached to the first.
    pub vms: Vec<Vm>,
    /// Drivers of the machine's own devices.
    pub drivers: Vec<Driver>,
    /// Servers beside the core ones.
    pub servers: Vec<Server>,
    /// Disks.
    pub disks: Vec<Disk>,
}

/// What the machine does when the last VM has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Idle {
    /// It powers off; a guest's debug-exit code becomes the machine's.
    PowerOff,
    /// It goes on running, so that the operator can start another VM.
    Stay,
}

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Unique name, also a part of archive file names.
    pub name: String,
    /// Guest memory in bytes, a multiple of 4096.
    pub memory: u64,
    /// Number of virtual processors.
    pub vcpus: u32,
    /// Whether it is started when the system starts.
    pub autostart: bool,
    /// Archive file of the kernel image.
    pub kernel: String,
    /// Archive file of the initial RAM disk.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub append: String,
    /// Its part of the processor.
    pub cpu: CpuShare,
    /// Whether the guest has the debug-exit port [`DEBUG_EXIT_PORT`].
    pub debug_exit: bool,
    /// Its devices, each an isolated server.
    pub devices: Vec<Device>,
    /// Rate of its TSC in MHz; 0: the machine's.
    pub tsc_mhz: u32,
}

/// A VM's part of the processors, for the scheduler server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuShare {
    /// Weight against other VMs when processors are short.
    pub shares: u32,
    /// Guaranteed part in percent of one processor; 0 is none.
    pub reservation: u32,
    /// Most it may use, in percent of one processor; `None` is no limit.
    pub limit: Option<u32>,
    /// The processor that it runs on, below [`MAX_CPUS`]; `None`: the scheduler server chooses. If the machine does not have it, the
    /// scheduler chooses too.
    pub cpu: Option<u32>,
}

/// What a driver drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriverKind {
    /// The machine's 16550A serial port: the operator's terminal.
    Uart,
}

impl DriverKind {
    /// Number of machine ports it holds.
    pub const fn ports(self) -> u16 {
        match self {
            Self::Uart => 8,
        }
    }

    /// Package name of its server.
    pub const fn package(self) -> &'static str {
        match self {
            Self::Uart => "driver-uart",
        }
    }
}

/// A driver of one of the machine's devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// Name of the server instance, unique in the system.
    pub name: String,
    /// What it drives.
    pub kind: DriverKind,
    /// Archive file of its server.
    pub binary: String,
    /// Machine ports that it holds.
    pub ports: PortRange,
    /// Machine ISA interrupt line, 0 to 15.
    pub irq: u8,
}

/// A further server, as the bench or a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Name of the server instance, unique in the system.
    pub name: String,
    /// Archive file of its ELF.
    pub binary: String,
    /// Text handed to it at its start.
    pub args: String,
}

/// Archive file name of a server's ELF.
pub fn binary_file(package: &str) -> String {
    format!("bin/{package}")
}

/// Archive file name of a VM's kernel image.
pub fn kernel_file(vm: &str) -> String {
    format!("vm/{vm}/kernel")
}

/// Archive file name of a VM's initial RAM disk.
pub fn initrd_file(vm: &str) -> String {
    format!("vm/{vm}/initrd")
}

impl System {
    /// Encodes for the archive.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_allocvec(self)
    }

    /// Decodes what [`System::encode`] made. Trailing bytes are an error: they mean another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        let (system, rest) = postcard::take_from_bytes(bytes)?;
        if rest.is_empty() {
            Ok(system)
        } else {
            Err(postcard::Error::DeserializeBadEncoding)
        }
    }

    /// Checks everything that can be told without the machine.
    pub fn check(&self) -> Result<(), CheckError> {
        let fail = |place, fault| Err(CheckError { place, fault });
        if !name_ok(&self.name) {
            return fail(Place::System, Fault::BadName);
        }
        let available = self.memory.saturating_sub(MACHINE_OVERHEAD);
        let mut needed = 0u64;
        for (i, vm) in self.vms.iter().enumerate() {
            vm.check(i)?;
            if let Some(j) = self.vms.iter().take(i).position(|v| v.name == vm.name) {
                return fail(Place::Vm(i), Fault::DuplicateName(Place::Vm(j)));
            }
            needed = needed.saturating_add(vm.memory);
            if needed > available {
                let fault = Fault::MemoryDoesNotFit { needed, available };
                return fail(Place::Vm(i), fault);
            }
        }
        self.check_disks(needed, available)?;
        self.check_disks_of_devices()?;
        self.check_addresses()?;
        for (i, driver) in self.drivers.iter().enumerate() {
            let place = Place::Driver(i);
            check_ports(place, driver.ports, driver.kind.ports())?;
            check_irq(place, driver.irq)?;
            for (j, other) in self.drivers.iter().enumerate().take(i) {
                if other.ports.overlaps(driver.ports) {
                    return fail(place, Fault::PortTaken(Place::Driver(j)));
                }
                if other.irq == driver.irq {
                    return fail(place, Fault::IrqTaken(Place::Driver(j)));
                }
            }
        }
        self.check_instance_names()
    }

    /// Every server instance has a name of its own: devices, drivers and further servers.
    fn check_instance_names(&self) -> Result<(), CheckError> {
        let devices = self.vms.iter().enumerate().flat_map(|(v, vm)| {
            let named = vm.devices.iter().enumerate();
            named.map(move |(d, device)| (Place::Device(v, d), device.name.as_str()))
        });
        let drivers = self.drivers.iter().enumerate();
        let drivers = drivers.map(|(i, d)| (Place::Driver(i), d.name.as_str()));
        let servers = self.servers.iter().enumerate();
        let servers = servers.map(|(i, s)| (Place::Server(i), s.name.as_str()));
        let all: Vec<(Place, &str)> = devices.chain(drivers).chain(servers).collect();
        for (i, (place, name)) in all.iter().enumerate() {
            let place = *place;
            if !name_ok(name) {
                let fault = Fault::BadName;
                return Err(CheckError { place, fault });
            }
            if let Some((other, _)) = all.iter().take(i).find(|(_, n)| n == name) {
                let fault = Fault::DuplicateName(*other);
                return Err(CheckError { place, fault });
            }
        }
        Ok(())
    }
}

impl Vm {
    /// Checks everything about one VM that is not about others. `index` is only for the error.
    pub fn check(&self, index: usize) -> Result<(), CheckError> {
        let place = Place::Vm(index);
        let fail = |place, fault| Err(CheckError { place, fault });
        if !vm_name_ok(&self.name) {
            return fail(place, Fault::BadName);
        }
        if self.memory < MIN_VM_MEMORY || !self.memory.is_multiple_of(4096) {
            return fail(place, Fault::BadMemory);
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return fail(place, Fault::BadVcpus);
        }
        // At most 64 * 100, so no overflow.
        let most = self.cpu.limit.unwrap_or(u32::MAX).min(self.vcpus * 100);
        if self.cpu.shares == 0 || self.cpu.limit == Some(0) || self.cpu.reservation > most {
            return fail(place, Fault::BadShare);
        }
        if self.cpu.cpu.is_some_and(|cpu| cpu >= MAX_CPUS) {
            return fail(place, Fault::BadCpu);
        }
        for (i, device) in self.devices.iter().enumerate() {
            self.check_device(index, i, device)?;
        }
        if !self.port_names_differ() {
            return fail(place, Fault::PortNameTaken);
        }
        Ok(())
    }

    fn check_device(&self, index: usize, i: usize, device: &Device) -> Result<(), CheckError> {
        let place = Place::Device(index, i);
        let fail = |fault| Err(CheckError { place, fault });
        check_ports(place, device.ports, device.kind.ports())?;
        let earlier = || {
            (0..)
                .map(|j| Place::Device(index, j))
                .zip(&self.devices)
                .take(i)
        };
        if !device.kind.queues_fit() {
            return fail(Fault::BadQueues);
        }
        if let DeviceKind::VirtioConsole { ports, .. } = &device.kind
            && !ports.is_sound()
        {
            return fail(Fault::BadPortNames);
        }
        if let Some(slot) = device.kind.slot() {
            if slot == 0 || slot >= PCI_SLOTS || device.doorbell.is_some() {
                return fail(Fault::BadSlot);
            }
            let same = earlier().find(|(_, other)| other.kind.slot() == Some(slot));
            return match same {
                Some((other, _)) => fail(Fault::SlotTaken(other)),
                None => Ok(()),
            };
        }
        check_irq(place, device.irq)?;
        if let Some(taken) = device.ranges().find_map(|r| self.vmm_range(r)) {
            return fail(Fault::PortOfVmm(taken));
        }
        for (at, other) in earlier().filter(|(_, other)| other.kind.slot().is_none()) {
            let clash = |r: PortRange| other.ranges().any(|o| o.overlaps(r));
            if device.ranges().any(clash) {
                return fail(Fault::PortTaken(at));
            }
            if other.irq == device.irq {
                return fail(Fault::IrqTaken(at));
            }
        }
        Ok(())
    }

    /// The VMM's own range that `range` overlaps.
    fn vmm_range(&self, range: PortRange) -> Option<PortRange> {
        let debug_exit = self
            .debug_exit
            .then_some(PortRange::new(DEBUG_EXIT_PORT, 4));
        let mut all = VMM_PORTS.into_iter().chain(debug_exit);
        all.find(|r| r.overlaps(range))
    }
}

fn check_irq(place: Place, irq: u8) -> Result<(), CheckError> {
    if irq > 15 || irq == 2 {
        let fault = Fault::BadIrq;
        return Err(CheckError { place, fault });
    }
    Ok(())
}

/// Whether `name` is fit for a VM: shorter, and without the dot that device names have.
pub fn vm_name_ok(name: &str) -> bool {
    name_ok(name) && name.len() <= MAX_VM_NAME && !name.contains('.')
}

/// Whether `name` is fit for a system, device, driver or server.
pub fn name_ok(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(good)
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
