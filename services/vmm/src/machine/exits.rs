//! Exits that concern the processor and memory.

use super::device::{Device, look_before_end};
use super::{CPU, End, Fatal, Kernel, Machine, Note, Step};
use crate::chipset::{Chipset, Effect, map};
use crate::cpu::{Dynamic, xcr};
use crate::emulate::{EmulateError, Exception, Expected, RF, Retired, Why, mmio, retire};
use crate::memory::GuestMemory;
use ipc_schema::abi::Status;
use ipc_schema::abi::vm::{Event, Exit, Groups, POSTED, VcpuState, gpr};

/// RFLAGS.IF.
const IF: u64 = 1 << 9;
/// DR6.BD, and DR7.GD: general detect.
const GENERAL_DETECT: u64 = 1 << 13;
/// CPUID leaf 1, edx: there is a local APIC.
const CPUID_APIC: u32 = 1 << 9;
/// CPUID leaf whose sizes follow XCR0.
const XSAVE_LEAF: u32 = 0xD;
/// Offset of the local APIC's EOI register.
pub(super) const EOI: u64 = 0xB0;

const DEBUG: u8 = 1;
const PAGE_FAULT: u8 = 14;
const MACHINE_CHECK: u8 = 18;
/// Exceptions that push an error code: 8, 10 to 14, 17, 21.
const WITH_ERROR: u32 = 1 << 8 | 0x1F << 10 | 1 << 17 | 1 << 21;

