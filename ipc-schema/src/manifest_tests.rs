use super::*;
use crate::disk::{BLOCK, MAX_BLOCKS};
use alloc::vec;
use proptest::prelude::*;

fn system() -> System {
    System {
        name: "linux".into(),
        memory: 1 << 30,
        idle: Idle::Stay,
        vms: vec![vm("a")],
        drivers: vec![Driver {
            name: "uart0".into(),
            kind: DriverKind::Uart,
            binary: binary_file("driver-uart"),
            ports: PortRange::new(0x3f8, 8),
            irq: 4,
        }],
        servers: vec![Server {
            name: "bench".into(),
            binary: binary_file("bench"),
            args: "x".into(),
        }],
        disks: vec![],
    }
}

fn disk(name: &str, memory: u64) -> Disk {
    Disk {
        name: name.into(),
        size: 64 << 20,
        image: None,
        memory,
        serial: name.into(),
        home: Home::Memory,
    }
}

fn vm(name: &str) -> Vm {
    Vm {
        name: name.into(),
        memory: 256 << 20,
        vcpus: 1,
        autostart: true,
        kernel: kernel_file(name),
        initrd: Some(initrd_file(name)),
        append: "quiet".into(),
        cpu: CpuShare {
            shares: 100,
            reservation: 0,
            limit: None,
            cpu: None,
        },
        debug_exit: false,
        tsc_mhz: 0,
        devices: vec![
            device(&format!("{name}.uart0"), DeviceKind::Uart, 0x3f8, 4),
            device(&format!("{name}.testdev0"), DeviceKind::TestDev, 0x5000, 5),
        ],
    }
}

fn device(name: &str, kind: DeviceKind, port: u16, irq: u8) -> Device {
    Device {
        name: name.into(),
        kind,
        binary: binary_file(kind.package()),
        ports: PortRange::new(port, kind.ports()),
        irq,
        doorbell: (kind == DeviceKind::TestDev).then_some(0x5010),
        registers: Registers::Ports,
    }
}

fn fault_of(change: impl Fn(&mut System)) -> CheckError {
    let mut s = system();
    change(&mut s);
    s.check().unwrap_err()
}

#[test]
fn golden_bytes() {
    let mut s = system();
    s.vms[0].devices.remove(0);
    let mut want: Vec<u8> = Vec::new();
    want.extend(b"\x05linux\x80\x80\x80\x80\x04\x01\x01"); // name, memory, Stay, one VM
    want.extend(b"\x01a\x80\x80\x80\x80\x01\x01\x01\x0bvm/a/kernel\x01\x0bvm/a/initrd\x05quiet");
    want.extend(b"\x64\x00\x00\x00\x00\x01"); // shares, reservation, no limit, no processor, no debug exit, one device
    want.extend(
        b"\x0aa.testdev0\x02\x12bin/device-testdev\x80\xa0\x01\x10\x05\x01\x90\xa0\x01\x00",
    );
    want.push(0); // the machine's TSC rate
    want.extend(b"\x01\x05uart0\x00\x0fbin/driver-uart\xf8\x07\x08\x04");
    want.extend(b"\x01\x05bench\x09bin/bench\x01x\x00"); // no disk
    assert_eq!(s.encode().unwrap(), want);
}

/// A PCI function's: what is new comes behind what there was.
#[test]
fn golden_bytes_of_functions() {
    let mut rng = device("a.rng0", DeviceKind::VirtioRng { slot: 5 }, 0, 0);
    let mut want = b"\x06a.rng0\x03\x05\x15bin/device-virtio-rng\x00\x00\x00\x00\x00".to_vec();
    assert_eq!(postcard::to_allocvec(&rng).unwrap(), want);
    rng.registers = Registers::Memory;
    want.pop();
    want.push(1);
    assert_eq!(postcard::to_allocvec(&rng).unwrap(), want);
}

#[test]
fn slots() {
    let with = |slots: &[u8]| {
        let mut s = system();
        let functions = slots
            .iter()
            .enumerate()
            .map(|(i, &slot)| device(&format!("a.rng{i}"), DeviceKind::VirtioRng { slot }, 0, 0));
        s.vms[0].devices.extend(functions);
        s
    };
    assert_eq!(with(&[1, 31, 7]).check(), Ok(()));
    let fault = |slots: &[u8], at, fault| {
        let place = Place::Device(0, at);
        assert_eq!(with(slots).check(), Err(CheckError { place, fault }));
    };
    fault(&[0], 2, Fault::BadSlot);
    fault(&[3, 32], 3, Fault::BadSlot);
    fault(&[3, 4, 3], 4, Fault::SlotTaken(Place::Device(0, 2)));
    let mut ports = with(&[1]);
    ports.vms[0].devices[2].ports = PortRange::new(0xC000, 256);
    assert!(matches!(ports.check(), Err(e) if e.fault == Fault::BadPorts));
    let mut bell = with(&[1]);
    bell.vms[0].devices[2].doorbell = Some(0xC080);
    assert!(bell.check().is_err());
}

