//! From the TOML as written to the schema's types; every fault gets its line and its remedy.

use std::path::{Path, PathBuf};

use ipc_schema::manifest::{
    CpuShare, Device, DeviceKind, Disk, Driver, DriverKind, Idle, MAX_VM_NAME, PCI_SLOTS,
    PortRange, Registers, Server, System, Vm, binary_file, initrd_file, kernel_file, vm_name_ok,
};
use toml::Spanned;

use super::{
    Description, Mistake, Source, consoles, disks, explain::explain, nets, parse_size, raw,
};
use crate::build::bare::{GUESTS, SERVERS};
use crate::setup::guests;

const DEFAULT_MEMORY: u64 = 1 << 30;
const DEFAULT_VM_MEMORY: u64 = 256 << 20;

pub(super) struct Context<'a> {
    pub text: &'a str,
    pub path: &'a Path,
}

impl Context<'_> {
    pub(super) fn mistake(
        &self,
        offset: usize,
        what: String,
        remedy: impl Into<String>,
    ) -> Mistake {
        Mistake {
            at: raw::place(self.text, self.path, offset),
            what,
            remedy: remedy.into(),
        }
    }

    pub(super) fn size(&self, value: &Spanned<String>) -> Result<u64, Mistake> {
        parse_size(value.get_ref()).ok_or_else(|| {
            let what = format!("`{}` is not a size", value.get_ref());
            self.mistake(
                value.span().start,
                what,
                "write a number with K, M or G, as \"256M\"",
            )
        })
    }

    pub(super) fn source(&self, value: &Spanned<String>) -> Result<Source, Mistake> {
        let text = value.get_ref().as_str();
        let at = value.span().start;
        if let Some(name) = text.strip_prefix("debian:") {
            if let Some(file) = guests::File::named(name) {
                return Ok(Source::Debian(file));
            }
            let what = format!("nothing is known as `{text}`");
            let remedy = format!("use {} or a path", debian_names());
            return Err(self.mistake(at, what, remedy));
        }
        if let Some(package) = text.strip_prefix("build:") {
            if GUESTS.contains(&package) {
                return Ok(Source::Build(package.to_owned()));
            }
            let what = format!("`{package}` is no guest of this workspace");
            return Err(self.mistake(at, what, format!("use one of: {}", GUESTS.join(", "))));
        }
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let file: PathBuf = folder.join(text);
        if !file.is_file() {
            let what = format!("there is no file {}", file.display());
            let remedy = format!(
                "give a path relative to this TOML, {} or build:PACKAGE",
                debian_names()
            );
            return Err(self.mistake(at, what, remedy));
        }
        Ok(Source::File(file))
    }

    /// A kernel that no loader knows would only fail when the VM is started.
    fn kernel(&self, value: &Spanned<String>) -> Result<Source, Mistake> {
        let source = self.source(value)?;
        let Source::File(path) = &source else {
            return Ok(source);
        };
        let problem = match std::fs::read(path) {
            Ok(bytes) if looks_like_a_kernel(&bytes) => return Ok(source),
            Ok(_) => "is neither a Linux bzImage, nor an ELF, nor a Multiboot 1 kernel".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
        };
        Err(self.mistake(
            value.span().start,
            format!("{} {problem}", path.display()),
            "give a kernel's file, as Debian's /boot/vmlinuz-*",
        ))
    }
}

/// All that a TOML may name of Debian's.
fn debian_names() -> String {
    let names = guests::File::ALL.map(|(name, _)| format!("debian:{name}"));
    names.join(", ")
}

/// Whether a file has one of the marks that the VMM's loaders look for: `HdrS` (Linux boot protocol 2.00), an ELF's, or a
/// Multiboot 1 header in its first 8 KiB (Multiboot 0.6.96, 3.1.1).
fn looks_like_a_kernel(bytes: &[u8]) -> bool {
    let head = bytes.get(..8192).unwrap_or(bytes);
    let multiboot = 0x1bad_b002_u32.to_le_bytes();
    bytes.get(0x202..0x206) == Some(b"HdrS")
        || bytes.starts_with(b"\x7fELF")
        || head.chunks_exact(4).any(|word| word == multiboot)
}

