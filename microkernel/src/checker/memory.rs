//! Memories: parts that lie inside and apart, mappings that know them, Pools that are out of reach.

use super::Memory;
use crate::checker::{Checked, Tally, count, ensure, live};
use crate::list::{List, check::walk};
use crate::mem::Obj;
use crate::object::pool::check as pool;

/// Checks one.
pub fn check(m: Obj<Memory>, tally: &Tally) -> Checked {
    let at = m.addr();
    let parts = walk(&m.parts, at, live, |p| {
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
        while let Some(o) = other.filter(|&o| live(o) && left > 0) {
            let apart = o.phys >= p.phys + p.len || p.phys >= o.phys + o.len;
            ensure(apart, "parts do not overlap", p.addr(), o.addr())?;
            other = List::<Memory, 0>::after(o);
            left -= 1;
        }
        Ok(())
    })?;
    count(&tally.parts[1], parts);
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
    if m.in_pool.get() {
        count(&tally.backings[0], 1);
        ensure(
            parts == 0 && mappings == 0,
            "a Memory that is a Pool is out of reach",
            at,
            mappings,
        )?;
    } else if parts == 0 {
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
