//! From exit codes (APM vol. 2, appendix C) to the exits that both vendors share.

use super::control::{Vmcb, field as f};
use crate::arch::Cpu;
use crate::object::{Thread, Vcpu};
use crate::virt::{Left, Plain, Then, Who};
use ipc_schema::abi::vm::Exit;

mod code {
    pub const EXCEPTION_FIRST: u64 = 0x40;
    pub const MACHINE_CHECK: u64 = 0x52;
    pub const EXCEPTION_LAST: u64 = 0x5f;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const INIT: u64 = 0x63;
    pub const WRITE_CR0: u64 = 0x65;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const INVD: u64 = 0x76;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7a;
    pub const IOIO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const TASK_SWITCH: u64 = 0x7d;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const SKINIT: u64 = 0x86;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT_CONDITIONAL: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const NPF: u64 = 0x400;
    #[cfg(any(test, feature = "unproven"))]
    pub const AVIC_NOACCEL: u64 = 0x402;
}

/// Hands on what the guest left for. Ports and CPUID first: they are the frequent ones.
#[inline(always)]
pub fn decode<T: Then>((cpu, t, v): Who, c: Vmcb, then: T) -> T::Answer {
    let exit = c.word(f::EXITCODE).get();
    if exit == code::IOIO && c.word(f::EXITINFO1).get() & STRING_OR_REP == 0 {
        return then.then((cpu, t, v), Left::Port(port(c)));
    }
    if exit == code::CPUID {
        return then.then((cpu, t, v), Left::Exit(Exit::Cpuid, [0, 0, 0, length(c)]));
    }
    rest(cpu, t, v, exit, then)
}

#[inline(never)]
fn rest<T: Then>(cpu: &Cpu, t: &Thread, v: &Vcpu, exit: u64, then: T) -> T::Answer {
    then.then((cpu, t, v), other(v, Vmcb::of(v), exit))
}

/// Length of the instruction, where the processor saves the next rip; 0 elsewhere.
#[inline(always)]
fn length(c: Vmcb) -> u64 {
    let next = c.word(f::NEXT_RIP).get();
    if next == 0 {
        0
    } else {
        next.wrapping_sub(c.word(f::RIP).get()) & 15
    }
}

/// EXITINFO1 of a port access: INS or OUTS; REP.
const STRING_OR_REP: u64 = 0b1100;

/// A port access (15.10.2): EXITINFO1 has the type in bit 0, string and REP in 2 and 3, the size in bytes in 4 to 6 and the port from 16
/// on; EXITINFO2 is the next rip.
#[inline(always)]
fn port(c: Vmcb) -> Plain {
    let info = c.word(f::EXITINFO1).get();
    Plain {
        port: (info >> 16) as u16,
        width: (info >> 4) as u32 & 7,
        input: info & 1 != 0,
        next: c.word(f::EXITINFO2).get(),
    }
}

/// INS and OUTS.
fn string(c: Vmcb) -> Left {
    let (plain, info) = (port(c), c.word(f::EXITINFO1).get());
    // String 2 to 21, REP 3 to 22; address size 7..10 (2, 4, 8 bytes) to 24..28; segment: only decode assists tell.
    let more = (info & STRING_OR_REP) << 19 | ((info >> 7) & 7) << 25 | 15 << 28;
    Left::Exit(Exit::Port, [plain.access() | more, plain.next, 0, 0])
}

/// A machine check: the kernel's affair, and the VMM's if the guest cannot go on.
#[cold]
#[inline(never)]
fn machine_check(v: &Vcpu, c: Vmcb) -> Left {
    if crate::arch::guest_machine_check() {
        super::keep_shadow(v, c);
        Left::Interrupt
    } else {
        Left::Exit(Exit::Exception, [18, 0, 0, 0])
    }
}

#[inline(always)]
fn other(v: &Vcpu, c: Vmcb, exit: u64) -> Left {
    let (info1, info2) = (c.word(f::EXITINFO1).get(), c.word(f::EXITINFO2).get());
    let plain = |e| Left::Exit(e, [0, 0, 0, length(c)]);
    match exit {
        code::IOIO => string(c),
        code::HLT => plain(Exit::Hlt),
        code::MSR => plain(if info1 & 1 == 1 {
            Exit::Wrmsr
        } else {
            Exit::Rdmsr
        }),
        code::NPF => {
            #[cfg(any(test, feature = "unproven"))]
            super::newer::fetched(v, c);
            Left::Exit(Exit::NestedFault, [info2, info1, 0, 0])
        }
        // The machine's: taken when the guest has been left (NMI and SMI at STGI).
        code::INTR | code::NMI | code::SMI => {
            super::keep_shadow(v, c);
            Left::Interrupt
        }
        code::MACHINE_CHECK => machine_check(v, c),
        code::EXCEPTION_FIRST..=code::EXCEPTION_LAST => {
            let vector = exit - code::EXCEPTION_FIRST;
            let more = if vector == 14 {
                info2
            } else {
                c.word(f::DR6).get()
            };
            Left::Exit(Exit::Exception, [vector, info1, more, 0])
        }
        code::INIT => plain(Exit::Init),
        code::WRITE_CR0 => plain(Exit::WriteCr0),
        code::RDPMC => plain(Exit::Rdpmc),
        code::INVD | code::WBINVD => plain(Exit::Wbinvd),
        code::SHUTDOWN => plain(Exit::Shutdown),
        code::VMMCALL => plain(Exit::Vmcall),
        // RDPRU too: instructions that CPUID hides.
        code::VMRUN | code::INVLPGA | code::VMLOAD..=code::SKINIT | code::RDPRU => {
            plain(Exit::VmInstruction)
        }
        code::MONITOR..=code::MWAIT_CONDITIONAL => plain(Exit::Monitor),
        code::XSETBV => plain(Exit::Xsetbv),
        #[cfg(any(test, feature = "unproven"))]
        code::AVIC_NOACCEL => match super::newer::ended(info1, info2) {
            Some(vector) => Left::Exit(Exit::Eoi, [vector, 0, 0, 0]),
            None => Left::Exit(Exit::Other, [exit, info1, info2, 0]),
        },
        code::TASK_SWITCH => Left::Exit(Exit::TaskSwitch, [info1, info2, 0, 0]),
        // VMEXIT_INVALID, which some write as 32 bits.
        e if e as u32 == u32::MAX => {
            super::control::entry_failed(v);
            Left::Exit(Exit::EntryFailed, [e, info1, info2, 0])
        }
        e => Left::Exit(Exit::Other, [e, info1, info2, 0]),
    }
}