/// Makes the schema's types and runs the schema's own check over them.
pub fn lower(
    raw: &raw::System,
    text: &str,
    path: &Path,
    memory: Option<u64>,
) -> Result<Description, Mistake> {
    let cx = Context { text, path };
    let described = raw.memory.as_ref().map(|m| cx.size(m)).transpose()?;
    let mut files = Vec::new();
    let mut second_disk = Vec::new();
    let disks = disks::lower(&cx, raw, (&mut files, &mut second_disk))?;
    let networks = nets::networks(raw);
    let mut vms = Vec::new();
    for vm in &raw.vm {
        vms.push(lower_vm(
            &cx,
            vm.get_ref(),
            (&disks, &networks),
            &mut files,
        )?);
    }
    let system = System {
        name: raw.name.get_ref().clone(),
        memory: memory.or(described).unwrap_or(DEFAULT_MEMORY),
        idle: match raw.idle {
            Some(raw::Idle::Stay) => Idle::Stay,
            Some(raw::Idle::PowerOff) | None => Idle::PowerOff,
        },
        vms,
        drivers: lower_drivers(raw),
        servers: lower_servers(&cx, raw)?,
        disks,
    };
    system
        .check()
        .map_err(|error| explain(&cx, raw, &system, error))?;
    Ok(Description {
        system,
        files,
        second_disk,
        stem: String::new(),
        checker: raw.checker,
        measure: raw.measure,
        unproven: raw.unproven,
    })
}

fn lower_vm(
    cx: &Context<'_>,
    vm: &raw::Vm,
    backs: (&[Disk], &[&str]),
    files: &mut Vec<(String, Source)>,
) -> Result<Vm, Mistake> {
    let name = vm.name.get_ref();
    if !vm_name_ok(name) {
        let what = format!("`{name}` cannot be the name of a VM");
        let remedy = format!("use at most {MAX_VM_NAME} of the characters a-z A-Z 0-9 - _");
        return Err(cx.mistake(vm.name.span().start, what, remedy));
    }
    files.push((kernel_file(name), cx.kernel(&vm.kernel)?));
    if let Some(initrd) = &vm.initrd {
        files.push((initrd_file(name), cx.source(initrd)?));
    }
    let memory = vm.memory.as_ref().map(|m| cx.size(m)).transpose()?;
    if let Some(rate) = vm.tsc_mhz.as_ref().filter(|rate| *rate.get_ref() == 0) {
        let what = "tsc_mhz is 0".to_owned();
        let remedy = "write a rate in MHz, as 2500, or leave it out for the machine's";
        return Err(cx.mistake(rate.span().start, what, remedy));
    }
    let devices = match &vm.device {
        Some(list) => {
            for device in list {
                only_what_it_has(cx, device)?;
                disks::known(cx, device, backs.0)?;
                nets::check(cx, device)?;
                consoles::check(cx, device)?;
            }
            lower_devices(name, list.iter().map(Spanned::get_ref), backs)
        }
        None => lower_devices(name, DEFAULT_DEVICES.iter(), backs),
    };
    Ok(Vm {
        name: name.clone(),
        memory: memory.unwrap_or(DEFAULT_VM_MEMORY),
        vcpus: vm.vcpus.as_ref().map_or(1, |v| *v.get_ref()),
        autostart: vm.autostart.unwrap_or(true),
        kernel: kernel_file(name),
        initrd: vm.initrd.as_ref().map(|_| initrd_file(name)),
        append: vm.append.clone().unwrap_or_default(),
        cpu: CpuShare {
            shares: vm.shares.unwrap_or(100),
            reservation: vm.reservation.unwrap_or(0),
            limit: vm.limit,
            cpu: vm.cpu.as_ref().map(|cpu| *cpu.get_ref()),
        },
        debug_exit: vm.debug_exit.unwrap_or(false),
        tsc_mhz: vm.tsc_mhz.as_ref().map_or(0, |rate| *rate.get_ref()),
        devices,
    })
}

