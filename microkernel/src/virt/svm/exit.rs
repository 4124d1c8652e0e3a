//! From exit codes (APM vol. 2, appendix C) to the exits that both vendors share.

use super::vmcb::{Vmcb, field as f};
use crate::object::Vcpu;
use crate::virt::Left;
use ipc_schema::abi::vm::{Exit, gpr};

mod code {
    pub const EXCEPTION_FIRST: u64 = 0x40;
    pub const EXCEPTION_LAST: u64 = 0x5f;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const INIT: u64 = 0x63;
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
}

/// What the guest left for. Ports and CPUID first: they are the frequent ones.
#[inline(always)]
pub fn decode(v: &Vcpu, c: Vmcb) -> Left {
    let exit = c.word(f::EXITCODE).get();
    if exit == code::IOIO {
        return port(v, c);
    }
    if exit == code::INTR {
        super::keep_shadow(v, c);
        return Left::Interrupt;
    }
    if exit == code::CPUID {
        return Left::Exit(Exit::Cpuid, [0, 0, 0, length(c)]);
    }
    other(v, c, exit)
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

/// IN, OUT, INS, OUTS (15.10.2): EXITINFO1 has type, size and port, EXITINFO2 the next rip.
#[inline(always)]
fn port(v: &Vcpu, c: Vmcb) -> Left {
    let info = c.word(f::EXITINFO1).get();
    let next = c.word(f::EXITINFO2).get();
    let width = (info >> 4) & 7;
    // IN 0 to 20, string 2 to 21, REP 3 to 22.
    let mut access = (info >> 16) & 0xffff | width << 16 | (info & 1) << 20;
    if info & 0b1100 != 0 {
        // Address size 7..10 (2, 4, 8 bytes) to 24..28; segment: only decode assists tell.
        access |= (info & 0b1100) << 19 | ((info >> 7) & 7) << 25 | 15 << 28;
        return Left::Exit(Exit::Port, [access, next, 0, 0]);
    }
    let value = if info & 1 != 0 {
        0
    } else {
        v.gpr(gpr::RAX).get() & (u64::MAX >> (64 - 8 * width.min(4)))
    };
    Left::Port {
        access,
        value,
        next,
    }
}

#[inline(never)]
fn other(v: &Vcpu, c: Vmcb, exit: u64) -> Left {
    let (info1, info2) = (c.word(f::EXITINFO1).get(), c.word(f::EXITINFO2).get());
    let plain = |e| Left::Exit(e, [0, 0, 0, length(c)]);
    match exit {
        code::HLT => plain(Exit::Hlt),
        code::MSR => plain(if info1 & 1 == 1 {
            Exit::Wrmsr
        } else {
            Exit::Rdmsr
        }),
        code::NPF => Left::Exit(Exit::NestedFault, [info2, info1, 0, 0]),
        // NMI and SMI are the machine's: taken when the guest has been left (STGI).
        code::NMI | code::SMI => {
            super::keep_shadow(v, c);
            Left::Interrupt
        }
        code::EXCEPTION_FIRST..=code::EXCEPTION_LAST => {
            let vector = exit - code::EXCEPTION_FIRST;
            if vector == 18 && crate::arch::guest_machine_check() {
                super::keep_shadow(v, c);
                return Left::Interrupt;
            }
            let more = if vector == 14 {
                info2
            } else {
                c.word(f::DR6).get()
            };
            Left::Exit(Exit::Exception, [vector, info1, more, 0])
        }
        code::INIT => plain(Exit::Init),
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
        code::TASK_SWITCH => Left::Exit(Exit::TaskSwitch, [info1, info2, 0, 0]),
        // VMEXIT_INVALID, which some write as 32 bits.
        e if e as u32 == u32::MAX => Left::Exit(Exit::EntryFailed, [e, info1, info2, 0]),
        e => Left::Exit(Exit::Other, [e, info1, info2, 0]),
    }
}
