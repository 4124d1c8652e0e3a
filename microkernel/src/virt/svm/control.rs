//! The virtual machine control block (AMD APM vol. 2, appendix B): layout and initial contents.

use crate::mem::{self, Global};
use crate::object::Vcpu;
use core::cell::Cell;

/// Offsets of fields in bytes. Control area below 0x400, state save area from there on.
#[allow(missing_docs, reason = "they are the manual's names")]
pub mod field {
    pub const INTERCEPT_EXCEPTIONS: usize = 0x008;
    pub const INTERCEPT_2: usize = 0x010;
    pub const IOPM_BASE: usize = 0x040;
    pub const MSRPM_BASE: usize = 0x048;
    pub const TSC_OFFSET: usize = 0x050;
    /// ASID in the lower half, TLB_CONTROL in bits 32 to 39.
    pub const ASID_TLB: usize = 0x058;
    /// V_TPR 0..8, V_IRQ 8, V_INTR_PRIO 16..20, V_IGN_TPR 20, V_INTR_MASKING 24, V_INTR_VECTOR 32..40.
    pub const V_INTR: usize = 0x060;
    pub const INTERRUPT_SHADOW: usize = 0x068;
    pub const EXITCODE: usize = 0x070;
    pub const EXITINFO1: usize = 0x078;
    pub const EXITINFO2: usize = 0x080;
    pub const EXITINTINFO: usize = 0x088;
    pub const NP_ENABLE: usize = 0x090;
    pub const EVENTINJ: usize = 0x0a8;
    pub const N_CR3: usize = 0x0b0;
    pub const NEXT_RIP: usize = 0x0c8;
    pub const ES: usize = 0x400;
    pub const CS: usize = 0x410;
    pub const SS: usize = 0x420;
    pub const DS: usize = 0x430;
    pub const FS: usize = 0x440;
    pub const GS: usize = 0x450;
    pub const GDTR: usize = 0x460;
    pub const LDTR: usize = 0x470;
    pub const IDTR: usize = 0x480;
    pub const TR: usize = 0x490;
    /// CPL is byte 3 of this word.
    pub const CPL_WORD: usize = 0x4c8;
    pub const EFER: usize = 0x4d0;
    pub const CR4: usize = 0x548;
    pub const CR3: usize = 0x550;
    pub const CR0: usize = 0x558;
    pub const DR7: usize = 0x560;
    pub const DR6: usize = 0x568;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
    pub const RSP: usize = 0x5d8;
    pub const RAX: usize = 0x5f8;
    pub const STAR: usize = 0x600;
    pub const LSTAR: usize = 0x608;
    pub const CSTAR: usize = 0x610;
    pub const SFMASK: usize = 0x618;
    pub const SYSENTER_EIP: usize = 0x638;
    pub const CR2: usize = 0x640;
    pub const G_PAT: usize = 0x668;
}

/// Physical addresses of the I/O permission map (all ports intercepted: routes are looked up in software) and of the MSR permission
/// map; the same for every VM.
pub static MAPS: Global<Cell<(u64, u64)>> = Global(Cell::new((0, 0)));

/// VMRUN does not load CR2, and does not see a virtual interrupt that the guest can take at once (Bochs 2.7), so each entry is an unusual
/// one. No processor that has decode assists is like that, and none that does not save the next RIP. A bit beyond TSC_AUX, or 0.
pub static BY_HAND: Global<Cell<u64>> = Global(Cell::new(0));

/// TLB_CONTROL that drops what is cached under the guest's own identifier (3, APM vol. 2, 15.16.2), or 0: there is none.
pub static FLUSH_OWN: Global<Cell<u64>> = Global(Cell::new(0));

/// EFER.SVME: must be set while a guest runs; the guest never sees it.
pub const SVME: u64 = 1 << 12;

/// A vCPU's VMCB. Taken once on each path, so that its address is not looked up field by field.
#[derive(Clone, Copy)]
pub struct Vmcb<'a>(&'a mem::Words);

impl<'a> Vmcb<'a> {
    /// The VMCB of `v`.
    #[inline(always)]
    pub fn of(v: &'a Vcpu) -> Self {
        // SAFETY: a page of the vCPU's own, for as long as it lives; only cells.
        Self(unsafe { &*(v.control_virt as *const mem::Words) })
    }

    /// The word at byte `offset`, one of [`field`].
    #[inline(always)]
    pub fn word(self, offset: usize) -> &'a Cell<u64> {
        &self.0.0[offset / 8 % 512]
    }
}

/// Physical interrupts, NMI, SMI, INIT (bits 0 to 3 of intercept vector 3), writes to CR0 of more than TS and MP (5), RDPMC (15), CPUID (18), INVD (22), HLT (24), INVLPGA, all
/// ports, MSRs by map, task switches (26 to 29), shutdown (31).
pub(super) const INTERCEPTS_1: u64 = 0xbd44_802f;
/// VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT (bits 0 to 6 of intercept vector 4), WBINVD, MONITOR, MWAIT, conditional MWAIT,
/// XSETBV, RDPRU (9 to 14).
pub(super) const INTERCEPTS_2: u64 = 0x7e7f;

/// The processor refused to enter. What it leaves in the state save area is undefined (QEMU 7.2: the host's own state), so nothing of
/// it is kept for the VMM to see: the vCPU is as after reset.
#[cold]
pub fn entry_failed(v: &Vcpu) {
    let words = (field::ES..=field::G_PAT).step_by(8);
    words.for_each(|at| Vmcb::of(v).word(at).set(0));
    create(v);
    // Nor does anything say whether it has flushed: a round begins with whoever is entered next, and not with the identifier that this has.
    v.flushes.set(0);
    crate::arch::Cpu::current().next_asid.set(u32::MAX);
}

/// The state after reset (APM vol. 2, 14.1.3), and the intercepts that every guest has.
pub fn create(v: &Vcpu) {
    use field::*;
    let c = Vmcb::of(v);
    let set = |at, value| c.word(at).set(value);
    set(
        INTERCEPT_EXCEPTIONS,
        crate::virt::EXCEPTIONS | INTERCEPTS_1 << 32,
    );
    set(INTERCEPT_2, INTERCEPTS_2);
    let (io, msr) = MAPS.get();
    set(IOPM_BASE, io);
    set(MSRPM_BASE, msr);
    set(V_INTR, 1 << 24);
    set(NP_ENABLE, 1);
    set(N_CR3, v.guest.table.root);
    let segment = |selector: u64, attributes: u64| selector | attributes << 16 | 0xffff << 32;
    for s in [ES, SS, DS, FS, GS] {
        set(s, segment(0, 0x93));
    }
    set(CS, segment(0xf000, 0x9b));
    set(CS + 8, 0xffff_0000);
    set(GDTR, 0xffff << 32);
    set(IDTR, 0xffff << 32);
    set(LDTR, segment(0, 0x82));
    set(TR, segment(0, 0x8b));
    set(EFER, SVME);
    set(CR0, 0x6000_0010);
    set(DR7, 0x400);
    set(DR6, 0xffff_0ff0);
    set(RFLAGS, 2);
    set(RIP, 0xfff0);
    set(G_PAT, 0x0007_0406_0007_0406);
    #[cfg(any(test, feature = "unproven"))]
    super::newer::create(v, c);
}
