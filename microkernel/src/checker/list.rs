//! Lists: links that agree in both directions, and members that live.

use super::{Linked, List};
use crate::checker::{Checked, ensure};
use crate::mem::Obj;

/// More than any list has.
const MANY: u64 = 1 << 20;

/// Walks a list; `live` says whether a member may be read at all. Answers the number of members.
pub fn walk<T: Linked<N>, const N: usize>(
    list: &List<T, N>,
    at: u64,
    live: impl Fn(Obj<T>) -> bool,
    mut visit: impl FnMut(Obj<T>) -> Checked,
) -> Checked<u64> {
    let (mut n, mut last, mut next) = (0, None, list.head.get());
    while let Some(o) = next {
        ensure(live(o), "a member of a list lives", at, o.addr())?;
        let link = o.get().link();
        ensure(
            link.prev.get() == last,
            "a list's links agree",
            at,
            o.addr(),
        )?;
        visit(o)?;
        n += 1;
        ensure(n < MANY, "a list has an end", at, n)?;
        last = Some(o);
        next = link.next.get();
    }
    ensure(list.tail.get() == last, "a list knows its last", at, n)?;
    Ok(n)
}
