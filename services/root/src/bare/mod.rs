//! What runs under the kernel.

mod build;
mod function;
mod hearts;
mod machine;
mod processors;
mod requests;
mod shared;
mod supervise;
mod trials;

use alloc::string::{String, ToString};
use alloc::{format, vec::Vec};

use ipc_schema::abi::{BootInfo, layout::slot};
use ipc_schema::manifest::{MANIFEST_FILE, System};
use root::plan;
use root::registry::Registry;
use runtime::object::{Log, Space};

use build::Built;
use hearts::Pulse;
use machine::{Error, Machine};
use shared::Shared;

runtime::entry_root!(main, heap: 1 << 20);

/// Root's own Space.
const SPACE: Space = Space(slot::SPACE);

/// Logs an error with what was being done.
macro_rules! complain {
    ($($arg:tt)*) => {
        defmt::error!("{=str}", alloc::format!($($arg)*).as_str())
    };
}
pub(crate) use complain;

/// Root's state.
struct Root {
    machine: Machine,
    shared: Shared,
    registry: Registry,
    system: System,
    /// What has been built of each server; as `registry.servers`.
    built: Vec<Option<Built>>,
    /// What it takes to ask each server whether it is alive; as `registry.servers`.
    pulses: Vec<Option<Pulse>>,
    /// `store`, when a client had no answer from it last: when that was, what it had used, when it was started.
    suspect: Option<(u64, u64, u64)>,
    /// When to switch the machine off, and with which code.
    power_off: Option<(u64, u32)>,
}

fn main(boot: &'static BootInfo) -> ! {
    match Root::new(boot) {
        Ok(mut root) => {
            root.start_system();
            root.run()
        }
        Err(error) => panic!("{error}"),
    }
}

impl Root {
    fn new(boot: &'static BootInfo) -> Result<Self, Error> {
        let mut machine = Machine::new(boot)?;
        defmt::info!(
            "root: TSC {=u64} kHz, {=u64} MiB RAM free, unix time {=u64}",
            boot.tsc_hz / 1000,
            machine.ram.free_bytes() >> 20,
            machine.wall_clock.unix_seconds
        );
        let manifest = machine
            .file(MANIFEST_FILE)
            .ok_or(Error::Text("the boot archive has no manifest"))?;
        let system = System::decode(manifest)
            .map_err(|_| Error::Text("the manifest is of another version"))?;
        system
            .check()
            .map_err(|e| Error::Manifest(format!("{:?} of {:?}", e.fault, e.place)))?;
        let ranges = ranges(boot);
        let file = |name: &str| machine.file(name).map(|bytes| bytes.len() as u64);
        let plans = plan::system(&plan::Machine {
            system: &system,
            file: &file,
            ranges: &ranges,
            rsdp: boot.rsdp,
        })
        .map_err(|e| Error::Manifest(e.to_string()))?;
        let registry = Registry::new(&system, plans, boot.tsc_hz);
        let mut shared = Shared::new(&mut machine)?;
        shared.take_calls(&mut machine)?;
        let mut pulses = Vec::new();
        for (number, server) in registry.servers.iter().enumerate() {
            machine.announce(
                server.id,
                &format!("{}@{}", server.plan.package, server.plan.instance),
            );
            shared.prepare(&mut machine, &server.plan)?;
            pulses.push(Pulse::new(&mut machine, &shared, &server.plan, number)?);
        }
        let built = registry.servers.iter().map(|_| None).collect();
        Ok(Self {
            machine,
            shared,
            registry,
            system,
            built,
            pulses,
            suspect: None,
            power_off: None,
        })
    }
}

/// Firmware tables and device ranges, by the names that platform knows them by.
fn ranges(boot: &BootInfo) -> Vec<(String, u64, u64, u32)> {
    let mut ranges = Vec::new();
    for (kind, name) in [(3, "acpi"), (1, "device")] {
        let of_kind = machine::memories(boot).filter(|m| m.kind == kind);
        for (i, m) in of_kind.enumerate() {
            ranges.push((format!("{name}:{i}"), m.phys, m.len, m.slot));
        }
    }
    ranges
}

/// The log that root's own records go through: badged with its number.
const LOG: Log = Log(slot::LOG);
