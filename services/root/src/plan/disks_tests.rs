use super::*;
use ipc_schema::disk::{BlkConfig, DriverConfig, StoreConfig};
use ipc_schema::manifest::{Disk, Home};
use ipc_schema::proto::PciBar;

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
        vm.devices.push(described(name, kind, 0, 0));
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
    assert_eq!(store.mapped.len(), 6, "no contents, no guest");
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

/// The second disk's driver has its clients' channels and pages, and no guest; `store` hears nothing of such disks.
#[test]
fn what_the_second_disk_takes() {
    let mut system = sample();
    let disk = |name: &str, home| Disk {
        name: name.into(),
        size: 64 << 20,
        image: None,
        memory: if home == Home::Memory { 1 << 20 } else { 0 },
        serial: "s".into(),
        home,
    };
    let second = |read_only| Home::SecondDisk { read_only };
    system.disks = vec![
        disk("a", second(false)),
        disk("m", Home::Memory),
        disk("r", second(true)),
    ];
    for (v, slot, number) in [(0, 1, 0), (0, 2, 1), (0, 3, 2), (1, 1, 2)] {
        let kind = DeviceKind::VirtioBlk {
            slot,
            disk: number,
            queues: 1,
            packed: true,
        };
        let vm = &mut system.vms[v];
        let name = format!("{}.blk{}", vm.name, slot - 1);
        vm.devices.push(described(name, kind, 0, 0));
    }
    let mut plans = plans_of(&system).unwrap();
    let store: StoreConfig = postcard::from_bytes(&find(&plans, "store").config).unwrap();
    assert_eq!((store.disks.len(), &store.clients[..]), (1, &[0][..]));
    assert_eq!(store.disks[0].name, "m");
    let driver = plans
        .iter_mut()
        .find(|p| p.instance == "second-disk")
        .unwrap();
    let names: Vec<&str> = driver.mapped.iter().map(|m| m.name.as_str()).collect();
    let wanted = [
        "dma",
        "channel:0",
        "pages:0",
        "channel:1",
        "pages:1",
        "channel:2",
        "pages:2",
        "state",
    ];
    assert_eq!(names, wanted);
    let mut config: DriverConfig = postcard::from_bytes(&driver.config).unwrap();
    let clients: Vec<_> = config
        .clients
        .iter()
        .map(|c| (c.disk.name.as_str(), c.read_only))
        .collect();
    assert_eq!(clients, [("a", false), ("r", true), ("r", true)]);
    // What the machine says is added once, however often it starts.
    let bar = |number, base, len| PciBar { number, base, len };
    for base in [0xfe00_0000, 0xfd00_0000] {
        config.function.bars = vec![bar(0, base, 100), bar(4, base + 4096, 0x4000)];
        disks::with_function(driver, &config).unwrap();
        let bars: Vec<_> = driver
            .mapped
            .iter()
            .filter(|m| m.name.starts_with("bar:"))
            .collect();
        assert_eq!(bars.len(), 2);
        assert_eq!((bars[0].len, bars[1].len), (4096, 0x4000));
        assert_eq!(
            bars[1].memory,
            Memory::Run(disks::bar_key(&config.function.bars[1]))
        );
    }
    config.function.bars = vec![bar(0, 0x8000_0000, 1 << 30)];
    assert!(disks::with_function(driver, &config).is_err());
    let keys = |plans: &[Plan], instance: &str| -> Vec<Memory> {
        let of = find(plans, instance).mapped.iter();
        of.filter(|m| m.name.starts_with("pages"))
            .map(|m| m.memory.clone())
            .collect()
    };
    // Each client has pages of its own, whatever disk they share.
    let all = keys(&plans, "second-disk");
    let (one, two) = (keys(&plans, "one.blk2"), keys(&plans, "two.blk0"));
    assert_eq!((&all[1..2], &all[2..3]), (&one[..], &two[..]));
    assert_ne!(one, two);
    let blk: BlkConfig = postcard::from_bytes(&find(&plans, "one.blk0").config).unwrap();
    assert!(blk.writable() && !blk.zeroes());
    let to = grant(find(&plans, "one.blk0"), "store");
    assert_eq!(to.object, Object::Notification("second-disk".into()));
}
