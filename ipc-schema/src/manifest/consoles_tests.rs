//! Consoles in the manifest: bytes, faults.

use super::*;

fn ports(names: &[&str]) -> Ports {
    let names: Vec<PortName> = names.iter().map(|n| PortName::new(n).unwrap()).collect();
    Ports::new(&names).unwrap()
}

fn console(name: &str, slot: u8, names: &[&str]) -> Device {
    let kind = DeviceKind::VirtioConsole {
        slot,
        rows_first: true,
        ports: ports(names),
        packed: true,
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
    want.extend(b"\x01\x19bin/device-virtio-console\x00\x00\x00\x00\x00");
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
            packed: true,
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
