//! From exit reasons (SDM vol. 3, appendix C) to the exits that both vendors share.

use super::control::{self, read, write};
use super::{BLOCKING, KIND, NMI, NMI_BLOCKED, RIP, Soft, VALID, unusual};
use crate::arch::{Cpu, measure};
use crate::exit::route;
use crate::mem::Obj;
use crate::object::{Thread, Vcpu};
use crate::virt::{Left, Plain, Then, Who};
use ipc_schema::abi::vm::{Event, Exit};
use x86::vmx::vmcs::{control as c, guest as g, ro};

mod reason {
    pub const EXCEPTION: u64 = 0;
    pub const INTERRUPT: u64 = 1;
    pub const TRIPLE_FAULT: u64 = 2;
    pub const INIT: u64 = 3;
    pub const INTERRUPT_WINDOW: u64 = 7;
    pub const NMI_WINDOW: u64 = 8;
    pub const TASK_SWITCH: u64 = 9;
    pub const CPUID: u64 = 10;
    pub const GETSEC: u64 = 11;
    pub const HLT: u64 = 12;
    pub const INVD: u64 = 13;
    pub const RDPMC: u64 = 15;
    pub const VMCALL: u64 = 18;
    pub const VMCLEAR: u64 = 19;
    pub const VMXON: u64 = 27;
    pub const CR: u64 = 28;
    pub const IO: u64 = 30;
    pub const RDMSR: u64 = 31;
    pub const WRMSR: u64 = 32;
    pub const MWAIT: u64 = 36;
    pub const MONITOR: u64 = 39;
    pub const TPR: u64 = 43;
    pub const VIRTUALIZED_EOI: u64 = 45;
    pub const EPT_VIOLATION: u64 = 48;
    pub const INVEPT: u64 = 50;
    pub const PREEMPTION_TIMER: u64 = 52;
    pub const INVVPID: u64 = 53;
    pub const WBINVD: u64 = 54;
    pub const XSETBV: u64 = 55;
    pub const VMFUNC: u64 = 59;
}

/// Bit of an exit reason: the guest was not entered.
pub const REFUSED: u64 = 1 << 31;

/// Type of what INT1 makes.
const INT1: u64 = 5 << 8;

/// Hands on what the guest left for. Ports and CPUID first: they are the frequent ones.
#[inline(always)]
pub fn decode<T: Then>((cpu, t, v): Who, failed: bool, then: T) -> T::Answer {
    if failed {
        let why = refused(v, read(ro::VM_INSTRUCTION_ERROR));
        return then.then((cpu, t, v), Left::Exit(Exit::EntryFailed, why));
    }
    let exit = read(ro::EXIT_REASON);
    // Nothing that was known is.
    Soft::of(v).marks.set(0);
    measure::begin(cpu, measure::Cause::Exit(exit));
    if exit == reason::IO {
        let info = read(ro::EXIT_QUALIFICATION);
        if info & STRING_OR_REP == 0 {
            return then.then((cpu, t, v), Left::Port(port(v, info)));
        }
    }
    if exit == reason::CPUID {
        Soft::of(v).look();
        return then.then((cpu, t, v), Left::Exit(Exit::Cpuid, [0, 0, 0, length()]));
    }
    rest(cpu, t, v, exit, then)
}

#[inline(never)]
fn rest<T: Then>(cpu: &Cpu, t: &Thread, v: &Vcpu, exit: u64, then: T) -> T::Answer {
    let left = match other(v, exit) {
        Some((exit, info)) => Left::Exit(exit, info),
        None => Left::Interrupt,
    };
    then.then((cpu, t, v), left)
}

/// What is for the VMM.
type Told = Option<(Exit, [u64; 4])>;

/// [`route::complete`], apart.
#[inline(never)]
pub fn complete(t: Obj<Thread>, value: u64) {
    route::complete::<super::BackEnd>(t, value);
}

/// Length of the instruction.
#[inline(always)]
fn length() -> u64 {
    read(ro::VMEXIT_INSTRUCTION_LEN)
}

/// Qualification of a port access (28.2.1, table 28-5): INS or OUTS; REP.
const STRING_OR_REP: u64 = 0b11 << 4;

/// A port access: its qualification has the size less 1 in bits 0 to 2, whether it is an IN in 3, string and REP in 4 and 5, the port
/// from 16 on.
#[inline(always)]
fn port(v: &Vcpu, info: u64) -> Plain {
    Plain {
        port: (info >> 16) as u16,
        width: (info as u32 & 7) + 1,
        input: info & 8 != 0,
        next: Soft::of(v).look() + length(),
    }
}

