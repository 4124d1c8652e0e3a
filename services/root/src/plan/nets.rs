//! What the switch and device models of network cards get.

use alloc::format;

use ipc_schema::abi::layout;
use ipc_schema::abi::rights::{READ, WRITE};
use ipc_schema::link::{LINK_BYTES, NetConfig, PortConfig, SwitchConfig};
use ipc_schema::manifest::{Device, DeviceKind, System};
use ipc_schema::proto::Class;

use super::{Plan, PlanError, Role, device_bits, page};

/// Package and instance of the server.
const SWITCH: &str = "switch";
/// First VA of links, and their distance.
const LINKS: u64 = layout::SHARED + (1 << 30);
const LINK_STEP: u64 = 1 << 20;
const _: () = assert!(LINK_BYTES < LINK_STEP);

/// The switch, if there are cards to be joined.
pub fn switch(system: &System) -> Result<Option<Plan>, PlanError> {
    let mut plan = Plan::new(SWITCH, SWITCH, Role::Switch, Class::Driver);
    let mut config = SwitchConfig::default();
    for device in system.vms.iter().flat_map(|vm| &vm.devices) {
        let DeviceKind::VirtioNet { network, rate, .. } = device.kind else {
            continue;
        };
        let number = config.ports.len();
        plan.signals(&format!("port:{number}"), &device.name, device_bits::BACK);
        plan.slots += 1;
        link(&mut plan, &format!("link:{number}"), device, number as u64);
        config.ports.push(PortConfig {
            name: device.name.clone(),
            network,
            rate,
        });
    }
    if config.ports.is_empty() {
        return Ok(None);
    }
    plan.shares("state", page(SWITCH, "state"), READ | WRITE);
    plan.configured(&config).map(Some)
}

fn link(plan: &mut Plan, name: &str, device: &Device, number: u64) {
    let va = LINKS + number * LINK_STEP;
    let key = page(&device.name, "link");
    plan.maps_run(name, key, va, LINK_BYTES, READ | WRITE);
}

/// What the device model of a card gets beside what every virtio device gets.
pub fn uses(mut plan: Plan, device: &Device, config: NetConfig) -> Result<Plan, PlanError> {
    plan.signals("switch", SWITCH, device_bits::BELL);
    link(&mut plan, "link", device, 0);
    plan.configured(&config)
}
