//! State groups: between the VMCB and the state page.

use super::control::{SVME, Vmcb, field as f};
use crate::mem::Words;
use crate::object::Vcpu;
use crate::virt::{DR7_ALLOWED, unusual};
use core::cell::Cell;
use core::mem::offset_of;
use ipc_schema::abi::vm::{Groups, VcpuState as S};

/// Bits that a guest's EFER may have: SCE, LME, LMA, NXE, FFXSR.
const EFER_ALLOWED: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 14;
/// It counts when paging is switched on, which makes an exit: until then the processor need not know it. QEMU 7.2 does not get the host's
/// CR0 back from a guest with LME, but without PG and CR4.PAE.
const LME: u64 = 1 << 8;
/// Words that the state page and the VMCB have in common: first in the page, first in the VMCB, how many.
type Run = (usize, usize, usize);

const CR: [Run; 4] = [
    (offset_of!(S, cr0), f::CR0, 1),
    (offset_of!(S, cr2), f::CR2, 1),
    (offset_of!(S, cr3), f::CR3, 1),
    (offset_of!(S, cr4), f::CR4, 1),
];
/// ES, CS, SS, DS, two words each; RSP.
const SEG: [Run; 2] = [
    (offset_of!(S, es), f::ES, 8),
    (offset_of!(S, rsp), f::RSP, 1),
];
/// Groups that are rarely asked for.
const RARE: [(u64, &[Run]); 5] = [
    (
        Groups::DESC,
        &[
            (offset_of!(S, fs), f::FS, 2),
            (offset_of!(S, gs), f::GS, 2),
            (offset_of!(S, ldtr), f::LDTR, 2),
            (offset_of!(S, tr), f::TR, 2),
            (offset_of!(S, gdtr), f::GDTR, 2),
            (offset_of!(S, idtr), f::IDTR, 2),
        ],
    ),
    // To SYSENTER_EIP.
    (Groups::SYSCALL, &[(offset_of!(S, star), f::STAR, 8)]),
    (Groups::PAT, &[(offset_of!(S, pat), f::G_PAT, 1)]),
    (
        Groups::TSC,
        &[(offset_of!(S, tsc_offset), f::TSC_OFFSET, 1)],
    ),
    (
        Groups::DR,
        &[
            (offset_of!(S, dr6), f::DR6, 1),
            (offset_of!(S, dr7), f::DR7, 1),
        ],
    ),
];
const _: () = assert!(
    offset_of!(S, ds) - offset_of!(S, es) == f::DS - f::ES
        && offset_of!(S, sysenter_eip) - offset_of!(S, star) == f::SYSENTER_EIP - f::STAR
);

/// Copies each word of these runs, by `copy(in the page, in the VMCB)`.
#[inline(always)]
fn each(page: &Words, c: Vmcb, runs: &[Run], copy: impl Fn(&Cell<u64>, &Cell<u64>)) {
    for &(at, control, words) in runs {
        for i in 0..words {
            copy(&page.0[(at / 8 + i) % 512], c.word(control + 8 * i));
        }
    }
}

/// As [`each`], for the groups of [`RARE`].
#[inline(never)]
fn each_rare(v: &Vcpu, groups: u64, copy: impl Fn(&Cell<u64>, &Cell<u64>)) {
    for (_, runs) in RARE.iter().filter(|r| groups & r.0 != 0) {
        each(v.state(), Vmcb::of(v), runs, &copy);
    }
}

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
    #[cfg(any(test, feature = "unproven"))]
    super::newer::load(v, groups);
    let limit = |at, allowed: u64, always: u64| c.word(at).set(c.word(at).get() & allowed | always);
    let copy = |page: &Cell<u64>, control: &Cell<u64>| control.set(page.get());
    if groups & Groups::CR != 0 {
        each(page, c, &CR, copy);
        let paging = c.word(f::CR0).get() >> 31 & 1;
        let efer = get(offset_of!(S, efer)) & EFER_ALLOWED & !(LME & paging.wrapping_sub(1));
        c.word(f::EFER).set(efer | SVME);
        // What was translated by other registers is not to be found any more (APM vol. 2, 15.16.1): as by MOV to one of them.
        v.asid_round.set(0);
        unusual(v);
    }
    if groups & Groups::SEG != 0 {
        each(page, c, &SEG, copy);
        limit(
            f::CPL_WORD,
            !(0xff << 24),
            (get(offset_of!(S, cpl)) & 3) << 24,
        );
    }
    each_rare(v, groups, copy);
    if groups & Groups::DR != 0 {
        limit(f::DR6, 0xffff_ffff, 0);
        limit(f::DR7, DR7_ALLOWED, 0x400);
        unusual(v);
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
        each(page, c, &CR, |page, control| page.set(control.get()));
        set(offset_of!(S, efer), c.word(f::EFER).get() & !SVME);
    }
    if groups & !(Groups::RIP | Groups::CR) != 0 {
        save_rare(v, groups);
    }
}

#[inline(never)]
fn save_rare(v: &Vcpu, groups: u64) {
    let set = |at: usize, value| v.state().0[at / 8].set(value);
    let copy = |page: &Cell<u64>, control: &Cell<u64>| page.set(control.get());
    if groups & Groups::SEG != 0 {
        each(v.state(), Vmcb::of(v), &SEG, copy);
    }
    if groups & Groups::IP != 0 {
        set(offset_of!(S, rip), Vmcb::of(v).word(f::RIP).get());
        set(offset_of!(S, rflags), Vmcb::of(v).word(f::RFLAGS).get());
    }
    if groups & !(Groups::RIP | Groups::CR | Groups::SEG | Groups::IP) != 0 {
        each_rare(v, groups, copy);
        #[cfg(any(test, feature = "unproven"))]
        if groups & Groups::APIC != 0 {
            super::newer::save(v);
        }
        if groups & (Groups::DR | Groups::XCR) != 0 {
            super::extended::save(v, groups);
        }
    }
}
