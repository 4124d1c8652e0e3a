//! Who gets what: for each server of the system a [`Plan`], pure data.
//!
//! The binary carries a plan out twice or more: a restart follows the same plan, with the same Endpoint, Notification
//! and shared pages, so that clients hold on.
//!
//! Each server gets only what its job needs; what is not in its plan it cannot even name.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use ipc_schema::abi::ABI_VERSION;
use ipc_schema::abi::layout::{self, slot};
use ipc_schema::abi::rights::{CONTROL, EXEC, GRANT, READ, RECV, SEND, WRITE};
use ipc_schema::manifest::{DeviceKind, Driver, PortRange, System, Vm, binary_file};
use ipc_schema::proto::Class;
use runtime::StartInfo;
use runtime::start::{PlatformConfig, Region};
use runtime::time::WallClock;

/// End (exclusive) of guest memory below 4 GiB; the rest begins at [`HIGH_RAM`]. The hole is for PCI and APICs, as the
/// VMM describes it to its guest.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where guest memory goes on.
pub const HIGH_RAM: u64 = 0x1_0000_0000;
/// Heap in bytes when nothing else is said.
pub const HEAP: u64 = 256 << 10;
/// Pool in bytes when nothing else is said.
pub const POOL: u64 = 256 << 10;
/// Slots of a capability table when nothing else is said.
pub const SLOTS: u32 = 256;
/// Bytes of RAM that a further server may divide.
pub const EXTRA_RAM: u64 = 8 << 20;
/// First VA of files of the boot archive in a VMM.
const FILES: u64 = 0x10_0000_0000;
/// Distance of shared pages: a stray access hits a hole.
const SHARED_STEP: u64 = 0x1_0000;

/// Bits of the manager's Notification.
pub mod manager_bits {
    /// The driver of the serial port.
    pub const DRIVER: u64 = 1;
    /// Root has events.
    pub const EVENTS: u64 = 2;

    /// The UART of VM number `vm`; VMs beyond 55 share the last bit.
    #[must_use]
    pub fn uart(vm: usize) -> u64 {
        1 << (8 + vm.min(55))
    }
}

/// Bits of a VMM's Notification.
pub mod vmm_bits {
    /// Some device's interrupt page has changed.
    pub const DEVICES: u64 = 1;
    /// The power button has been pressed.
    pub const POWER: u64 = 2;
    /// It must end.
    pub const QUIT: u64 = 4;
}

/// Bits of a device's or driver's Notification.
pub mod device_bits {
    /// Console: input or room.
    pub const CONSOLE: u64 = 1;
    /// Doorbell of a device, interrupt of a driver.
    pub const BELL: u64 = 2;
}

/// An object that a capability in a plan is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The Endpoint of a server, by instance.
    Endpoint(String),
    /// The Notification of a server, by instance.
    Notification(String),
    /// The VM's GuestSpace, made with the server.
    GuestSpace,
    /// The VM's Vcpu of this number, made with the server.
    Vcpu(u32),
    /// A part of the machine's ports: first and number.
    Ports(u16, u32),
    /// The Irq of a machine's interrupt line.
    Irq(u8),
    /// The processor.
    Cpu,
    /// Root's own Endpoint.
    Root,
    /// The Log.
    Log,
    /// A range that the kernel gave at boot: its slot in root's table.
    Boot(u32),
    /// RAM of its own to divide: bytes.
    Ram(u64),
    /// Its own pages.
    Image,
    /// Its own Space.
    Space,
    /// Its own Thread.
    Thread,
    /// Its own Pool.
    Pool,
}

/// Where a capability goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A slot that all servers know.
    Fixed(u32),
    /// The next slot, told by name in the start page.
    Named(String),
}

/// A capability that a server gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Where it goes.
    pub place: Place,
    /// What it is for.
    pub object: Object,
    /// Rights to keep.
    pub rights: u32,
    /// Badge, 0 for none.
    pub badge: u64,
}

