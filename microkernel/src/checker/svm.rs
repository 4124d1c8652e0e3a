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
        3 if super::control::FLUSH_OWN.get() != 0 => {
            tlb::forget_identifier(Some(identifier as u32))
        }
        other => panic!("TLB_CONTROL {other} is not everywhere"),
    }
    #[cfg(any(test, feature = "unproven"))]
    clean::enters(v, c);
    let linear = [f::CR0, f::CR3, f::CR4, f::EFER].map(|at| c.word(at).get());
    tlb::enters(v, identifier as u32, None, linear);
}

/// What the host tests' processors keep of control blocks (APM vol. 2, 15.15): what is said to be clean must be as it was at the last exit
/// there.
#[cfg(all(any(test, feature = "unproven"), not(target_os = "none")))]
mod clean {
    use super::super::newer::{feature, field, has};
    use super::{Vmcb, f};
    use crate::arch::Cpu;
    use crate::object::Vcpu;
    use std::{cell::RefCell, collections::BTreeMap};

    /// Bits of the clean field, and what each stands for (15.15.3): intercepts and TSC offset; permission maps; ASID; V_TPR and its
    /// like; nested paging and PAT; control registers; debug registers; descriptor tables; segments; CR2; branch records; AVIC.
    const FIELDS: [(usize, &[usize]); 12] = [
        (0, &[f::INTERCEPT_EXCEPTIONS, f::INTERCEPT_2, f::TSC_OFFSET]),
        (1, &[f::IOPM_BASE, f::MSRPM_BASE]),
        (2, &[f::ASID_TLB]),
        (3, &[f::V_INTR]),
        (4, &[f::NP_ENABLE, f::N_CR3, f::G_PAT]),
        (5, &[f::CR0, f::CR3, f::CR4, f::EFER]),
        (6, &[f::DR6, f::DR7]),
        (7, &[f::GDTR, f::GDTR + 8, f::IDTR, f::IDTR + 8]),
        (
            8,
            &[
                f::ES,
                f::ES + 8,
                f::CS,
                f::CS + 8,
                f::SS,
                f::SS + 8,
                f::DS,
                f::DS + 8,
                f::CPL_WORD,
            ],
        ),
        (9, &[f::CR2]),
        (10, &[field::LBR_CONTROL]),
        (11, &[field::AVIC_BACKING_PAGE, field::AVIC_PHYSICAL_TABLE]),
    ];
    type Kept = BTreeMap<usize, u64>;
    std::thread_local! {
        /// By processor and control block.
        static KEPT: RefCell<BTreeMap<(u32, u64), Kept>> = const { RefCell::new(BTreeMap::new()) };
    }

    pub fn enters(v: &Vcpu, c: Vmcb) {
        let clean = c.word(field::CLEAN).get();
        assert!(clean == 0 || has(feature::CLEAN), "a reserved field");
        let now = |fields: &[usize]| {
            fields
                .iter()
                // TLB_CONTROL, in the upper half behind the ASID, is never taken from what is kept.
                .map(|&at| {
                    (
                        at,
                        c.word(at).get()
                            & if at == f::ASID_TLB {
                                0xffff_ffff
                            } else {
                                u64::MAX
                            },
                    )
                })
                .collect::<Kept>()
        };
        KEPT.with_borrow_mut(|k| {
            let kept = k
                .entry((Cpu::current().number, v.control_phys))
                .or_default();
            for (bit, fields) in FIELDS.into_iter().filter(|(bit, _)| clean >> bit & 1 != 0) {
                for (at, is) in now(fields) {
                    assert_eq!(kept.get(&at), Some(&is), "bit {bit} is stale at {at:#x}");
                }
            }
            FIELDS
                .iter()
                .for_each(|(_, fields)| kept.extend(now(fields)));
        });
    }
}
