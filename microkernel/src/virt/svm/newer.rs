//! What newer processors offer guests and no emulator shows; in the kernel with its feature `unproven` alone. The APIC in hardware is AVIC
//! in x2APIC mode (APM vol. 2, 15.29): TPR, PPR, EOI, ISR, TMR and IRR make no exit. ICR does, so that no table of APIC IDs is looked at.

#![cfg(any(test, feature = "unproven"))]

use super::control::{MAPS, Vmcb, field as f};
use super::{V_IRQ, extended};
use crate::arch::Cpu;
use crate::mem::{self, Obj, PAGE, Words};
use crate::object::Vcpu;
use crate::virt::{apic, unusual};
use core::cell::Cell;
use core::mem::offset_of;
use ipc_schema::abi::vm::{Groups, VcpuState as S, offers};

/// CPUID 8000_000A EDX (APM vol. 3, E.4.9).
#[allow(missing_docs, reason = "they are the manual's names")]
pub mod feature {
    pub const TSC_RATE: u32 = 1 << 4;
    pub const CLEAN: u32 = 1 << 5;
    pub const DECODE: u32 = 1 << 7;
    pub const AVIC: u32 = 1 << 13;
    pub const VIRTUAL_VMLOAD: u32 = 1 << 15;
    pub const X2AVIC: u32 = 1 << 18;
}
/// Fields of the VMCB, by their offsets in bytes (APM vol. 2, appendix B).
#[allow(missing_docs, reason = "they are the manual's names")]
pub mod field {
    pub const LBR_CONTROL: usize = 0x0b8;
    pub const CLEAN: usize = 0x0c0;
    /// Number of bytes, and the bytes.
    pub const GUEST_INSTRUCTION: usize = 0x0d0;
    pub const AVIC_BACKING_PAGE: usize = 0x0e0;
    pub const AVIC_PHYSICAL_TABLE: usize = 0x0f8;
}
/// Which of them the processor has. Written at boot alone; in the host's tests each has its own.
#[cfg(target_os = "none")]
pub static HAS: mem::Global<Cell<u32>> = mem::Global(Cell::new(0));
#[cfg(not(target_os = "none"))]
std::thread_local! {
    /// Which of them this test's processor has.
    pub static HAS: Cell<u32> = const { Cell::new(0) };
}

/// Whether it has all of these.
pub fn has(features: u32) -> bool {
    HAS.get() & features == features
}

/// Where the area for XSAVE is: behind the registers of the AVIC backing page, of which 0x530 is the last.
pub const AREA: u64 = 0x540;
/// Behind that, of 2,696 bytes at most: the guest's TSC ratio, 0 for the machine's; whether its APIC is in hardware.
const RATIO: usize = 0xff0 / 8;
const APIC: usize = 0xff8 / 8;
/// TPR.
const TPR: usize = 0x80 / 8;

/// V_INTR: AVIC, its x2APIC mode.
const AVIC_ENABLE: u64 = 1 << 31;
const X2AVIC_ENABLE: u64 = 1 << 30;
/// EXITINFO1 of AVIC_NOACCEL: a write, of the register at 0xb0 (15.29.9.2).
const EOI_WRITE: u64 = 1 << 32 | 0xb0;
/// All clean but V_TPR and what goes with it (15.15.3), which `arm` writes.
const ALL_BUT_TPR: u64 = 0xff7;
/// MSR: the guest's TSC cycles for one of the machine's, 8.32 bits.
const TSC_RATIO: u32 = 0xc000_0104;
const ONE: u64 = 1 << 32;

/// The AVIC backing page, and what is kept behind it.
fn page(v: &Vcpu) -> &Words {
    // SAFETY: a page of the vCPU's own, for as long as it lives; only cells.
    unsafe { mem::page(v.extended_phys) }
}
fn in_hardware(v: &Vcpu) -> bool {
    page(v).0[APIC].get() != 0
}
/// The MSR permission map: behind the one for all others comes that of guests whose APIC is in hardware, and then a table without entries.
fn maps(apic: bool) -> u64 {
    MAPS.get().1 + 2 * PAGE * u64::from(apic)
}