/// Memory that a server finds mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// A shared page of root's, by key: lives as long as the system.
    Page(String),
    /// A file of the boot archive.
    File(String),
    /// The VM's RAM from this offset on.
    GuestRam(u64),
    /// The state page of the VM's Vcpu of this number.
    Vcpu(u32),
}

/// A named range in a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Its name in the start page.
    pub name: String,
    /// What is there.
    pub memory: Memory,
    /// Address.
    pub va: u64,
    /// Bytes.
    pub len: u64,
    /// READ, WRITE.
    pub rights: u32,
}

/// What a server is in the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The platform server.
    Platform,
    /// The scheduler.
    Scheduler,
    /// The manager.
    Manager,
    /// A driver, by number.
    Driver(usize),
    /// A VM's VMM, by the VM's number.
    Vmm(usize),
    /// A VM's device, by the VM's number and its own.
    Device(usize, usize),
    /// A further server, by number.
    Extra(usize),
}

impl Role {
    /// The VM it belongs to.
    #[must_use]
    pub const fn vm(self) -> Option<usize> {
        match self {
            Self::Vmm(vm) | Self::Device(vm, _) => Some(vm),
            _ => None,
        }
    }
}

/// A part of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Weight.
    pub shares: u32,
    /// Percent of a processor guaranteed.
    pub reservation: u32,
    /// Percent of a processor at most.
    pub limit: Option<u32>,
}

/// Everything that root must know to build a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its package.
    pub package: String,
    /// Its instance: unique in the system.
    pub instance: String,
    /// Archive file of its ELF.
    pub binary: String,
    /// What it is.
    pub role: Role,
    /// What it is for the scheduler.
    pub class: Class,
    /// Its part of the processors.
    pub share: Share,
    /// Bytes of heap.
    pub heap: u64,
    /// Bytes of Pool.
    pub pool: u64,
    /// Slots of its capability table.
    pub slots: u32,
    /// Virtual processors (VMM).
    pub vcpus: u32,
    /// Bytes of guest memory (VMM).
    pub guest_memory: u64,
    /// Its capabilities.
    pub grants: Vec<Grant>,
    /// Its memory.
    pub mapped: Vec<Mapped>,
    /// Its configuration in postcard.
    pub config: Vec<u8>,
}

/// Why a system cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// Two servers of one instance name.
    Name(String),
    /// A file that the boot archive does not have.
    NoFile(String),
    /// A configuration does not fit its encoding.
    Config(String),
    /// More servers than there are numbers for.
    TooMany(usize),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "two servers are called `{name}`"),
            Self::NoFile(file) => write!(f, "the boot archive has no `{file}`"),
            Self::Config(name) => write!(f, "the configuration of `{name}` cannot be encoded"),
            Self::TooMany(n) => write!(f, "{n} servers, at most {MAX_SERVERS}"),
        }
    }
}

impl core::error::Error for PlanError {}

/// Most servers: numbers 2 to 0xfe are theirs (0 is the kernel, 1 root, 0xff announces names in the log).
pub const MAX_SERVERS: usize = 253;

/// What the machine has that plans need.
pub struct Machine<'a> {
    /// The system's description, checked.
    pub system: &'a System,
    /// Length of a file of the boot archive.
    pub file: &'a dyn Fn(&str) -> Option<u64>,
    /// Firmware tables and device ranges: name, physical address, bytes, slot in root's table.
    pub ranges: &'a [(String, u64, u64, u32)],
    /// Physical address of the RSDP, or 0.
    pub rsdp: u64,
}

/// Instance of a VM's VMM.
#[must_use]
pub fn vmm_instance(vm: &str) -> String {
    format!("{vm}.vmm")
}

/// Key of a shared page.
fn page(instance: &str, what: &str) -> String {
    format!("{instance}/{what}")
}

