//! Plans of a system with two VMs.

use super::servers::other_ports;
use super::*;
use ipc_schema::abi::rights::{GRANT, READ};
use ipc_schema::manifest::{
    CpuShare, Device, Driver, DriverKind, Idle, PortRange, Registers, Server,
};
use runtime::start::PlatformConfig;
use std::collections::BTreeSet;

/// A device; a PCI function has neither a first port nor a line.
fn described(name: String, kind: DeviceKind, first: u16, irq: u8) -> Device {
    Device {
        name,
        kind,
        binary: binary_file(kind.package()),
        ports: PortRange::new(first, kind.ports()),
        irq,
        doorbell: None,
        registers: Registers::Ports,
    }
}

fn vm(name: &str, memory: u64) -> Vm {
    let device =
        |what: &str, kind, first, irq| described(format!("{name}.{what}"), kind, first, irq);
    Vm {
        name: name.into(),
        memory,
        vcpus: 2,
        autostart: true,
        kernel: format!("vm/{name}/kernel"),
        initrd: Some(format!("vm/{name}/initrd")),
        append: String::new(),
        cpu: CpuShare {
            shares: 7,
            reservation: 10,
            limit: Some(50),
            cpu: None,
        },
        debug_exit: false,
        tsc_mhz: 0,
        devices: vec![
            device("uart0", DeviceKind::Uart, 0x3f8, 4),
            device("uart1", DeviceKind::Uart, 0x2f8, 3),
            device("rtc0", DeviceKind::Rtc, 0x70, 8),
        ],
    }
}

fn sample() -> System {
    System {
        name: "test".into(),
        memory: 16 << 30,
        idle: Idle::PowerOff,
        vms: vec![vm("one", 64 << 20), vm("two", 5 << 30)],
        drivers: vec![Driver {
            name: "serial".into(),
            kind: DriverKind::Uart,
            binary: "bin/driver-uart".into(),
            ports: PortRange::new(0x3f8, 8),
            irq: 4,
        }],
        servers: vec![Server {
            name: "probe".into(),
            binary: "bin/bench".into(),
            args: String::new(),
        }],
        disks: vec![],
    }
}

fn plans_of(system: &System) -> Result<Vec<Plan>, PlanError> {
    let ranges = [
        ("acpi:0".to_string(), 0x1000, 0x2000, 30),
        ("device:0".to_string(), 0xfec0_0000, 0x1000, 31),
    ];
    let file = |name: &str| (!name.contains("missing")).then_some(5_000_001);
    self::system(&Machine {
        system,
        file: &file,
        ranges: &ranges,
        rsdp: 99,
    })
}

fn find<'a>(plans: &'a [Plan], instance: &str) -> &'a Plan {
    plans.iter().find(|p| p.instance == instance).unwrap()
}

fn grant<'a>(plan: &'a Plan, name: &str) -> &'a Grant {
    plan.grants
        .iter()
        .find(|g| g.place == Place::Named(name.into()))
        .unwrap()
}

#[test]
fn order_and_names() {
    let plans = plans_of(&sample()).unwrap();
    let names: Vec<&str> = plans.iter().map(|p| p.instance.as_str()).collect();
    assert_eq!(
        names[..5],
        ["platform", "scheduler", "serial", "manager", "probe"]
    );
    assert_eq!(
        names[5..9],
        ["one.uart0", "one.uart1", "one.rtc0", "one.vmm"]
    );
    assert_eq!(plans.len(), 13);
}

#[test]
fn nobody_gets_a_name_or_an_address_twice() {
    for plan in plans_of(&sample()).unwrap() {
        let mut places = BTreeSet::new();
        for g in &plan.grants {
            assert!(
                places.insert(format!("{:?}", g.place)),
                "{} {:?}",
                plan.instance,
                g.place
            );
        }
        let mut ends: Vec<(u64, u64)> = plan.mapped.iter().map(|m| (m.va, m.va + m.len)).collect();
        ends.sort_unstable();
        assert!(
            ends.windows(2).all(|w| w[0].1 <= w[1].0),
            "{}",
            plan.instance
        );
        let names: BTreeSet<&str> = plan.mapped.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names.len(), plan.mapped.len());
    }
}

