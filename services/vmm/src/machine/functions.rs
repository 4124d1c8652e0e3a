//! PCI functions: where they answer, and the memory that is PCI's.

use super::device::{Device, NOWHERE, look_before_end};
use super::exits::EOI;
use super::ports::Ports;
use super::{CPU, Kernel, Machine, Note, Step};
use crate::chipset::pci::{Pci, Place, virtio};
use crate::chipset::{Chipset, Effect};
use crate::emulate::mmio;
use crate::memory::GuestMemory;
use ipc_schema::abi::Status;
use ipc_schema::manifest::PortRange;
use ipc_schema::virtio::{MAX_QUEUES, NOTIFY, NOTIFY_LEN, NOTIFY_MULTIPLIER};

impl<K: Kernel> Machine<'_, K> {
    /// The guest has moved a PCI function, or switched it on or off: the routes follow before its instruction is over. What it has left
    /// is taken away first, so that two functions can change places.
    #[cold]
    pub(super) fn reroute(&mut self) {
        let wanted = |device: &Device<'_>, chipset: &Chipset| {
            let number = device.function()?;
            let ports = chipset.function_ports(number).unwrap_or(NOWHERE);
            (ports != device.ports).then_some(ports)
        };
        for device in &mut self.devices {
            if wanted(device, &self.chipset).is_none() {
                continue;
            }
            device.ports = NOWHERE;
            for first in device.routes.drain(..) {
                // It was made below: there is nothing to refuse.
                let _ = self.kernel.unroute(first);
            }
        }
        for (i, device) in self.devices.iter_mut().enumerate() {
            let Some(ports) = wanted(device, &self.chipset) else {
                continue;
            };
            // From now on, what has no route is forwarded.
            device.ports = ports;
            if let Err(status) = route(&mut self.kernel, i, device, self.limit) {
                let note = Note::Unrouted { device: i, status };
                self.kernel.note(&note);
            }
        }
    }

    /// An access below the IOAPIC where no RAM is: to the memory that is PCI's, to a local APIC that the guest has moved there, or to
    /// nothing. What it does may take the device's server, and so the kernel, which has the page: it
    /// works on a copy.
    #[cold]
    #[inline(never)]
    pub(super) fn pci_fault(&mut self, gpa: u64, error: u64, wide: bool) -> Step {
        let mut state = *self.kernel.state();
        let mut bus = Memory {
            ports: Ports {
                now: self.kernel.now(),
                kernel: &mut self.kernel,
                chipset: &mut self.chipset,
                devices: &mut self.devices,
                limit: self.limit,
                effect: Effect::None,
                signals: 0,
            },
            memory: &self.memory,
            unmapped: None,
        };
        let done = mmio::emulate_at(
            &mut self.accesses,
            &self.memory,
            &mut state,
            (gpa, error),
            wide,
            &mut bus,
        );
        let (effect, signals, unmapped) = (bus.ports.effect, bus.ports.signals, bus.unmapped);
        *self.kernel.state_mut() = state;
        self.emulated(done, (effect, unmapped), gpa, wide)?;
        if signals != 0 {
            self.also_signalled(signals)?;
        }
        Ok(())
    }
}

/// Routes the ports of a virtio function: its registers to its server, each queue's notification to a doorbell.
fn route<K: Kernel>(
    kernel: &mut K,
    number: usize,
    device: &mut Device<'_>,
    limit: u64,
) -> Result<(), Status> {
    let PortRange { first, count } = device.ports;
    // The BAR is wholly below 64 Ki: no sum overflows.
    for (from, to) in [(0, NOTIFY), (NOTIFY + NOTIFY_LEN, count)] {
        if to > from {
            kernel.route(number, first + from, to - from, limit)?;
            device.routes.push(first + from);
        }
    }
    for queue in 0..device.queues().min(MAX_QUEUES) {
        let port = first + NOTIFY + queue * NOTIFY_MULTIPLIER;
        kernel.doorbell(number, queue.into(), port, NOTIFY_MULTIPLIER)?;
        device.routes.push(port);
    }
    Ok(())
}

