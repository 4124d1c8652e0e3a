//! What VMRUN does not switch: x87/SSE/AVX state, PKRU, XCR0, DR0 to DR3. It stays in the processor until another vCPU needs it, out of
//! reach of user level. TSC_AUX, which user level can always read, is the guest's only while it runs, if it is not 0.
//!
//! The kernel and the servers use none of it (soft-float, CR0.TS set), so nothing of theirs can be there.

pub use crate::arch::extended::{arm_breakpoints, disarm_breakpoints, set_cr2, set_tsc_aux};
use crate::arch::{Cpu, extended as hw};
use crate::mem::Obj;
use crate::object::Vcpu;
use core::mem::offset_of;
use ipc_schema::abi::vm::{Groups, VcpuState as S};

const DR_OFFSET: usize = offset_of!(S, dr);

/// State page to vCPU, whose next entry brings it to the processor.
pub fn load(v: &Vcpu, groups: u64) {
    let cpu = Cpu::current();
    if cpu.fpu_owner.get() == Some(Obj::of(v)) {
        release(cpu);
    }
    if groups & Groups::XCR != 0 {
        let wanted = v.state().0[offset_of!(S, xcr0) / 8].get();
        v.xcr0.set(crate::virt::valid_xcr0(wanted));
        v.tsc_aux
            .set(v.state().0[offset_of!(S, tsc_aux) / 8].get() & 0xffff_ffff);
        super::unusual(v);
    }
    if groups & Groups::DR != 0 {
        for (d, word) in v.dr.iter().zip(&v.state().0[DR_OFFSET / 8..]) {
            d.set(word.get());
        }
    }
}

/// vCPU to state page.
pub fn save(v: &Vcpu, groups: u64) {
    if Cpu::current().fpu_owner.get() == Some(Obj::of(v)) {
        keep(v);
    }
    if groups & Groups::XCR != 0 {
        v.state().0[offset_of!(S, xcr0) / 8].set(v.xcr0.get());
        v.state().0[offset_of!(S, tsc_aux) / 8].set(v.tsc_aux.get());
    }
    if groups & Groups::DR != 0 {
        for (d, word) in v.dr.iter().zip(&v.state().0[DR_OFFSET / 8..]) {
            word.set(d.get());
        }
    }
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
    hw::restore(v.extended_phys, v.xcr0.get(), dr);
    cpu.fpu_owner.set(Some(Obj::of(v)));
    super::unusual(v);
}

/// Saves the state of the owner, which then has none here.
pub fn release(cpu: &Cpu) {
    if let Some(old) = cpu.fpu_owner.take() {
        keep(old.get());
        hw::save(old.extended_phys);
    }
}
