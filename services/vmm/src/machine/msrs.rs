//! RDMSR and WRMSR.

use super::device::look_before_end;
use super::hardware_apic::looks_at_vectors;
use super::{CPU, End, Kernel, Machine, Note, Step};
use crate::chipset::{Chipset, Effect, map};
use crate::cpu::WriteEffect;
use crate::emulate::{Exception, Expected, retire};
use ipc_schema::abi::vm::{Exit, Groups, gpr};

/// RDTSCP's and RDPID's number of the processor (AMD APM vol. 2, 3.2.6).
const TSC_AUX: u32 = 0xC000_0103;

impl<K: Kernel> Machine<'_, K> {
    #[inline(never)]
    pub(super) fn rdmsr(&mut self, length: u64) -> Step {
        if self.steps_blindly(Exit::Rdmsr) {
            return self.widen(Exit::Rdmsr);
        }
        let len = match self.length(length, Expected::Rdmsr) {
            Ok(len) => len,
            Err(error) => return self.refuse(error, 0),
        };
        let now = self.kernel.now();
        let index = self.kernel.state().gpr[gpr::RCX] as u32;
        let value = if Chipset::owns_msr(index) {
            self.stale = true;
            let value = self.chipset.rdmsr(CPU, index, now).ok();
            match (index, value) {
                // As it was written: the way back from the machine's time would be rounded.
                (map::MSR_TSC_DEADLINE, Some(1..)) => Some(self.tsc_deadline),
                (_, value) => value,
            }
        } else {
            self.msrs
                .read(index, self.kernel.state(), self.rate.guest(now), 0)
                .ok()
        };
        let Some(value) = value else {
            self.bounded_note(&Note::RefusedMsr { index, value: None });
            return self.raise(Exception::GENERAL_PROTECTION);
        };
        let state = self.kernel.state_mut();
        state.gpr[gpr::RAX] = value & 0xFFFF_FFFF;
        state.gpr[gpr::RDX] = value >> 32;
        let retired = retire(state, len);
        self.retired(retired);
        Ok(())
    }

    #[inline(always)]
    pub(super) fn wrmsr(&mut self, length: u64) -> Step {
        if self.steps_blindly(Exit::Wrmsr) {
            return self.widen(Exit::Wrmsr);
        }
        let len = match self.length(length, Expected::Wrmsr) {
            Ok(len) => len,
            Err(error) => return self.refuse(error, 0),
        };
        let state = self.kernel.state();
        let index = state.gpr[gpr::RCX] as u32;
        let value = state.gpr[gpr::RAX] & 0xFFFF_FFFF | state.gpr[gpr::RDX] << 32;
        let now = self.kernel.now();
        // Every interrupt has one, if they make an exit.
        if index == map::MSR_X2APIC_EOI && !self.hardware.has_vectors() {
            return self.wrmsr_eoi(value, now, len);
        }
        if index != map::MSR_TSC_DEADLINE {
            return self.wrmsr_other(index, value, now, len);
        }
        // Once or twice for every tick of a guest's clock.
        let deadline = self.host_deadline(value, now);
        self.tsc_deadline = value;
        if self.chipset.set_tsc_deadline(CPU, deadline, now) {
            self.stale = true;
        } else {
            self.deadline = self.chipset.next_deadline();
        }
        let retired = retire(self.kernel.state_mut(), len);
        self.retired(retired);
        Ok(())
    }

    /// EOI while the vectors are here.
    #[inline(never)]
    fn wrmsr_eoi(&mut self, value: u64, now: u64, len: u8) -> Step {
        self.stale = true;
        self.hardware.decide();
        look_before_end(&mut self.devices, &mut self.chipset);
        let done = self.chipset.wrmsr(CPU, map::MSR_X2APIC_EOI, value, now);
        self.wrote(map::MSR_X2APIC_EOI, value, done.map_err(|_| ()), len)
    }

    #[inline(never)]
    fn wrmsr_other(&mut self, index: u32, value: u64, now: u64, len: u8) -> Step {
        let wants = index == TSC_AUX || self.hardware.has_vectors() && looks_at_vectors(index);
        if wants && !self.comes_with_all()? {
            return Ok(());
        }
        let done = if Chipset::owns_msr(index) {
            self.wrmsr_chipset(index, value, now)
        } else {
            let state = self.kernel.state_mut();
            let offset = state.tsc_offset;
            match self.msrs.write(index, value, state, self.rate.guest(now)) {
                Ok(WriteEffect::Groups(groups)) => {
                    self.dirty |= groups;
                    let moved = state.tsc_offset.wrapping_sub(offset);
                    if groups & Groups::TSC != 0 {
                        self.move_deadline(moved, now);
                    }
                    Ok(Effect::None)
                }
                // The chipset has taken APIC_BASE before it could come here.
                Ok(WriteEffect::None | WriteEffect::ApicBase(_)) => Ok(Effect::None),
                Err(_) => Err(()),
            }
        };
        self.wrote(index, value, done, len)
    }

    /// What follows after a WRMSR, done or refused.
    #[inline(always)]
    fn wrote(&mut self, index: u32, value: u64, done: Result<Effect, ()>, len: u8) -> Step {
        match done {
            Ok(effect) => {
                let retired = retire(self.kernel.state_mut(), len);
                self.retired(retired);
                self.effect(effect)
            }
            Err(()) => {
                let value = Some(value);
                self.bounded_note(&Note::RefusedMsr { index, value });
                self.raise(Exception::GENERAL_PROTECTION)
            }
        }
    }

    /// Some writes take more than the exit brings: the guest executes them again, with which everything comes; but for once only, since
    /// systems do so seldom, and write other registers for every interrupt. They are those that look at vectors while the processor has
    /// them; and TSC_AUX, which goes to the kernel together with XCR0: the guest may have set that without an exit (QEMU 7.2), and what
    /// was kept of it here must not go back.
    #[cold]
    fn comes_with_all(&mut self) -> Result<bool, End> {
        let wide = 1 << Exit::Wrmsr as u32;
        let came = self.wide & wide != 0;
        self.wide ^= wide;
        self.ask(Exit::Wrmsr)?;
        Ok(came)
    }

    #[inline(always)]
    fn wrmsr_chipset(&mut self, index: u32, value: u64, now: u64) -> Result<Effect, ()> {
        self.stale = true;
        if looks_at_vectors(index) {
            self.fetch_vectors();
        }
        if index == map::MSR_X2APIC_EOI {
            look_before_end(&mut self.devices, &mut self.chipset);
        }
        self.chipset.wrmsr(CPU, index, value, now).map_err(|_| ())
    }

    /// A TSC deadline of the guest's in the host's time; 0 disarms in both.
    #[inline]
    fn host_deadline(&self, deadline: u64, now: u64) -> u64 {
        if deadline == 0 {
            return 0;
        }
        let offset = self.kernel.state().tsc_offset;
        let guest_now = self.rate.guest(now).wrapping_add(offset);
        now.saturating_add(self.rate.host(deadline.saturating_sub(guest_now)))
            .max(1)
    }

    /// The guest's TSC has jumped by `moved`: an armed TSC deadline comes so much earlier (or later).
    fn move_deadline(&mut self, moved: u64, now: u64) {
        let Ok(armed @ 1..) = self.chipset.rdmsr(CPU, map::MSR_TSC_DEADLINE, now) else {
            return;
        };
        let moved = moved as i64;
        let by = self.rate.host(moved.unsigned_abs());
        let (earlier, later) = (armed.saturating_sub(by), armed.saturating_add(by));
        let new = if moved > 0 { earlier } else { later }.max(1);
        // It was accepted when it was armed; a refusal leaves it as it is.
        let _ = self.chipset.wrmsr(CPU, map::MSR_TSC_DEADLINE, new, now);
        self.stale = true;
    }
}
