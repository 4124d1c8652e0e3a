//! What entry and exit do not switch: the VMCS itself, x87/SSE/AVX state, PKRU, XCR0, DR0 to DR3, DR6, the MSRs of SYSCALL. It stays in
//! the processor until another vCPU needs it, out of reach of user level: SYSCALL is off there (EFER.SCE). TSC_AUX as on SVM.

use super::{Soft, control};
use crate::arch::{Cpu, extended as hw};
use crate::mem::Obj;
use crate::object::Vcpu;
use crate::virt::{each_extended, load_extended};
use core::mem::offset_of;
use ipc_schema::abi::vm::{Groups, VcpuState as S};

/// Where in its page the area for XSAVE begins.
pub const AREA: u64 = 1024;

/// State page to vCPU, whose next entry brings it to the processor.
pub fn load(v: &Vcpu, groups: u64) {
    release(Cpu::current());
    load_extended(v, groups);
    if groups & Groups::DR != 0 {
        let dr6 = v.state().0[offset_of!(S, dr6) / 8].get();
        Soft::of(v).dr6.set(dr6 & 0xffff_ffff);
    }
    if groups & Groups::SYSCALL != 0 {
        let s = Soft::of(v);
        let get = |at: usize| v.state().0[at / 8].get();
        // What the processor would refuse, the kernel must not write.
        let canonical = |a: u64| (a << 16) as i64 >> 16;
        s.syscall[0].set(get(offset_of!(S, star)));
        s.syscall[1].set(canonical(get(offset_of!(S, lstar))) as u64);
        s.syscall[2].set(canonical(get(offset_of!(S, cstar))) as u64);
        s.syscall[3].set(get(offset_of!(S, sfmask)) & 0xffff_ffff);
        s.kernel_gs
            .set(canonical(get(offset_of!(S, kernel_gs_base))) as u64);
    }
    switch(Cpu::current(), v);
}

/// vCPU to state page.
pub fn save(v: &Vcpu, groups: u64) {
    keep(v);
    let set = |at: usize, value| v.state().0[at / 8].set(value);
    let s = Soft::of(v);
    each_extended(v, groups, |kept, page| page.set(kept.get()));
    if groups & Groups::DR != 0 {
        set(offset_of!(S, dr6), s.dr6.get());
    }
    if groups & Groups::SYSCALL != 0 {
        for (i, m) in s.syscall.iter().enumerate() {
            set(offset_of!(S, star) + 8 * i, m.get());
        }
        set(offset_of!(S, kernel_gs_base), s.kernel_gs.get());
    }
}

/// Keeps what the owner, `v`, can have changed without an exit.
fn keep(v: &Vcpu) {
    for (d, value) in v.dr.iter().zip(hw::dr()) {
        d.set(value);
    }
    let s = Soft::of(v);
    s.dr6.set(control::dr6());
    for (m, value) in s.syscall.iter().zip(control::syscall_msrs()) {
        m.set(value);
    }
}

/// Makes `v` the owner.
#[inline(never)]
pub fn switch(cpu: &Cpu, v: &Vcpu) {
    release(cpu);
    crate::arch::speculation::switch();
    let s = Soft::of(v);
    if s.host.get() == 0 {
        // What is in a new page is no state of a VMCS.
        control::clear(v.extended_phys);
    }
    control::make_current(v.extended_phys);
    cpu.fpu_owner.set(Some(Obj::of(v)));
    let host = u64::from(cpu.number) + 1;
    let before = s.host.replace(host);
    if before == 0 {
        control::reset(v);
    }
    if before != host {
        super::enter::write_host(cpu);
        // What it left here when it was here last may be out of date.
        v.asid_round.set(0);
        control::invalidate_ept(control::ept_pointer(v));
    }
    let dr = v.dr.each_ref().map(|d| d.get());
    hw::restore(v.control_phys + AREA, v.xcr0.get(), dr);
    cpu.until.set(0);
    control::set_dr6(s.dr6.get());
    control::set_syscall_msrs(s.syscall.each_ref().map(|m| m.get()));
    super::unusual(v);
}

/// Saves the state of the owner, which then has none here.
pub fn release(cpu: &Cpu) {
    if let Some(old) = cpu.fpu_owner.take() {
        let v = old.get();
        keep(v);
        hw::save(v.control_phys + AREA);
        control::clear(v.extended_phys);
        Soft::of(v).launched.set(0);
    }
}
