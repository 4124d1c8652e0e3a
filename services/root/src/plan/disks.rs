//! The disks: who has which part of one. `store` has the map, the device model the contents, both the channel between them; all of it
//! outlives either. Of a disk on the machine's second disk, its driver and the device model share the pages of requests under way.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ipc_schema::abi::layout;
use ipc_schema::abi::rights::{READ, SEND, WRITE};
use ipc_schema::disk::{
    BLOCK, Back, BlkConfig, CHANNEL_BYTES, DRIVER_PAGES, DriverClient, DriverConfig, Geometry,
    StoreConfig, map_words,
};
use ipc_schema::manifest::{Device, Disk, Home, System};
use ipc_schema::proto::Class;
use ipc_schema::proto::PciBar;

use super::{
    DISK_STEP, DISKS, MAP_STEP, Machine, Mapped, Memory, Object, Plan, PlanError, Role,
    SHARED_STEP, device_bits, page, run_tables,
};

/// The instance of the disks' server, and its package.
const STORE: &str = "store";
/// The instance of the second disk's driver, and its package.
const SECOND: &str = "second-disk";
const SECOND_PACKAGE: &str = "driver-virtio-blk";
/// Bytes of memory for the driver's own queue and reading.
const DMA_BYTES: u64 = 128 << 10;
/// First VA of the device's ranges of registers in its driver, their distance, and the most that they may have together.
const BARS: u64 = layout::SHARED + (2 << 30);
const BAR_STEP: u64 = 1 << 26;
/// Distance of clients' pages.
const PAGES_STEP: u64 = 16 << 20;

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
        let pages = match disk.home {
            Home::Memory => disk.memory / BLOCK,
            Home::SecondDisk { .. } => DRIVER_PAGES.into(),
        };
        let sizes = number(blocks).zip(number(pages));
        let (blocks, pages) = sizes
            .filter(|(blocks, _)| image <= u64::from(*blocks) && *blocks > 0)
            .ok_or_else(|| PlanError::Disk(disk.name.clone()))?;
        all.push(Geometry {
            name: disk.name.clone(),
            blocks,
            image: image as u32,
            pages: if disk.on_second_disk() {
                pages
            } else {
                pages.min(blocks)
            },
        });
    }
    Ok(all)
}

