//! Port accesses that no route has completed: the platform's own ports, string instructions, and lost routes.

use super::device::{Device, look};
use super::{Fatal, Kernel, Machine, Note, Step, signal};
use crate::chipset::{Chipset, Configured, Effect, map, pci};
use crate::emulate::port::{self, PortBus};
use ipc_schema::abi::vm::{Exit, PortAccess};
use ipc_schema::state_page::Outcome;
use ipc_schema::virtio::{BAR_SIZE, MAX_QUEUES, NOTIFY, NOTIFY_MULTIPLIER};

/// How often a string instruction's element is tried before the device counts as gone.
const ATTEMPTS: u32 = 100;

/// How often a device may die of one access before that is dropped: a guest must not be able to keep its own device
/// from ever running again, and its next access may be one that the device bears.
const DEADLY: u32 = 3;

/// A device that does not answer, time and again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Losses {
    /// How often in this spell.
    times: u32,
    /// When last.
    at: u64,
    /// Until when the supervisor is not told again.
    told: u64,
    /// The access that was last taken and not answered, its value, and the device's commits until then.
    taken: Option<(PortAccess, u32, u64)>,
    /// How often that one was, in this spell.
    deaths: u32,
}

impl Losses {
    /// Counts a loss; how many cycles to wait, where `limit` is what a device has for an answer.
    fn pause(&mut self, now: u64, limit: u64) -> u64 {
        // A spell is over when routes have worked for as long as ten answers may take.
        let fresh = now.saturating_sub(self.at) > limit.saturating_mul(20);
        if fresh {
            (self.times, self.deaths) = (0, 0);
        }
        self.times = self.times.saturating_add(1);
        self.at = now;
        // From a hundredth of the limit, doubling, to the limit itself.
        (limit / 128) << self.times.min(7)
    }

    /// True if the supervisor is to be told: at once, and then no more often than a device may take for an answer. It looks
    /// for itself whether the device hangs.
    fn tell(&mut self, now: u64, limit: u64) -> bool {
        let due = now >= self.told;
        if due {
            self.told = now.saturating_add(limit);
        }
        due
    }

    /// Counts a taken access that was not carried out; true if the device has died of it too often. A device that has
    /// carried out anything in between (`commits` says so) is no hopeless one.
    fn deadly(&mut self, access: PortAccess, value: u32, commits: u64) -> bool {
        let this = Some((access, value, commits));
        if self.taken != this {
            (self.taken, self.deaths) = (this, 0);
        }
        self.deaths = self.deaths.saturating_add(1);
        self.deaths >= DEADLY
    }
}

impl<'a, K: Kernel> Machine<'a, K> {
    /// A port access that has no route.
    #[inline]
    pub(super) fn port(&mut self, access: u64, next: u64) -> Step {
        let access = PortAccess(access);
        if self.steps_blindly(Exit::Port) {
            return self.widen(Exit::Port);
        }
        if access.string() {
            return self.port_string(access);
        }
        let (number, width) = (access.port(), access.width());
        let out = port::out_value(self.kernel.state(), width);
        let mut ports = self.ports();
        let value = if access.input() {
            ports.input(number, width)
        } else {
            ports.output(number, width, out);
            0
        };
        let (effect, signals) = (ports.effect, ports.signals);
        self.complete(access, value, next);
        self.after_ports(effect, signals)
    }

    /// INS and OUTS, also to devices: those cannot be routed.
    #[cold]
    fn port_string(&mut self, access: PortAccess) -> Step {
        if self.wide & 1 << Exit::Port as u32 == 0 {
            return self.widen(Exit::Port);
        }
        // The bus needs the kernel, which has the page: so on a copy.
        let mut state = *self.kernel.state();
        let mut ports = Ports {
            now: self.kernel.now(),
            kernel: &mut self.kernel,
            chipset: &mut self.chipset,
            devices: &mut self.devices,
            limit: self.limit,
            effect: Effect::None,
            signals: 0,
        };
        let done = port::emulate(&self.memory, &mut state, access, 0, true, &mut ports);
        let (effect, signals) = (ports.effect, ports.signals);
        *self.kernel.state_mut() = state;
        match done {
            Ok(retired) => self.retired(retired),
            Err(error) => {
                self.after_ports(effect, signals)?;
                return self.refuse(error, access.port().into());
            }
        }
        self.after_ports(effect, signals)
    }

