//! VMCBs: what confines the guest is as it was made.

use super::control::{INTERCEPTS_1, INTERCEPTS_2, SVME, Vmcb, field as f};
use crate::checker::{Checked, ensure};
use crate::mem::Obj;
use crate::object::Vcpu;
use crate::virt::EXCEPTIONS;

/// Checks a vCPU's control block.
pub fn vmcb(v: Obj<Vcpu>) -> Checked {
    let c = Vmcb::of(v.get());
    let (io, msr) = super::control::MAPS.get();
    let fixed = [
        (f::INTERCEPT_EXCEPTIONS, EXCEPTIONS | INTERCEPTS_1 << 32),
        (f::INTERCEPT_2, INTERCEPTS_2),
        (f::IOPM_BASE, io),
        (f::NP_ENABLE, 1),
        (f::N_CR3, v.guest.table.root),
    ];
    for (at, expected) in fixed {
        let is = c.word(at).get();
        ensure(is == expected, "a guest is confined", at as u64, is)?;
    }
    let map = c.word(f::MSRPM_BASE).get();
    let with_apic = cfg!(any(test, feature = "unproven")) && map == msr + 0x2000;
    ensure(
        map == msr || with_apic,
        "a guest is confined",
        f::MSRPM_BASE as u64,
        map,
    )?;
    let efer = c.word(f::EFER).get();
    ensure(efer & SVME != 0, "a guest's EFER has SVME", v.addr(), efer)?;
    // A failed VMRUN leaves its own idea of it (QEMU 7.2); `arm` writes it anew before the next.
    let failed = c.word(f::EXITCODE).get() as u32 == u32::MAX;
    let control = c.word(f::V_INTR).get();
    ensure(
        failed || control & (1 << 24) != 0,
        "a guest cannot mask interrupts",
        v.addr(),
        control,
    )
}

#[cfg(not(target_os = "none"))]
std::thread_local! {
    /// The host tests' processor refuses to enter guests.
    pub static REFUSES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The host tests' processor enters a guest.
#[cfg(not(target_os = "none"))]
pub fn enters(v: &Vcpu) {
    use crate::checker::tlb;
    let c = Vmcb::of(v);
    if REFUSES.get() {
        return c.word(f::EXITCODE).set(u64::MAX);
    }
    let identifier = c.word(f::ASID_TLB).get();
    match identifier >> 32 & 0xff {
        0 => {}
        1 => tlb::forget_all(),
        other => panic!("TLB_CONTROL {other} is not everywhere"),
    }
    // What is said to be as it was at the last exit is nothing.
    assert_eq!(c.word(f::CLEAN).get(), 0);
    let linear = [f::CR0, f::CR3, f::CR4, f::EFER].map(|at| c.word(at).get());
    tlb::enters(v, identifier as u32, None, linear);
}
