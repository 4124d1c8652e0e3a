//! The local APICs of all vCPUs and the messages between them.

use alloc::vec::Vec;

use super::Effect;
use super::lapic::Lapic;
use super::lines::{Way, Ways};
use super::message::{Delivery, Message};
use super::time::NEVER;

/// A set of vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSet([u64; 4]);

impl CpuSet {
    /// Adds vCPU `cpu`; numbers from 256 on are not in any set.
    pub fn insert(&mut self, cpu: u32) {
        if let Some(word) = self.0.get_mut((cpu >> 6) as usize) {
            *word |= 1 << (cpu & 63);
        }
    }

    /// Whether vCPU `cpu` is in the set.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0
            .get((cpu >> 6) as usize)
            .is_some_and(|word| word & 1 << (cpu & 63) != 0)
    }

    /// Whether no vCPU is in the set.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}

/// All local APICs, indexed by vCPU, which is also the APIC ID.
#[derive(Clone, Debug)]
pub struct Bus {
    cpus: Vec<Lapic>,
    kicks: CpuSet,
    /// Some APIC may hold an event for its processor.
    events: bool,
    deadline: u64,
    /// Of edges of lines.
    pub ways: Ways,
}

impl Bus {
    /// `vcpus` APICs after power-on.
    pub fn new(vcpus: u32, apic_hz: u64, tsc_hz: u64) -> Self {
        Self {
            cpus: (0..vcpus)
                .map(|id| Lapic::new(id, apic_hz, tsc_hz))
                .collect(),
            kicks: CpuSet::default(),
            events: false,
            deadline: NEVER,
            ways: Ways::default(),
        }
    }

    /// The APIC of vCPU `cpu`.
    #[inline]
    pub fn get(&self, cpu: u32) -> Option<&Lapic> {
        self.cpus.get(cpu as usize)
    }

    /// The APIC of vCPU `cpu`, to change it; [`Bus::update_deadline`] afterwards if its timer may have changed.
    pub fn get_mut(&mut self, cpu: u32) -> Option<&mut Lapic> {
        self.cpus.get_mut(cpu as usize)
    }

    /// Delivers `message` (from vCPU `sender`, if from one). False if no APIC took it.
    pub fn deliver(&mut self, message: &Message, sender: Option<u32>) -> bool {
        let matching = (0u32..)
            .zip(&mut self.cpus)
            .filter(|(_, lapic)| lapic.matches(message.destination, sender));
        if message.delivery == Delivery::LowestPriority {
            let receiver = matching
                .filter_map(|(cpu, lapic)| Some((lapic.arbitration()?, cpu, lapic)))
                .min_by_key(|&(priority, cpu, _)| (priority, cpu));
            return receiver.is_some_and(|(_, cpu, lapic)| {
                self.kicks.insert(cpu);
                lapic.receive(message)
            });
        }
        if message.delivery != Delivery::Fixed {
            self.events = true;
            // INIT disables an APIC.
            self.ways.forget();
        }
        let mut taken = false;
        for (cpu, lapic) in matching {
            if lapic.receive(message) {
                self.kicks.insert(cpu);
                taken = true;
            }
        }
        taken
    }

    /// Requests an interrupt where its way ends.
    #[inline]
    pub fn interrupt(&mut self, way: Way) {
        if let Some(lapic) = self.cpus.get_mut(way.cpu as usize) {
            lapic.interrupt(way.vector);
            self.kicks.insert(way.cpu);
        }
    }

    /// Where an edge-triggered `message` goes, if exactly one APIC matches, whatever is pending there, and would take it.
    pub fn only_receiver(&self, message: &Message) -> Option<Way> {
        let mut matching = (0u32..)
            .zip(&self.cpus)
            .filter(|(_, lapic)| lapic.matches(message.destination, None));
        match (matching.next(), matching.next()) {
            (Some((cpu, lapic)), None) if lapic.enabled() => Some(Way {
                cpu,
                vector: message.vector,
            }),
            _ => None,
        }
    }

    /// The 8259 pair's output changed: it is wired to every LINT0.
    pub fn set_lint0(&mut self, level: bool) {
        // It can be INIT.
        self.ways.forget();
        for (cpu, lapic) in (0u32..).zip(&mut self.cpus) {
            lapic.set_lint0(level);
            if level {
                self.kicks.insert(cpu);
            }
        }
        self.events = true;
    }

    /// Takes the next processor event of any vCPU.
    #[inline]
    pub fn take_event(&mut self) -> Effect {
        if self.events {
            self.find_event()
        } else {
            Effect::None
        }
    }

    #[cold]
    fn find_event(&mut self) -> Effect {
        let event = self.cpus.iter_mut().find_map(Lapic::take_event);
        self.events = event.is_some();
        event.unwrap_or(Effect::None)
    }

    /// Takes the set of vCPUs whose interrupts may have changed other than by their own doing.
    pub fn take_kicks(&mut self) -> CpuSet {
        core::mem::take(&mut self.kicks)
    }

    /// The earliest timer of all.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Finds the earliest timer again.
    #[inline]
    pub fn update_deadline(&mut self) {
        self.deadline = self.cpus.iter().map(Lapic::deadline).min().unwrap_or(NEVER);
    }

    /// Expires the timers that are due at TSC `now`; [`Bus::update_deadline`] afterwards.
    #[inline]
    pub fn tick(&mut self, now: u64) {
        for (cpu, lapic) in (0u32..).zip(&mut self.cpus) {
            if lapic.deadline() <= now {
                lapic.tick(now);
                self.kicks.insert(cpu);
            }
        }
    }
}