#[test]
fn every_partner_exists_and_rings_join_two() {
    let plans = plans_of(&sample()).unwrap();
    for plan in &plans {
        for g in &plan.grants {
            if let Object::Endpoint(i) | Object::Notification(i) = &g.object {
                assert!(plans.iter().any(|p| p.instance == *i), "{i}");
            }
        }
    }
    let users = |key: &str| plans.iter().filter(|p| p.pages().any(|k| k == key)).count();
    for key in [
        "serial/up",
        "serial/down",
        "one.uart0/up",
        "one.uart0/down",
        "two.rtc0/irq",
        "two.rtc0/state",
    ] {
        assert_eq!(users(key), 2, "{key}");
    }
    assert_eq!(
        users("one.uart1/up"),
        1,
        "a second UART is nobody's console"
    );
}

/// What one writes the other reads (the direction that the servers' wiring fixes).
#[test]
fn rings_have_a_direction() {
    let plans = plans_of(&sample()).unwrap();
    let key = |instance: &str, name: &str| {
        let plan = find(&plans, instance);
        let m = plan.mapped.iter().find(|m| m.name == name).unwrap();
        m.memory.clone()
    };
    assert_eq!(key("manager", "tx:one"), key("one.uart0", "rx"));
    assert_eq!(key("manager", "rx:one"), key("one.uart0", "tx"));
    assert_eq!(key("manager", "serial-tx"), key("serial", "rx"));
    assert_eq!(key("manager", "serial-rx"), key("serial", "tx"));
}

#[test]
fn least_privilege() {
    let plans = plans_of(&sample()).unwrap();
    for plan in &plans {
        let has = |f: &dyn Fn(&Object) -> bool| plan.grants.iter().any(|g| f(&g.object));
        let extra = matches!(plan.role, Role::Extra(_));
        assert_eq!(
            has(&|o| *o == Object::Cpu),
            matches!(plan.role, Role::Scheduler | Role::Platform) || extra
        );
        let asks = extra || matches!(plan.role, Role::Manager | Role::Vmm(_));
        assert_eq!(has(&|o| *o == Object::Root), asks);
        assert_eq!(
            has(&|o| matches!(o, Object::Boot(_))),
            plan.role == Role::Platform
        );
        assert_eq!(
            has(&|o| *o == Object::GuestSpace),
            matches!(plan.role, Role::Vmm(_))
        );
        assert_eq!(
            has(&|o| matches!(o, Object::Ports(..))),
            matches!(plan.role, Role::Platform | Role::Driver(_))
        );
        assert_eq!(has(&|o| *o == Object::Thread), extra);
        // A server receives only on its own Endpoint, and keeps no VM's badge changeable.
        for g in &plan.grants {
            if let Object::Endpoint(i) | Object::Notification(i) = &g.object {
                assert!(g.rights & RECV == 0 || *i == plan.instance);
                // The scheduler hands its own Notification to Budgets, each with a badge of its own.
                let events = plan.role == Role::Scheduler
                    && g.object == Object::Notification(plan.instance.clone());
                assert!(g.rights & GRANT == 0 || extra || events);
            }
            assert!(g.object != Object::Log || g.rights == WRITE);
        }
        for m in &plan.mapped {
            let writable = m.rights & WRITE != 0;
            assert!(!matches!(m.memory, Memory::File(_)) || !writable);
            assert!(!(m.name.starts_with("state:")) || !writable);
        }
    }
    let acpi = grant(find(&plans, "platform"), "acpi:0");
    assert_eq!((acpi.rights, &acpi.object), (READ, &Object::Boot(30)));
}

/// What the conformance server gets beside others, it alone gets.
#[test]
fn only_the_conformance_server_has_something_of_everything() {
    let mut system = sample();
    let wide = |system: &System| {
        let plans = plans_of(system).unwrap();
        let grants = &find(&plans, "probe").grants;
        let all = |g: &&Grant| g.rights == ipc_schema::abi::rights::ALL;
        grants.iter().filter(all).count()
    };
    assert_eq!(wide(&system), 0);
    system.servers[0].binary = "bin/conformance".into();
    // RAM, Cpu, Log, ports, device registers.
    assert_eq!(wide(&system), 5);
    let plans = plans_of(&system).unwrap();
    let device = grant(find(&plans, "probe"), "device");
    assert_eq!(device.object, Object::Boot(31));
}