/// INS and OUTS. What the instruction information has of them (table 28-8): address size in bits 7 to 9, as a power of two of 2 bytes;
/// segment in 15 to 17.
fn string(v: &Vcpu) -> Told {
    let info = read(ro::EXIT_QUALIFICATION);
    let more = read(ro::VMEXIT_INSTRUCTION_INFO);
    let plain = port(v, info);
    let segment = if plain.input { 0 } else { more >> 15 & 7 };
    let word =
        plain.access() | (info & STRING_OR_REP) << 17 | 2 << (more >> 7 & 3) << 24 | segment << 28;
    Some((Exit::Port, [word, plain.next, 0, 0]))
}

/// The processor refused to enter, for `why`. The vCPU is as after reset, as on SVM.
#[cold]
#[inline(never)]
fn refused(v: &Vcpu, why: u64) -> [u64; 4] {
    let info = read(ro::EXIT_QUALIFICATION);
    let s = Soft::of(v);
    let event = s.event.get();
    control::reset_guest();
    s.reset_guest();
    unusual(v);
    // Only an exit takes it back.
    write(c::VMENTRY_INTERRUPTION_INFO_FIELD, 0);
    s.event.set(event);
    [why, info, 0, 0]
}

/// The event whose delivery the exit interrupted, if there is one: it is delivered at the next entry, or told to the VMM.
#[cold]
fn interrupted_delivery(v: &Vcpu) -> bool {
    let info = read(ro::IDT_VECTORING_INFO);
    if info & VALID == 0 {
        return false;
    }
    let s = Soft::of(v);
    // Software exceptions (5, 6) are exceptions to the ABI.
    let kind = match info >> 8 & 7 {
        5 | 6 => 3,
        kind => kind,
    };
    let error = if info & 1 << 11 != 0 {
        read(ro::IDT_VECTORING_ERR_CODE) << 32 | 1 << 11
    } else {
        0
    };
    if info & KIND == NMI {
        // Its delivery blocks NMIs again (28.2.4).
        s.set(v, BLOCKING, s.get(BLOCKING) & !NMI_BLOCKED);
    }
    s.event.set(info & 0xff | kind << 8 | VALID | error);
    unusual(v);
    true
}

/// An IRET that faulted had ended the blocking of NMIs (28.2.3): it is in force again.
fn block_nmi_again(v: &Vcpu, info: u64, delivering: bool) {
    let s = Soft::of(v);
    if info & 1 << 12 != 0 && !delivering {
        s.set(v, BLOCKING, s.get(BLOCKING) | NMI_BLOCKED);
    }
}

/// An exception, or an NMI of the machine's.
fn exception(v: &Vcpu) -> Told {
    let info = read(ro::VMEXIT_INTERRUPTION_INFO);
    if info & KIND == NMI {
        // The processor has taken it, and lets no other in until an IRET: as if it came here.
        #[cfg(target_os = "none")]
        // SAFETY: its handler returns by IRET.
        unsafe {
            core::arch::asm!("int 2");
        }
        return None;
    }
    let delivering = interrupted_delivery(v);
    let vector = info & 0xff;
    if vector == 18 && crate::arch::guest_machine_check() {
        return None;
    }
    block_nmi_again(v, info, delivering);
    let error = if info & 1 << 11 != 0 {
        read(ro::VMEXIT_INTERRUPTION_ERR_CODE)
    } else {
        0
    };
    let mut more = read(ro::EXIT_QUALIFICATION);
    if vector == 1 {
        let mut dr6 = control::dr6();
        if info & KIND == INT1 {
            // A trap, which leaves rip behind the instruction; the exit has it before.
            let s = Soft::of(v);
            s.set(v, RIP, s.get(RIP) + length());
        } else {
            // The processor does not touch DR6 for an exception that is intercepted (28.2.1, table 28-1).
            dr6 = dr6 & !15 | more & 0x600f;
            control::set_dr6(dr6);
        }
        more = dr6;
    }
    Some((Exit::Exception, [vector, error, more, 0]))
}

/// A write of CR0 or CR4 that would change a bit that the guest has only in its own eyes. It sees the change from now on, and executes
/// the instruction again, which does what else it does. Bits that it cannot have are a general-protection fault.
fn control_register(v: &Vcpu) -> Told {
    let info = read(ro::EXIT_QUALIFICATION);
    let register = (info >> 8 & 15) as usize;
    let value = if register == 4 {
        read(g::RSP)
    } else {
        v.gpr(register).get()
    };
    // Only moves to CR0 and CR4 come here: CLTS and LMSW touch no such bit, and exits for CR3 and CR8 are off.
    let (shadow, shadowed) = if info & 15 == 4 {
        (c::CR4_READ_SHADOW, control::CR4_SHADOWED)
    } else {
        (c::CR0_READ_SHADOW, control::CR0_SHADOWED)
    };
    let old = read(shadow);
    let new = old & !shadowed | value & shadowed;
    // NW without CD, too (SDM vol. 3, 2.5).
    if info & 0x3f > 4 || new == old || new >> 29 & 3 == 1 {
        Soft::of(v).event.set(Event::exception(13, Some(0)).0);
        unusual(v);
    } else {
        write(shadow, new);
    }
    None
}

