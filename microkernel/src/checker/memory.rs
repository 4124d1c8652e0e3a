//! Memories: parts that lie inside and apart, mappings that know them, Pools that are out of reach.

use super::{Memory, flag};
use crate::checker::{Checked, Tally, count, ensure, live};
use crate::list::{List, check::walk};
use crate::mem::Obj;
use crate::object::pool::check as pool;
use crate::tree::Keyed;

/// Checks one.
pub fn check(m: Obj<Memory>, tally: &Tally) -> Checked {
    let at = m.addr();
    let (mut used, mut unused, mut pools) = (0, 0, 0);
    let dying = m.has(flag::DYING);
    let parts = walk(&m.parts, at, live, |p| {
        pools += p.pools.get();
        if p.in_use() {
            used += 1;
            ensure(unused == 0, "parts in use come first", at, p.addr())?;
        } else {
            unused += 1;
        }
        let found = dying || m.by_address.find(p.key()) == Some(p);
        ensure(found, "a part is found by its address", at, p.addr())?;
        ensure(
            p.parent.get() == Some(m),
            "a part knows its parent",
            at,
            p.addr(),
        )?;
        let inside = p.phys >= m.phys && p.phys + p.len <= m.phys + m.len;
        ensure(inside, "a part lies inside", at, p.addr())?;
        let mut other = List::<Memory, 0>::after(p);
        // Pairs are looked at from the earlier one; a long list of parts is looked at in part.
        let mut left = 64;
        // Among what is being destroyed there are parts beside their own parts.
        while let Some(o) = other.filter(|&o| live(o) && left > 0 && !dying) {
            let apart = o.phys >= p.phys + p.len || p.phys >= o.phys + o.len;
            ensure(apart, "parts do not overlap", p.addr(), o.addr())?;
            other = List::<Memory, 0>::after(o);
            left -= 1;
        }
        Ok(())
    })?;
    count(&tally.parts[1], parts);
    ensure(
        m.used_parts.get() == used,
        "parts in use are counted",
        at,
        u64::from(used),
    )?;
    let own = u32::from(m.has(flag::POOL));
    ensure(
        m.pools.get() == pools + own,
        "Pools among parts are counted",
        at,
        u64::from(m.pools.get()),
    )?;
    ensure(
        !m.has(flag::REVOKING) || m.in_use(),
        "what is out of use is not being revoked",
        at,
        0,
    )?;
    if let Some(p) = m.parent.get() {
        count(&tally.parts[0], 1);
        ensure(live(p), "a parent lives", at, p.addr())?;
    }
    let mappings = walk(&m.mappings, at, live, |_| Ok(()))?;
    count(&tally.mappings[1], mappings);
    ensure(
        parts == 0 || mappings == 0,
        "a Memory with parts is not mapped",
        at,
        mappings,
    )?;
    if m.has(flag::POOL) {
        count(&tally.backings[0], 1);
        ensure(
            parts == 0 && mappings == 0,
            "a Memory that is a Pool is out of reach",
            at,
            mappings,
        )?;
    } else if parts == 0 && m.pools.get() == 0 {
        // What may be mapped at any time must be nobody's kernel memory.
        ensure(
            !pool::touches(m.phys, m.len),
            "a Memory that can be mapped has no Pool in it",
            at,
            m.phys,
        )?;
    }
    Ok(())
}
