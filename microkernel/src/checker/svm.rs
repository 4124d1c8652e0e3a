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
        (f::MSRPM_BASE, msr),
        (f::NP_ENABLE, 1),
        (f::N_CR3, v.guest.table.root),
    ];
    for (at, expected) in fixed {
        let is = c.word(at).get();
        ensure(is == expected, "a guest is confined", at as u64, is)?;
    }
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