impl<K: Kernel> Machine<'_, K> {
    #[inline(always)]
    pub(super) fn cpuid(&mut self, length: u64) -> Step {
        if self.steps_blindly(Exit::Cpuid) {
            return self.widen(Exit::Cpuid);
        }
        if length != 0 {
            return self.cpuid_told(length);
        }
        let len = match self.length(0, Expected::Cpuid) {
            Ok(len) => len,
            Err(error) => return self.refuse(error, 0),
        };
        let state = self.kernel.state_mut();
        let (leaf, subleaf) = (state.gpr[gpr::RAX] as u32, state.gpr[gpr::RCX] as u32);
        let Some(&registers) = self.policy.constant(leaf, subleaf) else {
            return self.cpuid_of_state(leaf, subleaf, len);
        };
        self.answer_cpuid(registers, len)
    }

    /// The processor has told the length: rip is all that there is to know of the place, unless the instruction ends where 32-bit code
    /// begins anew.
    #[inline(always)]
    fn cpuid_told(&mut self, length: u64) -> Step {
        if !self.told {
            // From now on CPUID's exits bring what a processor that tells lengths leaves to know.
            self.told = true;
            self.ask(Exit::Cpuid)?;
        }
        let state = self.kernel.state_mut();
        let next = state.rip.wrapping_add(length);
        if (next ^ state.rip) >> 32 != 0 && self.wide & 1 << Exit::Cpuid as u32 == 0 {
            return self.widen(Exit::Cpuid);
        }
        let (leaf, subleaf) = (state.gpr[gpr::RAX] as u32, state.gpr[gpr::RCX] as u32);
        let Some(&registers) = self.policy.constant(leaf, subleaf) else {
            return self.cpuid_of_state(leaf, subleaf, length as u8);
        };
        if self.wide & 1 << Exit::Cpuid as u32 != 0 {
            return self.answer_cpuid(registers, length as u8);
        }
        give_cpuid(state, registers);
        state.rip = next;
        state.rflags &= !RF;
        state.shadow = 0;
        self.dirty |= Groups::RIP;
        Ok(())
    }

    #[inline(always)]
    fn answer_cpuid(&mut self, registers: [u32; 4], len: u8) -> Step {
        let state = self.kernel.state_mut();
        give_cpuid(state, registers);
        let retired = retire(state, len);
        self.retired(retired);
        Ok(())
    }

    /// A leaf that shows what the vCPU has switched on.
    #[inline(never)]
    fn cpuid_of_state(&mut self, leaf: u32, subleaf: u32, len: u8) -> Step {
        if leaf == XSAVE_LEAF || self.told {
            let asked = self.brings_xcr0;
            if let Err(status) = self.bring_xcr0(!asked) {
                return self.fatal(Fatal::Kernel(status));
            }
            if !asked {
                return Ok(());
            }
        }
        let state = self.kernel.state();
        let dynamic = Dynamic {
            apic_id: CPU,
            cr4: state.cr4,
            xcr0: state.xcr0,
        };
        let mut regs = self.policy.answer(leaf, subleaf, &dynamic);
        if leaf == 1 && !self.chipset.apic_enabled(CPU) {
            regs[3] &= !CPUID_APIC;
        }
        self.answer_cpuid(regs, len)
    }

    /// Whether CPUID's exits bring XCR0. The one leaf that needs it is asked for so seldom that the others need not pay for
    /// the group: the guest executes the instruction again and comes back with it. A copy kept at XSETBV would go stale on
    /// a processor that lets that through (QEMU 7.2).
    #[cold]
    fn bring_xcr0(&mut self, on: bool) -> Result<(), Status> {
        self.brings_xcr0 = on;
        self.kernel.on_exit(Exit::Cpuid, self.asked(Exit::Cpuid))
    }

    #[inline(always)]
    pub(super) fn nested_fault(&mut self, gpa: u64, error: u64, undelivered: Event) -> Step {
        if undelivered.0 != 0 {
            let event = undelivered.0;
            return self.fatal(Fatal::Delivery { event, gpa });
        }
        if self.steps_blindly(Exit::NestedFault) {
            return self.widen(Exit::NestedFault);
        }
        let wide = self.wide & 1 << Exit::NestedFault as u32 != 0;
        // One comparison: below are PCI's memory and places where nothing is.
        if gpa < map::PCI_END {
            return self.pci_fault(gpa, error, wide);
        }
        let mut bus = Mmio {
            now: self.kernel.now(),
            chipset: &mut self.chipset,
            memory: &self.memory,
            devices: &mut self.devices,
            effect: Effect::None,
            unmapped: None,
        };
        let done = mmio::emulate_at(
            &mut self.accesses,
            &self.memory,
            self.kernel.state_mut(),
            (gpa, error),
            wide,
            &mut bus,
        );
        let Mmio {
            effect, unmapped, ..
        } = bus;
        self.emulated(done, (effect, unmapped), gpa, wide)
    }

    /// What follows after an instruction that accessed a device in memory.
    #[inline(always)]
    pub(super) fn emulated(
        &mut self,
        done: Result<Retired, EmulateError>,
        (effect, unmapped): (Effect, Option<Note>),
        gpa: u64,
        wide: bool,
    ) -> Step {
        self.stale = true;
        if let Some(note) = unmapped {
            self.bounded_note(&note);
        }
        match done {
            Ok(retired) => self.retired(retired),
            Err(error) => {
                // What a string instruction has done is done.
                self.effect(effect)?;
                return match error {
                    EmulateError::Unsupported(what) if what.why == Why::Segment && !wide => {
                        self.widen(Exit::NestedFault)
                    }
                    _ => self.refuse(error, gpa),
                };
            }
        }
        self.effect(effect)
    }

    /// HLT: waits for an interrupt that the guest takes.
    #[inline(never)]
    pub(super) fn hlt(&mut self, length: u64) -> Step {
        self.skip(Exit::Hlt, length, Expected::Hlt)?;
        if self.dirty & Groups::RIP == 0 {
            // Not carried out: it comes again.
            return Ok(());
        }
        let enabled = self.kernel.state().rflags & IF != 0;
        self.fetch_vectors();
        loop {
            let effect = self.chipset.next_effect();
            self.effect(effect)?;
            // A single-step trap ends the halt at once too.
            let awake = self.inject.0 != 0
                || self.nmi
                || enabled && (self.held.is_some() || self.chipset.pending(CPU).is_some());
            if awake {
                self.stale = true;
                return Ok(());
            }
            if !enabled {
                self.kernel.note(&Note::Halted);
                return Err(End::Halted);
            }
            self.ring_held();
            match self.kernel.wait(self.chipset.next_deadline()) {
                Ok(bits) => {
                    self.also_signalled(bits)?;
                    if bits & POSTED != 0 {
                        // It is requested at the entry, where the vectors are; the guest may find that it has to wait for it still.
                        self.stale = true;
                        return Ok(());
                    }
                }
                Err(status) => return self.fatal(Fatal::Kernel(status)),
            }
            self.tick()?;
        }
    }

    /// The guest has nothing to do: what devices have put off until then is due.
    fn ring_held(&mut self) {
        for (number, device) in self.devices.iter().enumerate() {
            let mut held = device.held();
            while held != 0 {
                self.kernel.ring(number, held.trailing_zeros() as usize);
                held &= held - 1;
            }
        }
    }

    /// Moves on behind an instruction that has no effect.
    #[inline(never)]
    pub(super) fn skip(&mut self, exit: Exit, length: u64, expected: Expected) -> Step {
        if self.steps_blindly(exit) {
            return self.widen(exit);
        }
        match self.length(length, expected) {
            Ok(len) => {
                let retired = retire(self.kernel.state_mut(), len);
                self.retired(retired);
                Ok(())
            }
            Err(error) => self.refuse(error, 0),
        }
    }

    #[inline(never)]
    pub(super) fn xsetbv(&mut self, length: u64) -> Step {
        match xcr::xsetbv(self.kernel.state(), self.policy.xcr0_supported()) {
            Ok(value) => {
                self.skip(Exit::Xsetbv, length, Expected::Xsetbv)?;
                if self.dirty & Groups::RIP != 0 {
                    self.kernel.state_mut().xcr0 = value;
                    self.dirty |= Groups::XCR;
                }
                Ok(())
            }
            Err(_) => self.raise(Exception::GENERAL_PROTECTION),
        }
    }

    /// An exception that the kernel intercepts so that it cannot repeat for ever: the guest gets it as it is. The
    /// processor has put the new bits into DR6.
    #[inline(never)]
    pub(super) fn exception(&mut self, info: [u64; 3]) -> Step {
        let vector = info[0] as u8;
        let state = self.kernel.state_mut();
        match vector {
            MACHINE_CHECK => return self.fatal(Fatal::MachineCheck),
            // The handler can touch the debug registers: the processor clears GD on the way to it (Intel SDM vol. 3,
            // 18.2.4). DR6 and DR7 came with the exit.
            DEBUG if state.dr7 & GENERAL_DETECT != 0 => {
                state.dr7 &= !GENERAL_DETECT;
                self.dirty |= Groups::DR;
            }
            PAGE_FAULT => {
                state.cr2 = info[2];
                self.dirty |= Groups::CR;
            }
            _ => {}
        }
        let pushes = WITH_ERROR.checked_shr(vector.into()).unwrap_or(0) & 1 != 0;
        self.inject = Event::exception(vector, pushes.then_some(info[1] as u32));
        Ok(())
    }
}

