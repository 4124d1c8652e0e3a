//! The virtual machine itself: one vCPU, one loop, one `match`.
//!
//! Job: run the guest, answer its exits, and end when it ends. Place: over the kernel's `run` (behind [`Kernel`]), with
//! [`crate::chipset`], [`crate::cpu`] and [`crate::emulate`] below; device servers are reached by exit routes that are
//! set up here, and heard through their interrupt pages. Trust: the guest and the device servers are hostile; the worst
//! that either can do is to end this VM.
//!
//! Time: the chipset is driven by the host's TSC. Only RDTSC and the TSC-deadline register know the guest's offset.
//!
//! What the hot path relies on: as long as nothing has touched the chipset ([`Machine::stale`] is clear), the posted
//! interrupt and the deadline of the last entry are still right, and the exit word says in one comparison whether the
//! guest has taken the interrupt or changed its CR8.

mod control;
mod device;
mod exits;
mod functions;
mod hardware_apic;
mod interrupts;
mod kernel;
mod msrs;
mod ports;
mod rate;
mod setup;
#[cfg(test)]
mod tests;

pub use device::Device;
pub use kernel::{Fatal, Kernel, Note, Ran};
pub use setup::{Parts, SetupError};

use crate::chipset::{Chipset, Effect};
use crate::cpu::{Msrs, Policy};
use crate::emulate::{self, EmulateError, Expected, Lengths, Retired, mmio};
use crate::memory::GuestMemory;
use alloc::vec::Vec;
use core::convert::Infallible;
use hardware_apic::Hardware;
use ipc_schema::abi::vm::{Event, Exit, ExitWord, Groups, Post};
use ipc_schema::proto::VmEnd;
use rate::Rate;

/// The only vCPU.
const CPU: u32 = 0;

/// Bits of the VMM's Notification.
pub mod signal {
    /// A device's line rose.
    pub const DEVICE: u64 = 1 << 0;
    /// The operator pressed the power button.
    pub const POWER: u64 = 1 << 1;
    /// The VM is to end at once.
    pub const QUIT: u64 = 1 << 2;
}

/// RFLAGS.TF.
const TF: u64 = 1 << 8;
/// DR6.BS.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// Bits of the exit word that tell of interrupts: posted vector waiting, CR8.
const WORD_MASK: u64 = ExitWord::POST_PENDING | 0xF << ExitWord::CR8_SHIFT;
/// How often in a row an instruction may not fit its exit.
const MAX_RETRIES: u32 = 10_000;
/// Notes of one kind that go to the log.
const MAX_NOTES: u32 = 16;

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// The guest halted for good: HLT with interrupts disabled.
    Halted,
    /// It was told to end.
    Killed,
    /// Triple fault.
    TripleFault,
    /// It wrote this to the debug-exit port.
    DebugExit(u32),
    /// It cannot go on; the log tells.
    Failed,
}

impl From<End> for VmEnd {
    fn from(end: End) -> Self {
        match end {
            // A halted guest waits for someone to switch it off.
            End::PowerOff | End::Halted => Self::PowerOff,
            End::Reset => Self::Reset,
            End::Killed => Self::Killed,
            End::TripleFault => Self::TripleFault,
            End::DebugExit(code) => Self::DebugExit(code),
            End::Failed => Self::Failed,
        }
    }
}

/// A step of the machine: done, or the end.
type Step = Result<(), End>;

/// One virtual machine.
pub struct Machine<'a, K: Kernel> {
    kernel: K,
    memory: GuestMemory,
    chipset: Chipset,
    policy: Policy,
    msrs: Msrs,
    devices: Vec<Device<'a>>,
    /// State groups that the next entry is to take.
    dirty: u64,
    /// Event of the next entry.
    inject: Event,
    /// Interrupt that the guest takes when it is ready.
    post: Post,
    /// Until when the guest may run.
    deadline: u64,
    /// `post` and `deadline` are to be worked out again.
    stale: bool,
    /// What [`WORD_MASK`] of the exit word is if nothing happened.
    expected: u64,
    /// An interrupt that the chipset has counted as taken, but whose delivery an exception cut short: comes first.
    held: Option<u8>,
    /// An NMI waits.
    nmi: bool,
    /// Whether the processor has the APIC's vectors.
    hardware: Hardware,
    /// Of its TSC.
    rate: Rate,
    /// TSC_DEADLINE as the guest has written it; 0 counts wherever the timer is not armed.
    tsc_deadline: u64,
    /// CR8 as the processor has it.
    cr8: u8,
    /// Where its exits were made last.
    lengths: Lengths,
    /// Where its accesses to devices in memory were made last.
    accesses: mmio::Sites,
    /// CPUID's exits bring group XCR.
    brings_xcr0: bool,
    /// The processor tells the length of CPUID.
    told: bool,
    /// Exits (by number) at which more groups are asked for, because the guest steps or uses INS or OUTS.
    wide: u32,
    retries: (u64, u32),
    lost: ports::Losses,
    /// Cycles that a device has for an answer.
    limit: u64,
    notes: u32,
}

