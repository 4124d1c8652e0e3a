//! What the schema's check has found, in words: who, what, and what to do about it.

use ipc_schema::manifest::{
    CheckError, Fault, MACHINE_OVERHEAD, MAX_CPUS, MAX_PAIRS, MAX_QUEUES, MAX_SERIAL, PCI_SLOTS,
    Place, System,
};
use toml::Spanned;

use super::check::Context;
use super::{Mistake, raw};

/// Where in the text a place of the schema's check stands.
fn offset(raw: &raw::System, place: Place) -> usize {
    let found = match place {
        Place::System => None,
        Place::Vm(i) => raw.vm.get(i).map(Spanned::span),
        Place::Device(v, d) => raw.vm.get(v).map(|vm| {
            let listed = vm.get_ref().device.as_ref().and_then(|list| list.get(d));
            listed.map_or_else(|| vm.span(), Spanned::span)
        }),
        Place::Driver(i) => raw
            .driver
            .as_ref()
            .and_then(|l| l.get(i))
            .map(Spanned::span),
        Place::Server(i) => raw.server.get(i).map(Spanned::span),
        Place::Disk(i) => raw.disk.get(i).map(Spanned::span),
    };
    found.map_or(0, |span| span.start)
}

/// What a person calls a place.
fn called(system: &System, place: Place) -> String {
    let name = match place {
        Place::System => Some(format!("system `{}`", system.name)),
        Place::Vm(i) => system.vms.get(i).map(|v| format!("VM `{}`", v.name)),
        Place::Device(v, d) => {
            let device = system.vms.get(v).and_then(|v| v.devices.get(d));
            device.map(|d| format!("device `{}`", d.name))
        }
        Place::Driver(i) => system
            .drivers
            .get(i)
            .map(|d| format!("driver `{}`", d.name)),
        Place::Server(i) => system
            .servers
            .get(i)
            .map(|s| format!("server `{}`", s.name)),
        Place::Disk(i) => system.disks.get(i).map(|d| format!("disk `{}`", d.name)),
    };
    name.unwrap_or_default()
}

/// The message about a fault that the schema's check has found.
pub fn explain(cx: &Context<'_>, raw: &raw::System, system: &System, error: CheckError) -> Mistake {
    let CheckError { place, fault } = error;
    let who = called(system, place);
    let line = |place| raw::place(cx.text, cx.path, offset(raw, place));
    let mib = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
    let mut at = offset(raw, place);
    let vm = match place {
        Place::Vm(i) => raw.vm.get(i).map(Spanned::get_ref),
        _ => None,
    };
    let (what, remedy) = match fault {
        Fault::BadName => (
            format!("{who}: this name cannot be used"),
            "use at most 32 of the characters a-z A-Z 0-9 - _ .".to_owned(),
        ),
        Fault::DuplicateName(other) => {
            at = vm.map_or(at, |v| v.name.span().start);
            (
                format!("{who} has the name of another, at {}", line(other)),
                "give it a name of its own".into(),
            )
        }
        Fault::BadMemory => (
            format!("{who}: its memory must be at least 1M and a multiple of 4K"),
            "write for example memory = \"256M\"".to_owned(),
        ),
        Fault::MemoryDoesNotFit { needed, available } => (
            format!(
                "{}{who} needs {}, but a machine with {} has {} for VMs",
                if matches!(place, Place::Vm(0)) {
                    ""
                } else {
                    "with those above it, "
                },
                mib(needed),
                mib(system.memory),
                mib(available)
            ),
            format!(
                "give the VMs less, or the machine more: memory = \"{}M\" at the top, or --memory",
                (needed + MACHINE_OVERHEAD).div_ceil(1 << 20)
            ),
        ),
        Fault::BadVcpus => (
            format!("{who}: there must be 1 to 64 vcpus"),
            "write vcpus = 1".into(),
        ),
        Fault::BadPorts => (
            format!("{who}: its ports end past 0xffff"),
            "choose a lower `port`".into(),
        ),
        Fault::PortTaken(other) => (
            format!(
                "{who} uses a port that {} has, at {}",
                called(system, other),
                line(other)
            ),
            "give one of them another `port`".into(),
        ),
        Fault::PortOfVmm(range) => (
            format!(
                "{who} uses a port of {:#x} to {:#x}, which the VM's own platform has",
                range.first,
                range.end() - 1
            ),
            "choose another `port`".into(),
        ),
        Fault::BadIrq => (
            format!("{who}: irq must be 0 to 15 and not 2"),
            "choose another `irq`".into(),
        ),
        Fault::IrqTaken(other) => (
            format!(
                "{who} uses the irq that {} has, at {}",
                called(system, other),
                line(other)
            ),
            "give one of them another `irq`".into(),
        ),
        Fault::BadShare => (
            format!(
                "{who}: shares and limit must be above 0, reservation at most limit and 100 a vcpu"
            ),
            "correct shares, reservation or limit".into(),
        ),
        Fault::BadCpu => {
            at = vm
                .and_then(|v| v.cpu.as_ref())
                .map_or(at, |c| c.span().start);
            (
                format!(
                    "{who} is to run on a processor that Vireo never uses: it uses 0 to {}",
                    MAX_CPUS - 1
                ),
                "choose one of these, or leave `cpu` out".into(),
            )
        }
        Fault::BadSlot => (
            format!("{who}: its slot must be 1 to {}", PCI_SLOTS - 1),
            "choose one of these, or leave `slot` out".into(),
        ),
        Fault::SlotTaken(other) => (
            format!(
                "{who} is in the slot that {} has, at {}",
                called(system, other),
                line(other)
            ),
            "give one of them another `slot`, or leave it out".into(),
        ),
        Fault::BadDiskSize => (
            format!(
                "{who}: its size and its memory must be multiples of 4K, the memory no larger than the size"
            ),
            "write for example size = \"64M\", memory = \"16M\"".into(),
        ),
        Fault::BadSerial => (
            format!(
                "{who}: its serial must be at most {MAX_SERIAL} printable characters without spaces"
            ),
            "choose another `serial`, or leave it out".into(),
        ),
        Fault::UnknownDisk => (
            format!("{who} has a disk that is not described"),
            "describe it: [[disk]] with name and size, or image".into(),
        ),
        Fault::DiskTaken(other) => (
            format!(
                "{who} has the disk that {} has, at {}, and it can be written: two writers would not know of each other",
                called(system, other),
                line(other)
            ),
            "give each a disk of its own, or make it read_only = true".into(),
        ),
        Fault::BadMac => (
            format!("{who}: its `mac` is a group's address, or none"),
            "write one whose first byte is even, as mac = \"02:00:00:00:00:01\", or leave it out"
                .into(),
        ),
        Fault::MacTaken(other) => (
            format!(
                "{who} has the Ethernet address of {}, at {}, in the same network",
                called(system, other),
                line(other)
            ),
            "give one of them another `mac`, or leave it out".into(),
        ),
        Fault::BadPortNames => (
            format!("{who}: its ports have no sound names"),
            "write for example ports = [\"hvc0\", \"data\"], or leave `ports` out".into(),
        ),
        Fault::PortNameTaken => (
            format!("{who}: two of its virtio consoles have a port of the same name"),
            "give each console other names, as ports = [\"hvc1\"]".into(),
        ),
        Fault::BadQueues => (
            format!(
                "{who}: it must have 1 to {MAX_QUEUES} queues, a network card 1 to {MAX_PAIRS} pairs"
            ),
            "write queues = 1, or leave it out".into(),
        ),
    };
    cx.mistake(at, what, remedy)
}
