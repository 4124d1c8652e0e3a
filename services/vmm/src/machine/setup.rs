//! Building a machine: memory filled, routes set, first processor state.

use super::hardware_apic::Hardware;
use super::ports::Losses;
use super::rate::Rate;
use super::{CPU, Device, Kernel, Machine, Note};
use crate::acpi;
use crate::chipset::pci::virtio;
use crate::chipset::{self, Chipset, map};
use crate::cpu::{Msrs, Policy};
use crate::emulate::{Lengths, mmio};
use crate::loader::{self, EntryState, LoadError};
use crate::memory::{GuestMemory, OutOfRange};
use alloc::vec::Vec;
use core::arch::x86_64::CpuidResult;
use core::fmt;
use ipc_schema::abi::Status;
use ipc_schema::abi::vm::{Event, Exit, Groups, Post, offers};
use ipc_schema::manifest::{DeviceKind, PortRange, Vm};
use ipc_schema::virtio::{BAR_SIZE, BLOCK, CONSOLE, ENTROPY, NET};

/// Port ranges of COM1 to COM4, as guests expect them.
const COM: [u16; 4] = [0x3F8, 0x2F8, 0x3E8, 0x2E8];
/// Where an RTC has to be for guests to find it.
const RTC_PORT: u16 = 0x70;
/// A device has a second's tenth for an answer.
const ANSWERS_A_SECOND: u64 = 10;

/// What a machine is made of.
pub struct Parts<'a, 'p> {
    /// Its description.
    pub vm: &'p Vm,
    /// The guest's RAM.
    pub memory: GuestMemory,
    /// The kernel's file.
    pub kernel_file: &'p [u8],
    /// The RAM disk's file.
    pub initrd: Option<&'p [u8]>,
    /// One for each device of the description, in its order.
    pub devices: Vec<Device<'a>>,
    /// TSC cycles a second.
    pub tsc_hz: u64,
    /// CPUID on the host: leaf, subleaf.
    pub cpuid: &'p dyn Fn(u32, u32) -> CpuidResult,
}

/// Why a machine could not be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// The guest's kernel could not be loaded.
    Load(LoadError),
    /// The guest's memory is too small for the tables.
    Memory(OutOfRange),
    /// The guest's TSC cannot have the rate that it is to have.
    Rate {
        /// That, in MHz.
        mhz: u32,
        /// The machine's.
        tsc_hz: u64,
        /// Whether the processor scales at all.
        scales: bool,
    },
    /// The kernel refused this.
    Kernel(&'static str, Status),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(error) => write!(f, "the guest's kernel: {error}"),
            Self::Memory(error) => write!(f, "the guest's ACPI tables: {error}"),
            Self::Rate {
                mhz,
                tsc_hz,
                scales,
            } => write!(
                f,
                "tsc_mhz = {mhz}: {}, and its TSC counts at {} MHz: leave tsc_mhz out for that, or start the VM elsewhere",
                if *scales {
                    "that is too far from what this processor has"
                } else {
                    "this processor cannot scale a guest's TSC"
                },
                tsc_hz / 1_000_000,
            ),
            Self::Kernel(what, status) => write!(f, "{what}: {status:?}"),
        }
    }
}

impl core::error::Error for SetupError {}

impl<'a, K: Kernel> Machine<'a, K> {
    /// Builds the machine: everything but its first entry.
    ///
    /// # Errors
    /// Says what is wrong with the guest's files, or what the kernel refused.
    pub fn new(mut kernel: K, parts: Parts<'a, '_>) -> Result<Self, SetupError> {
        let Parts {
            vm,
            memory,
            tsc_hz,
            mut devices,
            ..
        } = parts;
        if vm.vcpus != 1 {
            kernel.note(&Note::OneVcpu { asked: vm.vcpus });
        }
        let irq = pci_irq(vm);
        let rsdp = acpi::build(&memory, &describe(vm, irq)).map_err(SetupError::Memory)?;
        let rate = rate(&kernel, vm.tsc_mhz, tsc_hz)?;
        let request = loader::Request {
            kernel: parts.kernel_file,
            initrd: parts.initrd,
            cmdline: &vm.append,
            rsdp,
            tsc_khz: rate.guest(tsc_hz) / 1000,
        };
        let entry = loader::load(&memory, &request).map_err(SetupError::Load)?;
        // The APIC timers run at the rate of the machine's TSC: then their clock needs no division.
        let policy = Policy::new(parts.cpuid, 1, rate.guest(tsc_hz), tsc_hz);
        let mut chipset = Chipset::new(&chipset::Config {
            vcpus: 1,
            tsc_hz,
            apic_hz: tsc_hz,
            debug_exit: vm.debug_exit,
        });
        plug(&mut chipset, vm, irq, &mut devices);
        let limit = tsc_hz / ANSWERS_A_SECOND;
        start_state(&mut kernel, &entry, vm.debug_exit, rate);
        let hardware = Hardware::of(kernel.state());
        ask(&mut kernel, hardware)?;
        routes(&mut kernel, &devices, limit)?;
        let mut msrs = Msrs::new(&policy);
        msrs.begin(entry.efer);
        let cr8 = chipset.tpr(CPU) >> 4;
        let mut machine = Self {
            kernel,
            memory,
            chipset,
            policy,
            msrs,
            devices,
            dirty: Groups::ALL,
            inject: Event(0),
            post: Post::NONE,
            deadline: 0,
            stale: true,
            expected: 0,
            held: None,
            nmi: false,
            hardware,
            rate,
            tsc_deadline: 0,
            cr8,
            lengths: Lengths::default(),
            accesses: mmio::Sites::default(),
            brings_xcr0: false,
            told: false,
            wide: 0,
            retries: (0, 0),
            lost: Losses::default(),
            limit,
            notes: 0,
        };
        machine.reroute();
        // Lines that were high before there was anyone to be signalled.
        super::device::look(&mut machine.devices, &mut machine.chipset);
        Ok(machine)
    }
}

