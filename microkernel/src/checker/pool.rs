//! Pools: map, slots, free lists, and what they were made of.

use super::{CLASSES, FreeSlot, POOLS, Pool, kind};
use crate::checker::{Checked, Tally, account, count, ensure};
use crate::mem::{Obj, PAGE};
use crate::object::{Header, Memory};
use core::ptr::NonNull;
use ipc_schema::abi::Kind;

/// As if all Pools had been destroyed.
#[cfg(not(target_os = "none"))]
pub fn end_all() {
    for p in POOLS.iter() {
        p.generation.set((p.generation.get() + 1) & !1);
        p.backing_others.set(0);
        p.dying.set(false);
        p.inner.set(None);
    }
}

/// The live Pool that has the page of kernel address `at`, and the page's number in it.
fn pool_at(at: u64) -> Option<(&'static Pool, u64)> {
    POOLS.iter().find_map(|p| {
        let inside = at.wrapping_sub(p.virt.get());
        (p.generation.get() & 1 == 1 && inside < p.frontier.get() * PAGE)
            .then_some((p, inside / PAGE))
    })
}

/// The slot in which kernel address `at` lies: its header, if the Pool lives and the page is cut into slots.
pub fn slot_of(at: u64) -> Option<Obj<Header>> {
    let (p, page) = pool_at(at)?;
    let class = p.map(page).get().checked_sub(kind::SLAB)?;
    let size = *CLASSES.get(usize::from(class))?;
    let base = p.virt.get() + page * PAGE;
    let start = base + (at - base) / size * size;
    // SAFETY: a slot of a slab page of a live Pool; its header is always initialised.
    Some(unsafe { Obj::from_ptr(NonNull::new_unchecked(start as *mut Header)) })
}

/// Whether a live object of `kind` begins at kernel address `at`.
pub fn live_at(at: u64, kind: u32) -> bool {
    slot_of(at).is_some_and(|h| h.addr() == at && (h.word.get() >> 32) as u32 == kind)
}

/// Whether the page at `phys` is one that an object took from this Pool whole.
pub fn is_raw(pool: &Pool, phys: u64) -> bool {
    let inside = phys.wrapping_sub(pool.phys.get());
    inside < pool.frontier.get() * PAGE && pool.map(inside / PAGE).get() == kind::RAW
}

/// Whether any byte of the range belongs to a live Pool.
pub fn touches(phys: u64, len: u64) -> bool {
    POOLS.iter().any(|p| {
        let (first, end) = (p.phys.get(), p.phys.get() + p.pages.get() * PAGE);
        p.generation.get() & 1 == 1 && phys < end && first < phys + len
    })
}

/// Pages that objects have taken whole.
pub fn raw_pages(pool: &Pool) -> u64 {
    (0..pool.frontier.get())
        .filter(|&i| pool.map(i).get() == kind::RAW)
        .count() as u64
}

/// Calls `visit` for each live object.
pub fn each_object(pool: &Pool, visit: &mut dyn FnMut(Obj<Header>) -> Checked) -> Checked {
    for i in 0..pool.frontier.get() {
        let class = pool.map(i).get().wrapping_sub(kind::SLAB);
        let Some(&size) = CLASSES.get(usize::from(class)) else {
            continue;
        };
        for s in 0..PAGE / size {
            if let Some(h) = slot_of(pool.virt.get() + i * PAGE + s * size)
                && h.word.get() >> 32 != 0
            {
                visit(h)?;
            }
        }
    }
    Ok(())
}

/// The Pool's own data; each header in it.
pub fn check(pool: &Pool, number: u64, tally: &Tally) -> Checked {
    let pages = pool.pages.get();
    let map_pages = (64 + pages).div_ceil(PAGE);
    account(number as u16, map_pages);
    ensure(
        u64::from(pool.number.get()) == number,
        "a Pool knows its number",
        number,
        0,
    )?;
    let (mut free, mut idle, mut slabs) = (0, [0_u64; CLASSES.len()], 0);
    for i in 0..pool.frontier.get() {
        let k = pool.map(i).get();
        if i < map_pages {
            ensure(k == kind::RAW, "the map is where it was", number, i)?;
            continue;
        }
        match k {
            kind::FREE => free += 1,
            kind::RAW => {}
            _ => {
                slabs += 1;
                let class = usize::from(k - kind::SLAB);
                let known = CLASSES.get(class).is_some();
                ensure(known, "a page's use is known", number, i)?;
                for s in 0..PAGE / CLASSES[class] {
                    let at = pool.virt.get() + i * PAGE + s * CLASSES[class];
                    let Some(h) = slot_of(at) else { continue };
                    if h.word.get() >> 32 == 0 {
                        idle[class] += 1;
                        continue;
                    }
                    let right = u64::from(h.slot) * 64 + pool.virt.get() == at
                        && u64::from(h.pool) == number;
                    ensure(right, "a header says where it is", at, number)?;
                }
            }
        }
    }
    let (mut n, mut at) = (0, pool.pages_free.get());
    while at != 0 {
        let ours = at < pool.frontier.get() && pool.map(at).get() == kind::FREE;
        ensure(ours, "a page in the list of free ones is free", number, at)?;
        n += 1;
        ensure(n <= free, "the list of free pages has an end", number, n)?;
        at = pool.page(at).0[0].get();
    }
    ensure(n == free, "free pages are in their list", number, n)?;
    free += pages - pool.frontier.get();
    ensure(
        free == pool.free.get(),
        "free pages are counted",
        number,
        pool.free.get(),
    )?;
    for (class, &expected) in idle.iter().enumerate() {
        let (mut n, mut slot) = (0, pool.slots[class].get());
        while slot != 0 {
            let at = pool.virt.get() + u64::from(slot) * 64;
            let ours = pool_at(at).is_some_and(|(p, page)| {
                core::ptr::eq(p, pool) && p.map(page).get() == kind::SLAB + class as u8
            });
            ensure(ours, "a free slot is in a page of its size", at, number)?;
            // SAFETY: a slot of a slab page of a live Pool.
            let f = unsafe { &*(at as *const FreeSlot) };
            ensure(
                f.word.get() >> 32 == 0,
                "a slot in a free list is free",
                at,
                f.word.get(),
            )?;
            n += 1;
            ensure(n <= expected, "a free list has an end", number, n)?;
            slot = f.next.get();
        }
        // A slot whose generation has come full circle would be missing; no test lives that long.
        ensure(n == expected, "free slots are in their list", number, n)?;
    }
    // Who may be asked about a Pool's Memory: the kernel's own first one has none.
    let backing = pool.backing.get();
    if backing != crate::object::Cap::EMPTY {
        let memory = backing.typed::<Memory>(0);
        ensure(
            memory.is_ok(),
            "the Memory of a live Pool lives",
            number,
            slabs,
        )?;
        if let Ok(m) = memory {
            count(&tally.backings[1], 1);
            let same = m.phys == pool.phys.get() && m.len / PAGE == pages;
            ensure(same, "a Pool is where its Memory is", number, m.addr())?;
        }
    }
    let own = slot_header(pool);
    ensure(
        own == (Kind::Pool as u64) << 32 | 1,
        "a Pool has its own header",
        number,
        own,
    )
}

fn slot_header(pool: &Pool) -> u64 {
    // SAFETY: slot 0 of a live Pool, always initialised.
    unsafe { (*(pool.virt.get() as *const Header)).word.get() }
}