/// A vCPU's control block.
pub fn create(v: &Vcpu, c: Vmcb) {
    let page = page(v);
    for i in [0, 3] {
        // There is nothing in the backing page where FCW and MXCSR have been.
        if page.0[i].get() != 0 {
            page.0[AREA as usize / 8 + i].set(page.0[i].take());
        }
    }
    page.0[APIC].set(0);
    c.word(field::AVIC_BACKING_PAGE).set(v.extended_phys);
    c.word(field::AVIC_PHYSICAL_TABLE)
        .set(maps(true) + 2 * PAGE);
    // VMLOAD and VMSAVE are intercepted; should they not be, they use the guest's addresses (15.33.1).
    let translated = u64::from(has(feature::VIRTUAL_VMLOAD)) << 1;
    c.word(field::LBR_CONTROL).set(translated);
    let offer = |features, offer| if has(features) { offer } else { 0 };
    let all = offer(feature::AVIC | feature::X2AVIC, offers::X2APIC)
        | offer(feature::TSC_RATE, offers::TSC_RATIO)
        | offer(feature::DECODE, offers::BYTES);
    v.state().0[offset_of!(S, offers) / 8].set(all);
}

/// State page to VMCB and backing page. Whatever the group, something that may be said to be clean is another.
pub fn load(v: &Vcpu, groups: u64) {
    unusual(v);
    let get = |at: usize| v.state().0[at / 8].get();
    if groups & Groups::TSC != 0 {
        // Integer part of 8 bits instead of 16, fraction of 32 instead of 48.
        let ratio = get(offset_of!(S, tsc_ratio)) >> 16 & 0xff_ffff_ffff;
        page(v).0[RATIO].set(ratio);
        let cpu = Cpu::current();
        if cpu.fpu_owner.get() == Some(Obj::of(v)) {
            // It becomes the owner again, with this.
            extended::release(cpu);
        }
    }
    if groups & Groups::APIC != 0 {
        let on = get(offset_of!(S, apic)) & 1 != 0 && has(feature::AVIC | feature::X2AVIC);
        page(v).0[APIC].set(on.into());
        apic::load(v, page(v));
    }
    if groups & (Groups::APIC | Groups::REQUESTS) != 0 && in_hardware(v) {
        let _ = apic::request(v, page(v), false, |_, _| {});
    }
}

/// Backing page to state page.
pub fn save(v: &Vcpu) {
    if in_hardware(v) {
        apic::save(v, page(v));
    }
}

/// V_INTR with AVIC, for a guest whose APIC is in hardware. AVIC does not look at a posted vector: while there is one, it is off, and
/// the guest's accesses make exits.
pub fn arm(v: &Vcpu, c: Vmcb, post: u64, intr: u64) -> u64 {
    let (tpr, on) = (&page(v).0[TPR], in_hardware(v) && intr & V_IRQ == 0);
    if post & 1 << 44 != 0 {
        tpr.set((intr & 15) << 4);
    }
    let map = maps(on);
    if c.word(f::MSRPM_BASE).replace(map) != map {
        unusual(v);
    }
    match (on, in_hardware(v)) {
        (true, _) => intr | AVIC_ENABLE | X2AVIC_ENABLE,
        (_, true) => intr & !15 | tpr.get() >> 4 & 15,
        _ => intr,
    }
}

/// V_INTR after an exit, with the guest's CR8.
pub fn left(v: &Vcpu, intr: u64) -> u64 {
    let tpr = &page(v).0[TPR];
    if intr & AVIC_ENABLE != 0 {
        return intr & !15 | tpr.get() >> 4 & 15;
    }
    if in_hardware(v) {
        tpr.set((intr & 15) << 4);
    }
    intr
}

/// An entry with something rare about it: before, and after.
pub fn enters(c: Vmcb) {
    c.word(field::CLEAN).set(0);
}
/// See there.
pub fn has_left(c: Vmcb) {
    if has(feature::CLEAN) {
        c.word(field::CLEAN).set(ALL_BUT_TPR);
    }
}

/// `v` becomes the owner of the extended state. What this processor has of its control block may be of another time.
pub fn switch(v: &Vcpu) {
    if has(feature::TSC_RATE) {
        let ratio = page(v).0[RATIO].get();
        extended::set_msr(TSC_RATIO, if ratio == 0 { ONE } else { ratio });
    }
}

/// AVIC_NOACCEL: the vector of the level-triggered interrupt that has ended, which the instruction is done with.
pub fn ended(info1: u64, info2: u64) -> Option<u64> {
    (info1 & (1 << 32 | 0xff0) == EOI_WRITE).then_some(info2 & 0xff)
}

/// The bytes of the instruction that a nested page fault interrupted (15.8.4), as the state page has them.
pub fn fetched(v: &Vcpu, c: Vmcb) {
    if has(feature::DECODE) {
        for i in [0, 8] {
            let word = c.word(field::GUEST_INSTRUCTION + i).get();
            v.state().0[(offset_of!(S, fetched) + i) / 8].set(word);
        }
    }
}
