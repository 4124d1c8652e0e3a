//! Who gets what: for each server of the system a [`Plan`], pure data.
//!
//! The binary carries a plan out twice or more: a restart follows the same plan, with the same Endpoint, Notification
//! and shared pages, so that clients hold on.
//!
//! Each server gets only what its job needs; what is not in its plan it cannot even name.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ipc_schema::abi::ABI_VERSION;
use ipc_schema::abi::layout::{self, slot};
use ipc_schema::abi::rights::{CONTROL, RECV, SEND, WRITE};
use ipc_schema::manifest::{DeviceKind, System, Vm, binary_file};
use ipc_schema::proto::{Class, Group};
use runtime::StartInfo;
use runtime::forward::Grants;
use runtime::start::Region;
use runtime::time::WallClock;

mod bits;
pub mod disks;
mod error;
mod nets;
mod servers;
pub use bits::{device_bits, manager_bits, vmm_bits};
pub use error::PlanError;
pub use servers::system;

/// End (exclusive) of guest memory below 4 GiB; the rest begins at [`HIGH_RAM`]. The hole is for PCI and APICs, as the
/// VMM describes it to its guest.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where guest memory goes on.
pub const HIGH_RAM: u64 = 0x1_0000_0000;
/// Heap in bytes when nothing else is said.
pub const HEAP: u64 = 256 << 10;
/// Pool in bytes when nothing else is said.
pub const POOL: u64 = 256 << 10;
/// Stack of a device: what the tests do, deaths and scribbles among it, they do on 20 KiB.
pub const DEVICE_STACK: u64 = 24 << 10;
/// Heap of a device that keeps nothing for requests, of which 8 KiB are used.
pub const SMALL_HEAP: u64 = 24 << 10;
/// Heap of a device that keeps little for each request.
pub const DEVICE_HEAP: u64 = 32 << 10;
/// Pool of a device without page tables of long runs: Space, thread, UTCB, capability table and the page tables of the rest take 76 KiB,
/// and nothing is made from it later.
pub const DEVICE_POOL: u64 = 84 << 10;
/// Bytes of a large page.
const LARGE: u64 = 2 << 20;
/// Slots of a capability table when nothing else is said.
pub const SLOTS: u32 = 256;
/// Bytes of RAM that a further server may divide.
pub const EXTRA_RAM: u64 = 8 << 20;
/// First VA of files of the boot archive in a VMM.
const FILES: u64 = 0x10_0000_0000;
/// First VA of a disk's memory, the distance of its parts in its device model, and that of two disks' maps.
const DISKS: u64 = 0x20_0000_0000;
const DISK_STEP: u64 = ipc_schema::disk::MAX_BLOCKS * ipc_schema::disk::BLOCK;
const MAP_STEP: u64 = 2 * 8 * ipc_schema::disk::MAX_BLOCKS + DISKS;
/// Name of a server's own state page.
const STATE: &str = "state";
/// Distance of shared pages: a stray access hits a hole.
const SHARED_STEP: u64 = 0x1_0000;

/// An object that a capability in a plan is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The Endpoint of a server, by instance.
    Endpoint(String),
    /// The Notification of a server, by instance.
    Notification(String),
    /// The VM's GuestSpace, made with the server.
    GuestSpace,
    /// The VM's Vcpu of this number, made with the server.
    Vcpu(u32),
    /// A part of the machine's ports: first and number.
    Ports(u16, u32),
    /// The Irq of a machine's interrupt line.
    Irq(u8),
    /// The first processor.
    Cpu,
    /// A Pool for further processors' Cpus, which outlives the server.
    Processors,
    /// Root's own Endpoint.
    Root,
    /// The Log.
    Log,
    /// A range that the kernel gave at boot: its slot in root's table.
    Boot(u32),
    /// RAM of its own to divide: bytes.
    Ram(u64),
    /// Its own pages.
    Image,
    /// Its own Space.
    Space,
    /// Its own Thread.
    Thread,
    /// Its own Pool.
    Pool,
}