#[test]
fn round_trip_and_trailing_bytes() {
    let mut bytes = system().encode().unwrap();
    assert_eq!(System::decode(&bytes).unwrap(), system());
    bytes.push(0);
    assert!(System::decode(&bytes).is_err());
}

#[test]
fn a_good_system_passes() {
    assert_eq!(system().check(), Ok(()));
    let mut two = system();
    two.vms.push(vm("b")); // The same guest ports in two VMs are two different ports.
    assert_eq!(two.check(), Ok(()));
}

#[test]
fn each_fault_is_found() {
    let e = |place, fault| CheckError { place, fault };
    let vm0 = Place::Vm(0);
    assert_eq!(
        fault_of(|s| s.vms[0].name = "a.b".into()),
        e(vm0, Fault::BadName)
    );
    let dev1 = Place::Device(0, 1);
    assert_eq!(
        fault_of(|s| s.name.clear()),
        e(Place::System, Fault::BadName)
    );
    assert_eq!(
        fault_of(|s| s.vms[0].name = "a/b".into()),
        e(vm0, Fault::BadName)
    );
    assert_eq!(fault_of(|s| s.vms[0].memory += 1), e(vm0, Fault::BadMemory));
    assert_eq!(
        fault_of(|s| s.vms[0].memory = 4096),
        e(vm0, Fault::BadMemory)
    );
    assert_eq!(fault_of(|s| s.vms[0].vcpus = 0), e(vm0, Fault::BadVcpus));
    assert_eq!(
        fault_of(|s| s.vms[0].cpu.shares = 0),
        e(vm0, Fault::BadShare)
    );
    assert_eq!(
        fault_of(|s| s.vms[0].cpu.reservation = 101),
        e(vm0, Fault::BadShare)
    );
    assert_eq!(
        fault_of(|s| s.vms[0].cpu.limit = Some(0)),
        e(vm0, Fault::BadShare)
    );
    assert_eq!(
        fault_of(|s| s.vms[0].cpu.cpu = Some(MAX_CPUS)),
        e(vm0, Fault::BadCpu)
    );
    assert_eq!(
        fault_of(|s| s.vms.push(vm("a"))),
        e(Place::Vm(1), Fault::DuplicateName(vm0))
    );
    assert_eq!(
        fault_of(|s| s.memory = 200 << 20),
        e(
            vm0,
            Fault::MemoryDoesNotFit {
                needed: 256 << 20,
                available: 136 << 20
            }
        )
    );
    assert_eq!(
        fault_of(|s| s.vms[0].devices[1].ports.first = 0x3ff),
        e(dev1, Fault::PortTaken(Place::Device(0, 0)))
    );
    assert_eq!(
        fault_of(|s| s.vms[0].devices[1].doorbell = Some(0x3f8)),
        e(dev1, Fault::PortTaken(Place::Device(0, 0)))
    );
    assert_eq!(
        fault_of(|s| s.vms[0].devices[1].ports.first = 0xfff1),
        e(dev1, Fault::BadPorts)
    );
    assert_eq!(
        fault_of(|s| s.vms[0].devices[1].ports.count = 8),
        e(dev1, Fault::BadPorts)
    );
    assert_eq!(
        fault_of(|s| s.vms[0].devices[1].ports.first = 0xcf0),
        e(dev1, Fault::PortOfVmm(PortRange::new(0xcf8, 8)))
    );
    assert_eq!(
        fault_of(|s| {
            s.vms[0].debug_exit = true;
            s.vms[0].devices[1].ports.first = 0xf0;
        }),
        e(dev1, Fault::PortOfVmm(PortRange::new(0xf4, 4)))
    );
    assert_eq!(
        fault_of(|s| s.vms[0].devices[1].irq = 4),
        e(dev1, Fault::IrqTaken(Place::Device(0, 0)))
    );
    assert_eq!(
        fault_of(|s| s.vms[0].devices[1].irq = 2),
        e(dev1, Fault::BadIrq)
    );
    assert_eq!(
        fault_of(|s| s.drivers.push(Driver {
            name: "x".into(),
            irq: 3,
            ..s.drivers[0].clone()
        })),
        e(Place::Driver(1), Fault::PortTaken(Place::Driver(0)))
    );
    assert_eq!(
        fault_of(|s| s.servers[0].name = "uart0".into()),
        e(Place::Server(0), Fault::DuplicateName(Place::Driver(0)))
    );
}

proptest! {
    #[test]
    fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(system) = System::decode(&bytes) {
            let _ = system.check();
        }
    }

    #[test]
    fn one_changed_byte_never_panics(at in 0usize..150, value in any::<u8>()) {
        let mut bytes = system().encode().unwrap();
        if let Some(b) = bytes.get_mut(at) { *b = value; }
        if let Ok(system) = System::decode(&bytes) {
            let _ = system.check();
        }
    }
}

#[path = "manifest/consoles_tests.rs"]
mod of_consoles;

#[path = "manifest/disks_tests.rs"]
mod of_disks;

#[path = "manifest/nets_tests.rs"]
mod of_nets;
