//! An APIC whose vectors the processor keeps (AVIC, APICv): what goes there and comes back.

use super::vectors::Vectors;
use super::{Lapic, Mode};

/// Vectors as the state page has them: bit n % 64 of word n / 64 for vector n.
pub type Words = [u64; 4];

impl Lapic {
    /// Whether the processor can do it: in x2APIC mode, for an APIC that takes interrupts, and none beside its own through LINT0.
    pub fn fits_hardware(&self) -> bool {
        self.mode() == Mode::X2apic && self.enabled() && !self.takes_external()
    }

    /// Takes what is in service and what is requested out of the model: the processor has it.
    pub fn give_vectors(&mut self) -> [Words; 2] {
        let isr = core::mem::take(&mut self.isr).words();
        let irr = core::mem::take(&mut self.irr).words();
        self.update();
        [isr, irr]
    }

    /// Whether there is anything that the processor has not been given.
    #[inline]
    pub const fn moved(&self) -> bool {
        self.requested != 0 || self.level_moved
    }

    /// The processor's vectors come back to the model, beside what it has been asked for meanwhile.
    pub fn take_vectors(&mut self, [isr, irr]: [Words; 2]) {
        let asked = self.irr.words();
        self.isr = Vectors::from_words(isr);
        self.irr = Vectors::from_words(core::array::from_fn(|i| asked[i] | irr[i]));
        self.update();
    }

    /// Which vectors are level-triggered.
    pub fn level_vectors(&mut self) -> Words {
        self.level_moved = false;
        self.tmr.words()
    }
}