/// Where a capability goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A slot that all servers know.
    Fixed(u32),
    /// The next slot, told by name in the start page.
    Named(String),
}

/// A capability that a server gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Where it goes.
    pub place: Place,
    /// What it is for.
    pub object: Object,
    /// Rights to keep.
    pub rights: u32,
    /// Badge, 0 for none.
    pub badge: u64,
}

/// Memory that a server finds mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// A shared page of root's, by key: lives as long as the system.
    Page(String),
    /// Memory of root's, by key, of as many bytes as it is mapped: lives as long as the system, too.
    Run(String),
    /// A file of the boot archive.
    File(String),
    /// The VM's RAM from this offset on.
    GuestRam(u64),
    /// The state page of the VM's Vcpu of this number.
    Vcpu(u32),
}

/// A named range in a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Its name in the start page.
    pub name: String,
    /// What is there.
    pub memory: Memory,
    /// Address.
    pub va: u64,
    /// Bytes.
    pub len: u64,
    /// READ, WRITE.
    pub rights: u32,
}

/// What a server is in the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The platform server.
    Platform,
    /// The scheduler.
    Scheduler,
    /// The manager.
    Manager,
    /// The server of the disks.
    Store,
    /// The switch between network cards.
    Switch,
    /// The driver of the machine's second disk.
    SecondDisk,
    /// A driver, by number.
    Driver(usize),
    /// A VM's VMM, by the VM's number.
    Vmm(usize),
    /// A VM's device, by the VM's number and its own.
    Device(usize, usize),
    /// A further server, by number.
    Extra(usize),
}

impl Role {
    /// The VM it belongs to.
    #[must_use]
    pub const fn vm(self) -> Option<usize> {
        match self {
            Self::Vmm(vm) | Self::Device(vm, _) => Some(vm),
            _ => None,
        }
    }
}

/// A part of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Weight.
    pub shares: u32,
    /// Percent of a processor guaranteed.
    pub reservation: u32,
    /// Percent of a processor at most.
    pub limit: Option<u32>,
}

/// Everything that root must know to build a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its package.
    pub package: String,
    /// Its instance: unique in the system.
    pub instance: String,
    /// Archive file of its ELF.
    pub binary: String,
    /// What it is.
    pub role: Role,
    /// What it is for the scheduler.
    pub class: Class,
    /// Its part of the processors.
    pub share: Share,
    /// Those that it shares a processor with: a VM's. `None`: it is on the first.
    pub group: Option<Group>,
    /// Servers on other processors may call it.
    pub remote: bool,
    /// Bytes of stack.
    pub stack: u64,
    /// Bytes of heap.
    pub heap: u64,
    /// Bytes of Pool, without page tables of the guest's memory.
    pub pool: u64,
    /// How often the guest's memory is mapped by tables out of that Pool.
    pub guest_maps: u64,
    /// Pools that it can make of Memory that lives in that.
    pub pools: u64,
    /// Slots of its capability table.
    pub slots: u32,
    /// Virtual processors (VMM).
    pub vcpus: u32,
    /// Bytes of guest memory (VMM, and devices that have it mapped).
    pub guest_memory: u64,
    /// Its capabilities.
    pub grants: Vec<Grant>,
    /// Its memory.
    pub mapped: Vec<Mapped>,
    /// Its configuration in postcard.
    pub config: Vec<u8>,
}

/// Most servers: numbers 2 to 0xfe are theirs (0 is the kernel, 1 root, 0xff announces names in the log).
pub const MAX_SERVERS: usize = 253;

/// What the machine has that plans need.
pub struct Machine<'a> {
    /// The system's description, checked.
    pub system: &'a System,
    /// Length of a file of the boot archive.
    pub file: &'a dyn Fn(&str) -> Option<u64>,
    /// Firmware tables and device ranges: name, physical address, bytes, slot in root's table.
    pub ranges: &'a [(String, u64, u64, u32)],
    /// Physical address of the RSDP, or 0.
    pub rsdp: u64,
}

