//! The platform of one VM: interrupt controllers, timers, power management and PCI configuration space.
//!
//! Job: answer the guest's accesses to these devices and say which interrupt each vCPU is to take. Place: called by the
//! vCPU loop, with the guest's TSC as the only time there is; it calls nobody. Trust: every port, address and value comes
//! from the guest and is hostile; nothing it writes can panic or make the state grow.
//!
//! Timers are functions of the TSC. [`Chipset::next_deadline`] is when the host must call [`Chipset::tick`]; a timer
//! whose interrupt nobody would see has none, and periods missed while the guest was descheduled become one interrupt.

#![forbid(unsafe_code)]

mod bus;
mod functions;
mod ioapic;
mod lapic;
mod legacy;
mod lines;
pub mod map;
mod message;
pub mod pci;
mod pic;
mod pit;
mod pm;
mod ports;
#[cfg(test)]
mod tests;
pub mod time;

pub use bus::CpuSet;
pub use functions::Configured;

use bus::Bus;
use ioapic::Ioapic;
pub use lapic::Words;
use lapic::{Lapic, Mode, Outcome};
use legacy::Legacy;
use message::Message;
use pci::Pci;
use pic::Pic;
use pit::Pit;
use pm::Pm;
use time::NEVER;

/// The [`Pending::priority`] of an interrupt of the 8259 pair: above every class of the task priority, which does not
/// hold it back.
pub const EXTERNAL_PRIORITY: u8 = 0x10;

/// What a platform is made of.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Number of vCPUs, 1 to [`map::MAX_VCPUS`]; APIC IDs are vCPU numbers.
    pub vcpus: u32,
    /// Frequency in Hz of the guest's TSC, in which all times are given.
    pub tsc_hz: u64,
    /// Frequency in Hz of the APIC timers before division. Cheapest if it is the TSC's.
    pub apic_hz: u64,
    /// Whether [`map::DEBUG_EXIT`] exists.
    pub debug_exit: bool,
}

/// What the VMM must do after an access.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The guest turned the VM off.
    PowerOff,
    /// The guest reset the VM: begin again with a new [`Chipset`].
    Reset,
    /// A test guest ended with this value.
    DebugExit(u32),
    /// A PCI function answers elsewhere now: [`Chipset::function_ports`].
    Ranges,
    /// Start `cpu` in real mode at page `vector` (SIPI); it was waiting for this.
    StartCpu {
        /// The vCPU.
        cpu: u32,
        /// Bits 19:12 of the address.
        vector: u8,
    },
    /// INIT for `cpu`. All but vCPU 0 then wait for [`Effect::StartCpu`].
    InitCpu {
        /// The vCPU.
        cpu: u32,
    },
    /// NMI for `cpu`.
    Nmi {
        /// The vCPU.
        cpu: u32,
    },
}

/// The MSR access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// An interrupt that may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its vector.
    pub vector: u8,
    /// Its priority class, to compare with bits 7:4 of the task priority, or [`EXTERNAL_PRIORITY`].
    pub priority: u8,
    /// From the 8259 pair: delivered whatever the task priority is.
    pub external: bool,
}

/// The platform devices of one VM.
#[derive(Debug)]
pub struct Chipset {
    bus: Bus,
    ioapic: Ioapic,
    pic: Pic,
    pit: Pit,
    pm: Pm,
    legacy: Legacy,
    pci: Pci,
    debug_exit: bool,
    /// Levels of the interrupt lines by GSI: as device servers set them, and as this platform's own devices do.
    external_lines: u32,
    own_lines: u32,
    /// The 8259 pair's INTR as the APICs last saw it.
    intr: bool,
    /// When the PIT or the power management timer must be looked at.
    platform_deadline: u64,
    deadline: u64,
}

impl Chipset {
    /// The platform after power-on and what little of firmware's work guests rely on.
    pub fn new(config: &Config) -> Self {
        let vcpus = config.vcpus.clamp(1, map::MAX_VCPUS);
        Self {
            bus: Bus::new(vcpus, config.apic_hz, config.tsc_hz),
            ioapic: Ioapic::default(),
            pic: Pic::new(1 << map::SCI_GSI),
            pit: Pit::new(config.tsc_hz),
            pm: Pm::new(config.tsc_hz),
            legacy: Legacy::default(),
            pci: Pci::default(),
            debug_exit: config.debug_exit,
            external_lines: 0,
            own_lines: 0,
            intr: false,
            platform_deadline: NEVER,
            deadline: NEVER,
        }
    }