    #[inline]
    fn ports(&mut self) -> Ports<'_, 'a, K> {
        Ports {
            now: self.kernel.now(),
            kernel: &mut self.kernel,
            chipset: &mut self.chipset,
            devices: &mut self.devices,
            limit: self.limit,
            effect: Effect::None,
            signals: 0,
        }
    }

    /// Finishes a plain IN or OUT. The kernel told the whole next rip: group SEG is not there to work it out.
    #[inline]
    fn complete(&mut self, access: PortAccess, value: u32, next: u64) {
        let state = self.kernel.state_mut();
        let retired = if access.input() {
            port::complete_in(state, access.width(), value, next)
        } else {
            port::complete_out(state, next)
        };
        state.rip = next;
        self.retired(retired);
    }

    #[inline]
    fn after_ports(&mut self, effect: Effect, signals: u64) -> Step {
        self.stale = true;
        if signals != 0 {
            self.also_signalled(signals)?;
        }
        self.effect(effect)
    }

    /// A routed access was not answered: its server died, or was too slow. The guest stands before the instruction, so
    /// entering it again is trying again.
    #[cold]
    pub(super) fn route_lost(&mut self, info: [u64; 3]) -> Step {
        let stamped = PortAccess(info[0]);
        let access = stamped.unstamped();
        let (value, next) = (info[1] as u32, info[2]);
        let owner = self
            .devices
            .iter()
            .position(|device| device.has(access.port(), access.width()));
        let now = self.kernel.now();
        let pause = self.lost.pause(now, self.limit);
        if let Some(device) = owner {
            // Every doubling of the count, so that a dead device does not fill the log.
            let times = self.lost.times;
            if times.is_power_of_two() {
                let note = Note::Lost {
                    device,
                    access,
                    times,
                };
                self.kernel.note(&note);
            }
            if self.lost.tell(now, self.limit) {
                self.kernel.silent(device);
            }
        }
        if self.finish_lost(owner, stamped, value, next) {
            return Ok(());
        }
        let commits = owner
            .and_then(|i| self.devices.get(i))
            .map_or(0, Device::sequence);
        if access.taken() && self.lost.deadly(access, value, commits) {
            self.lost.deaths = 0;
            if let Some(device) = owner {
                self.kernel.note(&Note::Dropped { device, access });
            }
            self.complete(access, u32::MAX, next);
            return Ok(());
        }
        let now = self.kernel.now();
        // A server that starts again signals, so this ends early; and a storm of losses leaves time for the others.
        match self.kernel.wait(now.saturating_add(pause)) {
            Ok(bits) => self.also_signalled(bits)?,
            Err(status) => return self.fatal(Fatal::Kernel(status)),
        }
        // A slow server may have finished meanwhile.
        self.finish_lost(owner, stamped, value, next);
        Ok(())
    }

    /// Completes a lost access that the server had taken and carried out. True if so.
    fn finish_lost(
        &mut self,
        owner: Option<usize>,
        access: PortAccess,
        value: u32,
        next: u64,
    ) -> bool {
        if !access.taken() {
            return false;
        }
        let Some(device) = owner.and_then(|i| self.devices.get(i)) else {
            return false;
        };
        match device.outcome(access, value) {
            Outcome::Done(value) => {
                self.complete(access, value, next);
                true
            }
            Outcome::NotDone => false,
        }
    }
}

/// I/O space as the VMM answers it.
pub(super) struct Ports<'m, 'a, K: Kernel> {
    pub kernel: &'m mut K,
    pub chipset: &'m mut Chipset,
    pub devices: &'m mut [Device<'a>],
    pub limit: u64,
    pub now: u64,
    pub effect: Effect,
    /// Notification bits that came while a device was waited for.
    pub signals: u64,
}

impl<K: Kernel> Ports<'_, '_, K> {
    /// An access of which at least a part is a device's: in one piece if it is all of it, else byte by byte.
    #[cold]
    fn device(&mut self, access: PortAccess, value: u32) -> u32 {
        let (port, width) = (access.port(), access.width());
        if let Some(index) = self.devices.iter().position(|d| d.has(port, width)) {
            return self.call(index, access, value);
        }
        let mut result = u32::MAX;
        for lane in 0..width.min(4) {
            let shift = u32::from(lane) * 8;
            let byte = value >> shift & 0xFF;
            let Some(port) = port.checked_add(lane.into()) else {
                break;
            };
            let access = PortAccess::new(port, 1, access.input());
            let got = match self.devices.iter().position(|d| d.has(port, 1)) {
                Some(index) => self.call(index, access, byte),
                None if access.input() => self.chipset.pio_read(port, 1, self.now),
                None => {
                    self.write_chipset(port, 1, byte);
                    0
                }
            };
            result = result & !(0xFF << shift) | (got & 0xFF) << shift;
        }
        result
    }

