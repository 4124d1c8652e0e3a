//! Mappings: what the page table has there is a run of the Memory, with no more rights than it allows.

use super::{Mapping, state};
use crate::arch::paging::Entry;
use crate::checker::{Checked, Tally, count, ensure, live};
use crate::mem::{Obj, PAGE};
use ipc_schema::abi::rights;

/// Pages of a mapping that are looked at one by one: its first and its last ones.
const CLOSE: u64 = 16;

impl Mapping {
    /// First address and bytes of what is there of it now.
    pub(crate) fn range(&self) -> (u64, u64) {
        let gone = self.gone.get();
        (self.run.va + gone, self.made.get() - gone)
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
    let domain = m.domain.get();
    let known = domain.mappings.find(m.run.va) == Some(m);
    ensure(
        known,
        "a mapping's Space or GuestSpace knows it",
        at,
        m.run.va,
    )?;
    let table = &domain.table;
    let memory = m.memory.get();
    let inside = m.run.phys >= memory.phys && m.run.phys + m.run.len <= memory.phys + memory.len;
    ensure(inside, "a mapping lies inside its Memory", at, m.run.phys)?;
    let whole = m.made.get() == m.run.len && m.gone.get() == 0;
    ensure(
        whole || m.header.flags.get() != state::LIVE,
        "a mapping that is neither being made nor ended is whole",
        at,
        m.made.get(),
    )?;
    let (va, len) = m.range();
    let first = m.run.phys + m.gone.get();
    let pages = len / PAGE;
    let ends = (0..pages.min(CLOSE)).chain(pages.saturating_sub(CLOSE)..pages);
    for i in ends {
        let there = table.translate(va + i * PAGE);
        let phys = there.map_or(0, |(phys, _)| phys);
        ensure(
            phys == first + i * PAGE,
            "a mapping is in the page table",
            at,
            va + i * PAGE,
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
