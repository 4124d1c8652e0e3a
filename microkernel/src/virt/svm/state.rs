//! State groups: between the VMCB and the state page.

use super::vmcb::{SVME, Vmcb, field as f};
use crate::object::Vcpu;
use core::mem::offset_of;
use ipc_schema::abi::vm::{Groups, VcpuState as S};

/// Bits that a guest's EFER may have: SCE, LME, LMA, NXE, FFXSR.
const EFER_ALLOWED: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 14;
/// Debug control bits of DR7 that do something; bit 10 is always 1, the upper half must be 0.
const DR7_ALLOWED: u64 = 0xffff_2bff;

const SEGMENTS: [(usize, usize); 4] = [
    (offset_of!(S, es), f::ES),
    (offset_of!(S, cs), f::CS),
    (offset_of!(S, ss), f::SS),
    (offset_of!(S, ds), f::DS),
];
const DESCRIPTORS: [(usize, usize); 6] = [
    (offset_of!(S, fs), f::FS),
    (offset_of!(S, gs), f::GS),
    (offset_of!(S, ldtr), f::LDTR),
    (offset_of!(S, tr), f::TR),
    (offset_of!(S, gdtr), f::GDTR),
    (offset_of!(S, idtr), f::IDTR),
];
const SYSCALL: [(usize, usize); 8] = [
    (offset_of!(S, star), f::STAR),
    (offset_of!(S, lstar), f::LSTAR),
    (offset_of!(S, cstar), f::CSTAR),
    (offset_of!(S, sfmask), f::SFMASK),
    (offset_of!(S, kernel_gs_base), f::KERNEL_GS_BASE),
    (offset_of!(S, sysenter_cs), f::SYSENTER_CS),
    (offset_of!(S, sysenter_esp), f::SYSENTER_ESP),
    (offset_of!(S, sysenter_eip), f::SYSENTER_EIP),
];

/// State page to VMCB. What the processor would check at VMRUN it checks there; what it would not, and could hurt, is masked here.
#[inline(always)]
pub fn load(v: &Vcpu, groups: u64) {
    let (c, page) = (Vmcb::of(v), v.state());
    let get = |at: usize| page.0[at / 8].get();
    if groups & Groups::RIP != 0 {
        c.word(f::RIP).set(get(offset_of!(S, rip)));
        c.word(f::RFLAGS).set(get(offset_of!(S, rflags)));
        c.word(f::INTERRUPT_SHADOW)
            .set(get(offset_of!(S, shadow)) & 1);
    }
    if groups & !Groups::RIP != 0 {
        load_rare(v, groups);
    }
}

#[inline(never)]
fn load_rare(v: &Vcpu, groups: u64) {
    let (c, page) = (Vmcb::of(v), v.state());
    let get = |at: usize| page.0[at / 8].get();
    if groups & Groups::CR != 0 {
        c.word(f::CR0).set(get(offset_of!(S, cr0)));
        c.word(f::CR2).set(get(offset_of!(S, cr2)));
        c.word(f::CR3).set(get(offset_of!(S, cr3)));
        c.word(f::CR4).set(get(offset_of!(S, cr4)));
        c.word(f::EFER)
            .set((get(offset_of!(S, efer)) & EFER_ALLOWED) | SVME);
    }
    let pairs = |list: &[(usize, usize)]| {
        for &(page, control) in list {
            c.word(control).set(get(page));
            c.word(control + 8).set(get(page + 8));
        }
    };
    if groups & Groups::SEG != 0 {
        pairs(&SEGMENTS);
        c.word(f::RSP).set(get(offset_of!(S, rsp)));
        let cpl = c.word(f::CPL_WORD);
        cpl.set((cpl.get() & !(0xff << 24)) | (get(offset_of!(S, cpl)) & 3) << 24);
    }
    if groups & Groups::DESC != 0 {
        pairs(&DESCRIPTORS);
    }
    if groups & Groups::SYSCALL != 0 {
        for (page, control) in SYSCALL {
            c.word(control).set(get(page));
        }
    }
    if groups & Groups::PAT != 0 {
        c.word(f::G_PAT).set(get(offset_of!(S, pat)));
    }
    if groups & Groups::TSC != 0 {
        c.word(f::TSC_OFFSET).set(get(offset_of!(S, tsc_offset)));
    }
    if groups & Groups::DR != 0 {
        c.word(f::DR6).set(get(offset_of!(S, dr6)) & 0xffff_ffff);
        c.word(f::DR7)
            .set((get(offset_of!(S, dr7)) & DR7_ALLOWED) | 0x400);
        super::unusual(v);
    }
    if groups & (Groups::DR | Groups::XCR) != 0 {
        super::extended::load(v, groups);
    }
}

/// VMCB to state page.
#[inline(always)]
pub fn save(v: &Vcpu, c: Vmcb, groups: u64) {
    let page = v.state();
    let set = |at: usize, value| page.0[at / 8].set(value);
    if groups & Groups::RIP != 0 {
        set(offset_of!(S, rip), c.word(f::RIP).get());
        set(offset_of!(S, cs), c.word(f::CS).get());
        set(offset_of!(S, cs) + 8, c.word(f::CS + 8).get());
        set(offset_of!(S, rflags), c.word(f::RFLAGS).get());
        set(offset_of!(S, shadow), c.word(f::INTERRUPT_SHADOW).get() & 1);
        set(offset_of!(S, cpl), (c.word(f::CPL_WORD).get() >> 24) & 3);
    }
    if groups & Groups::CR != 0 {
        set(offset_of!(S, cr0), c.word(f::CR0).get());
        set(offset_of!(S, cr2), c.word(f::CR2).get());
        set(offset_of!(S, cr3), c.word(f::CR3).get());
        set(offset_of!(S, cr4), c.word(f::CR4).get());
        set(offset_of!(S, efer), c.word(f::EFER).get() & !SVME);
    }
    if groups & !(Groups::RIP | Groups::CR) != 0 {
        save_rare(v, groups);
    }
}

#[inline(never)]
fn save_rare(v: &Vcpu, groups: u64) {
    let (c, page) = (Vmcb::of(v), v.state());
    let set = |at: usize, value| page.0[at / 8].set(value);
    let pairs = |list: &[(usize, usize)]| {
        for &(page, control) in list {
            set(page, c.word(control).get());
            set(page + 8, c.word(control + 8).get());
        }
    };
    if groups & Groups::SEG != 0 {
        pairs(&SEGMENTS);
        set(offset_of!(S, rsp), c.word(f::RSP).get());
    }
    if groups & Groups::DESC != 0 {
        pairs(&DESCRIPTORS);
    }
    if groups & Groups::SYSCALL != 0 {
        for (page, control) in SYSCALL {
            set(page, c.word(control).get());
        }
    }
    if groups & Groups::PAT != 0 {
        set(offset_of!(S, pat), c.word(f::G_PAT).get());
    }
    if groups & Groups::TSC != 0 {
        set(offset_of!(S, tsc_offset), c.word(f::TSC_OFFSET).get());
    }
    if groups & Groups::DR != 0 {
        set(offset_of!(S, dr6), c.word(f::DR6).get());
        set(offset_of!(S, dr7), c.word(f::DR7).get());
    }
    if groups & (Groups::DR | Groups::XCR) != 0 {
        super::extended::save(v, groups);
    }
}