/// The input of the 8259 pair that PCI functions' pins lead to: one that can be level-triggered and that no other device has.
fn pci_irq(vm: &Vm) -> Option<u8> {
    const USUAL: [u8; 10] = [11, 10, 5, 7, 12, 15, 14, 3, 6, 4];
    let isa = |irq: u8| {
        vm.devices
            .iter()
            .any(|d| d.kind.slot().is_none() && d.irq == irq)
    };
    USUAL.into_iter().find(|&irq| !isa(irq))
}

/// All ports of devices that are no PCI functions.
fn isa_ports(vm: &Vm) -> impl Iterator<Item = PortRange> {
    let isa = vm.devices.iter().filter(|d| d.kind.slot().is_none());
    // A doorbell is a register of four bytes.
    isa.flat_map(|d| {
        [
            Some(d.ports),
            d.doorbell.map(|bell| PortRange::new(bell, 4)),
        ]
    })
    .flatten()
}

/// Ports that PCI functions can be given: first and last of each window.
fn pci_ports(vm: &Vm) -> Vec<(u16, u16)> {
    let mut taken: Vec<_> = isa_ports(vm)
        .map(|r| (u32::from(r.first), r.end()))
        .collect();
    taken.sort_unstable();
    let end = u32::from(map::PCI_IO_LAST) + 1;
    let mut from = u32::from(map::PCI_IO_BASE);
    let mut windows = Vec::new();
    for (first, next) in taken.into_iter().chain([(end, end)]) {
        if first > from
            && let (Ok(from), Ok(last)) = (u16::try_from(from), u16::try_from(first - 1))
        {
            windows.push((from, last));
        }
        from = from.max(next);
    }
    windows
}

