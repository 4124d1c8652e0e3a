use super::*;
use ipc_schema::link::{NetConfig, SwitchConfig};

/// Who has what of a network: the switch all links, each card its own; no contents of anybody else's.
#[test]
fn what_networks_take() {
    let mut system = sample();
    for (v, network) in [(0, 0), (1, 0), (1, 1)] {
        let vm = &mut system.vms[v];
        let slot = 5 + network as u8;
        let kind = DeviceKind::VirtioNet {
            slot,
            network,
            mac: [2, 0, 0, 0, v as u8, network as u8],
            rate: 7,
            packed: v == 0,
            pairs: v as u16 + 1,
        };
        let name = format!("{}.net{network}", vm.name);
        vm.devices.push(described(name, kind, 0, 0));
    }
    let plans = plans_of(&system).unwrap();
    let switch = find(&plans, "switch");
    let config: SwitchConfig = postcard::from_bytes(&switch.config).unwrap();
    let ports: Vec<_> = config
        .ports
        .iter()
        .map(|p| (&*p.name, p.network, p.rate))
        .collect();
    assert_eq!(
        ports,
        [("one.net0", 0, 7), ("two.net0", 0, 7), ("two.net1", 1, 7)]
    );
    let keys: Vec<_> = switch.runs().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["one.net0/link", "two.net0/link", "two.net1/link"]);
    assert_eq!(switch.mapped.len(), 4, "no guest");
    let card = find(&plans, "two.net1");
    let keys: Vec<_> = card.runs().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["two.net1/link"]);
    let net: NetConfig = postcard::from_bytes(&card.config).unwrap();
    assert_eq!(
        (net.mac, net.packed, net.pairs),
        ([2, 0, 0, 0, 1, 1], false, 2)
    );
    assert_eq!(
        grant(card, "switch").object,
        Object::Notification("switch".into())
    );
    let port = grant(switch, "port:2");
    let to = Object::Notification("two.net1".into());
    assert_eq!((&port.object, port.badge), (&to, device_bits::BACK));
    for plan in [switch, card] {
        let mut ends: Vec<_> = plan.mapped.iter().map(|m| (m.va, m.va + m.len)).collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|w| w[0].1 <= w[1].0), "{ends:?}");
    }
    assert!(
        plans_of(&sample())
            .unwrap()
            .iter()
            .all(|p| p.instance != "switch")
    );
}
