//! GuestSpaces: a nested page table that has what the mappings say, nothing of a Pool's, and routes within bounds.

use super::{BLOCKS, GuestSpace, ROUTES};
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
    let raw = |virt: u64| pool::is_raw(p, virt.wrapping_sub(crate::mem::virt(0)));
    let own = raw(g.index_virt) && raw(g.table_virt);
    ensure(own, "routes are in pages of the GuestSpace's Pool", at, 0)?;
    let mut leaves = Leaves::default();
    let pages = tables(&g.table, p, 512, false, at, &mut leaves)?;
    account(g.header.pool, pages + 2);
    ensure(
        leaves.bytes == mapped,
        "a nested page table has what its mappings say",
        at,
        leaves.bytes.wrapping_sub(mapped),
    )?;
    let view = g.routes();
    let mut used = 0;
    for (i, e) in view.table.entries.iter().enumerate() {
        // SAFETY: nothing changes routes while the checker runs.
        let there = unsafe { (*e.as_ptr()).is_some() };
        let marked = view.index.used.get() & (1 << i) != 0;
        ensure(there == marked, "a route in use is marked", at, i as u64)?;
        used += u64::from(there);
    }
    for b in &view.index.blocks {
        let ok = usize::from(b.get()) <= BLOCKS;
        ensure(ok, "a block of ports has its page", at, u64::from(b.get()))?;
    }
    for n in view
        .index
        .ports
        .iter()
        .zip(&view.index.owners)
        .filter(|(_, owners)| owners.get() != 0)
        .flat_map(|(ports, _)| ports)
    {
        let ok = usize::from(n.get()) <= ROUTES
            && (n.get() == 0 || view.index.used.get() & (1 << (n.get() - 1)) != 0);
        ensure(ok, "a routed port has its route", at, used)?;
    }
    Ok(())
}