/// Instance of a VM's VMM.
#[must_use]
pub fn vmm_instance(vm: &str) -> String {
    format!("{vm}.vmm")
}

/// Most bytes of page tables that map a run once: a table where both addresses are not alike below [`LARGE`], or at its ends; directories;
/// and what leads to them.
#[must_use]
pub fn run_tables(va: u64, phys: u64, len: u64) -> u64 {
    let end = va + len;
    let touched = |bytes: u64| end.div_ceil(bytes) - va / bytes;
    let leaves = match va % LARGE == phys % LARGE {
        true => u64::from(!va.is_multiple_of(LARGE)) + u64::from(!end.is_multiple_of(LARGE)),
        false => touched(LARGE),
    };
    (leaves + touched(1 << 30) + touched(1 << 39)) * 4096
}

/// Key of a shared page.
fn page(instance: &str, what: &str) -> String {
    format!("{instance}/{what}")
}

/// The pages that must be cleared when a VM is started anew: they tell of the last guest.
#[must_use]
pub fn volatile_pages(vm: &Vm) -> Vec<String> {
    let both = |d: &ipc_schema::manifest::Device| [page(&d.name, "irq"), page(&d.name, "state")];
    vm.devices.iter().flat_map(both).collect()
}

/// The number of the UART that is a VM's console: its first.
#[must_use]
pub fn console(vm: &Vm) -> Option<usize> {
    vm.devices.iter().position(|d| d.kind == DeviceKind::Uart)
}

impl Plan {
    /// Bytes that a device shares with others on behalf of its VM; others' are counted there. A disk is its own and no VM's.
    #[must_use]
    pub fn shared_bytes(&self) -> u64 {
        let bytes = |m: &Mapped| match &m.memory {
            Memory::Page(_) => 4096,
            Memory::Run(key) if !key.starts_with(disks::KEYS) => m.len,
            _ => 0,
        };
        match self.role {
            Role::Device(..) => self.mapped.iter().map(bytes).sum(),
            _ => 0,
        }
    }

    fn new(package: &str, instance: &str, role: Role, class: Class) -> Self {
        let mut plan = Self {
            package: package.to_string(),
            instance: instance.to_string(),
            binary: binary_file(package),
            role,
            class,
            share: Share {
                shares: 100,
                reservation: 0,
                limit: None,
            },
            group: None,
            remote: false,
            stack: layout::STACK_SIZE,
            heap: HEAP,
            pool: POOL,
            guest_maps: 0,
            pools: 0,
            slots: SLOTS,
            vcpus: 0,
            guest_memory: 0,
            grants: Vec::new(),
            mapped: Vec::new(),
            config: Vec::new(),
        };
        plan.fixed(slot::SPACE, Object::Space, CONTROL);
        plan.fixed(slot::ENDPOINT, Object::Endpoint(instance.to_string()), RECV);
        plan.fixed(
            slot::NOTIFICATION,
            Object::Notification(instance.to_string()),
            RECV | SEND,
        );
        plan.fixed(slot::LOG, Object::Log, WRITE);
        plan
    }

    fn fixed(&mut self, slot: u32, object: Object, rights: u32) {
        self.grants.push(Grant {
            place: Place::Fixed(slot),
            object,
            rights,
            badge: 0,
        });
    }

    fn named(&mut self, name: &str, object: Object, rights: u32, badge: u64) {
        self.grants.push(Grant {
            place: Place::Named(name.to_string()),
            object,
            rights,
            badge,
        });
    }

    fn signals(&mut self, name: &str, instance: &str, bits: u64) {
        self.named(name, Object::Notification(instance.to_string()), SEND, bits);
    }

    /// A shared page at the next address.
    fn shares(&mut self, name: &str, key: String, rights: u32) {
        self.maps_page(name, Memory::Page(key), rights);
    }

