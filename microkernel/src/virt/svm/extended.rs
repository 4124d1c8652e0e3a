//! What VMRUN does not switch: x87/SSE/AVX state, PKRU, XCR0, DR0 to DR3. It stays in the processor until another vCPU needs it, out of
//! reach of user level. TSC_AUX, which user level can always read, is the guest's only while it runs, if it is not 0.
//!
//! The kernel and the servers use none of it (soft-float, CR0.TS set), so nothing of theirs can be there.

pub use crate::arch::extended::{arm_breakpoints, disarm_breakpoints, set_cr2, set_tsc_aux};
use crate::arch::{Cpu, extended as hw};
use crate::mem::Obj;
use crate::object::Vcpu;
use crate::virt::{each_extended, load_extended, unusual};

#[cfg(any(test, feature = "unproven"))]
use super::newer::AREA;
#[cfg(any(test, feature = "unproven"))]
pub use crate::arch::extended::set_msr;
/// Where in its page the area for XSAVE begins.
#[cfg(not(any(test, feature = "unproven")))]
const AREA: u64 = 0;

/// State page to vCPU, whose next entry brings it to the processor.
pub fn load(v: &Vcpu, groups: u64) {
    let cpu = Cpu::current();
    if cpu.fpu_owner.get() == Some(Obj::of(v)) {
        release(cpu);
    }
    load_extended(v, groups);
    unusual(v);
}

/// vCPU to state page.
pub fn save(v: &Vcpu, groups: u64) {
    if Cpu::current().fpu_owner.get() == Some(Obj::of(v)) {
        keep(v);
    }
    each_extended(v, groups, |kept, page| page.set(kept.get()));
}

/// Keeps what the owner can have changed without an exit: debug registers, and XCR0 on a processor that does not intercept XSETBV
/// (QEMU 7.2).
fn keep(v: &Vcpu) {
    for (d, value) in v.dr.iter().zip(hw::dr()) {
        d.set(value);
    }
    if let Some(x) = hw::xcr0() {
        v.xcr0.set(x & hw::supported() | 1);
    }
}

/// Makes `v` the owner.
#[inline(never)]
pub fn switch(cpu: &Cpu, v: &Vcpu) {
    release(cpu);
    crate::arch::speculation::switch();
    let dr = v.dr.each_ref().map(|d| d.get());
    hw::restore(v.extended_phys + AREA, v.xcr0.get(), dr);
    cpu.fpu_owner.set(Some(Obj::of(v)));
    #[cfg(any(test, feature = "unproven"))]
    super::newer::switch(v);
    unusual(v);
}

/// Saves the state of the owner, which then has none here.
pub fn release(cpu: &Cpu) {
    if let Some(old) = cpu.fpu_owner.take() {
        keep(old.get());
        hw::save(old.extended_phys + AREA);
    }
}