/// The device models of disks, each with the number of its disk.
fn users<'a>(system: &'a System) -> impl Iterator<Item = (&'a Device, u32)> + use<'a> {
    let devices = system.vms.iter().flat_map(|vm| &vm.devices);
    devices.filter_map(|device| Some((device, device.kind.disk()?)))
}

/// The server of all disks in memory, if there are any.
pub fn store(system: &System, disks: &[Geometry]) -> Result<Option<Plan>, PlanError> {
    let both = (0u32..).zip(disks.iter().zip(&system.disks));
    let mine: Vec<(u32, &Geometry)> = both
        .filter(|(_, (_, disk))| !disk.on_second_disk())
        .map(|(number, (geometry, _))| (number, geometry))
        .collect();
    if mine.is_empty() {
        return Ok(None);
    }
    let mut plan = Plan::new(STORE, STORE, Role::Store, Class::Driver);
    // A bit for each page, and what clients have been given.
    let pages: u64 = mine.iter().map(|(_, d)| u64::from(d.pages)).sum();
    plan.heap += (pages / 8).next_multiple_of(4096);
    for (number, (_, disk)) in (0u64..).zip(&mine) {
        let va = DISKS + number * MAP_STEP;
        let (name, key) = (format!("map:{number}"), part(disk, "map"));
        plan.maps_run(&name, key, va, map_words(disk.blocks) * 8, READ | WRITE);
    }
    let mut clients = Vec::new();
    for (device, disk) in users(system) {
        let Some(disk) = mine.iter().position(|(number, _)| *number == disk) else {
            continue;
        };
        client(&mut plan, clients.len(), device);
        // There are fewer disks than servers.
        clients.push(disk as u32);
    }
    let disks = mine.into_iter().map(|(_, disk)| disk.clone()).collect();
    plan.shares("state", page(STORE, "state"), READ | WRITE);
    plan.configured(&StoreConfig { disks, clients }).map(Some)
}

/// The driver of the machine's second disk, if there is something on it. What only the machine can say is added when it is started:
/// [`with_function`].
pub fn driver(system: &System, disks: &[Geometry]) -> Result<Option<Plan>, PlanError> {
    let mut plan = Plan::new(SECOND_PACKAGE, SECOND, Role::SecondDisk, Class::Driver);
    let mut config = DriverConfig::default();
    let dma = page(SECOND, "dma");
    plan.maps_run("dma", dma, DISKS, DMA_BYTES, READ | WRITE);
    for (device, disk) in users(system) {
        let there = disks.get(disk as usize);
        let there = there.zip(system.disks.get(disk as usize));
        let Some((geometry, Home::SecondDisk { read_only })) = there.map(|(g, d)| (g, d.home))
        else {
            continue;
        };
        let number = config.clients.len();
        client(&mut plan, number, device);
        let va = DISKS + (number as u64 + 1) * PAGES_STEP;
        let (name, key) = (format!("pages:{number}"), page(&device.name, "pages"));
        plan.maps_run(&name, key, va, pages_of(geometry), READ | WRITE);
        config.clients.push(DriverClient {
            disk: geometry.clone(),
            read_only,
        });
    }
    plan.shares("state", page(SECOND, "state"), READ | WRITE);
    let used = system.disks.iter().any(Disk::on_second_disk);
    used.then(|| plan.configured(&config)).transpose()
}

/// Adds to the driver's plan what the machine has said: its function's ranges of memory, which are pieces of memory by these keys, and
/// the configuration.
pub fn with_function(plan: &mut Plan, config: &DriverConfig) -> Result<(), PlanError> {
    plan.mapped.retain(|m| !m.name.starts_with("bar:"));
    for bar in &config.function.bars {
        let len = bar.len.next_multiple_of(4096);
        if len > BAR_STEP {
            return Err(PlanError::Config(plan.instance.clone()));
        }
        plan.mapped.push(Mapped {
            name: format!("bar:{}", bar.number),
            memory: Memory::Run(bar_key(bar)),
            va: BARS + u64::from(bar.number) * BAR_STEP,
            len,
            rights: READ | WRITE,
        });
    }
    plan.config =
        postcard::to_allocvec(config).map_err(|_| PlanError::Config(plan.instance.clone()))?;
    Ok(())
}

/// Key of a range of the function's memory.
#[must_use]
pub fn bar_key(bar: &PciBar) -> String {
    format!("{SECOND}/bar/{:x}", bar.base)
}

/// Bytes of a disk's pages.
fn pages_of(disk: &Geometry) -> u64 {
    u64::from(disk.pages) * BLOCK
}

/// What `store` and the driver need of a client.
fn client(plan: &mut Plan, number: usize, device: &Device) {
    plan.signals(&format!("client:{number}"), &device.name, device_bits::BACK);
    plan.slots += 1;
    channel(plan, &format!("channel:{number}"), device);
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
    let (server, pages_key, back) = match described.home {
        Home::Memory => (STORE, part(geometry, "pages"), Back::Store),
        Home::SecondDisk { read_only } => {
            let key = page(&device.name, "pages");
            (SECOND, key, Back::Driver { read_only })
        }
    };
    plan.signals("store", server, device_bits::BELL);
    // Root hears nothing from it but that it gets no answer.
    plan.named("root", Object::Root, SEND, 0);
    channel(&mut plan, "channel", device);
    let pages = pages_of(geometry);
    if pages > 0 {
        plan.maps_run("pages", pages_key, DISKS, pages, READ | WRITE);
    }
    if let Some(path) = &described.image {
        let len = (machine.file)(path).ok_or_else(|| PlanError::NoFile(path.clone()))?;
        let va = DISKS + DISK_STEP;
        plan.pool += run_tables(va, 4096, len.max(1));
        plan.mapped.push(Mapped {
            name: "image".into(),
            memory: Memory::File(path.clone()),
            va,
            len,
            rights: READ,
        });
    }
    plan.configured(&BlkConfig {
        disk: geometry.clone(),
        serial: described.serial.clone(),
        queues: device.kind.queues(),
        packed: device.kind.packed(),
        back,
    })
}