/// The pages that must be cleared when a VM is started anew: they tell of the last guest.
#[must_use]
pub fn volatile_pages(vm: &Vm) -> Vec<String> {
    let both = |d: &ipc_schema::manifest::Device| [page(&d.name, "irq"), page(&d.name, "state")];
    vm.devices.iter().flat_map(both).collect()
}

/// The number of the UART that is a VM's console: its first.
#[must_use]
pub fn console(vm: &Vm) -> Option<usize> {
    vm.devices.iter().position(|d| d.kind == DeviceKind::Uart)
}

impl Plan {
    fn new(package: &str, instance: &str, role: Role, class: Class) -> Self {
        let mut plan = Self {
            package: package.to_string(),
            instance: instance.to_string(),
            binary: binary_file(package),
            role,
            class,
            share: Share {
                shares: 100,
                reservation: 0,
                limit: None,
            },
            heap: HEAP,
            pool: POOL,
            slots: SLOTS,
            vcpus: 0,
            guest_memory: 0,
            grants: Vec::new(),
            mapped: Vec::new(),
            config: Vec::new(),
        };
        plan.fixed(slot::SPACE, Object::Space, CONTROL);
        plan.fixed(slot::ENDPOINT, Object::Endpoint(instance.to_string()), RECV);
        plan.fixed(
            slot::NOTIFICATION,
            Object::Notification(instance.to_string()),
            RECV | SEND,
        );
        plan.fixed(slot::LOG, Object::Log, WRITE);
        plan
    }

    fn fixed(&mut self, slot: u32, object: Object, rights: u32) {
        self.grants.push(Grant {
            place: Place::Fixed(slot),
            object,
            rights,
            badge: 0,
        });
    }

    fn named(&mut self, name: &str, object: Object, rights: u32, badge: u64) {
        self.grants.push(Grant {
            place: Place::Named(name.to_string()),
            object,
            rights,
            badge,
        });
    }

    fn signals(&mut self, name: &str, instance: &str, bits: u64) {
        self.named(name, Object::Notification(instance.to_string()), SEND, bits);
    }

    /// A shared page at the next address.
    fn shares(&mut self, name: &str, key: String, rights: u32) {
        self.maps_page(name, Memory::Page(key), rights);
    }

    fn maps_page(&mut self, name: &str, memory: Memory, rights: u32) {
        let va = layout::SHARED + self.mapped.len() as u64 * SHARED_STEP;
        self.mapped.push(Mapped {
            name: name.to_string(),
            memory,
            va,
            len: 4096,
            rights,
        });
    }

    fn configured<T: serde::Serialize>(mut self, config: &T) -> Result<Self, PlanError> {
        self.config =
            postcard::to_allocvec(config).map_err(|_| PlanError::Config(self.instance.clone()))?;
        Ok(self)
    }

    /// Its capabilities with the slots they go to: fixed ones, and named ones from `FIRST_NAMED` on.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &Grant)> {
        let mut next = slot::FIRST_NAMED;
        self.grants.iter().map(move |grant| match grant.place {
            Place::Fixed(slot) => (slot, grant),
            Place::Named(_) => {
                next += 1;
                (next - 1, grant)
            }
        })
    }

    /// What its start page says.
    #[must_use]
    pub fn start_info(
        &self,
        id: u8,
        restarts: u32,
        tsc_hz: u64,
        wall_clock: WallClock,
    ) -> StartInfo {
        let name = |(slot, grant): (u32, &Grant)| match &grant.place {
            Place::Named(name) => Some((name.clone(), slot)),
            Place::Fixed(_) => None,
        };
        let caps: Vec<(String, u32)> = self.slots().filter_map(name).collect();
        let region = |m: &Mapped| Region {
            name: m.name.clone(),
            va: m.va,
            len: m.len,
        };
        StartInfo {
            abi_version: ABI_VERSION,
            id,
            package: self.package.clone(),
            instance: self.instance.clone(),
            tsc_hz,
            wall_clock,
            restarts,
            slots: self.slots,
            first_free_slot: caps.last().map_or(slot::FIRST_NAMED, |(_, last)| last + 1),
            caps,
            regions: self.mapped.iter().map(region).collect(),
            config: self.config.clone(),
        }
    }

    /// The keys of the shared pages that it uses.
    pub fn pages(&self) -> impl Iterator<Item = &String> {
        self.mapped.iter().filter_map(|m| match &m.memory {
            Memory::Page(key) => Some(key),
            _ => None,
        })
    }
}

