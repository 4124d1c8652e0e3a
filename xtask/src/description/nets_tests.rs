//! Networks of a description: what is taken, what is refused.

use super::*;

const NETS: &str = r#"
[[vm]]
name = "c"
memory = "64M"
kernel = "build:exerciser"
[[vm.device]]
kind = "virtio-net"
queues = 2
[[vm.device]]
kind = "virtio-net"
network = "dmz"
mac = "02:00:00:00:00:0a"
limit = "10M"
[[vm]]
name = "d"
memory = "64M"
kernel = "build:exerciser"
[[vm.device]]
kind = "virtio-net"
network = "dmz"
"#;

#[test]
fn networks() {
    let d = parse(&format!("{GOOD}{NETS}"), path(), None).unwrap();
    let cards: Vec<(u8, u32, [u8; 6], u64, u16)> = d.system.vms[2..]
        .iter()
        .flat_map(|vm| &vm.devices)
        .map(|d| match d.kind {
            DeviceKind::VirtioNet {
                slot,
                network,
                mac,
                rate,
                packed: true,
                pairs,
            } => (slot, network, mac, rate, pairs),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((cards[0].0, cards[0].1, cards[0].3), (1, 0, 0));
    assert_eq!(cards[0].4, 2);
    assert_eq!(cards[1], (2, 1, [2, 0, 0, 0, 0, 10], 10 << 20, 1));
    assert_eq!((cards[2].0, cards[2].1, cards[2].4), (1, 1, 1));
    // Addresses that are made up are somebody's own, and the same each time.
    assert!(cards[0].2[..2] == [2, 0x56] && cards[0].2 != cards[2].2);
    let again = parse(&format!("{GOOD}{NETS}"), path(), None).unwrap();
    assert_eq!(again.system, d.system);
}

#[test]
fn each_mistake_about_networks() {
    let text = format!("{GOOD}{NETS}");
    let wrong = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "`{from}` is not in the sample");
        let m = parse(&changed, path(), None).unwrap_err();
        (m.at.clone(), m.what.clone(), m.remedy)
    };
    for bad in ["2:0:0:0:0:a", "02:00:00:00:00", "02:00:00:00:00:0g", ""] {
        let (at, what, remedy) = wrong("02:00:00:00:00:0a", bad);
        assert_eq!(at, "guests/two.toml:39");
        assert_eq!(what, format!("`{bad}` is no Ethernet address"));
        assert!(remedy.contains("02:00:00:00:00:01"), "{remedy}");
    }
    let (at, what, remedy) = wrong("02:00:00:00:00:0a", "03:00:00:00:00:0a");
    assert!(
        what.contains("`c.net1`") && what.contains("group"),
        "{at} {what}"
    );
    assert!(remedy.contains("even"), "{remedy}");
    let (at, what, remedy) = wrong("limit = \"10M\"", "limit = \"0M\"");
    assert_eq!(
        (&*at, &*remedy),
        ("guests/two.toml:40", "leave `limit` out for none")
    );
    assert!(what.contains("0 bytes"), "{what}");
    let (_, what, _) = wrong("queues = 2", "queues = 16");
    assert!(what.contains("1 to 15 pairs"), "{what}");
    let (_, what, _) = wrong(
        "kind = \"virtio-net\"\nnetwork",
        "kind = \"virtio-rng\"\nnetwork",
    );
    assert!(what.contains("are of virtio-net"), "{what}");
    let text = format!("{text}mac = \"02:00:00:00:00:0a\"\n");
    let m = parse(&text, path(), None).unwrap_err();
    assert!(
        m.what.contains("`d.net0`") && m.what.contains("`c.net1`"),
        "{m}"
    );
}