/// EPT violation (table 28-7) to nested page fault.
fn nested_fault(v: &Vcpu) -> Told {
    let delivering = interrupted_delivery(v);
    let info = read(ro::EXIT_QUALIFICATION);
    block_nmi_again(v, info, delivering);
    let present = u64::from(info & 0b11_1000 != 0);
    let place = match info >> 7 & 3 {
        0b11 => 1 << 32,
        _ => 1 << 33,
    };
    let error = present | info & 2 | (info & 4) << 2 | place;
    let address = read(ro::GUEST_PHYSICAL_ADDR_FULL);
    Some((Exit::NestedFault, [address, error, 0, 0]))
}

/// Task switch (table 28-2): selector, and why; where SVM has it.
fn task_switch(v: &Vcpu) -> Told {
    interrupted_delivery(v);
    let info = read(ro::EXIT_QUALIFICATION);
    let why = match info >> 30 & 3 {
        1 => 1 << 36,
        2 => 1 << 38,
        _ => 0,
    };
    Some((Exit::TaskSwitch, [info & 0xffff, why, 0, 0]))
}

#[inline(never)]
fn other(v: &Vcpu, exit: u64) -> Told {
    let plain = |e| {
        Soft::of(v).look();
        Some((e, [0, 0, 0, length()]))
    };
    match exit {
        reason::EXCEPTION => exception(v),
        // The machine's: taken when the guest has been left.
        reason::INTERRUPT => {
            #[cfg(any(test, feature = "unproven"))]
            super::newer::posted::acknowledged();
            None
        }
        reason::IO => string(v),
        reason::HLT => plain(Exit::Hlt),
        reason::RDMSR => plain(Exit::Rdmsr),
        reason::WRMSR => plain(Exit::Wrmsr),
        reason::EPT_VIOLATION => nested_fault(v),
        reason::INTERRUPT_WINDOW | reason::NMI_WINDOW | reason::TPR => {
            unusual(v);
            None
        }
        reason::PREEMPTION_TIMER => {
            // It may have been set for less than the whole time: again for the rest.
            Cpu::current().until.set(0);
            None
        }
        reason::CR => control_register(v),
        reason::TRIPLE_FAULT => Some((Exit::Shutdown, [0; 4])),
        reason::INIT => Some((Exit::Init, [0; 4])),
        reason::RDPMC => plain(Exit::Rdpmc),
        reason::INVD | reason::WBINVD => plain(Exit::Wbinvd),
        reason::VMCALL => plain(Exit::Vmcall),
        reason::GETSEC
        | reason::VMCLEAR..=reason::VMXON
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC => plain(Exit::VmInstruction),
        reason::MONITOR | reason::MWAIT => plain(Exit::Monitor),
        reason::XSETBV => plain(Exit::Xsetbv),
        reason::TASK_SWITCH => task_switch(v),
        reason::VIRTUALIZED_EOI => {
            Some((Exit::Eoi, [read(ro::EXIT_QUALIFICATION) & 0xff, 0, 0, 0]))
        }
        e if e & REFUSED != 0 => Some((Exit::EntryFailed, refused(v, e))),
        e => Some((Exit::Other, [e, read(ro::EXIT_QUALIFICATION), 0, 0])),
    }
}

#[cfg(not(target_os = "none"))]
pub mod check {
    //! The guest of the host's tests.
    use super::super::control::poke;
    use super::{reason, ro};
    use std::cell::Cell;

    std::thread_local! {
        /// The reason for which it leaves next, its rip and its flags.
        pub static NEXT: Cell<(u64, Option<[u64; 2]>)> = const { Cell::new((reason::HLT, None)) };
        /// What others do while it runs: once.
        pub static DURING: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
        /// The reason for which it leaves after that.
        pub static THEN: Cell<Option<u64>> = const { Cell::new(None) };
    }
    /// It leaves.
    pub fn exits() {
        if let Some(what) = DURING.take() {
            what();
        }
        let (reason, place) = NEXT.get();
        poke(ro::EXIT_REASON, reason);
        poke(ro::VMEXIT_INSTRUCTION_LEN, 2);
        if let Some([rip, flags]) = place {
            poke(super::g::RIP, rip);
            poke(super::g::RFLAGS, flags);
        }
        if let Some(then) = THEN.take() {
            NEXT.set((then, place));
        }
    }
}