/// The numbers of the frequent exits.
mod number {
    use super::Exit;
    pub const CPUID: u64 = Exit::Cpuid as u64;
    pub const NESTED_FAULT: u64 = Exit::NestedFault as u64;
    pub const PORT: u64 = Exit::Port as u64;
    pub const SIGNAL: u64 = Exit::Signal as u64;
    pub const TIMEOUT: u64 = Exit::Timeout as u64;
    pub const HLT: u64 = Exit::Hlt as u64;
    pub const RDMSR: u64 = Exit::Rdmsr as u64;
    pub const WRMSR: u64 = Exit::Wrmsr as u64;
}

impl<K: Kernel> Machine<'_, K> {
    /// Runs the guest until the VM's end.
    pub fn run(&mut self) -> End {
        match self.turns() {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    /// The kernel's side.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Into the guest and back, again and again. The handlers of frequent exits are inlined, each with a way round of its own.
    #[inline(always)]
    fn turns(&mut self) -> Result<Infallible, End> {
        loop {
            if self.stale {
                self.refresh();
            }
            let dirty = core::mem::take(&mut self.dirty);
            let inject = core::mem::take(&mut self.inject);
            let ran = match self.kernel.run(dirty, self.post, inject, self.deadline) {
                Ok(ran) => ran,
                Err(status) => {
                    self.fatal(Fatal::Kernel(status))?;
                    continue;
                }
            };
            if (ran.word.0 ^ self.expected) & WORD_MASK != 0 {
                self.interrupts_moved(ran.word);
            }
            if ran.undelivered.0 != 0 {
                self.undelivered(ran.word, ran.undelivered);
            }
            let [a, b, c] = ran.info;
            // By number: what it would take to make it a known exit is for those below.
            match ran.word.number() {
                number::CPUID => self.cpuid(ran.length)?,
                number::NESTED_FAULT => self.nested_fault(a, b, ran.undelivered)?,
                number::PORT => self.port(a, b)?,
                number::SIGNAL => self.signalled(a)?,
                number::TIMEOUT => self.tick()?,
                number::HLT => self.hlt(ran.length)?,
                number::RDMSR => self.rdmsr(ran.length)?,
                number::WRMSR => self.wrmsr(ran.length)?,
                _ => self.seldom(ran.word, ran.length, a, b, c)?,
            }
        }
    }

    /// The exits that are not frequent.
    #[inline(never)]
    fn seldom(&mut self, word: ExitWord, length: u64, a: u64, b: u64, c: u64) -> Step {
        let (exit, info) = (word.exit(), [a, b, c]);
        match exit {
            Exit::RouteLost => self.route_lost(info),
            Exit::Exception => self.exception(info),
            Exit::Xsetbv => self.xsetbv(length),
            Exit::WriteCr0 => self.write_cr0(),
            Exit::Eoi => self.end_of_interrupt(a as u8),
            Exit::Wbinvd => self.skip(exit, length, Expected::Wbinvd),
            Exit::Rdpmc => self.raise(emulate::Exception::GENERAL_PROTECTION),
            Exit::Vmcall | Exit::VmInstruction | Exit::Monitor => {
                self.raise(emulate::Exception::INVALID_OPCODE)
            }
            Exit::Shutdown => {
                self.kernel.note(&Note::Fatal(Fatal::Shutdown));
                Err(End::TripleFault)
            }
            Exit::TaskSwitch => self.fatal(Fatal::TaskSwitch(info)),
            Exit::EntryFailed => self.fatal(Fatal::EntryFailed(info)),
            Exit::Other => self.fatal(Fatal::Other(info)),
            // INIT of the machine's own processor: none of the guest's business. The others are dealt with already.
            Exit::Init
            | Exit::Cpuid
            | Exit::NestedFault
            | Exit::Port
            | Exit::Signal
            | Exit::Timeout
            | Exit::Hlt
            | Exit::Rdmsr
            | Exit::Wrmsr => Ok(()),
        }
    }

    /// State groups that the handler of an exit reads.
    const fn groups(exit: Exit) -> u64 {
        match exit {
            Exit::Signal
            | Exit::Timeout
            | Exit::Rdpmc
            | Exit::Vmcall
            | Exit::VmInstruction
            | Exit::Monitor
            | Exit::Init
            | Exit::Eoi => 0,
            // The kernel tells the next instruction.
            Exit::Port => Groups::RIP,
            // Not executed again if the device did it, so that there is no second chance to ask for more.
            Exit::RouteLost => Groups::RIP | Groups::DR,
            // Group RIP brings cs: enough to fetch the instruction.
            Exit::Cpuid | Exit::Hlt | Exit::Rdmsr | Exit::Wrmsr | Exit::Xsetbv | Exit::Wbinvd => {
                Groups::RIP | Groups::CR
            }
            Exit::NestedFault | Exit::WriteCr0 => emulate::GROUPS,
            Exit::Exception
            | Exit::Shutdown
            | Exit::TaskSwitch
            | Exit::EntryFailed
            | Exit::Other => Groups::ALL,
        }
    }

    /// State groups that are to come with an exit by now.
    fn asked(&self, exit: Exit) -> u64 {
        let mut groups = if exit == Exit::Cpuid && self.told && !self.brings_xcr0 {
            Groups::IP
        } else {
            Self::groups(exit) | self.hardware.groups(exit)
        };
        if self.wide & 1 << exit as u32 != 0 {
            groups |= emulate::GROUPS | Groups::DR | Groups::DESC | Groups::XCR;
            if exit == Exit::Wrmsr {
                groups |= self.hardware.vectors();
            }
        }
        if exit == Exit::Cpuid && self.brings_xcr0 {
            groups |= Groups::XCR;
        }
        groups
    }

    /// Asks for all groups that a handler could need at `exit`. The guest is then to be entered again without having
    /// moved: it executes the same instruction, and comes back with them.
    #[cold]
    fn widen(&mut self, exit: Exit) -> Step {
        self.wide |= 1 << exit as u32;
        self.ask(exit)
    }

    /// Tells the kernel which groups are to come with an exit from now on.
    #[cold]
    fn ask(&mut self, exit: Exit) -> Step {
        match self.kernel.on_exit(exit, self.asked(exit)) {
            Ok(()) => Ok(()),
            Err(status) => self.fatal(Fatal::Kernel(status)),
        }
    }

    /// Whether the guest single-steps and the exit did not bring the debug registers that this takes.
    #[inline(always)]
    fn steps_blindly(&self, exit: Exit) -> bool {
        self.kernel.state().rflags & TF != 0 && self.wide & 1 << exit as u32 == 0
    }

    /// Length of the instruction that made the exit, which is to be `expected`; `told`: by the processor, if not 0.
    #[inline(always)]
    fn length(&mut self, told: u64, expected: Expected) -> Result<u8, EmulateError> {
        if told != 0 {
            Ok(told as u8)
        } else {
            self.lengths
                .find(&self.memory, self.kernel.state(), expected)
        }
    }

    /// After an instruction that was carried out here: what single-stepping asks for.
    #[inline(always)]
    fn retired(&mut self, retired: Retired) {
        self.dirty |= Groups::RIP;
        if retired.single_step {
            self.trap();
        }
    }

    /// The trap after a single-stepped instruction; group DR is in the page.
    #[cold]
    fn trap(&mut self) {
        self.kernel.state_mut().dr6 |= DR6_SINGLE_STEP;
        self.dirty |= Groups::DR;
        self.inject = Event::exception(1, None);
    }

    /// Raises an exception at the guest's instruction.
    #[cold]
    fn raise(&mut self, exception: emulate::Exception) -> Step {
        if let Some(address) = exception.cr2 {
            self.kernel.state_mut().cr2 = address;
            self.dirty |= Groups::CR;
        }
        self.inject = exception.event();
        Ok(())
    }

    /// An instruction was not carried out.
    #[cold]
    fn refuse(&mut self, error: EmulateError, gpa: u64) -> Step {
        match error {
            EmulateError::Exception(exception) => {
                // A string instruction keeps the elements that it has done; those are general registers, always in the
                // page.
                self.raise(exception)
            }
            EmulateError::Unsupported(what) => self.fatal(Fatal::Unsupported { what, gpa }),
            EmulateError::Retry => {
                let rip = self.kernel.state().rip;
                self.retries = if self.retries.0 == rip {
                    (rip, self.retries.1 + 1)
                } else {
                    (rip, 0)
                };
                if self.retries.1 < MAX_RETRIES {
                    return Ok(());
                }
                self.fatal(Fatal::Stuck)
            }
        }
    }

    /// The VM cannot go on.
    #[cold]
    fn fatal(&mut self, why: Fatal) -> Step {
        self.kernel.note(&Note::Fatal(why));
        Err(End::Failed)
    }

    /// A note of which a guest could make as many as it likes.
    #[cold]
    fn bounded_note(&mut self, note: &Note) {
        if self.notes < MAX_NOTES {
            self.notes += 1;
            self.kernel.note(note);
        }
    }

    /// Carries out what the chipset asks for.
    #[inline]
    fn effect(&mut self, effect: Effect) -> Step {
        if effect == Effect::None {
            return Ok(());
        }
        self.more_effects(effect)
    }

    #[cold]
    fn more_effects(&mut self, mut effect: Effect) -> Step {
        loop {
            match effect {
                Effect::None => return Ok(()),
                Effect::PowerOff => return Err(End::PowerOff),
                // There is no firmware to begin at after INIT.
                Effect::Reset | Effect::InitCpu { cpu: CPU } => return Err(End::Reset),
                Effect::DebugExit(code) => return Err(End::DebugExit(code)),
                Effect::Ranges => self.reroute(),
                Effect::Nmi { cpu: CPU } => {
                    self.nmi = true;
                    self.stale = true;
                }
                Effect::Nmi { .. } | Effect::InitCpu { .. } | Effect::StartCpu { .. } => {}
            }
            effect = self.chipset.next_effect();
        }
    }
}