/// Plans for all servers, those of VMs that are not started at once included. Platform, scheduler, drivers and manager
/// come first, in this order: root starts them so.
pub fn system(machine: &Machine<'_>) -> Result<Vec<Plan>, PlanError> {
    let s = machine.system;
    let mut plans = Vec::from([platform(machine)?, scheduler()]);
    for (i, driver) in s.drivers.iter().enumerate() {
        plans.push(self::driver(i, driver)?);
    }
    plans.push(manager(s)?);
    for (i, extra) in s.servers.iter().enumerate() {
        plans.push(self::extra(i, extra)?);
    }
    for (v, vm) in s.vms.iter().enumerate() {
        for d in 0..vm.devices.len() {
            plans.extend(device(v, vm, d)?);
        }
        plans.push(vmm(v, vm, machine.file)?);
    }
    for (i, plan) in plans.iter().enumerate() {
        if plans.iter().take(i).any(|p| p.instance == plan.instance) {
            return Err(PlanError::Name(plan.instance.clone()));
        }
        if (machine.file)(&plan.binary).is_none() {
            return Err(PlanError::NoFile(plan.binary.clone()));
        }
    }
    if plans.len() > MAX_SERVERS {
        return Err(PlanError::TooMany(plans.len()));
    }
    Ok(plans)
}

const PLATFORM: &str = "platform";
const SCHEDULER: &str = "scheduler";
const MANAGER: &str = "manager";

fn platform(machine: &Machine<'_>) -> Result<Plan, PlanError> {
    let mut plan = Plan::new(PLATFORM, PLATFORM, Role::Platform, Class::Core);
    // It interprets the firmware's AML.
    plan.heap = 4 << 20;
    plan.fixed(slot::POOL, Object::Pool, CONTROL);
    let mut config = PlatformConfig {
        rsdp: machine.rsdp,
        ..PlatformConfig::default()
    };
    for (name, phys, len, slot) in machine.ranges {
        let rights = if name.starts_with("acpi") {
            READ
        } else {
            READ | WRITE
        };
        plan.named(name, Object::Boot(*slot), rights, 0);
        config.memories.push((name.clone(), *phys, *len));
    }
    for (i, (first, count)) in other_ports(&machine.system.drivers).into_iter().enumerate() {
        let name = format!("ports:{i}");
        plan.named(&name, Object::Ports(first, count), CONTROL, 0);
        config.ports.push((name, first, count));
    }
    plan.configured(&config)
}

/// All ports but the drivers': first and number of each range.
fn other_ports(drivers: &[Driver]) -> Vec<(u16, u32)> {
    let mut taken: Vec<PortRange> = drivers.iter().map(|d| d.ports).collect();
    taken.sort_by_key(|r| r.first);
    let mut from = 0u32;
    let mut free = Vec::new();
    let ends = taken.iter().map(|r| (u32::from(r.first), r.end()));
    for (first, end) in ends.chain([(0x1_0000, 0x1_0000)]) {
        if let (Ok(port), true) = (u16::try_from(from), first > from) {
            free.push((port, first - from));
        }
        from = from.max(end);
    }
    free
}

fn scheduler() -> Plan {
    let mut plan = Plan::new(SCHEDULER, SCHEDULER, Role::Scheduler, Class::Core);
    plan.fixed(slot::CPU, Object::Cpu, CONTROL);
    plan.fixed(slot::POOL, Object::Pool, CONTROL);
    plan
}

