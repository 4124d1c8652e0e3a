//! Building a machine: memory filled, routes set, first processor state.

use super::ports::Losses;
use super::{CPU, Device, Kernel, Machine, Note};
use crate::acpi;
use crate::chipset::{self, Chipset};
use crate::cpu::{Msrs, Policy};
use crate::emulate::{Lengths, mmio};
use crate::loader::{self, EntryState, LoadError};
use crate::memory::{GuestMemory, OutOfRange};
use alloc::vec::Vec;
use core::arch::x86_64::CpuidResult;
use core::fmt;
use ipc_schema::abi::Status;
use ipc_schema::abi::vm::{Event, Exit, Groups, Post};
use ipc_schema::manifest::{DeviceKind, Vm};

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
    /// The kernel refused this.
    Kernel(&'static str, Status),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(error) => write!(f, "the guest's kernel: {error}"),
            Self::Memory(error) => write!(f, "the guest's ACPI tables: {error}"),
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
            devices,
            ..
        } = parts;
        if vm.vcpus != 1 {
            kernel.note(&Note::OneVcpu { asked: vm.vcpus });
        }
        let rsdp = acpi::build(&memory, &describe(vm)).map_err(SetupError::Memory)?;
        let request = loader::Request {
            kernel: parts.kernel_file,
            initrd: parts.initrd,
            cmdline: &vm.append,
            rsdp,
        };
        let entry = loader::load(&memory, &request).map_err(SetupError::Load)?;
        // The APIC timers run at the TSC's rate: then their clock needs no division.
        let policy = Policy::new(parts.cpuid, 1, tsc_hz, tsc_hz);
        let chipset = Chipset::new(&chipset::Config {
            vcpus: 1,
            tsc_hz,
            apic_hz: tsc_hz,
            debug_exit: vm.debug_exit,
        });
        let limit = tsc_hz / ANSWERS_A_SECOND;
        start_state(&mut kernel, &entry, vm.debug_exit);
        ask(&mut kernel)?;
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
        // Lines that were high before there was anyone to be signalled.
        super::device::look(&mut machine.devices, &mut machine.chipset);
        Ok(machine)
    }
}

/// What the ACPI tables say of the devices.
fn describe(vm: &Vm) -> acpi::Config {
    let mut config = acpi::Config {
        vcpus: 1,
        com: [None; 4],
        rtc: false,
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
            DeviceKind::TestDev => {}
        }
    }
    config
}

/// The first processor state. The guest's TSC begins at 0; that of a guest under test is the host's, so that it can be compared
/// with what servers read.
fn start_state<K: Kernel>(kernel: &mut K, entry: &EntryState, under_test: bool) {
    let now = kernel.now();
    let state = kernel.state_mut();
    entry.apply(state);
    state.tsc_offset = if under_test {
        0
    } else {
        0u64.wrapping_sub(now)
    };
    state.tsc_aux = 0;
}

/// Which state groups come with which exit.
fn ask<K: Kernel>(kernel: &mut K) -> Result<(), SetupError> {
    for number in 0..Exit::COUNT as u64 {
        let exit = Exit::from_raw(number);
        kernel
            .on_exit(exit, Machine::<'_, K>::groups(exit))
            .map_err(|status| SetupError::Kernel("state groups of an exit", status))?;
    }
    Ok(())
}

/// Exit routes: a device's ports to its server, but for its doorbell.
fn routes<K: Kernel>(kernel: &mut K, devices: &[Device<'_>], limit: u64) -> Result<(), SetupError> {
    for (i, device) in devices.iter().enumerate() {
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
                .doorbell(i, bell)
                .map_err(|status| SetupError::Kernel("a device's doorbell", status))?;
        }
    }
    Ok(())
}
