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

fn ports(names: &[&str]) -> Ports {
    let names: Vec<PortName> = names.iter().map(|n| PortName::new(n).unwrap()).collect();
    Ports::new(&names).unwrap()
}

fn console(name: &str, slot: u8, names: &[&str]) -> Device {
    let kind = DeviceKind::VirtioConsole {
        slot,
        rows_first: true,
        ports: ports(names),
    };
    device(name, kind, 0, 0)
}

#[test]
fn golden_bytes_of_consoles() {
    let device = console("a.console0", 5, &["hvc0", "data"]);
    let mut want = b"\x0aa.console0\x06\x05\x01hvc0".to_vec();
    want.resize(want.len() + 11, 0);
    want.extend(b"data");
    want.resize(want.len() + 11 + 6 * 15, 0);
    want.extend(b"\x19bin/device-virtio-console\x00\x00\x00\x00\x00");
    assert_eq!(postcard::to_allocvec(&device).unwrap(), want);
}

#[test]
fn ports_of_consoles() {
    let (most, long) = ("123456789012345", "1234567890123456");
    assert_eq!(PortName::new(most).map(|n| n.as_str().len()), Some(15));
    for bad in ["", long, "a.b", "a b", "\u{e4}", "a\0"] {
        assert_eq!(PortName::new(bad), None, "{bad:?}");
    }
    assert_eq!(Ports::new(&[]), None);
    assert_eq!(Ports::new(&[PortName::NONE; 9]), None);
    let names: Vec<String> = (0..8).map(|i| format!("p{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let full = console("a.console0", 5, &names);
    assert_eq!((full.kind.queues(), full.kind.slot()), (18, Some(5)));
    assert!(full.kind.queues() <= MAX_QUEUES);
    let fault = |devices: Vec<Device>| {
        let mut s = system();
        s.vms[0].devices.extend(devices);
        s.check().err().map(|e| (e.place, e.fault))
    };
    assert_eq!(fault(vec![full]), None);
    let one = |names: &[&str]| console("a.console0", 5, names);
    assert_eq!(
        fault(vec![one(&["x"]), console("a.console1", 6, &["y", "x"])]),
        Some((Place::Vm(0), Fault::PortNameTaken))
    );
    let bad = Some((Place::Device(0, 2), Fault::BadPortNames));
    assert_eq!(fault(vec![one(&["x", "x"])]), bad);
    // What bytes can say and names cannot.
    let mut bytes = postcard::to_allocvec(&ports(&["x", "y"])).unwrap();
    for (at, byte) in [
        (0, 0),
        (0, b'.'),
        (1, 0xff),
        (14, b'x'),
        (16, 1),
        (60, b'z'),
    ] {
        let old = core::mem::replace(&mut bytes[at], byte);
        let kind = DeviceKind::VirtioConsole {
            slot: 5,
            rows_first: false,
            ports: postcard::from_bytes(&bytes).unwrap(),
        };
        assert_eq!(fault(vec![device("a.console0", kind, 0, 0)]), bad, "{at}");
        bytes[at] = old;
    }
}

#[test]
fn channels_of_a_vm() {
    let mut vm = vm("a");
    vm.devices.push(console("a.console0", 5, &["hvc0", "data"]));
    let named = |vm: &Vm| -> Vec<(String, usize, Option<usize>, bool)> {
        let channels = vm.channels().into_iter();
        channels
            .map(|c| (c.name.clone(), c.device, c.port, c.sized()))
            .collect()
    };
    let port = |name: &str, device, port, sized| (name.into(), device, port, sized);
    assert_eq!(
        named(&vm),
        [
            port("a", 0, None, false),
            port("a.hvc0", 2, Some(0), true),
            port("a.data", 2, Some(1), false),
        ]
    );
    vm.devices.remove(0);
    assert_eq!(named(&vm)[0], port("a.hvc0", 1, Some(0), true));
    vm.devices.clear();
    assert_eq!(named(&vm), []);
}

#[test]
fn golden_bytes_of_disks() {
    let kind = DeviceKind::VirtioBlk {
        slot: 5,
        disk: 1,
        queues: 2,
        packed: true,
    };
    let blk = device("a.blk0", kind, 0, 0);
    let want = b"\x06a.blk0\x04\x05\x01\x02\x01\x15bin/device-virtio-blk\x00\x00\x00\x00\x00";
    assert_eq!(postcard::to_allocvec(&blk).unwrap(), want);
    let mut disk = disk("d", 4096);
    disk.image = Some(disk_file("d"));
    let want = b"\x01d\x80\x80\x80\x20\x01\x06disk/d\x80\x20\x01d\x00";
    assert_eq!(postcard::to_allocvec(&disk).unwrap(), want);
    disk.home = Home::SecondDisk { read_only: true };
    disk.serial = String::new();
    assert!(
        postcard::to_allocvec(&disk)
            .unwrap()
            .ends_with(b"\x00\x01\x01")
    );
}

#[test]
fn disks() {
    let blk = |i: usize, disk, queues| {
        let slot = i as u8 + 1;
        device(
            &format!("a.blk{i}"),
            DeviceKind::VirtioBlk {
                slot,
                disk,
                queues,
                packed: true,
            },
            0,
            0,
        )
    };
    let with = |disks: &[Disk], devices: &[(u32, u16)]| {
        let mut s = system();
        s.disks = disks.to_vec();
        let devices = devices.iter().enumerate();
        s.vms[0]
            .devices
            .extend(devices.map(|(i, &(disk, queues))| blk(i, disk, queues)));
        s.check().map_err(|e| (e.place, e.fault))
    };
    let (writable, read_only) = (disk("w", 1 << 20), disk("r", 0));
    let both = [writable.clone(), read_only.clone()];
    assert_eq!(with(&both, &[(0, 1), (1, MAX_QUEUES), (1, 1)]), Ok(()));
    let dev = |d| Place::Device(0, d);
    assert_eq!(with(&both, &[(2, 1)]), Err((dev(2), Fault::UnknownDisk)));
    assert_eq!(
        with(&both, &[(0, 1), (1, 1), (0, 1)]),
        Err((dev(4), Fault::DiskTaken(dev(2))))
    );
    assert_eq!(with(&both, &[(0, 0)]), Err((dev(2), Fault::BadQueues)));
    assert_eq!(
        with(&both, &[(0, MAX_QUEUES + 1)]),
        Err((dev(2), Fault::BadQueues))
    );
    let twice = [read_only.clone(), read_only.clone()];
    let d1 = Place::Disk(1);
    assert_eq!(
        with(&twice, &[]),
        Err((d1, Fault::DuplicateName(Place::Disk(0))))
    );
    let bad = |change: &dyn Fn(&mut Disk)| {
        let mut disk = disk("w", 1 << 20);
        change(&mut disk);
        match with(&[read_only.clone(), disk], &[]) {
            Err((place, fault)) if place == d1 => Some(fault),
            _ => None,
        }
    };
    let second = |d: &mut Disk, read_only| d.home = Home::SecondDisk { read_only };
    assert_eq!(
        bad(&|d| second(d, false)),
        Some(Fault::BadDiskSize),
        "memory"
    );
    let image = |d: &mut Disk| {
        second(d, false);
        (d.memory, d.image) = (0, Some(disk_file("w")));
    };
    assert_eq!(bad(&image), Some(Fault::BadDiskSize));
    let mut there = disk("s", 0);
    second(&mut there, false);
    let taken = Err((dev(3), Fault::DiskTaken(dev(2))));
    assert_eq!(with(&[there.clone()], &[(0, 1), (0, 1)]), taken);
    second(&mut there, true);
    assert_eq!(with(&[there], &[(0, 1), (0, 1)]), Ok(()));
    assert_eq!(bad(&|d| d.name = "a/b".into()), Some(Fault::BadName));
    assert_eq!(bad(&|d| d.serial = "x".repeat(21)), Some(Fault::BadSerial));
    assert_eq!(bad(&|d| d.serial = "a b".into()), Some(Fault::BadSerial));
    assert_eq!(bad(&|d| d.size = 0), Some(Fault::BadDiskSize));
    assert_eq!(bad(&|d| d.size = 4097), Some(Fault::BadDiskSize));
    assert_eq!(
        bad(&|d| d.size = (MAX_BLOCKS + 1) * BLOCK),
        Some(Fault::BadDiskSize)
    );
    assert_eq!(bad(&|d| d.memory = 512), Some(Fault::BadDiskSize));
    assert_eq!(
        bad(&|d| d.memory = d.size + BLOCK),
        Some(Fault::BadDiskSize)
    );
    assert!(matches!(
        bad(&|d| (d.size, d.memory) = (2 << 30, 1 << 30)),
        Some(Fault::MemoryDoesNotFit { .. })
    ));
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

#[test]
fn golden_bytes_of_cards() {
    let card = |pairs| {
        let kind = DeviceKind::VirtioNet {
            slot: 9,
            network: 1,
            mac: [2, 0, 0, 0, 0, 3],
            rate: 5,
            packed: true,
            pairs,
        };
        device("a.net0", kind, 0, 0)
    };
    let want =
        b"\x06a.net0\x05\x09\x01\x02\0\0\0\0\x03\x05\x01\x02\x15bin/device-virtio-net\0\0\0\0\0";
    assert_eq!(postcard::to_allocvec(&card(2)).unwrap(), want);
    // Frames both ways for each pair, and one for control.
    assert_eq!(card(2).kind.queues(), 5);
    assert!(card(MAX_PAIRS).kind.queues() <= MAX_QUEUES);
    for (pairs, sound) in [
        (0, false),
        (1, true),
        (MAX_PAIRS, true),
        (MAX_PAIRS + 1, false),
    ] {
        let mut s = system();
        s.vms[0].devices = vec![card(pairs)];
        let fault = s.check().err().map(|e| e.fault);
        assert_eq!(fault, (!sound).then_some(Fault::BadQueues), "{pairs}");
    }
}

/// Two VMs' network cards.
#[test]
fn addresses_are_one_cards_in_a_network() {
    let check = |macs: [[u8; 6]; 2], networks: [u32; 2]| {
        let mut system = system();
        system.vms = [("x", 0), ("y", 1)]
            .map(|(name, i)| {
                let kind = DeviceKind::VirtioNet {
                    slot: 9,
                    network: networks[i],
                    mac: macs[i],
                    rate: 0,
                    packed: true,
                    pairs: 1,
                };
                let mut vm = vm(name);
                vm.devices = vec![device(&format!("{name}.net0"), kind, 0, 0)];
                vm
            })
            .into();
        system.check().err()
    };
    let (one, two) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    assert_eq!(check([one, two], [0, 0]), None);
    assert_eq!(check([one, one], [0, 1]), None);
    let fault = |place, fault| Some(CheckError { place, fault });
    let taken = Fault::MacTaken(Place::Device(0, 0));
    assert_eq!(check([one, one], [3, 3]), fault(Place::Device(1, 0), taken));
    for bad in [[0; 6], [1, 0, 0, 0, 0, 1], [0xff; 6]] {
        let is = check([bad, two], [0, 0]);
        assert_eq!(is, fault(Place::Device(0, 0), Fault::BadMac));
    }
}
