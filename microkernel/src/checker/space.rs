//! Spaces: a page table that has what the lists say and no more.

use super::{Space, USER_ENTRIES};
use crate::arch::paging::check::{Leaves, tables};
use crate::checker::{Checked, Tally, account, count, ensure, live};
use crate::list::check::walk;
use crate::mem::{Obj, PAGE};
use crate::object::Object;
use crate::object::pool::{check as pool, pool_of};
use crate::object::vcpu::check::states_in;
use crate::tree::check::walk as tree;

/// Checks one.
pub fn check(s: Obj<Space>, tally: &Tally) -> Checked {
    let at = s.addr();
    let p = pool_of(&s.header);
    let mut mapped = 0;
    let mappings = tree(&s.mappings, at, live, |m| {
        mapped += m.range().1;
        Ok(())
    })?;
    count(&tally.mappings[2], mappings);
    let threads = walk(&s.threads, at, live, |t| {
        ensure(t.space == s, "a thread knows its Space", at, t.addr())
    })?;
    count(&tally.threads[1], threads);
    let mut caps_pages = 0;
    for page in s.get().cap_pages() {
        ensure(
            pool::is_raw(p, page),
            "a capability table is of its Space's Pool",
            at,
            page,
        )?;
        caps_pages += 1;
    }
    let mut leaves = Leaves::default();
    let pages = tables(&s.table, p, USER_ENTRIES, true, at, &mut leaves)?;
    account(s.header.pool, pages + caps_pages);
    // Root's image and stack were put there by boot, without records.
    // Of one that is being destroyed, the tables may be gone before what vCPUs share with it.
    if s.header.pool != 0 && s.alive().is_ok() {
        let shared = (threads + states_in(s) + 1) * PAGE;
        ensure(
            leaves.bytes == mapped + shared,
            "a page table has what its mappings say",
            at,
            leaves.bytes.wrapping_sub(mapped + shared),
        )?;
    }
    Ok(())
}