    /// PCI bus 0.
    pub fn pci(&self) -> &Pci {
        &self.pci
    }

    /// PCI bus 0, to plug functions in.
    pub fn pci_mut(&mut self) -> &mut Pci {
        &mut self.pci
    }

    /// A load of `width` bytes by vCPU `cpu` from guest-physical `gpa`; `None` if no device is there.
    pub fn mmio_read(&mut self, cpu: u32, gpa: u64, width: u8, now: u64) -> Option<u64> {
        let offset = gpa & 0xFFF;
        if let Some(lapic) = self.bus.get_mut(cpu)
            && lapic.page() == Some(gpa & !0xFFF)
        {
            let value = lapic.mmio_read(offset, now);
            self.lapic_changed();
            return Some(value & u64::from(width_mask(width)));
        }
        if gpa & !0xFFF == map::IOAPIC_BASE {
            self.sync_pit(now);
            return Some(u64::from(self.ioapic.read(offset) & width_mask(width)));
        }
        None
    }

    /// A store of `width` bytes by vCPU `cpu` to guest-physical `gpa`; `None` if no device is there.
    pub fn mmio_write(
        &mut self,
        cpu: u32,
        gpa: u64,
        width: u8,
        value: u64,
        now: u64,
    ) -> Option<Effect> {
        let offset = gpa & 0xFFF;
        if let Some(lapic) = self.bus.get_mut(cpu)
            && lapic.page() == Some(gpa & !0xFFF)
        {
            let outcome = lapic.mmio_write(offset, width, value, now);
            return Some(self.settle(cpu, outcome));
        }
        if gpa & !0xFFF == map::IOAPIC_BASE {
            self.sync_pit(now);
            let bus = &mut self.bus;
            bus.ways.forget();
            let value = value as u32 & width_mask(width);
            self.ioapic.write(offset, value, |message: &Message| {
                bus.deliver(message, None)
            });
            self.update_deadline();
            return Some(self.next_effect());
        }
        None
    }

    /// Whether `msr` is one of this platform's, so that [`Chipset::rdmsr`] and [`Chipset::wrmsr`] answer for it.
    pub fn owns_msr(msr: u32) -> bool {
        matches!(
            msr,
            map::MSR_APIC_BASE | map::MSR_TSC_DEADLINE | map::MSR_X2APIC_FIRST
                ..=map::MSR_X2APIC_LAST
        )
    }

    /// RDMSR by vCPU `cpu`.
    pub fn rdmsr(&mut self, cpu: u32, msr: u32, now: u64) -> Result<u64, Gp> {
        if !Self::owns_msr(msr) {
            return Err(Gp);
        }
        let value = self.bus.get_mut(cpu).ok_or(Gp)?.rdmsr(msr, now);
        self.lapic_changed();
        value
    }

    /// WRMSR by vCPU `cpu`.
    #[inline]
    pub fn wrmsr(&mut self, cpu: u32, msr: u32, value: u64, now: u64) -> Result<Effect, Gp> {
        // Every interrupt has one of these.
        if (msr, value) == (map::MSR_X2APIC_EOI, 0)
            && let Some(lapic) = self.bus.get_mut(cpu)
            && lapic.mode() == Mode::X2apic
        {
            let outcome = lapic.write_eoi();
            return Ok(match outcome {
                Outcome::Done => self.next_effect(),
                _ => self.settle(cpu, outcome),
            });
        }
        self.wrmsr_any(cpu, msr, value, now)
    }

    #[inline(never)]
    fn wrmsr_any(&mut self, cpu: u32, msr: u32, value: u64, now: u64) -> Result<Effect, Gp> {
        if !Self::owns_msr(msr) {
            return Err(Gp);
        }
        let outcome = self.bus.get_mut(cpu).ok_or(Gp)?.wrmsr(msr, value, now)?;
        Ok(self.settle(cpu, outcome))
    }