/// What a VM has when its TOML lists no device.
const DEFAULT_DEVICES: [raw::Device; 2] = [
    raw::Device {
        kind: raw::DeviceKind::Uart,
        port: None,
        irq: None,
        doorbell: None,
        slot: None,
        disk: None,
        queues: None,
        packed: None,
        network: None,
        mac: None,
        limit: None,
        ports: None,
        rows_first: None,
        registers: None,
    },
    raw::Device {
        kind: raw::DeviceKind::Rtc,
        port: None,
        irq: None,
        doorbell: None,
        slot: None,
        disk: None,
        queues: None,
        packed: None,
        network: None,
        mac: None,
        limit: None,
        ports: None,
        rows_first: None,
        registers: None,
    },
];

/// A device on the ISA bus has ports and a line; a PCI function has a slot, and its guest gives it ports.
fn only_what_it_has(cx: &Context<'_>, spanned: &Spanned<raw::Device>) -> Result<(), Mistake> {
    let device = spanned.get_ref();
    let isa = device.port.is_some() || device.irq.is_some() || device.doorbell.is_some();
    let (at, what, remedy) = match (&device.slot, device.kind.function()) {
        (Some(slot), false) => (
            slot.span().start,
            "`slot` is of PCI functions, and this device is none",
            "leave `slot` out",
        ),
        (_, true) if isa => (
            spanned.span().start,
            "a PCI function has no `port`, `irq` or `doorbell`: its guest gives it such",
            "leave these out; `slot` says where it is on the bus",
        ),
        (_, function) => match (&device.packed, &device.registers) {
            (Some(packed), _) if !device.kind.chooses() => (
                packed.span().start,
                "`packed` is of virtio-blk, virtio-net and virtio-console, and this device is none",
                "leave `packed` out",
            ),
            (_, Some(registers)) if !function => (
                registers.span().start,
                "`registers` is of PCI functions, and this device is none",
                "leave `registers` out",
            ),
            _ => return Ok(()),
        },
    };
    Err(cx.mistake(at, what.to_owned(), remedy))
}

impl raw::Device {
    /// Whether it is to offer packed virtqueues: they are better, unless a guest's driver knows better.
    pub fn packed(&self) -> bool {
        self.packed.as_ref().is_none_or(|packed| *packed.get_ref())
    }

    /// Where it is to show its registers first.
    fn registers(&self) -> Registers {
        match self.registers.as_ref().map(Spanned::get_ref) {
            None | Some(raw::Registers::Ports) => Registers::Ports,
            Some(raw::Registers::Memory) => Registers::Memory,
        }
    }
}

impl raw::DeviceKind {
    /// Whether the kind of its virtqueues can be chosen.
    fn chooses(self) -> bool {
        matches!(
            self,
            Self::VirtioBlk | Self::VirtioNet | Self::VirtioConsole
        )
    }

    /// Whether it is a PCI function.
    fn function(self) -> bool {
        match self {
            Self::Uart | Self::Rtc | Self::TestDev => false,
            Self::VirtioRng | Self::VirtioBlk | Self::VirtioNet | Self::VirtioConsole => true,
        }
    }
}

/// A slot for each PCI function: its own or the first that nobody has said is his, from 1 on. Past the last it is one that the check
/// refuses.
fn slots<'a>(list: impl Iterator<Item = &'a raw::Device> + Clone) -> Vec<u8> {
    let own = |device: &raw::Device| device.slot.as_ref().map(|slot| *slot.get_ref());
    let taken: Vec<u8> = list.clone().filter_map(own).collect();
    let mut free = (1..=PCI_SLOTS).filter(|slot| !taken.contains(slot));
    list.map(|device| match own(device) {
        Some(slot) => slot,
        None if device.kind.function() => free.next().unwrap_or(PCI_SLOTS),
        None => 0,
    })
    .collect()
}

