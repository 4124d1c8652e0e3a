//! The local APIC in hardware: where the processor offers it ([`offers::X2APIC`]), a guest in x2APIC mode reads and writes TPR, EOI, PPR,
//! ISR and IRR without an exit, and interrupts are delivered out of IRR. The chipset's model of the APIC has everything else, and what has
//! been requested since the last entry. Before it deals with an access that can depend on vectors in service or requested, they come back
//! to it ([`Machine::fetch_vectors`]); before the next entry the processor has them again ([`Machine::hand_over`]).

use super::device::look;
use super::{CPU, Kernel, Machine, Note, Step};
use ipc_schema::abi::vm::{Exit, Groups, VcpuState, offers};

/// Where the vectors are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hardware {
    /// The processor can have them.
    offered: bool,
    /// It has them.
    on: bool,
    /// They are in the model; if it has them, for the moment.
    here: bool,
    /// Who has them is to be decided before the next entry: they are here for the moment, or a write that [`looks_at_vectors`] has moved
    /// what [`fits_hardware`](crate::chipset::lapic::Lapic::fits_hardware) depends on.
    due: bool,
}

impl Hardware {
    pub(super) fn of(state: &VcpuState) -> Self {
        Self {
            offered: state.offers & offers::X2APIC != 0,
            here: true,
            ..Self::default()
        }
    }

    /// Groups that this exit brings in addition, because its handler looks at vectors.
    pub(super) const fn groups(self, exit: Exit) -> u64 {
        match exit {
            Exit::Hlt => self.vectors(),
            _ => 0,
        }
    }

    /// The group of the vectors, where it can be had.
    pub(super) const fn vectors(self) -> u64 {
        if self.offered { Groups::APIC } else { 0 }
    }

    /// Whether the processor has the vectors, so that who looks at them needs their group first.
    #[inline(always)]
    pub(super) const fn has_vectors(self) -> bool {
        !self.here
    }

    /// Who has the vectors is decided before the next entry.
    #[inline(always)]
    pub(super) const fn decide(&mut self) {
        self.due = true;
    }

    /// Whether there is anything to do at all.
    #[inline(always)]
    pub(super) const fn offered(self) -> bool {
        self.offered
    }
}

/// Whether a write of this MSR depends on vectors in service or requested, or decides who has them: IA32_APIC_BASE, EOI, SVR, LINT0.
pub(super) const fn looks_at_vectors(msr: u32) -> bool {
    matches!(msr, 0x1B | 0x80B | 0x80F | 0x835)
}

impl<K: Kernel> Machine<'_, K> {
    /// After an exit that has brought group APIC: the chipset sees all vectors.
    #[inline]
    pub(super) fn fetch_vectors(&mut self) {
        self.hardware.decide();
        if self.hardware.has_vectors() {
            self.hardware.here = true;
            self.stale = true;
            let state = self.kernel.state();
            let vectors = [state.apic_isr, state.apic_irr];
            if let Some(lapic) = self.chipset.lapic(CPU) {
                lapic.take_vectors(vectors);
            }
        }
    }

    /// Before an entry: the processor gets what it is to have.
    #[inline(always)]
    pub(super) fn hand_over(&mut self) {
        let given = self.hardware.on;
        if self.hardware.due || given && self.chipset.lapic(CPU).is_some_and(|l| l.moved()) {
            self.hand_over_what_is_new();
        }
    }

    #[inline(never)]
    fn hand_over_what_is_new(&mut self) {
        self.hardware.due = false;
        let Some(lapic) = self.chipset.lapic(CPU) else {
            return;
        };
        if !self.hardware.here {
            // What makes it unfit are accesses that have brought the vectors here.
            let ([_, new], level) = (lapic.give_vectors(), lapic.level_vectors());
            let state = self.kernel.state_mut();
            for (word, new) in state.apic_requests.vectors.iter_mut().zip(new) {
                *word |= new;
            }
            state.apic_level = level;
            self.dirty |= Groups::REQUESTS;
            return;
        }
        let fits = lapic.fits_hardware();
        if fits && !self.hardware.on {
            self.kernel.note(&Note::HardwareApic);
        }
        let state = self.kernel.state_mut();
        match (fits, self.hardware.on) {
            (true, _) => {
                [state.apic_isr, state.apic_irr] = lapic.give_vectors();
                state.apic_level = lapic.level_vectors();
                state.apic = 1;
                self.dirty |= Groups::APIC | Groups::REQUESTS;
                (self.hardware.on, self.hardware.here) = (true, false);
            }
            (false, true) => {
                state.apic = 0;
                self.dirty |= Groups::APIC;
                self.hardware.on = false;
            }
            (false, false) => {}
        }
    }

    /// The guest has ended a level-triggered interrupt. A line that has fallen must be seen to have before.
    #[cold]
    pub(super) fn end_of_interrupt(&mut self, vector: u8) -> Step {
        look(&mut self.devices, &mut self.chipset);
        self.stale = true;
        let effect = self.chipset.ended(CPU, vector);
        self.effect(effect)
    }
}