#[test]
fn ports_are_split() {
    assert_eq!(other_ports(&[]), [(0, 0x1_0000)]);
    let mut drivers = sample().drivers;
    assert_eq!(other_ports(&drivers), [(0, 0x3f8), (0x400, 0xfc00)]);
    let mut second = drivers[0].clone();
    second.ports = PortRange::new(0, 8);
    drivers.push(second.clone());
    second.ports = PortRange::new(0xfff8, 8);
    drivers.push(second);
    assert_eq!(other_ports(&drivers), [(8, 0x3f0), (0x400, 0xfbf8)]);
    let plans = plans_of(&sample()).unwrap();
    let config: PlatformConfig = postcard::from_bytes(&find(&plans, "platform").config).unwrap();
    assert_eq!(config.rsdp, 99);
    assert_eq!(config.ports[1], ("ports:1".into(), 0x400, 0xfc00));
    assert_eq!(config.memories[1], ("device:0".into(), 0xfec0_0000, 0x1000));
}

#[test]
fn a_vmm() {
    let plans = plans_of(&sample()).unwrap();
    let plan = find(&plans, "two.vmm");
    assert_eq!(
        (plan.vcpus, plan.share.shares, plan.share.limit),
        (2, 7, Some(50))
    );
    let at = |name: &str| {
        let m = plan.mapped.iter().find(|m| m.name == name).unwrap();
        (m.va, m.len, m.memory.clone())
    };
    assert_eq!(
        at("guest"),
        (layout::GUEST, LOW_RAM_END, Memory::GuestRam(0))
    );
    assert_eq!(
        at("guest-high"),
        (
            layout::GUEST + HIGH_RAM,
            2 << 30,
            Memory::GuestRam(LOW_RAM_END)
        )
    );
    assert_eq!(at("kernel").0 % 4096, 0);
    assert!(at("initrd").0 >= at("kernel").0 + 5_000_001);
    assert_eq!(grant(plan, "manager").badge, 1);
    assert_eq!(
        grant(plan, "dev:2").object,
        Object::Endpoint("two.rtc0".into())
    );
    assert!(
        find(&plans, "one.vmm")
            .mapped
            .iter()
            .all(|m| m.name != "guest-high")
    );
    assert_eq!(volatile_pages(&sample().vms[0]).len(), 6);
}

/// A virtio device has its guest's memory, pages of its own and a doorbell a queue; and nothing of another VM.
#[test]
fn what_a_virtio_device_gets() {
    let mut system = sample();
    let kind = DeviceKind::VirtioRng { slot: 4 };
    let it = described("two.rng0".into(), kind, 0, 0);
    system.vms[1].devices.push(it);
    let plans = plans_of(&system).unwrap();
    let rng = find(&plans, "two.rng0");
    let names: Vec<&str> = rng.mapped.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["irq", "state", "guest", "guest-high"]);
    let vmm = find(&plans, "two.vmm");
    let of = |plan: &Plan, name: &str| plan.mapped.iter().find(|m| m.name == name).cloned();
    for name in ["guest", "guest-high"] {
        assert_eq!(of(rng, name), of(vmm, name));
    }
    assert_eq!((rng.guest_memory, rng.vcpus), (5 << 30, 0));
    assert_eq!((rng.pool, rng.guest_maps), (DEVICE_POOL, 1));
    assert_eq!((find(&plans, "two.vmm").guest_maps), 2);
    let foreign = |g: &&Grant| !matches!(g.place, Place::Fixed(_));
    let own: Vec<&Grant> = rng.grants.iter().filter(foreign).collect();
    assert_eq!(own.len(), 1, "the VMM's Notification");
    assert_eq!(own[0].badge, vmm_bits::DEVICES);
    let bell = grant(vmm, "queue:3:0");
    assert_eq!(
        (&bell.object, bell.rights, bell.badge),
        (&Object::Notification("two.rng0".into()), SEND, 1)
    );
    assert!(
        vmm.grants
            .iter()
            .all(|g| g.place != Place::Named("doorbell:3".into()))
    );
    assert_eq!(find(&plans, "one.rtc0").guest_memory, 0);
}

#[test]
fn each_error() {
    let mut system = sample();
    system.servers[0].name = "manager".into();
    assert_eq!(plans_of(&system), Err(PlanError::Name("manager".into())));
    let mut system = sample();
    system.vms[1].initrd = Some("missing".into());
    assert_eq!(plans_of(&system), Err(PlanError::NoFile("missing".into())));
    let mut system = sample();
    system.servers[0].binary = "bin/missing".into();
    assert_eq!(
        plans_of(&system),
        Err(PlanError::NoFile("bin/missing".into()))
    );
    let mut system = sample();
    let server = system.servers[0].clone();
    system.servers = (0..300)
        .map(|i| Server {
            name: format!("s{i}"),
            ..server.clone()
        })
        .collect();
    assert!(matches!(plans_of(&system), Err(PlanError::TooMany(312))));
}