    /// One access by a device, tried until it is done, or the VM is to end, or the device is gone for good.
    fn call(&mut self, index: usize, access: PortAccess, value: u32) -> u32 {
        let Some(device) = self.devices.get_mut(index) else {
            return u32::MAX;
        };
        let access = device.stamped(access);
        for attempt in 1..=ATTEMPTS {
            match self.kernel.call_device(index, access, value, self.limit) {
                Ok(value) => return value,
                Err(_) if self.signals & signal::QUIT != 0 => break,
                Err(_) if attempt.is_power_of_two() => self.kernel.silent(index),
                Err(_) => {}
            }
            let until = self.kernel.now().saturating_add(self.limit / 8);
            self.signals |= self.kernel.wait(until).unwrap_or(0);
            // Committed, but the answer was lost. By its stamp, no older commit of an equal access is taken for it.
            if let Outcome::Done(value) = device.outcome(access, value) {
                return value;
            }
        }
        u32::MAX
    }

    /// An access of configuration space, a write if there is a value.
    #[cold]
    pub fn configure(&mut self, access: pci::Access, value: Option<u32>) -> u32 {
        let (function, through) = match self.chipset.configure(access, value) {
            Configured::Done(value, effect) => {
                self.changes(effect);
                return value;
            }
            Configured::Through(function, through) => (function, through),
        };
        // Both BARs that are no table show the same.
        self.registers(function, through.offset, through.width, value)
    }

    /// An access of a virtio function's registers by way of the VMM, a write if there is a value: what its server would see at its
    /// ports. Behind the registers is nothing.
    #[cold]
    pub fn registers(
        &mut self,
        function: usize,
        offset: u32,
        width: u8,
        value: Option<u32>,
    ) -> u32 {
        let owner = |device: &Device<'_>| device.function() == Some(function);
        let index = self.devices.iter().position(owner);
        let offset = u16::try_from(offset).unwrap_or(u16::MAX);
        let (Some(index), true) = (index, offset <= BAR_SIZE - u16::from(width.min(4))) else {
            return u32::MAX;
        };
        let queues = self.devices.get(index).map_or(0, Device::queues);
        let queue = offset.wrapping_sub(NOTIFY) / NOTIFY_MULTIPLIER;
        if value.is_some() && queue < queues.min(MAX_QUEUES) {
            self.kernel.ring(index, queue.into());
            return 0;
        }
        // A BAR's base is a multiple of its size, whether or not the function answers there.
        let base = self.chipset.pci().io_base(function, pci::virtio::REGISTERS);
        let access = PortAccess::new(base.wrapping_add(offset), width, value.is_none());
        self.call(index, access, value.unwrap_or(0))
    }

    /// Notes what the chipset asks for.
    #[inline]
    pub fn changes(&mut self, effect: Effect) {
        if effect != Effect::None {
            self.effect = effect;
        }
    }

    #[inline]
    fn write_chipset(&mut self, port: u16, width: u8, value: u32) {
        if matches!(port, map::PIC_MASTER | map::PIC_SLAVE) {
            // A level-triggered line that has fallen must be seen to have before its interrupt ends.
            look(self.devices, self.chipset);
        }
        if is_config_data(port) {
            self.configure(
                self.chipset.pci().by_ports(port as u8 & 3, width),
                Some(value),
            );
            return;
        }
        let effect = self.chipset.pio_write(port, width, value, self.now);
        self.changes(effect);
    }
}

/// Whether a port is one of configuration mechanism #1's data.
#[inline(always)]
const fn is_config_data(port: u16) -> bool {
    port & !3 == map::PCI_CONFIG_DATA
}

impl<K: Kernel> PortBus for Ports<'_, '_, K> {
    #[inline]
    fn input(&mut self, port: u16, width: u8) -> u32 {
        if self.devices.iter().any(|d| d.touches(port, width)) {
            return self.device(PortAccess::new(port, width, true), 0);
        }
        if is_config_data(port) {
            return self.configure(self.chipset.pci().by_ports(port as u8 & 3, width), None);
        }
        self.chipset.pio_read(port, width, self.now)
    }

    #[inline]
    fn output(&mut self, port: u16, width: u8, value: u32) {
        if self.devices.iter().any(|d| d.touches(port, width)) {
            self.device(PortAccess::new(port, width, false), value);
            return;
        }
        self.write_chipset(port, width, value);
    }
}
