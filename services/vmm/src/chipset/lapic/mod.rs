//! The local APIC of one vCPU (Intel SDM vol. 3, chapter 11): what is requested, in service and masked.
//!
//! `registers` is what the guest reads and writes, `timer` the timer. Sending is the bus's job (`super::bus`): a
//! register write that sends hands back an [`Outcome`].

mod hardware;
mod registers;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

use super::message::{Delivery, Destination, Message};
use super::{Effect, Pending, map};
use timer::Timer;
use vectors::Vectors;

pub use hardware::Words;
pub use registers::Outcome;

/// IA32_APIC_BASE: this is the bootstrap processor.
pub const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is enabled.
pub const BASE_ENABLE: u64 = 1 << 11;

/// Spurious-interrupt vector register: the APIC is enabled by software.
const SVR_ENABLE: u32 = 1 << 8;
/// LVT entry: masked.
const LVT_MASKED: u32 = 1 << 16;
/// LVT LINT entry: level-triggered.
const LVT_LEVEL: u32 = 1 << 15;
/// LVT LINT entry: a level-triggered interrupt was accepted and not ended yet.
const LVT_REMOTE_IRR: u32 = 1 << 14;

/// ESR: a vector below 16 was to be sent.
const ESR_SEND_VECTOR: u32 = 1 << 5;
/// ESR: a vector below 16 came in a message or from the LVT.
const ESR_RECEIVE_VECTOR: u32 = 1 << 6;
/// ESR: access to a reserved register.
const ESR_REGISTER: u32 = 1 << 7;

/// The local vector table's entries that can interrupt, by their register's distance from 0x320. Nothing raises the
/// thermal (1) and performance (2) ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lvt {
    Timer = 0,
    Lint0 = 3,
    Lint1 = 4,
    Error = 5,
}

/// Which register interface is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Globally disabled.
    Disabled,
    /// Memory-mapped.
    Xapic,
    /// MSRs.
    X2apic,
}

/// One local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    id: u32,
    base: u64,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    /// It has changed since it was last given to the processor.
    level_moved: bool,
    tpr: u8,
    svr: u32,
    ldr: u32,
    dfr: u32,
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    timer: Timer,
    lint0: bool,
    /// Highest vectors of IRR and ISR (0: none), and the deadline: kept by `update`, `update_deadline`.
    requested: u8,
    in_service: u8,
    deadline: u64,
    /// Out of INIT, waiting for a start-up IPI.
    waiting: bool,
    /// Events for the processor that the VMM has not fetched yet.
    init: bool,
    start: Option<u8>,
    nmi: bool,
}

impl Lapic {
    /// The APIC of vCPU `id` after power-on, its timer counting at `apic_hz`. vCPU 0 is the bootstrap processor.
    pub fn new(id: u32, apic_hz: u64, tsc_hz: u64) -> Self {
        let mut lapic = Self {
            id,
            base: map::LAPIC_BASE | BASE_ENABLE | if id == 0 { BASE_BSP } else { 0 },
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            level_moved: false,
            tpr: 0,
            svr: 0,
            ldr: 0,
            dfr: 0,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [0; 6],
            timer: Timer::new(apic_hz, tsc_hz),
            lint0: false,
            requested: 0,
            in_service: 0,
            deadline: super::time::NEVER,
            waiting: id != 0,
            init: false,
            start: None,
            nmi: false,
        };
        lapic.reset();
        lapic
    }

    /// The state after power-on or INIT (Intel SDM vol. 3, 11.4.7.1), APIC ID and IA32_APIC_BASE kept; but the
    /// bootstrap processor's LINT entries are as firmware leaves them for a virtual wire (MP specification, 3.6.2.2):
    /// our guests start where firmware would have ended.
    fn reset(&mut self) {
        self.irr = Vectors::default();
        self.isr = Vectors::default();
        self.tmr = Vectors::default();
        self.level_moved = true;
        self.tpr = 0;
        self.svr = 0xFF;
        self.ldr = 0;
        self.dfr = u32::MAX;
        self.esr = 0;
        self.errors = 0;
        self.icr = 0;
        self.lvt = [LVT_MASKED; 6];
        if self.id == 0 {
            self.lvt[Lvt::Lint0 as usize] = 7 << 8;
            self.lvt[Lvt::Lint1 as usize] = 4 << 8;
        }
        self.timer.reset();
        self.update();
        self.update_deadline();
    }

    /// Which register interface is on.
    #[inline]
    pub fn mode(&self) -> Mode {
        if self.base & BASE_ENABLE == 0 {
            Mode::Disabled
        } else if self.base & BASE_X2APIC != 0 {
            Mode::X2apic
        } else {
            Mode::Xapic
        }
    }

    /// Guest-physical page of the registers, if they are memory-mapped now.
    pub fn page(&self) -> Option<u64> {
        (self.mode() == Mode::Xapic).then_some(self.base & !0xFFF)
    }

