//! Interrupts: from the lines to the chipset, from the chipset to the guest, and what came back undelivered.

use super::device::look;
use super::{CPU, End, Kernel, Machine, Step, signal};
use ipc_schema::abi::vm::{Event, Exit, ExitWord, Post};

/// Event types (AMD APM vol. 2, 15.20).
mod event_type {
    pub const INTERRUPT: u64 = 0;
    pub const NMI: u64 = 2;
    pub const EXCEPTION: u64 = 3;
    pub const SOFTWARE: u64 = 4;
}

const BREAKPOINT: u8 = 3;
const OVERFLOW: u8 = 4;

impl<K: Kernel> Machine<'_, K> {
    /// Works out what the next entry posts and until when it may last.
    #[inline(always)]
    pub(super) fn refresh(&mut self) {
        self.stale = false;
        if self.hardware.offered() {
            self.hand_over();
        }
        let mut post = match self.chipset.pending_any_tpr(CPU) {
            Some(pending) => Post::vector(pending.vector, pending.external),
            None => Post::NONE,
        };
        if let Some(vector) = self.held {
            post = Post::vector(vector, true);
        }
        self.expected = if post == Post::NONE {
            0
        } else {
            ExitWord::POST_PENDING
        };
        let cr8 = self.chipset.tpr(CPU) >> 4;
        if cr8 != self.cr8 {
            // Set once: on the next entry it is the guest's again.
            self.cr8 = cr8;
            post = post.with_cr8(cr8);
            self.stale = true;
        }
        self.expected |= u64::from(cr8) << ExitWord::CR8_SHIFT;
        self.post = post;
        self.deadline = self.chipset.next_deadline();
        if self.nmi {
            self.refresh_nmi();
        }
    }

    #[cold]
    fn refresh_nmi(&mut self) {
        if self.inject.0 == 0 {
            self.inject = Event::NMI;
            self.nmi = false;
        } else {
            self.stale = true;
        }
    }

    /// The guest took the posted interrupt, or changed its CR8.
    #[inline(never)]
    pub(super) fn interrupts_moved(&mut self, word: ExitWord) {
        if word.cr8() != self.cr8 {
            self.cr8 = word.cr8();
            self.chipset.set_tpr(CPU, self.cr8 << 4);
        }
        if !word.post_pending() {
            // What is held comes before what is pending.
            if self.held.take().is_none()
                && let Some((vector, external)) = self.post.delivers()
            {
                self.chipset.accept(CPU, vector, external);
            }
        }
        self.stale = true;
    }

    /// An event was not delivered: it is delivered again, unless executing the same instruction again makes it anew.
    #[cold]
    pub(super) fn undelivered(&mut self, word: ExitWord, event: Event) {
        let vector = event.0 as u8;
        let kind = event.0 >> 8 & 7;
        let exception = word.exit() == Exit::Exception;
        match kind {
            // The exception that cut the delivery short comes first; the interrupt then waits as a posted one.
            event_type::INTERRUPT if exception => {
                self.held = Some(vector);
                self.stale = true;
            }
            event_type::NMI if exception => {
                self.nmi = true;
                self.stale = true;
            }
            event_type::SOFTWARE => {}
            event_type::EXCEPTION if exception || vector == BREAKPOINT || vector == OVERFLOW => {}
            _ => self.inject = event,
        }
    }

    /// The Notification's bits came.
    #[inline(always)]
    pub(super) fn signalled(&mut self, bits: u64) -> Step {
        if bits & (signal::QUIT | signal::POWER) != 0 {
            self.pressed(bits)?;
        }
        self.stale |= look(&mut self.devices, &mut self.chipset);
        let effect = self.chipset.next_effect();
        self.effect(effect)
    }

    /// The same where it is not frequent.
    #[inline(never)]
    pub(super) fn also_signalled(&mut self, bits: u64) -> Step {
        self.signalled(bits)
    }

    /// Bits that no device sets.
    #[cold]
    fn pressed(&mut self, bits: u64) -> Step {
        if bits & signal::QUIT != 0 {
            return Err(End::Killed);
        }
        self.chipset.power_button();
        self.stale = true;
        Ok(())
    }

    /// A deadline came.
    #[inline(always)]
    pub(super) fn tick(&mut self) -> Step {
        self.chipset.tick(self.kernel.now());
        self.stale = true;
        let effect = self.chipset.next_effect();
        self.effect(effect)
    }
}
