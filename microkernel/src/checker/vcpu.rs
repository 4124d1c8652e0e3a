//! Vcpus: pages of their own, and a runner that knows them.

use super::Vcpu;
use crate::checker::{Checked, Tally, account, alive, count, ensure, live};
use crate::mem::{Obj, virt};
use crate::object::pool::{POOLS, check as pool, pool_of};
use crate::object::{Object, Space};

/// Checks one.
pub fn check(v: Obj<Vcpu>, tally: &Tally) -> Checked {
    let at = v.addr();
    count(&tally.vcpus[0], 1);
    ensure(
        live(v.guest),
        "a vCPU's GuestSpace lives",
        at,
        v.guest.addr(),
    )?;
    ensure(
        v.guest.cpus.get() & (1 << v.cpu.get()) != 0,
        "a GuestSpace knows the processors of its vCPUs",
        at,
        u64::from(v.guest.cpus.get()),
    )?;
    alive(v.runner.get(), "a vCPU's runner lives", at)?;
    if let Some(t) = v.runner.get() {
        ensure(
            t.vcpu.get() == Some(v),
            "a runner knows its vCPU",
            at,
            t.addr(),
        )?;
    }
    let p = pool_of(&v.header);
    account(v.header.pool, 3);
    for phys in [v.control_phys, v.state_phys, v.extended_phys] {
        ensure(
            pool::is_raw(p, phys),
            "a vCPU's pages are of its Pool",
            at,
            phys,
        )?;
    }
    ensure(
        v.state_virt == virt(v.state_phys),
        "a vCPU's state page is where it was",
        at,
        v.state_virt,
    )?;
    if !crate::virt::vmx::HERE.get() {
        crate::virt::svm::check::vmcb(v)?;
    }
    // Not in one that is being destroyed: its tables go first.
    if let Ok(s) = v.space.typed::<Space>(0)
        && s.alive().is_ok()
    {
        let there = s.table.translate(v.state_at).map_or(0, |(phys, _)| phys);
        ensure(
            there == v.state_phys,
            "a vCPU's state page is mapped",
            at,
            there,
        )?;
    }
    Ok(())
}

/// How many vCPUs have their state page in this Space.
pub fn states_in(s: Obj<Space>) -> u64 {
    let mut n = 0;
    for p in POOLS.iter().filter(|p| p.generation.get() & 1 == 1) {
        let _ = pool::each_object(p, &mut |h| {
            if (h.word.get() >> 32) as u32 == Vcpu::KIND as u32 {
                // SAFETY: a live slot whose header says that it is a Vcpu.
                let v = unsafe {
                    Obj::<Vcpu>::from_ptr(core::ptr::NonNull::new_unchecked(h.ptr().cast()))
                };
                n += u64::from(v.space.typed::<Space>(0).is_ok_and(|o| o == s));
            }
            Ok(())
        });
    }
    n
}
