use super::*;
use ipc_schema::disk::{BlkConfig, StoreConfig};
use ipc_schema::manifest::{Disk, Home};

/// Who has what of a disk: `store` its map, the device model its contents, both the channel; nobody else anything.
#[test]
fn what_disks_take() {
    let mut system = sample();
    let disk = |name: &str, memory, image: Option<&str>| Disk {
        name: name.into(),
        size: 64 << 20,
        image: image.map(Into::into),
        memory,
        serial: "s".into(),
        home: Home::Memory,
    };
    system.disks = vec![disk("w", 1 << 20, None), disk("r", 0, Some("disk/r"))];
    for (v, slot, number) in [(0, 1, 0), (0, 2, 1), (1, 1, 1)] {
        let kind = DeviceKind::VirtioBlk {
            slot,
            disk: number,
            queues: 2,
            packed: slot == 1,
        };
        let vm = &mut system.vms[v];
        let name = format!("{}.blk{}", vm.name, slot - 1);
        let (ports, binary) = (PortRange::new(0, 0), binary_file(kind.package()));
        vm.devices.push(Device {
            name,
            kind,
            binary,
            ports,
            irq: 0,
            doorbell: None,
        });
    }
    let plans = plans_of(&system).unwrap();
    let names = |plan: &Plan| -> Vec<String> {
        let runs = plan
            .mapped
            .iter()
            .filter(|m| matches!(m.memory, Memory::Run(_)));
        runs.map(|m| m.name.clone()).collect()
    };
    let store = find(&plans, "store");
    assert_eq!(
        names(store),
        ["map:0", "map:1", "channel:0", "channel:1", "channel:2"]
    );
    assert_eq!(store.mapped.len(), 5, "no contents, no guest");
    let config: StoreConfig = postcard::from_bytes(&store.config).unwrap();
    assert_eq!(config.clients, [0, 1, 1]);
    assert_eq!(
        (config.disks[0].blocks, config.disks[0].pages),
        (16384, 256)
    );
    assert_eq!((config.disks[1].image, config.disks[1].pages), (1221, 0));
    let writer = find(&plans, "one.blk0");
    assert_eq!(names(writer), ["channel", "pages"]);
    let reader = find(&plans, "two.blk0");
    assert_eq!(names(reader), ["channel"]);
    let image = reader.mapped.iter().find(|m| m.name == "image").unwrap();
    assert_eq!((image.len, image.rights), (5_000_001, READ));
    let blk: BlkConfig = postcard::from_bytes(&reader.config).unwrap();
    assert_eq!((blk.disk, blk.queues), (config.disks[1].clone(), 2));
    // Each piece of contents is one server's alone.
    let key = |plan: &Plan| -> Vec<String> { plan.runs().map(|(key, _)| key.clone()).collect() };
    assert_eq!(key(writer), ["one.blk0/channel", "disk/w/pages"]);
    let users = plans
        .iter()
        .filter(|p| key(p).contains(&"disk/w/pages".into()));
    assert_eq!(users.count(), 1);
    let asks = |p: &Plan| p.grants.iter().any(|g| g.object == Object::Root);
    assert!(asks(writer) && !asks(store) && !asks(find(&plans, "one.rtc0")));
    // Both ways are signals.
    let client = grant(store, "client:2");
    assert_eq!(
        (&client.object, client.badge),
        (&Object::Notification("two.blk0".into()), device_bits::BACK)
    );
    assert_eq!(
        grant(reader, "store").object,
        Object::Notification("store".into())
    );
    // Every address is its own.
    for plan in [store, writer, reader] {
        let mut ends: Vec<_> = plan.mapped.iter().map(|m| (m.va, m.va + m.len)).collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|w| w[0].1 <= w[1].0), "{ends:?}");
    }
    assert!(
        plans_of(&sample())
            .unwrap()
            .iter()
            .all(|p| p.instance != "store")
    );
    system.disks[1].size = 4096;
    assert_eq!(plans_of(&system), Err(PlanError::Disk("r".into())));
}
