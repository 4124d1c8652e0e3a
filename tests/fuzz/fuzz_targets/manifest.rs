//! The manifest: postcard to a `System`, its check, and what root and the manager rely on once it has passed.
#![no_main]

use fuzz::target;
use ipc_schema::manifest::{
    CpuShare, Device, DeviceKind, Disk, Driver, DriverKind, Home, Idle, PortRange, Registers,
    Server, System, Vm,
};

target!(run, seeds);

fn seeds() -> Vec<Vec<u8>> {
    let ports = PortRange::new(0x3f8, 8);
    let device = |name: &str, kind: DeviceKind, first, irq, doorbell| Device {
        name: name.into(),
        kind,
        binary: kind.package().into(),
        ports: PortRange::new(first, kind.ports()),
        irq,
        doorbell,
        registers: Registers::Ports,
    };
    let vm = |name: &str| Vm {
        name: name.into(),
        memory: 64 << 20,
        vcpus: 1,
        autostart: true,
        kernel: "vm/a/kernel".into(),
        initrd: Some("vm/a/initrd".into()),
        append: "console=ttyS0".into(),
        cpu: CpuShare {
            shares: 100,
            reservation: 20,
            limit: Some(80),
            cpu: None,
        },
        debug_exit: true,
        tsc_mhz: 0,
        devices: vec![
            device("uart.a", DeviceKind::Uart, 0x3f8, 4, None),
            device("rtc.a", DeviceKind::Rtc, 0x70, 8, None),
            device("testdev.a", DeviceKind::TestDev, 0x5000, 11, Some(0x5004)),
        ],
    };
    let system = System {
        name: "fuzz".into(),
        memory: 1 << 30,
        idle: Idle::PowerOff,
        vms: vec![vm("a")],
        drivers: vec![Driver {
            name: "serial".into(),
            kind: DriverKind::Uart,
            binary: "driver-uart".into(),
            ports,
            irq: 4,
        }],
        servers: vec![Server {
            name: "bench".into(),
            binary: "bench".into(),
            args: "x y".into(),
        }],
        disks: Vec::new(),
    };
    let mut two = system.clone();
    let blk = DeviceKind::VirtioBlk {
        slot: 3,
        disk: 0,
        queues: 2,
        packed: true,
    };
    two.disks.push(Disk {
        name: "data".into(),
        size: 64 << 20,
        image: Some("disk/data".into()),
        memory: 1 << 20,
        serial: "0123".into(),
        home: Home::Memory,
    });
    two.vms.push(Vm {
        devices: vec![device("blk.b", blk, 0, 0, None)],
        ..vm("b")
    });
    [system, two]
        .iter()
        .filter_map(|s| s.encode().ok())
        .collect()
}

fn run(data: &[u8]) {
    let Ok(system) = System::decode(data) else {
        return;
    };
    // The encoding is stable: what was read is written and read again as the same.
    let again = system.encode().expect("a system that was decoded");
    assert!(again.len() <= data.len());
    assert_eq!(System::decode(&again).as_ref(), Ok(&system));
    if system.check().is_err() {
        return;
    }
    let vms: u64 = system.vms.iter().map(|vm| vm.memory).sum();
    assert!(vms <= system.memory);
    for (v, vm) in system.vms.iter().enumerate() {
        assert_eq!(vm.check(v), Ok(()));
        assert!(vm.memory.is_multiple_of(4096) && (1..=64).contains(&vm.vcpus));
        // A PCI function has the ports that its guest gives it.
        let isa = vm.devices.iter().filter(|d| d.kind.slot().is_none());
        let all: Vec<PortRange> = isa.flat_map(Device::ranges).collect();
        for (i, a) in all.iter().enumerate() {
            assert!(a.count > 0 && a.end() <= 0x1_0000);
            assert!(all[..i].iter().all(|b| !a.overlaps(*b)), "{vm:?}");
        }
        assert!(vm.devices.iter().all(|d| d.irq < 16 && d.irq != 2));
    }
    let mut names: Vec<&str> = system
        .vms
        .iter()
        .flat_map(|vm| vm.devices.iter().map(|d| d.name.as_str()))
        .chain(system.drivers.iter().map(|d| d.name.as_str()))
        .chain(system.servers.iter().map(|s| s.name.as_str()))
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    plan(&system);
}

/// Root plans a system that has passed, whatever it says: an error or a plan, and a plan keeps servers apart.
fn plan(system: &System) {
    let file = |_: &str| Some(4096);
    let machine = root::plan::Machine {
        system,
        file: &file,
        ranges: &[],
        rsdp: 0,
    };
    let Ok(plans) = root::plan::system(&machine) else {
        return;
    };
    let mut instances: Vec<&str> = plans.iter().map(|p| p.instance.as_str()).collect();
    instances.sort_unstable();
    assert!(instances.windows(2).all(|w| w[0] != w[1]));
    for plan in &plans {
        let slots: Vec<u32> = plan.slots().map(|(slot, _)| slot).collect();
        let mut unique = slots.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(
            unique.len(),
            slots.len(),
            "a slot twice in {}",
            plan.instance
        );
        assert!(
            slots.iter().all(|slot| (1..plan.slots).contains(slot)),
            "a slot outside the table"
        );
        let mut regions: Vec<_> = plan.mapped.iter().map(|m| (m.va, m.len)).collect();
        regions.sort_unstable();
        assert!(
            regions.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0),
            "two regions at one place"
        );
    }
}