#[test]
fn bits_of_many_vms_stay_in_a_word() {
    assert_eq!(manager_bits::uart(0), 256);
    assert_eq!(manager_bits::uart(500), 1 << 63);
}

#[test]
fn the_start_page_names_what_was_granted() {
    let plans = plans_of(&sample()).unwrap();
    for plan in &plans {
        let start = plan.start_info(
            9,
            3,
            1_000,
            WallClock {
                unix_seconds: 7,
                at_tsc: 1,
            },
            plan.forwarders(2),
        );
        let grants = plan.forwarders(2);
        assert_eq!(start.forwarder_slots().count, start.forwarders);
        if grants.count > 0 {
            assert_eq!(start.forwarder_slots(), grants);
            let last = grants.wake(grants.count - 1);
            assert_eq!(last + 1, start.first_free_slot);
            assert!(plan.slots().all(|(slot, _)| slot < grants.bell()));
        }
        let slots: BTreeSet<u32> = plan.slots().map(|(s, _)| s).collect();
        assert_eq!(slots.len(), plan.grants.len(), "{}", plan.instance);
        assert!(
            slots
                .iter()
                .all(|s| *s < start.first_free_slot && *s < start.slots)
        );
        for (slot, grant) in plan.slots() {
            match &grant.place {
                Place::Named(name) => assert_eq!(start.cap(name), Ok(slot)),
                Place::Fixed(s) => assert!(*s == slot && slot < layout::slot::FIRST_NAMED),
            }
        }
        for m in &plan.mapped {
            assert_eq!(start.region(&m.name).unwrap().va, m.va);
        }
        assert_eq!(
            (start.id, start.restarts, start.abi_version),
            (9, 3, ABI_VERSION)
        );
    }
    let manager =
        find(&plans, "manager").start_info(9, 0, 1, WallClock::default(), Grants::default());
    assert_eq!(manager.config::<System>(), Ok(sample()));
}

/// Calls stay on their processor: who can be called from another one must be told.
#[test]
fn callers_on_other_processors() {
    let plans = plans_of(&sample()).unwrap();
    let remote = plans.iter().filter(|p| p.remote).map(|p| &p.instance);
    assert_eq!(remote.collect::<Vec<_>>(), ["manager"]);
    let manager = find(&plans, "manager");
    assert_eq!(
        (manager.forwarders(3).count, manager.forwarders(0).count),
        (3, 0)
    );
    assert_eq!(find(&plans, "one.vmm").forwarders(3).count, 0);
}

#[test]
fn a_vm_shares_a_processor() {
    let mut system = sample();
    system.vms[1].cpu.cpu = Some(3);
    let plans = plans_of(&system).unwrap();
    for plan in &plans {
        let group = plan.role.vm().map(|vm| Group {
            id: vm as u32,
            shares: 7,
            reservation: 10,
            cpu: (vm == 1).then_some(3),
        });
        assert_eq!(plan.group, group, "{}", plan.instance);
    }
}

#[test]
fn platform_starts_processors() {
    let plans = plans_of(&sample()).unwrap();
    let platform = find(&plans, "platform");
    let processors = grant(platform, "processors");
    assert_eq!(
        (&processors.object, processors.rights),
        (&Object::Processors, CONTROL)
    );
    let others = plans.iter().filter(|p| p.instance != "platform");
    assert!(
        others
            .flat_map(|p| &p.grants)
            .all(|g| g.object != Object::Processors)
    );
}

#[path = "disks_tests.rs"]
mod of_disks;

#[path = "nets_tests.rs"]
mod of_nets;

#[path = "consoles_tests.rs"]
mod of_consoles;

#[test]
fn page_tables_of_a_run() {
    let pages = |va, phys, len| run_tables(va, phys, len) / 4096;
    // Large pages alone: a directory and what leads to it.
    assert_eq!(pages(0, 1 << 30, 256 << 20), 2);
    assert_eq!(pages(1 << 32, 1 << 30, 3 << 30), 4);
    // Small ones at the ends.
    assert_eq!(pages(0, 1 << 30, (256 << 20) + 4096), 3);
    assert_eq!(pages(4096, 4096, 2 << 20), 4);
    // Small ones alone: 512 tables, and one more if the run lies across.
    assert_eq!(pages(0, 4096, 1 << 30), 514);
    assert_eq!(pages(4096, 0, 1 << 30), 513 + 2 + 1);
}
