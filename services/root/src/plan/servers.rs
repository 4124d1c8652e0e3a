//! The plans themselves: one function a kind of server. What is not granted here, a server does not have.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ipc_schema::abi::layout::{self, slot};
use ipc_schema::abi::rights::{ALL, CONTROL, EXEC, GRANT, READ, SEND, WRITE};
use ipc_schema::disk::Geometry;
use ipc_schema::link::NetConfig;
use ipc_schema::manifest::{Device, DeviceKind, Driver, PortRange, Server, System, Vm};
use ipc_schema::proto::{Class, Group};
use runtime::start::PlatformConfig;

use super::{
    DEVICE_HEAP, DEVICE_POOL, DEVICE_STACK, EXTRA_RAM, FILES, HEAP, HIGH_RAM, LOW_RAM_END,
    MAX_SERVERS, Machine, Mapped, Memory, Object, Plan, PlanError, Role, SMALL_HEAP, Share,
    console, device_bits, disks, manager_bits, nets, page, run_tables, vmm_bits, vmm_instance,
};

/// Plans for all servers, those of VMs that are not started at once included. Platform, scheduler, drivers and manager
/// come first, in this order: root starts them so.
pub fn system(machine: &Machine<'_>) -> Result<Vec<Plan>, PlanError> {
    let s = machine.system;
    let mut plans = Vec::from([platform(machine)?, scheduler()]);
    for (i, driver) in s.drivers.iter().enumerate() {
        plans.push(self::driver(i, driver)?);
    }
    plans.push(manager(s)?);
    let disks = disks::geometries(s, machine.file)?;
    plans.extend(disks::store(s, &disks)?);
    plans.extend(disks::driver(s, &disks)?);
    plans.extend(nets::switch(s)?);
    for (i, extra) in s.servers.iter().enumerate() {
        plans.push(self::extra(machine, i, extra)?);
    }
    for (v, vm) in s.vms.iter().enumerate() {
        for d in 0..vm.devices.len() {
            plans.extend(device((v, vm), d, (machine, &disks))?);
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
    let called = called_by_vms(&plans);
    for plan in &mut plans {
        plan.remote = called.contains(&plan.instance);
    }
    Ok(plans)
}

/// The servers that a VM's servers, which may be on any processor, can call and that are not the VM's own.
fn called_by_vms(plans: &[Plan]) -> Vec<String> {
    let of_vms = plans.iter().filter(|p| p.role.vm().is_some());
    let grants = of_vms.flat_map(|p| p.grants.iter().map(move |g| (p.role.vm(), g)));
    let called = grants.filter_map(|(vm, grant)| match &grant.object {
        Object::Endpoint(name) if grant.rights & SEND != 0 => {
            let target = plans.iter().find(|p| p.instance == *name)?;
            (target.role.vm() != vm).then(|| name.clone())
        }
        _ => None,
    });
    called.collect()
}

/// A VM's servers share a processor.
fn group(v: usize, vm: &Vm) -> Option<Group> {
    Some(Group {
        // There are fewer VMs than servers.
        id: v as u32,
        shares: vm.cpu.shares,
        reservation: vm.cpu.reservation,
        cpu: vm.cpu.cpu,
    })
}

const PLATFORM: &str = "platform";
const SCHEDULER: &str = "scheduler";
const MANAGER: &str = "manager";

fn platform(machine: &Machine<'_>) -> Result<Plan, PlanError> {
    let mut plan = Plan::new(PLATFORM, PLATFORM, Role::Platform, Class::Core);
    // It interprets the firmware's AML.
    plan.heap = 4 << 20;
    plan.fixed(slot::POOL, Object::Pool, CONTROL);
    plan.fixed(slot::CPU, Object::Cpu, CONTROL);
    plan.named("processors", Object::Processors, CONTROL, 0);
    let mut config = PlatformConfig {
        rsdp: machine.rsdp,
        ..PlatformConfig::default()
    };
    for (name, phys, len, slot) in machine.ranges {
        let rights = if name.starts_with("acpi") {
            READ
        } else {
            // It divides what it maps.
            READ | WRITE | CONTROL
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
pub(super) fn other_ports(drivers: &[Driver]) -> Vec<(u16, u32)> {
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
    // Budgets signal their exhaustion there, each under a badge of its own.
    let events = Object::Notification(SCHEDULER.to_string());
    plan.named("events", events, SEND | GRANT, 0);
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
    plan.signals("manager", MANAGER, manager_bits::DRIVER);
    plan.shares("tx", page(&driver.name, "up"), READ | WRITE);
    plan.shares("rx", page(&driver.name, "down"), READ | WRITE);
    plan.configured(driver)
}

fn manager(system: &System) -> Result<Plan, PlanError> {
    let mut plan = Plan::new(MANAGER, MANAGER, Role::Manager, Class::Manager);
    plan.heap = 512 << 10;
    plan.named("root", Object::Root, SEND, 0);
    if let Some(driver) = system.drivers.first() {
        plan.signals("driver", &driver.name, device_bits::CONSOLE);
        plan.shares("serial-tx", page(&driver.name, "down"), READ | WRITE);
        plan.shares("serial-rx", page(&driver.name, "up"), READ | WRITE);
    }
    for vm in &system.vms {
        for channel in vm.channels() {
            let Some(device) = vm.devices.get(channel.device) else {
                continue;
            };
            let name = |what: &str| format!("{what}:{}", channel.name);
            let bit = match channel.port {
                Some(_) => device_bits::BACK,
                None => device_bits::CONSOLE,
            };
            plan.signals(&name("device"), &device.name, bit);
            let (up, down) = rings(device, channel.port);
            plan.shares(&name("tx"), down, READ | WRITE);
            plan.shares(&name("rx"), up, READ | WRITE);
            plan.slots += 1;
        }
    }
    plan.configured(system)
}

/// The rings from and to a serial port, or the port of a virtio console.
fn rings(device: &Device, port: Option<usize>) -> (String, String) {
    let name = |way: &str| match port {
        Some(port) => page(&device.name, &format!("{way}{port}")),
        None => page(&device.name, way),
    };
    (name("up"), name("down"))
}

/// Binary of the server that tries every operation of the kernel: it alone gets something of each kind, with all rights.
const CONFORMANCE: &str = "bin/conformance";
/// RAM that it divides, in bytes.
const CONFORMANCE_RAM: u64 = 24 << 20;
/// Slots of its capability table.
const CONFORMANCE_SLOTS: u32 = 1024;
/// Pools that it can make.
const CONFORMANCE_POOLS: u64 = 16;
/// Ports that it reads and writes: a group that no device answers (an old delay port's).
const CONFORMANCE_PORTS: Object = Object::Ports(0xe0, 16);

fn extra(machine: &Machine<'_>, number: usize, server: &Server) -> Result<Plan, PlanError> {
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
    plan.pools = 4;
    plan.fixed(slot::THREAD, Object::Thread, CONTROL);
    plan.fixed(slot::POOL, Object::Pool, CONTROL);
    plan.fixed(slot::CPU, Object::Cpu, CONTROL);
    plan.named("root", Object::Root, SEND, 0);
    let tries_everything = server.binary == CONFORMANCE;
    let (ram, rights) = if tries_everything {
        (CONFORMANCE_RAM, ALL)
    } else {
        (EXTRA_RAM, READ | WRITE | EXEC | CONTROL | GRANT)
    };
    plan.named("ram", Object::Ram(ram), rights, 0);
    plan.named("image", Object::Image, READ | WRITE | EXEC, 0);
    plan.named(
        "self",
        Object::Endpoint(server.name.clone()),
        SEND | GRANT,
        0,
    );
    if tries_everything {
        plan.slots = CONFORMANCE_SLOTS;
        plan.pools = CONFORMANCE_POOLS;
        plan.named("cpu", Object::Cpu, ALL, 0);
        plan.named("log", Object::Log, ALL, 0);
        plan.named("ports", CONFORMANCE_PORTS, ALL, 0);
        if let Some((_, _, _, slot)) = machine.ranges.iter().find(|r| r.0.starts_with("device")) {
            plan.named("device", Object::Boot(*slot), ALL, 0);
        }
    }
    plan.configured(server)
}

/// `None`: the VM has no device of this number.
fn device(
    (v, vm): (usize, &Vm),
    d: usize,
    (machine, disks): (&Machine<'_>, &[Geometry]),
) -> Result<Option<Plan>, PlanError> {
    let Some(device) = vm.devices.get(d) else {
        return Ok(None);
    };
    let role = Role::Device(v, d);
    // Nobody waits for the test device's doorbell: it must not overtake the guest that rings it.
    let class = if device.kind == DeviceKind::TestDev {
        Class::Background
    } else {
        Class::Device
    };
    let mut plan = Plan::new(device.kind.package(), &device.name, role, class);
    plan.binary.clone_from(&device.binary);
    plan.group = group(v, vm);
    plan.stack = DEVICE_STACK;
    plan.pool = DEVICE_POOL;
    plan.heap = match device.kind {
        DeviceKind::Uart | DeviceKind::Rtc | DeviceKind::VirtioRng { .. } => SMALL_HEAP,
        DeviceKind::VirtioConsole { .. } => 2 * DEVICE_HEAP,
        // Requests under way, of which it knows how many may be.
        DeviceKind::VirtioBlk { .. } => 5 * DEVICE_HEAP,
        // The longest frame, whole or in segments, and what is in flight in a pair of queues.
        DeviceKind::VirtioNet { pairs, .. } => 3 * DEVICE_HEAP + u64::from(pairs) * (16 << 10),
        _ => HEAP,
    };
    plan.signals("vmm", &vmm_instance(&vm.name), vmm_bits::DEVICES);
    plan.shares("irq", page(&device.name, "irq"), READ | WRITE);
    plan.shares("state", page(&device.name, "state"), READ | WRITE);
    if device.kind == DeviceKind::TestDev {
        // To ask in vain.
        plan.named("root", Object::Root, SEND, 0);
    }
    if device.kind == DeviceKind::Uart {
        // Only the first is somebody's console; another's output goes nowhere, and its manager is never rung.
        let bits = if console(vm) == Some(d) {
            manager_bits::uart(v)
        } else {
            0
        };
        let to = if bits == 0 { &device.name } else { MANAGER };
        plan.signals("manager", to, bits);
        let (up, down) = rings(device, None);
        plan.shares("tx", up, READ | WRITE);
        plan.shares("rx", down, READ | WRITE);
    }
    if let DeviceKind::VirtioConsole { ports, .. } = &device.kind {
        plan.signals("manager", MANAGER, manager_bits::uart(v));
        for port in 0..ports.count() {
            let (up, down) = rings(device, Some(port));
            plan.shares(&format!("tx:{port}"), up, READ | WRITE);
            plan.shares(&format!("rx:{port}"), down, READ | WRITE);
        }
    }
    if device.kind.slot().is_some() {
        plan.guest_memory = vm.memory;
        plan.guest_maps = 1;
        guest_ram(&mut plan, vm);
    }
    if let Some(disk) = device.kind.disk() {
        return disks::uses(plan, (machine, disks), device, disk).map(Some);
    }
    if let DeviceKind::VirtioNet {
        mac, packed, pairs, ..
    } = device.kind
    {
        return nets::uses(plan, device, NetConfig { mac, packed, pairs }).map(Some);
    }
    plan.configured(device).map(Some)
}

/// The guest's memory, for reading and writing: what lies below the hole of PCI, and what does not fit there.
fn guest_ram(plan: &mut Plan, vm: &Vm) {
    let parts = [
        ("guest", 0, 0, vm.memory.min(LOW_RAM_END)),
        ("guest-high", HIGH_RAM, LOW_RAM_END, vm.memory),
    ];
    for (name, at, from, to) in parts.into_iter().filter(|&(_, _, from, to)| to > from) {
        plan.mapped.push(Mapped {
            name: name.to_string(),
            memory: Memory::GuestRam(from),
            va: layout::GUEST + at,
            len: to - from,
            rights: READ | WRITE,
        });
    }
}

fn vmm(v: usize, vm: &Vm, file: &dyn Fn(&str) -> Option<u64>) -> Result<Plan, PlanError> {
    let instance = vmm_instance(&vm.name);
    let mut plan = Plan::new("vmm", &instance, Role::Vmm(v), Class::Vm);
    plan.group = group(v, vm);
    plan.share = Share {
        shares: vm.cpu.shares,
        reservation: vm.cpu.reservation,
        limit: vm.cpu.limit,
    };
    // The decoder's tables take 130 KiB of it, the chipset 40.
    plan.heap = HEAP.min((192 << 10) + u64::from(vm.vcpus) * (16 << 10));
    plan.vcpus = vm.vcpus;
    plan.guest_memory = vm.memory;
    // In the VMM and in the GuestSpace.
    plan.guest_maps = 2;
    plan.pool = u64::from(vm.vcpus) * (64 << 10) + DEVICE_POOL;
    plan.named("guest", Object::GuestSpace, CONTROL, 0);
    // Root knows it by its badge and hears nothing from it but that a device of its own hangs.
    plan.named("root", Object::Root, SEND, 0);
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
        if device.kind.slot().is_none() {
            plan.signals(&name("doorbell"), &device.name, device_bits::BELL);
        }
        for queue in 0..device.kind.queues() {
            let bell = format!("queue:{i}:{queue}");
            plan.signals(&bell, &device.name, device_bits::queue(queue));
            plan.slots += 1;
        }
        plan.shares(&name("irq"), page(&device.name, "irq"), READ | WRITE);
        plan.shares(&name("state"), page(&device.name, "state"), READ);
    }
    guest_ram(&mut plan, vm);
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
        plan.pool += run_tables(va, 4096, len.max(1));
        va = va
            .saturating_add(len)
            .next_multiple_of(2 << 20)
            .saturating_add(2 << 20);
    }
    plan.configured(vm)
}