    /// Enabled globally and by software: takes fixed interrupts.
    #[inline]
    pub fn enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0 && self.base & BASE_ENABLE != 0
    }

    /// Recomputes what depends on IRR and ISR.
    #[inline]
    fn update(&mut self) {
        self.requested = self.irr.highest();
        self.in_service = self.isr.highest();
    }

    /// Recomputes the timer's wake-up: none if nobody would see it.
    #[inline]
    fn update_deadline(&mut self) {
        let masked = self.lvt[Lvt::Timer as usize] & LVT_MASKED != 0;
        self.deadline = if masked {
            super::time::NEVER
        } else {
            self.timer.next()
        };
    }

    /// The TSC at which [`Lapic::tick`] must be called.
    #[inline]
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Writes IA32_TSC_DEADLINE. True if the timer had expired before, so that there may be an interrupt now.
    #[inline]
    pub fn set_tsc_deadline(&mut self, value: u64, now: u64) -> bool {
        // Nobody sees one that expires masked, and another deadline takes its place.
        let expired = self.deadline <= now;
        if expired {
            self.tick(now);
        }
        self.timer.set_deadline(value);
        self.update_deadline();
        expired
    }

    /// Brings the timer to `now` and requests its interrupt if it expired.
    #[inline]
    pub fn tick(&mut self, now: u64) {
        if self.timer.expire(now) {
            self.local_interrupt(Lvt::Timer);
            self.update_deadline();
        }
    }

    /// Task priority register.
    #[inline]
    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Sets the task priority register.
    #[inline]
    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
    }

    /// Processor priority (Intel SDM vol. 3, 11.8.3.1).
    fn ppr(&self) -> u8 {
        if self.tpr >> 4 >= self.in_service >> 4 {
            self.tpr
        } else {
            self.in_service & 0xF0
        }
    }

    /// Arbitration priority, by which a lowest-priority message finds its receiver.
    fn apr(&self) -> u8 {
        let class = (self.tpr >> 4)
            .max(self.in_service >> 4)
            .max(self.requested >> 4);
        if self.tpr >> 4 == class {
            self.tpr
        } else {
            class << 4
        }
    }

    /// The highest vector that may be delivered now.
    #[inline]
    pub fn pending(&self) -> Option<Pending> {
        self.request_above(self.ppr())
    }

    /// As [`Lapic::pending`], as if the task priority were 0.
    #[inline]
    pub fn pending_any_tpr(&self) -> Option<Pending> {
        self.request_above(self.in_service)
    }

    #[inline]
    fn request_above(&self, priority: u8) -> Option<Pending> {
        let vector = self.requested;
        (vector >> 4 > priority >> 4 && self.enabled()).then_some(Pending {
            vector,
            priority: vector >> 4,
            external: false,
        })
    }

    /// The processor took `vector`: from request to service.
    #[inline]
    pub fn accept(&mut self, vector: u8) {
        if vector >= 16 {
            self.irr.clear(vector);
            self.isr.set(vector);
            self.update();
        }
    }

    /// Whether what an EOI ends now is level-triggered.
    #[inline]
    pub fn ends_level(&self) -> bool {
        // No vector below 16 is ever in the TMR.
        self.tmr.contains(self.in_service)
    }

    /// EOI: ends the highest interrupt in service. Gives its vector if the IOAPIC must hear of it.
    #[inline]
    fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.in_service;
        if vector == 0 {
            return None;
        }
        self.isr.clear(vector);
        self.update();
        if !self.tmr.contains(vector) {
            return None;
        }
        self.end_of_lint0(vector);
        Some(vector)
    }

    /// The level-triggered `vector` ended: LINT0's, if it is that, can interrupt again.
    pub fn end_of_lint0(&mut self, vector: u8) {
        let entry = &mut self.lvt[Lvt::Lint0 as usize];
        if *entry & LVT_REMOTE_IRR != 0 && *entry as u8 == vector {
            *entry &= !LVT_REMOTE_IRR;
            self.service_lint0();
        }
    }

    /// Requests `vector`; one below 16 is an error instead. False if the APIC takes no interrupts now.
    fn request(&mut self, vector: u8, level: bool) -> bool {
        if !self.enabled() {
            return false;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_VECTOR);
            return true;
        }
        self.interrupt(vector);
        if level {
            self.tmr.set(vector);
            self.level_moved = true;
        }
        true
    }

    /// Requests the edge-triggered `vector`, from 16 on, of this APIC, which is enabled.
    #[inline]
    pub fn interrupt(&mut self, vector: u8) {
        self.irr.set(vector);
        self.level_moved |= self.tmr.contains(vector);
        self.tmr.clear(vector);
        self.requested = self.requested.max(vector);
    }

    /// Records errors and raises the error interrupt.
    fn error(&mut self, errors: u32) {
        self.errors |= errors;
        let entry = self.lvt[Lvt::Error as usize];
        // An illegal vector in the error entry itself is one more error, but no further interrupt.
        match entry as u8 {
            _ if entry & LVT_MASKED != 0 => {}
            0..16 => self.errors |= ESR_RECEIVE_VECTOR,
            vector => {
                self.request(vector, false);
            }
        }
    }

    /// Raises a local interrupt as its LVT entry says.
    fn local_interrupt(&mut self, entry: Lvt) {
        let value = self.lvt[entry as usize];
        if value & LVT_MASKED == 0 {
            self.request(value as u8, false);
        }
    }

    /// The level of LINT0, which the 8259 pair drives.
    pub fn set_lint0(&mut self, level: bool) {
        let rising = level && !self.lint0;
        self.lint0 = level;
        let entry = self.lvt[Lvt::Lint0 as usize];
        if entry & LVT_MASKED != 0 {
            return;
        }
        match Delivery::from_bits(u64::from(entry)) {
            Delivery::Fixed if entry & LVT_LEVEL != 0 => self.service_lint0(),
            Delivery::Fixed if rising => self.local_interrupt(Lvt::Lint0),
            Delivery::Nmi if rising => self.nmi = true,
            Delivery::Init if rising => self.receive_init(),
            _ => {}
        }
    }

    /// Requests LINT0's interrupt if it is fixed and level-triggered, asserted, and not already being served.
    fn service_lint0(&mut self) {
        let entry = self.lvt[Lvt::Lint0 as usize];
        let fixed = Delivery::from_bits(u64::from(entry)) == Delivery::Fixed;
        if self.lint0 && fixed && entry & (LVT_MASKED | LVT_LEVEL | LVT_REMOTE_IRR) == LVT_LEVEL {
            let vector = entry as u8;
            if self.request(vector, true) && vector >= 16 {
                self.lvt[Lvt::Lint0 as usize] |= LVT_REMOTE_IRR;
            }
        }
    }

    /// Whether the processor takes the 8259 pair's interrupts: through LINT0, or directly if there is no APIC.
    pub fn takes_external(&self) -> bool {
        if self.base & BASE_ENABLE == 0 {
            return self.id == 0;
        }
        let entry = self.lvt[Lvt::Lint0 as usize];
        entry & LVT_MASKED == 0 && Delivery::from_bits(u64::from(entry)) == Delivery::External
    }

    /// Whether a message to `destination`, from vCPU `sender` if from one, is for this APIC
    /// (Intel SDM vol. 3, 11.6.2 and 11.12.10).
    pub fn matches(&self, destination: Destination, sender: Option<u32>) -> bool {
        match destination {
            Destination::All => true,
            Destination::Itself => sender == Some(self.id),
            Destination::Others => sender != Some(self.id),
            Destination::Physical(id) => id == u32::MAX || id == self.id,
            Destination::Logical(u32::MAX) => true,
            Destination::Logical(id) if self.base & BASE_X2APIC != 0 => {
                let own = self.x2apic_ldr();
                id >> 16 == own >> 16 && id & own & 0xFFFF != 0
            }
            Destination::Logical(id) => {
                let own = self.ldr >> 24;
                if self.dfr >> 28 == 0xF {
                    id & own != 0
                } else {
                    id >> 4 == own >> 4 && id & own & 0xF != 0
                }
            }
        }
    }

    /// The logical ID in x2APIC mode (Intel SDM vol. 3, 11.12.10.2).
    fn x2apic_ldr(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 0xF)
    }

    /// Its claim to a lowest-priority message, the lowest wins; `None` if it takes none.
    pub fn arbitration(&self) -> Option<u8> {
        self.enabled().then(|| self.apr())
    }

    /// Receives a message that is for this APIC. False if it cannot take it now.
    pub fn receive(&mut self, message: &Message) -> bool {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                return self.request(message.vector, message.level);
            }
            _ if self.base & BASE_ENABLE == 0 => return false,
            Delivery::Nmi => self.nmi = true,
            Delivery::Init => self.receive_init(),
            Delivery::StartUp if self.waiting => {
                self.waiting = false;
                self.start = Some(message.vector);
            }
            // SMIs have no handler here; the 8259's vectors come by `takes_external`.
            Delivery::StartUp | Delivery::Smi | Delivery::External | Delivery::Reserved => {}
        }
        true
    }

    fn receive_init(&mut self) {
        self.reset();
        self.waiting = self.id != 0;
        self.start = None;
        self.nmi = false;
        self.init = true;
    }

    /// Takes the next event for the processor that is not an interrupt.
    pub fn take_event(&mut self) -> Option<Effect> {
        let cpu = self.id;
        if core::mem::take(&mut self.init) {
            Some(Effect::InitCpu { cpu })
        } else if let Some(vector) = self.start.take() {
            Some(Effect::StartCpu { cpu, vector })
        } else if self.waiting {
            // Held until the processor runs (an NMI is blocked while it waits for a start-up IPI).
            None
        } else {
            core::mem::take(&mut self.nmi).then_some(Effect::Nmi { cpu })
        }
    }
}
