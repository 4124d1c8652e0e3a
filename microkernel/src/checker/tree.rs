//! Trees: members that live, each where its key leads.

use super::{Keyed, Tree};
use crate::checker::{Checked, ensure};
use crate::mem::Obj;

/// Visits all members; `live` says whether one may be read at all. Answers their number.
pub fn walk<T: Keyed>(
    tree: &Tree<T>,
    at: u64,
    live: impl Fn(Obj<T>) -> bool,
    mut visit: impl FnMut(Obj<T>) -> Checked,
) -> Checked<u64> {
    // Down to the left as far as it goes, then back up to the next branch on the right: the way down is remembered as bits, and each way
    // back starts from the root, since nodes do not know what is above them.
    let (mut n, mut way, mut depth) = (0, 0_u64, 0_u32);
    loop {
        let mut node = tree.root.get();
        for level in 0..depth {
            node = node.and_then(|o| o.get().branches()[(way >> (63 - level)) as usize & 1].get());
        }
        match node {
            Some(o) if depth < 64 => {
                ensure(live(o), "a member of a tree lives", at, o.addr())?;
                let bits = T::bits(o.key());
                let here = depth == 0 || (bits ^ way) >> (64 - depth) == 0;
                ensure(here, "a member is where its key leads", at, o.addr())?;
                visit(o)?;
                n += 1;
                depth += 1;
            }
            Some(o) => ensure(false, "a tree has an end", at, o.addr())?,
            None => {
                while depth > 0 && way >> (64 - depth) & 1 == 1 {
                    way &= !(1 << (64 - depth));
                    depth -= 1;
                }
                if depth == 0 {
                    return Ok(n);
                }
                way |= 1 << (64 - depth);
            }
        }
    }
}