fn driver(number: usize, driver: &Driver) -> Result<Plan, PlanError> {
    let mut plan = Plan::new(
        driver.kind.package(),
        &driver.name,
        Role::Driver(number),
        Class::Driver,
    );
    plan.binary.clone_from(&driver.binary);
    let ports = Object::Ports(driver.ports.first, u32::from(driver.ports.count));
    plan.named("ports", ports, CONTROL, 0);
    plan.named("irq", Object::Irq(driver.irq), CONTROL, 0);
    plan.signals("irq-bell", &driver.name, device_bits::BELL);
    plan.signals("manager", MANAGER, manager_bits::DRIVER);
    plan.shares("tx", page(&driver.name, "up"), READ | WRITE);
    plan.shares("rx", page(&driver.name, "down"), READ | WRITE);
    plan.configured(driver)
}

fn manager(system: &System) -> Result<Plan, PlanError> {
    let mut plan = Plan::new(MANAGER, MANAGER, Role::Manager, Class::Manager);
    plan.heap = 512 << 10;
    plan.grants.retain(|g| g.object != Object::Log);
    plan.fixed(slot::LOG, Object::Log, READ | WRITE);
    plan.named("root", Object::Root, SEND, 0);
    plan.named("platform", Object::Endpoint(PLATFORM.to_string()), SEND, 0);
    if let Some(driver) = system.drivers.first() {
        plan.signals("driver", &driver.name, device_bits::CONSOLE);
        plan.shares("serial-tx", page(&driver.name, "down"), READ | WRITE);
        plan.shares("serial-rx", page(&driver.name, "up"), READ | WRITE);
    }
    for vm in &system.vms {
        let name = |what: &str| format!("{what}:{}", vm.name);
        let vmm = vmm_instance(&vm.name);
        plan.signals(&name("power"), &vmm, vmm_bits::POWER);
        plan.signals(&name("quit"), &vmm, vmm_bits::QUIT);
        if let Some(uart) = console(vm).and_then(|d| vm.devices.get(d)) {
            plan.signals(&name("uart"), &uart.name, device_bits::CONSOLE);
            plan.shares(&name("tx"), page(&uart.name, "down"), READ | WRITE);
            plan.shares(&name("rx"), page(&uart.name, "up"), READ | WRITE);
        }
    }
    plan.configured(system)
}

fn extra(number: usize, server: &ipc_schema::manifest::Server) -> Result<Plan, PlanError> {
    let package = server.binary.strip_prefix("bin/").unwrap_or(&server.binary);
    let mut plan = Plan::new(
        package,
        &server.name,
        Role::Extra(number),
        Class::Background,
    );
    plan.binary.clone_from(&server.binary);
    plan.heap = 1 << 20;
    plan.pool = 1 << 20;
    plan.fixed(slot::THREAD, Object::Thread, CONTROL);
    plan.fixed(slot::POOL, Object::Pool, CONTROL);
    plan.fixed(slot::CPU, Object::Cpu, CONTROL);
    plan.named("root", Object::Root, SEND, 0);
    plan.named(
        "ram",
        Object::Ram(EXTRA_RAM),
        READ | WRITE | EXEC | CONTROL | GRANT,
        0,
    );
    plan.named("image", Object::Image, READ | WRITE | EXEC, 0);
    plan.named(
        "self",
        Object::Endpoint(server.name.clone()),
        SEND | GRANT,
        1,
    );
    plan.configured(server)
}

