//! The disks: who has which part of one. `store` has the map, the device model the contents, both the channel between them; all of it
//! outlives either.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ipc_schema::abi::layout;
use ipc_schema::abi::rights::{READ, SEND, WRITE};
use ipc_schema::disk::{BLOCK, BlkConfig, CHANNEL_BYTES, Geometry, StoreConfig, map_words};
use ipc_schema::manifest::{Device, System};
use ipc_schema::proto::Class;

use super::{
    DISK_STEP, DISKS, MAP_STEP, Machine, Mapped, Memory, Object, Plan, PlanError, Role,
    SHARED_STEP, device_bits, page, tables,
};

/// The instance of the disks' server, and its package.
const STORE: &str = "store";

/// How keys of parts of disks begin.
pub const KEYS: &str = "disk/";

/// Key of a part of a disk.
fn part(disk: &Geometry, what: &str) -> String {
    format!("{KEYS}{}/{what}", disk.name)
}

/// What the disks are, their images looked up.
pub fn geometries(
    system: &System,
    file: &dyn Fn(&str) -> Option<u64>,
) -> Result<Vec<Geometry>, PlanError> {
    let mut all = Vec::new();
    for disk in &system.disks {
        let image = match &disk.image {
            Some(path) => file(path).ok_or_else(|| PlanError::NoFile(path.clone()))?,
            None => 0,
        };
        let image = image.div_ceil(BLOCK);
        let blocks = if disk.size == 0 {
            image
        } else {
            disk.size / BLOCK
        };
        let number = |blocks: u64| u32::try_from(blocks).ok();
        let sizes = number(blocks).zip(number(disk.memory / BLOCK));
        let (blocks, pages) = sizes
            .filter(|(blocks, _)| image <= u64::from(*blocks) && *blocks > 0)
            .ok_or_else(|| PlanError::Disk(disk.name.clone()))?;
        all.push(Geometry {
            name: disk.name.clone(),
            blocks,
            image: image as u32,
            pages: pages.min(blocks),
        });
    }
    Ok(all)
}

/// The server of all disks, if there are any.
pub fn store(system: &System, disks: &[Geometry]) -> Result<Option<Plan>, PlanError> {
    if disks.is_empty() {
        return Ok(None);
    }
    let mut plan = Plan::new(STORE, STORE, Role::Store, Class::Driver);
    // A bit for each page, and what clients have been given.
    let pages: u64 = disks.iter().map(|d| u64::from(d.pages)).sum();
    plan.heap += (pages / 8).next_multiple_of(4096);
    for (number, disk) in (0u64..).zip(disks) {
        let va = DISKS + number * MAP_STEP;
        let (name, key) = (format!("map:{number}"), part(disk, "map"));
        plan.maps_run(&name, key, va, map_words(disk.blocks) * 8, READ | WRITE);
    }
    let mut clients = Vec::new();
    for device in system.vms.iter().flat_map(|vm| &vm.devices) {
        let Some(disk) = device.kind.disk() else {
            continue;
        };
        let number = clients.len();
        plan.signals(&format!("client:{number}"), &device.name, device_bits::BACK);
        plan.slots += 1;
        channel(&mut plan, &format!("channel:{number}"), device);
        clients.push(disk);
    }
    let disks = disks.to_vec();
    plan.configured(&StoreConfig { disks, clients }).map(Some)
}

fn channel(plan: &mut Plan, name: &str, device: &Device) {
    let va = layout::SHARED + plan.mapped.len() as u64 * SHARED_STEP;
    plan.maps_run(
        name,
        page(&device.name, "channel"),
        va,
        CHANNEL_BYTES,
        READ | WRITE,
    );
}

/// What a device model of a disk gets beside what every virtio device gets.
pub fn uses(
    mut plan: Plan,
    (machine, disks): (&Machine<'_>, &[Geometry]),
    device: &Device,
    disk: u32,
) -> Result<Plan, PlanError> {
    let there = disks
        .get(disk as usize)
        .zip(machine.system.disks.get(disk as usize));
    let (geometry, described) = there.ok_or_else(|| PlanError::Disk(device.name.clone()))?;
    plan.signals("store", STORE, device_bits::BELL);
    // Root hears nothing from it but that it gets no answer.
    plan.named("root", Object::Root, SEND, 0);
    channel(&mut plan, "channel", device);
    let pages = u64::from(geometry.pages) * BLOCK;
    if pages > 0 {
        plan.maps_run("pages", part(geometry, "pages"), DISKS, pages, READ | WRITE);
    }
    if let Some(path) = &described.image {
        let len = (machine.file)(path).ok_or_else(|| PlanError::NoFile(path.clone()))?;
        plan.pool += tables(len);
        plan.mapped.push(Mapped {
            name: "image".into(),
            memory: Memory::File(path.clone()),
            va: DISKS + DISK_STEP,
            len,
            rights: READ,
        });
    }
    plan.configured(&BlkConfig {
        disk: geometry.clone(),
        serial: described.serial.clone(),
        queues: device.kind.queues(),
    })
}