    /// WRMSR of IA32_TSC_DEADLINE by vCPU `cpu`, which never faults. False if nothing but [`Chipset::next_deadline`] has changed.
    #[inline]
    pub fn set_tsc_deadline(&mut self, cpu: u32, value: u64, now: u64) -> bool {
        let Some(lapic) = self.bus.get_mut(cpu) else {
            return false;
        };
        let expired = lapic.set_tsc_deadline(value, now);
        self.lapic_changed();
        expired
    }

    /// Whether the interrupt that an EOI of vCPU `cpu` ends now is level-triggered: the level of its line then matters.
    #[inline]
    pub fn ends_level(&self, cpu: u32) -> bool {
        self.bus.get(cpu).is_some_and(Lapic::ends_level)
    }

    /// The local APIC of vCPU `cpu`, for whoever gives its vectors to the processor and takes them back.
    #[inline]
    pub fn lapic(&mut self, cpu: u32) -> Option<&mut Lapic> {
        self.bus.get_mut(cpu)
    }

    /// The processor has ended the level-triggered interrupt `vector` of vCPU `cpu`.
    pub fn ended(&mut self, cpu: u32, vector: u8) -> Effect {
        if let Some(lapic) = self.bus.get_mut(cpu) {
            lapic.end_of_lint0(vector);
        }
        self.settle(cpu, Outcome::Eoi(vector))
    }

    /// Does what a register write of vCPU `cpu`'s APIC leaves to others.
    #[inline(never)]
    fn settle(&mut self, cpu: u32, outcome: Outcome) -> Effect {
        let bus = &mut self.bus;
        match outcome {
            Outcome::Done => {}
            Outcome::Send(message) => {
                bus.deliver(&message, Some(cpu));
            }
            Outcome::Eoi(vector) => {
                self.ioapic
                    .end_of_interrupt(vector, |message: &Message| bus.deliver(message, None));
            }
            Outcome::Rerouted => bus.ways.forget(),
            Outcome::Enabled => {
                bus.ways.forget();
                self.ioapic
                    .retry(|message: &Message| bus.deliver(message, None));
            }
        }
        self.lapic_changed();
        self.next_effect()
    }

    /// The next processor event that an IPI, a line or an MSI caused, or `None`. An access hands back the first one;
    /// whoever gets one, or has called [`Chipset::line`], [`Chipset::msi`] or [`Chipset::tick`], asks for more
    /// until there are none.
    #[inline]
    pub fn next_effect(&mut self) -> Effect {
        self.bus.take_event()
    }

    /// Takes the set of vCPUs whose [`Chipset::pending`] may have changed other than by their own access: those that
    /// run on another processor must be made to leave the guest.
    pub fn take_kicks(&mut self) -> CpuSet {
        self.bus.take_kicks()
    }

