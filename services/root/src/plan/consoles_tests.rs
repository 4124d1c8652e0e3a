use super::*;
use ipc_schema::manifest::{PortName, Ports};

/// Each port's two rings are shared by the manager and the console, crosswise, and nobody else; one signal leads each way.
#[test]
fn what_consoles_take() {
    let mut system = sample();
    let names = ["hvc0", "data"].map(|name| PortName::new(name).unwrap());
    let kind = DeviceKind::VirtioConsole {
        slot: 5,
        rows_first: false,
        packed: true,
        ports: Ports::new(&names).unwrap(),
    };
    let it = described("two.console0".into(), kind, 0, 0);
    system.vms[1].devices.push(it);
    let plans = plans_of(&system).unwrap();
    let (manager, console) = (find(&plans, "manager"), find(&plans, "two.console0"));
    let key = |plan: &Plan, name: &str| {
        let page = plan.mapped.iter().find(|m| m.name == name).unwrap();
        match &page.memory {
            Memory::Page(key) => key.clone(),
            other => panic!("{other:?}"),
        }
    };
    for (port, name) in [(0, "two.hvc0"), (1, "two.data")] {
        for (ours, theirs) in [("tx", "rx"), ("rx", "tx")] {
            let ours = key(console, &format!("{ours}:{port}"));
            assert_eq!(ours, key(manager, &format!("{theirs}:{name}")));
            let users = plans.iter().filter(|p| p.pages().any(|k| *k == ours));
            assert_eq!(users.count(), 2, "{ours}");
            assert!(!volatile_pages(&system.vms[1]).contains(&ours));
        }
        let to = grant(manager, &format!("device:{name}"));
        let device = Object::Notification("two.console0".into());
        assert_eq!((&to.object, to.badge), (&device, device_bits::BACK));
    }
    let keys: Vec<String> = ["tx:0", "tx:1", "rx:0", "rx:1"]
        .map(|n| key(console, n))
        .into();
    assert!((1..4).all(|i| !keys[..i].contains(&keys[i])), "{keys:?}");
    let back = grant(console, "manager");
    let to = Object::Notification("manager".into());
    assert_eq!((&back.object, back.badge), (&to, manager_bits::uart(1)));
    // The guest's memory, and its doorbells: a bit a queue.
    assert!(console.guest_memory == system.vms[1].memory);
    let vmm = find(&plans, "two.vmm");
    let at = system.vms[1].devices.len() - 1;
    for queue in 0..6 {
        let bell = grant(vmm, &format!("queue:{at}:{queue}"));
        assert_eq!((&bell.object, bell.badge), (&device(), 1 << queue));
    }
    fn device() -> Object {
        Object::Notification("two.console0".into())
    }
}