    fn maps_page(&mut self, name: &str, memory: Memory, rights: u32) {
        let va = layout::SHARED + self.mapped.len() as u64 * SHARED_STEP;
        self.mapped.push(Mapped {
            name: name.to_string(),
            memory,
            va,
            len: 4096,
            rights,
        });
    }

    /// Memory by key at `va`, with the page tables that it takes.
    fn maps_run(&mut self, name: &str, key: String, va: u64, len: u64, rights: u32) {
        // A run that is so long begins where a large page can.
        self.pool += run_tables(va, if len < LARGE { 4096 } else { 0 }, len);
        self.mapped.push(Mapped {
            name: name.to_string(),
            memory: Memory::Run(key),
            va,
            len,
            rights,
        });
    }

    fn configured<T: serde::Serialize>(mut self, config: &T) -> Result<Self, PlanError> {
        self.config =
            postcard::to_allocvec(config).map_err(|_| PlanError::Config(self.instance.clone()))?;
        Ok(self)
    }

    /// Its capabilities with the slots they go to: fixed ones, and named ones from `FIRST_NAMED` on.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &Grant)> {
        let mut next = slot::FIRST_NAMED;
        self.grants.iter().map(move |grant| match grant.place {
            Place::Fixed(slot) => (slot, grant),
            Place::Named(_) => {
                next += 1;
                (next - 1, grant)
            }
        })
    }

    /// Where its forwarders' capabilities go, if it has so many: behind the named ones.
    #[must_use]
    pub fn forwarders(&self, count: u32) -> Grants {
        let named = self
            .slots()
            .filter(|(_, g)| matches!(g.place, Place::Named(_)));
        Grants {
            first: slot::FIRST_NAMED + named.count() as u32,
            count: if self.remote { count } else { 0 },
        }
    }

    /// What its start page says.
    #[must_use]
    pub fn start_info(
        &self,
        id: u8,
        restarts: u32,
        tsc_hz: u64,
        wall_clock: WallClock,
        forwarders: Grants,
    ) -> StartInfo {
        let name = |(slot, grant): (u32, &Grant)| match &grant.place {
            Place::Named(name) => Some((name.clone(), slot)),
            Place::Fixed(_) => None,
        };
        let caps: Vec<(String, u32)> = self.slots().filter_map(name).collect();
        let region = |m: &Mapped| Region {
            name: m.name.clone(),
            va: m.va,
            len: m.len,
        };
        StartInfo {
            abi_version: ABI_VERSION,
            id,
            package: self.package.clone(),
            instance: self.instance.clone(),
            tsc_hz,
            wall_clock,
            restarts,
            slots: self.slots,
            first_free_slot: forwarders.first + Grants::slots(forwarders.count),
            forwarders: forwarders.count,
            caps,
            regions: self.mapped.iter().map(region).collect(),
            config: self.config.clone(),
        }
    }

    /// The page in which it answers that it is alive, its state page: its key, and where it is mapped; `None`: it is not asked.
    #[must_use]
    pub fn heart(&self) -> Option<(&String, u64)> {
        let mut own = self.mapped.iter().filter(|m| m.name == STATE);
        own.find_map(|m| match &m.memory {
            Memory::Page(key) => Some((key, m.va)),
            _ => None,
        })
    }

    /// The keys of the shared pages that it uses.
    pub fn pages(&self) -> impl Iterator<Item = &String> {
        self.mapped.iter().filter_map(|m| match &m.memory {
            Memory::Page(key) => Some(key),
            _ => None,
        })
    }

    /// The keys of the memory by key that it uses, and its bytes.
    pub fn runs(&self) -> impl Iterator<Item = (&String, u64)> {
        self.mapped.iter().filter_map(|m| match &m.memory {
            Memory::Run(key) => Some((key, m.len)),
            _ => None,
        })
    }
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