    /// A message-signalled interrupt: a device's store of `data` to `address`.
    pub fn msi(&mut self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.bus.deliver(&message, None);
        }
    }

    /// Brings the PIT to `now` and raises IRQ 0 if it is due: before anything that could see it.
    fn sync_pit(&mut self, now: u64) {
        if self.pit.advance(now) {
            let irq = u32::from(map::PIT_IRQ);
            for level in [1, 0] {
                self.own_lines = self.own_lines & !1 | level;
                self.drive(irq);
            }
        }
    }

    /// Drives the SCI as the power management registers say.
    fn update_sci(&mut self) {
        let level = self.pm.sci();
        let bit = 1 << map::SCI_GSI;
        if level != (self.own_lines & bit != 0) {
            self.own_lines ^= bit;
            self.drive(map::SCI_GSI);
        }
    }

    /// An APIC's timer may have changed.
    #[inline]
    fn lapic_changed(&mut self) {
        self.bus.update_deadline();
        self.deadline = self.platform_deadline.min(self.bus.deadline());
    }

    /// Any timer, or who sees it, may have changed.
    fn update_deadline(&mut self) {
        let seen = !self.pic.masked(map::PIT_IRQ) || !self.ioapic.masked(map::PIT_GSI as usize);
        let pit = if seen { self.pit.deadline() } else { NEVER };
        self.platform_deadline = pit.min(self.pm.deadline());
        self.lapic_changed();
    }

    /// The interrupt that vCPU `cpu` is to take now.
    #[inline]
    pub fn pending(&self, cpu: u32) -> Option<Pending> {
        let lapic = self.bus.get(cpu)?;
        if self.pic.pending().is_some()
            && let Some(interrupt) = self.intr(lapic)
        {
            return Some(interrupt);
        }
        lapic.pending()
    }

    /// As [`Chipset::pending`], as if the task priority were 0: what the hardware may deliver by itself once the guest
    /// lowers it.
    #[inline]
    pub fn pending_any_tpr(&self, cpu: u32) -> Option<Pending> {
        let lapic = self.bus.get(cpu)?;
        if self.pic.pending().is_some()
            && let Some(interrupt) = self.intr(lapic)
        {
            return Some(interrupt);
        }
        lapic.pending_any_tpr()
    }

    /// The 8259 pair's interrupt, if `lapic` takes it: through LINT0, or through IOAPIC pin 0.
    #[cold]
    fn intr(&self, lapic: &Lapic) -> Option<Pending> {
        let vector = self.pic.pending()?;
        let taken = lapic.takes_external()
            || self.ioapic.external().is_some_and(|destination| {
                lapic.mode() != Mode::Disabled && lapic.matches(destination, None)
            });
        taken.then_some(Pending {
            vector,
            priority: EXTERNAL_PRIORITY,
            external: true,
        })
    }

    /// vCPU `cpu` took the interrupt with this vector, which [`Chipset::pending`] or [`Chipset::pending_any_tpr`] gave.
    #[inline]
    pub fn accept(&mut self, cpu: u32, vector: u8, external: bool) {
        if external {
            self.pic.accept(vector);
            self.pic_changed();
        } else if let Some(lapic) = self.bus.get_mut(cpu) {
            lapic.accept(vector);
        }
    }

    /// Sets vCPU `cpu`'s task priority register (CR8 is its bits 7:4).
    #[inline]
    pub fn set_tpr(&mut self, cpu: u32, tpr: u8) {
        if let Some(lapic) = self.bus.get_mut(cpu) {
            lapic.set_tpr(tpr);
        }
    }

    /// vCPU `cpu`'s task priority register.
    #[inline]
    pub fn tpr(&self, cpu: u32) -> u8 {
        self.bus.get(cpu).map_or(0, Lapic::tpr)
    }

    /// vCPU `cpu`'s IA32_APIC_BASE enable bit, which CPUID.01H:EDX.APIC shows.
    pub fn apic_enabled(&self, cpu: u32) -> bool {
        self.bus
            .get(cpu)
            .is_some_and(|lapic| lapic.mode() != Mode::Disabled)
    }

    /// The TSC at which [`Chipset::tick`] must run; [`NEVER`] if no timer is armed that anyone would see.
    #[inline]
    pub fn next_deadline(&self) -> u64 {
        self.deadline
    }

    /// Expires the timers that are due at TSC `now`.
    #[inline]
    pub fn tick(&mut self, now: u64) {
        if now < self.deadline {
            return;
        }
        self.bus.tick(now);
        if self.platform_deadline <= now {
            self.tick_platform(now);
        } else {
            self.lapic_changed();
        }
    }

    #[inline(never)]
    fn tick_platform(&mut self, now: u64) {
        self.sync_pit(now);
        self.pm.advance(now);
        self.update_sci();
        self.update_deadline();
    }

    /// The operator pressed the power button.
    pub fn power_button(&mut self) {
        self.pm.press_power_button();
        self.update_sci();
    }

    /// General-purpose event `event` (0 to 15) occurred.
    pub fn raise_gpe(&mut self, event: u8) {
        self.pm.raise_gpe(event);
        self.update_sci();
    }
}

/// Ones in the low `width` bytes, all four if there are more.
fn width_mask(width: u8) -> u32 {
    match width {
        0 => 0,
        1 => 0xFF,
        2 => 0xFFFF,
        3 => 0xFF_FFFF,
        _ => u32::MAX,
    }
}