/// `None`: the VM has no device of this number.
fn device(v: usize, vm: &Vm, d: usize) -> Result<Option<Plan>, PlanError> {
    let Some(device) = vm.devices.get(d) else {
        return Ok(None);
    };
    let role = Role::Device(v, d);
    let mut plan = Plan::new(device.kind.package(), &device.name, role, Class::Device);
    plan.binary.clone_from(&device.binary);
    plan.signals("vmm", &vmm_instance(&vm.name), vmm_bits::DEVICES);
    plan.shares("irq", page(&device.name, "irq"), READ | WRITE);
    plan.shares("state", page(&device.name, "state"), READ | WRITE);
    if device.kind == DeviceKind::Uart {
        // Only the first is somebody's console; another's output goes nowhere, and its manager is never rung.
        let bits = if console(vm) == Some(d) {
            manager_bits::uart(v)
        } else {
            0
        };
        let to = if bits == 0 { &device.name } else { MANAGER };
        plan.signals("manager", to, bits);
        plan.shares("tx", page(&device.name, "up"), READ | WRITE);
        plan.shares("rx", page(&device.name, "down"), READ | WRITE);
    }
    plan.configured(device).map(Some)
}

fn vmm(v: usize, vm: &Vm, file: &dyn Fn(&str) -> Option<u64>) -> Result<Plan, PlanError> {
    let instance = vmm_instance(&vm.name);
    let mut plan = Plan::new("vmm", &instance, Role::Vmm(v), Class::Vm);
    plan.share = Share {
        shares: vm.cpu.shares,
        reservation: vm.cpu.reservation,
        limit: vm.cpu.limit,
    };
    plan.heap = 1 << 20;
    plan.vcpus = vm.vcpus;
    plan.guest_memory = vm.memory;
    // Page tables of the guest's memory, in the VMM and in the GuestSpace, even if only small pages fit: 8 bytes a
    // page each; 64 KiB a Vcpu; and the rest.
    let tables = vm.memory / 4096 * 16;
    plan.pool = (tables + u64::from(vm.vcpus) * (64 << 10) + (512 << 10)).next_multiple_of(4096);
    plan.named("guest", Object::GuestSpace, CONTROL, 0);
    // Without GRANT the badge cannot be changed, so that VM 0's may be 0.
    plan.named(
        "manager",
        Object::Endpoint(MANAGER.to_string()),
        SEND,
        v as u64,
    );
    for n in 0..vm.vcpus {
        let name = format!("vcpu{n}");
        plan.named(&name, Object::Vcpu(n), CONTROL, 0);
        plan.maps_page(&name, Memory::Vcpu(n), READ | WRITE);
    }
    for (i, device) in vm.devices.iter().enumerate() {
        let name = |what: &str| format!("{what}:{i}");
        plan.named(&name("dev"), Object::Endpoint(device.name.clone()), SEND, 1);
        plan.signals(&name("doorbell"), &device.name, device_bits::BELL);
        plan.shares(&name("irq"), page(&device.name, "irq"), READ | WRITE);
        plan.shares(&name("state"), page(&device.name, "state"), READ);
    }
    let mut ram = |name: &str, at: u64, from: u64, to: u64| {
        if to > from {
            let (va, len) = (layout::GUEST + at, to - from);
            let memory = Memory::GuestRam(from);
            plan.mapped.push(Mapped {
                name: name.to_string(),
                memory,
                va,
                len,
                rights: READ | WRITE,
            });
        }
    };
    ram("guest", 0, 0, vm.memory.min(LOW_RAM_END));
    ram("guest-high", HIGH_RAM, LOW_RAM_END, vm.memory);
    let mut va = FILES;
    let files = [("kernel", Some(&vm.kernel)), ("initrd", vm.initrd.as_ref())];
    for (name, path) in files.into_iter().filter_map(|(n, p)| Some((n, p?))) {
        let len = file(path).ok_or_else(|| PlanError::NoFile(path.clone()))?;
        plan.mapped.push(Mapped {
            name: name.to_string(),
            memory: Memory::File(path.clone()),
            va,
            len,
            rights: READ,
        });
        // A large page apart.
        va = va
            .saturating_add(len)
            .next_multiple_of(2 << 20)
            .saturating_add(2 << 20);
    }
    plan.configured(vm)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
