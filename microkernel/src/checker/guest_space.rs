//! GuestSpaces: a nested page table that has what the mappings say, nothing of a Pool's, and routes within bounds.

use super::{GuestSpace, PAGE_BITS, ROUTES};
use crate::arch::paging::check::{Leaves, tables};
use crate::checker::{Checked, Tally, account, count, ensure, live};
use crate::list::check::walk;
use crate::mem::Obj;
use crate::object::pool::{check as pool, pool_of};
use crate::tree::check::walk as tree;

/// Checks one.
pub fn check(g: Obj<GuestSpace>, tally: &Tally) -> Checked {
    let at = g.addr();
    let p = pool_of(&g.header);
    let mut mapped = 0;
    let mappings = tree(&g.mappings, at, live, |m| {
        mapped += m.range().1;
        Ok(())
    })?;
    count(&tally.mappings[2], mappings);
    let vcpus = walk(&g.vcpus, at, live, |v| {
        ensure(v.guest == g, "a vCPU knows its GuestSpace", at, v.addr())
    })?;
    count(&tally.vcpus[1], vcpus);
    let own = g.get().route_pages().all(|page| pool::is_raw(p, page));
    ensure(own, "routes are in pages of the GuestSpace's Pool", at, 0)?;
    let mut leaves = Leaves::default();
    let pages = tables(&g.table, p, 512, false, at, &mut leaves)?;
    account(g.header.pool, pages + g.get().route_pages().count() as u64);
    ensure(
        leaves.bytes == mapped,
        "a nested page table has what its mappings say",
        at,
        leaves.bytes.wrapping_sub(mapped),
    )?;
    for (i, e) in g.get().routes().iter().enumerate() {
        // SAFETY: nothing changes routes while the checker runs.
        let there = unsafe { (*e.as_ptr()).is_some() };
        let marked = g.used.get() & (1 << i) != 0;
        ensure(there == marked, "a route in use is marked", at, i as u64)?;
    }
    let with_page = |i: &usize| g.index[*i].get() != 0;
    let ports = |i: usize| (0..1 << PAGE_BITS).map(move |low| (i << PAGE_BITS | low) as u16);
    for port in (0..g.index.len()).filter(with_page).flat_map(ports) {
        let Some(n) = g.get().number(port) else {
            continue;
        };
        let ok = n < ROUTES && g.used.get() & (1 << n) != 0;
        ensure(ok, "a routed port has its route", at, u64::from(port))?;
    }
    Ok(())
}