/// Configuration space and BARs in memory.
struct Memory<'m, 'a, K: Kernel> {
    ports: Ports<'m, 'a, K>,
    memory: &'m GuestMemory,
    unmapped: Option<Note>,
}

impl<K: Kernel> Memory<'_, '_, K> {
    /// Where no function answers. The access's other half can be RAM.
    fn nothing(&mut self, gpa: u64, width: u8, write: bool) {
        let note = Note::Unmapped { gpa, width, write };
        self.unmapped.get_or_insert(note);
    }

    /// Reads bytes of one doubleword.
    fn read_part(&mut self, gpa: u64, width: u8) -> u32 {
        match self.ports.chipset.pci().locate(gpa) {
            Some(Place::Configuration(place, offset)) => {
                let access = Pci::by_memory(place, offset, width);
                self.ports.configure(access, None)
            }
            Some(Place::Bar(function, virtio::MEMORY, offset)) => {
                self.ports.registers(function, offset, width, None)
            }
            Some(Place::Bar(function, bar, offset)) => {
                let chipset = &mut self.ports.chipset;
                chipset.table_read(function, bar, offset, width)
            }
            None => {
                let mut bytes = [0xFF; 4];
                let wanted = bytes.get_mut(..usize::from(width)).unwrap_or_default();
                if self.memory.read(gpa, wanted).is_err() {
                    self.nothing(gpa, width, false);
                }
                u32::from_le_bytes(bytes)
            }
        }
    }

    /// Writes bytes of one doubleword.
    fn write_part(&mut self, gpa: u64, width: u8, value: u32) {
        match self.ports.chipset.pci().locate(gpa) {
            Some(Place::Configuration(place, offset)) => {
                let access = Pci::by_memory(place, offset, width);
                self.ports.configure(access, Some(value));
            }
            Some(Place::Bar(function, virtio::MEMORY, offset)) => {
                self.ports.registers(function, offset, width, Some(value));
            }
            Some(Place::Bar(function, bar, offset)) => {
                let chipset = &mut self.ports.chipset;
                let effect = chipset.table_write(function, bar, offset, width, value);
                self.ports.changes(effect);
            }
            None => {
                let bytes = value.to_le_bytes();
                let wanted = bytes.get(..usize::from(width)).unwrap_or_default();
                if self.memory.write(gpa, wanted).is_err() {
                    self.nothing(gpa, width, true);
                }
            }
        }
    }
}

/// The parts of an access that lie in one doubleword each: address, first byte of the value, bytes.
fn parts(gpa: u64, width: u8) -> impl Iterator<Item = (u64, u8, u8)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = gpa.wrapping_add(done.into());
        let room = (4 - (at & 3) as u8).min(width - done);
        let part = (at, done, room);
        done += room;
        (room > 0).then_some(part)
    })
}

impl<K: Kernel> mmio::Bus for Memory<'_, '_, K> {
    fn read(&mut self, gpa: u64, width: u8) -> u64 {
        let now = self.ports.now;
        if let Some(value) = self.ports.chipset.mmio_read(CPU, gpa, width, now) {
            return value;
        }
        parts(gpa, width.min(8)).fold(0, |value, (at, first, width)| {
            let shift = u32::from(first) * 8;
            let mask = u64::MAX >> (64 - 8 * u32::from(width));
            value | (u64::from(self.read_part(at, width)) & mask) << shift
        })
    }

    fn write(&mut self, gpa: u64, width: u8, value: u64) {
        let Ports {
            chipset,
            devices,
            now,
            ..
        } = &mut self.ports;
        if gpa & 0xFFF == EOI {
            look_before_end(devices, chipset);
        }
        if let Some(effect) = chipset.mmio_write(CPU, gpa, width, value, *now) {
            return self.ports.changes(effect);
        }
        for (at, first, width) in parts(gpa, width.min(8)) {
            self.write_part(at, width, (value >> (u32::from(first) * 8)) as u32);
        }
    }
}
