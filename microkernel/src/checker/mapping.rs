//! Mappings: what the page table has there is a run of the Memory, with no more rights than it allows.

use super::{Mapping, Target};
use crate::arch::paging::Entry;
use crate::checker::{Checked, Tally, count, ensure, live};
use crate::mem::{Obj, PAGE};
use ipc_schema::abi::rights;

/// Pages of a mapping that are looked at one by one: its first and its last ones.
const CLOSE: u64 = 16;

impl Mapping {
    /// First address and bytes.
    pub(crate) fn range(&self) -> (u64, u64) {
        (self.at, self.len)
    }
}

/// Checks one.
pub fn check(m: Obj<Mapping>, tally: &Tally) -> Checked {
    let at = m.addr();
    count(&tally.mappings[0], 1);
    ensure(
        live(m.memory),
        "a mapping's Memory lives",
        at,
        m.memory.addr(),
    )?;
    let table = match m.target {
        Target::Space(s) => {
            ensure(live(s), "a mapping's Space lives", at, s.addr())?;
            &s.get().table
        }
        Target::Guest(g) => {
            ensure(live(g), "a mapping's GuestSpace lives", at, g.addr())?;
            &g.get().table
        }
    };
    let memory = m.memory.get();
    let first = table.translate(m.at).map_or(0, |(phys, _)| phys);
    let inside = first >= memory.phys && first + m.len <= memory.phys + memory.len;
    ensure(inside, "a mapping lies inside its Memory", at, first)?;
    let pages = m.len / PAGE;
    let ends = (0..pages.min(CLOSE)).chain(pages.saturating_sub(CLOSE)..pages);
    for i in ends {
        let there = table.translate(m.at + i * PAGE);
        let phys = there.map_or(0, |(phys, _)| phys);
        ensure(
            phys == first + i * PAGE,
            "a mapping is in the page table",
            at,
            m.at + i * PAGE,
        )?;
        let bits = there.map_or(Entry::empty(), |(_, bits)| bits);
        let limit = u32::from(memory.limit);
        let ok = (!bits.contains(Entry::WRITE) || limit & rights::WRITE != 0)
            && (bits.contains(Entry::NO_EXECUTE) || limit & rights::EXEC != 0);
        ensure(
            ok,
            "a mapping has no more rights than its Memory",
            at,
            bits.bits(),
        )?;
    }
    Ok(())
}