/// Plugs the PCI functions in, with addresses such as firmware would have given them.
fn plug(chipset: &mut Chipset, vm: &Vm, irq: Option<u8>, devices: &mut [Device<'_>]) {
    if let Some(irq) = irq {
        chipset.route_pirqs(irq);
    }
    for ports in isa_ports(vm) {
        chipset.pci_mut().keep_out(ports);
    }
    let size = BAR_SIZE;
    let mut ports = (map::PCI_IO_FIRST..=map::PCI_IO_LAST)
        .step_by(size.into())
        .filter(|&first| isa_ports(vm).all(|r| !r.overlaps(PortRange::new(first, size))));
    let mut memory = (map::PCI_BASE as u32..).step_by(virtio::GIVEN as usize);
    for (device, described) in devices.iter_mut().zip(&vm.devices) {
        let Some((slot, kind)) = described.kind.slot().zip(virtio_kind(described.kind)) else {
            continue;
        };
        // There are more places than slots.
        let (Some(io), Some(memory)) = (ports.next(), memory.next()) else {
            continue;
        };
        let first = described.registers;
        let given = virtio::Given {
            io,
            memory,
            irq,
            first,
        };
        let function = virtio::function(&kind, &given);
        if let Some(number) = chipset.pci_mut().add(slot, function) {
            device.plugged(number);
        }
    }
}

/// What a virtio device is as a PCI function.
fn virtio_kind(kind: DeviceKind) -> Option<virtio::Kind> {
    let queues = kind.queues();
    match kind {
        DeviceKind::Uart | DeviceKind::Rtc | DeviceKind::TestDev => None,
        DeviceKind::VirtioRng { .. } => Some(virtio::Kind::of(&ENTROPY, queues)),
        DeviceKind::VirtioBlk { .. } => Some(virtio::Kind::of(&BLOCK, queues)),
        DeviceKind::VirtioNet { .. } => Some(virtio::Kind::of(&NET, queues)),
        DeviceKind::VirtioConsole { .. } => Some(virtio::Kind::of(&CONSOLE, queues)),
    }
}

/// What the ACPI tables say of the devices.
fn describe(vm: &Vm, pci_irq: Option<u8>) -> acpi::Config {
    let mut config = acpi::Config {
        vcpus: 1,
        com: [None; 4],
        rtc: false,
        pci_ports: pci_ports(vm),
        pci_irq,
    };
    for device in &vm.devices {
        let first = device.ports.first;
        match device.kind {
            DeviceKind::Uart => {
                let usual = COM.iter().position(|&com| com == first);
                let free = config.com.iter().position(Option::is_none);
                let place = usual
                    .filter(|&i| config.com.get(i).is_some_and(Option::is_none))
                    .or(free);
                if let Some(slot) = place.and_then(|i| config.com.get_mut(i)) {
                    *slot = Some((first, device.irq));
                }
            }
            DeviceKind::Rtc => config.rtc |= first == RTC_PORT,
            DeviceKind::TestDev
            | DeviceKind::VirtioRng { .. }
            | DeviceKind::VirtioBlk { .. }
            | DeviceKind::VirtioNet { .. }
            | DeviceKind::VirtioConsole { .. } => {}
        }
    }
    config
}

/// The first processor state. The guest's TSC begins at 0; that of a guest under test is the host's, so that it can be compared
/// with what servers read.
fn start_state<K: Kernel>(kernel: &mut K, entry: &EntryState, under_test: bool, rate: Rate) {
    let now = rate.guest(kernel.now());
    let state = kernel.state_mut();
    entry.apply(state);
    state.tsc_offset = if under_test {
        0
    } else {
        0u64.wrapping_sub(now)
    };
    state.tsc_ratio = rate.ratio();
    state.tsc_aux = 0;
}

/// The rate of the guest's TSC, of `mhz` MHz if that is not 0.
fn rate<K: Kernel>(kernel: &K, mhz: u32, tsc_hz: u64) -> Result<Rate, SetupError> {
    let wanted = match mhz {
        0 => tsc_hz,
        // The machine's rate is measured, and never of so many MHz to the cycle.
        _ if u64::from(mhz) == tsc_hz.saturating_add(500_000) / 1_000_000 => tsc_hz,
        _ => u64::from(mhz) * 1_000_000,
    };
    let scales = kernel.state().offers & offers::TSC_RATIO != 0;
    Rate::new(wanted, tsc_hz)
        .filter(|rate| scales || *rate == Rate::default())
        .ok_or(SetupError::Rate {
            mhz,
            tsc_hz,
            scales,
        })
}

/// Which state groups come with which exit.
fn ask<K: Kernel>(kernel: &mut K, hardware: Hardware) -> Result<(), SetupError> {
    for number in 0..Exit::COUNT as u64 {
        let exit = Exit::from_raw(number);
        kernel
            .on_exit(exit, Machine::<'_, K>::groups(exit) | hardware.groups(exit))
            .map_err(|status| SetupError::Kernel("state groups of an exit", status))?;
    }
    Ok(())
}

/// Exit routes of devices that are no PCI functions: a device's ports to its server, but for its doorbell.
fn routes<K: Kernel>(kernel: &mut K, devices: &[Device<'_>], limit: u64) -> Result<(), SetupError> {
    let isa = |(_, device): &(usize, &Device<'_>)| device.function().is_none();
    for (i, device) in devices.iter().enumerate().filter(isa) {
        let bell = device.doorbell.map(u32::from);
        let (first, end) = (u32::from(device.ports.first), device.ports.end());
        // Around the doorbell, a register of four bytes, if that is one of the ports.
        let pieces = match bell {
            Some(bell) if (first..end).contains(&bell) => [(first, bell), (bell + 4, end)],
            _ => [(first, end), (end, end)],
        };
        for (from, to) in pieces {
            if to > from
                && let (Ok(from), Ok(count)) = (u16::try_from(from), u16::try_from(to - from))
            {
                kernel
                    .route(i, from, count, limit)
                    .map_err(|status| SetupError::Kernel("a device's route", status))?;
            }
        }
        if let Some(bell) = device.doorbell {
            kernel
                .doorbell(i, 0, bell, 4)
                .map_err(|status| SetupError::Kernel("a device's doorbell", status))?;
        }
    }
    Ok(())
}