/// CPUID's answer: eax, ebx, ecx, edx.
#[inline(always)]
fn give_cpuid(state: &mut VcpuState, [eax, ebx, ecx, edx]: [u32; 4]) {
    state.gpr[gpr::RAX] = eax.into();
    state.gpr[gpr::RBX] = ebx.into();
    state.gpr[gpr::RCX] = ecx.into();
    state.gpr[gpr::RDX] = edx.into();
}

/// What is at guest-physical addresses that are not mapped.
struct Mmio<'m, 'a> {
    chipset: &'m mut Chipset,
    memory: &'m GuestMemory,
    devices: &'m mut [Device<'a>],
    now: u64,
    effect: Effect,
    unmapped: Option<Note>,
}

impl Mmio<'_, '_> {
    /// RAM, for an access whose other half is a device's; else nothing.
    #[cold]
    fn read_elsewhere(&mut self, gpa: u64, width: u8) -> u64 {
        let mut bytes = [0; 8];
        let wanted = bytes.get_mut(..usize::from(width)).unwrap_or_default();
        if self.memory.read(gpa, wanted).is_ok() {
            return u64::from_le_bytes(bytes);
        }
        self.nothing(gpa, width, false);
        u64::MAX
    }

    #[cold]
    fn write_elsewhere(&mut self, gpa: u64, width: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let wanted = bytes.get(..usize::from(width)).unwrap_or_default();
        if self.memory.write(gpa, wanted).is_err() {
            self.nothing(gpa, width, true);
        }
    }

    fn nothing(&mut self, gpa: u64, width: u8, write: bool) {
        self.unmapped
            .get_or_insert(Note::Unmapped { gpa, width, write });
    }
}

impl mmio::Bus for Mmio<'_, '_> {
    #[inline]
    fn read(&mut self, gpa: u64, width: u8) -> u64 {
        match self.chipset.mmio_read(CPU, gpa, width, self.now) {
            Some(value) => value,
            None => self.read_elsewhere(gpa, width),
        }
    }

    #[inline]
    fn write(&mut self, gpa: u64, width: u8, value: u64) {
        if gpa & 0xFFF == EOI {
            look_before_end(self.devices, self.chipset);
        }
        match self.chipset.mmio_write(CPU, gpa, width, value, self.now) {
            Some(Effect::None) => {}
            Some(effect) => self.effect = effect,
            None => self.write_elsewhere(gpa, width, value),
        }
    }
}