fn lower_devices<'a>(
    vm: &str,
    list: impl Iterator<Item = &'a raw::Device> + Clone,
    (disks, networks): (&[Disk], &[&str]),
) -> Vec<Device> {
    let slots = slots(list.clone());
    let lower = |(i, (device, slot)): (usize, (&raw::Device, u8))| {
        let (kind, short, port, irq, bell) = match device.kind {
            raw::DeviceKind::Uart => (DeviceKind::Uart, "uart", 0x3f8, 4, None),
            raw::DeviceKind::Rtc => (DeviceKind::Rtc, "rtc", 0x70, 8, None),
            raw::DeviceKind::TestDev => (DeviceKind::TestDev, "testdev", 0x5000, 5, Some(0x5010)),
            raw::DeviceKind::VirtioRng => (DeviceKind::VirtioRng { slot }, "rng", 0, 0, None),
            raw::DeviceKind::VirtioBlk => {
                let queues = device.queues.as_ref().map_or(1, |q| *q.get_ref());
                let named = device.disk.as_ref().map(Spanned::get_ref);
                let disk = disks.iter().position(|d| Some(&d.name) == named);
                // One that is not there is refused by the check.
                let disk = disk.and_then(|d| u32::try_from(d).ok()).unwrap_or(u32::MAX);
                let packed = device.packed();
                let kind = DeviceKind::VirtioBlk {
                    slot,
                    disk,
                    queues,
                    packed,
                };
                (kind, "blk", 0, 0, None)
            }
            raw::DeviceKind::VirtioNet => {
                let before = list.clone().take(i).filter(|d| d.kind == device.kind);
                let card = format!("{vm}.net{}", before.count());
                (nets::kind(device, slot, &card, networks), "net", 0, 0, None)
            }
            raw::DeviceKind::VirtioConsole => (consoles::kind(device, slot), "console", 0, 0, None),
        };
        let earlier = list
            .clone()
            .take(i)
            .filter(|d| d.kind == device.kind)
            .count();
        Device {
            name: format!("{vm}.{short}{earlier}"),
            kind,
            binary: binary_file(kind.package()),
            ports: PortRange::new(device.port.unwrap_or(port), kind.ports()),
            irq: device.irq.unwrap_or(irq),
            doorbell: device.doorbell.or(bell),
            registers: device.registers(),
        }
    };
    list.clone().zip(slots).enumerate().map(lower).collect()
}

fn lower_drivers(raw: &raw::System) -> Vec<Driver> {
    let default = raw::Driver {
        kind: raw::DriverKind::Uart,
        port: None,
        irq: None,
    };
    let list: Vec<&raw::Driver> = match &raw.driver {
        Some(list) => list.iter().map(Spanned::get_ref).collect(),
        None => vec![&default],
    };
    let lower = |(i, driver): (usize, &&raw::Driver)| {
        let (kind, port, irq) = match driver.kind {
            raw::DriverKind::Uart => (DriverKind::Uart, 0x3f8, 4),
        };
        Driver {
            name: format!("uart{i}"),
            kind,
            binary: binary_file(kind.package()),
            ports: PortRange::new(driver.port.unwrap_or(port), kind.ports()),
            irq: driver.irq.unwrap_or(irq),
        }
    };
    list.iter().enumerate().map(lower).collect()
}

fn lower_servers(cx: &Context<'_>, raw: &raw::System) -> Result<Vec<Server>, Mistake> {
    let mut servers = Vec::new();
    for server in &raw.server {
        let server = server.get_ref();
        let package = server.binary.get_ref();
        if !SERVERS.contains(&package.as_str()) {
            let what = format!("`{package}` is no server of this workspace");
            let remedy = format!("use one of: {}", SERVERS.join(", "));
            return Err(cx.mistake(server.binary.span().start, what, remedy));
        }
        servers.push(Server {
            name: server.name.get_ref().clone(),
            binary: binary_file(package),
            args: server.args.clone().unwrap_or_default(),
        });
    }
    Ok(servers)
}
