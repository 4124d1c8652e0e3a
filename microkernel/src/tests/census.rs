//! All that is alive, found where it lives, and what must hold of it whatever has been called.
//!
//! The census does not believe the kernel's lists: it reads the Pools' own pages, slot by slot. What capability and page tables say is
//! then held against it, and the kernel's own checker ([`crate::checker`]) looks at the links.

use super::*;
use crate::arch::paging::{Entry, size};
use crate::mem::{PAGE, Words, page};
use crate::object::pool::check as pages;
use crate::object::thread::Resume;
use crate::object::{GuestSpace, Header, Vcpu};
use std::collections::HashMap;

/// A live Pool.
pub struct LivePool {
    /// Its number.
    pub number: u16,
    /// Its generation.
    pub generation: u64,
    /// First physical address.
    pub phys: u64,
    /// Pages.
    pub pages: u64,
    /// Pages that are somebody's as a whole.
    raw: u64,
}

/// A live object: the capability that would name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Name {
    /// Pool.
    pub pool: u16,
    /// Its generation.
    pub pool_generation: u64,
    /// Slot.
    pub slot: u32,
    /// Kind and generation.
    pub word: u64,
}

impl Name {
    /// What a capability names.
    #[must_use]
    pub fn of(c: &Cap) -> Self {
        Self {
            pool: c.pool,
            pool_generation: c.pool_generation,
            slot: c.slot,
            word: c.word,
        }
    }

    /// The name of an object.
    #[must_use]
    pub fn object<T: Object>(o: Obj<T>) -> Self {
        Self::of(&Cap::new(o.get().header()))
    }

    /// Whether it still is.
    #[must_use]
    pub fn is_alive(self) -> bool {
        !self.cap().is_dead()
    }

    fn cap(self) -> Cap {
        Cap {
            word: self.word,
            pool_generation: self.pool_generation,
            badge: 0,
            slot: self.slot,
            pool: self.pool,
            rights: 255,
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(self) -> u32 {
        (self.word >> 32) as u32
    }

    /// The object, if it is a `T`.
    #[must_use]
    pub fn get<T: Object>(self) -> Option<Obj<T>> {
        self.cap().typed(0).ok()
    }
}

impl LivePool {
    /// Its own object.
    #[must_use]
    pub fn header(&self) -> &'static Header {
        header(mem_virt(self.phys))
    }
}

/// The header at an address that a census has found.
#[must_use]
pub fn header(at: u64) -> &'static Header {
    // SAFETY: a slot of a Pool; the tests' buffer is never freed, and a slot keeps its header.
    unsafe { &*(at as *const Header) }
}

/// Fills a page of RAM that is user level's.
pub fn fill(phys: u64, value: u64) {
    table(phys).0.iter().for_each(|w| w.set(value));
}

/// All that is alive.
pub struct Census {
    /// Pools.
    pub pools: Vec<LivePool>,
    /// Objects, by their address.
    pub objects: HashMap<u64, Name>,
}

/// A page of the tests' buffer.
fn table<'a>(phys: u64) -> &'a Words {
    assert!(
        phys.is_multiple_of(PAGE) && phys < PHYS as u64,
        "{phys:#x} is no page of RAM"
    );
    // SAFETY: inside the tests' buffer, read through cells only.
    unsafe { page(phys) }
}

impl Census {
    /// Counts.
    #[must_use]
    pub fn take() -> Self {
        let mut census = Self {
            pools: Vec::new(),
            objects: HashMap::new(),
        };
        for (number, pool) in (0..).zip(POOLS.iter()) {
            if pool.generation.get() & 1 == 1 {
                census.pool(number, pool);
            }
        }
        census
    }

    fn pool(&mut self, number: u16, pool: &Pool) {
        let virt = pool.virt.get();
        let live = LivePool {
            number,
            generation: pool.generation.get(),
            phys: virt - HOST_PHYS_BASE.load(Ordering::Relaxed),
            pages: pool.stat().1,
            raw: pages::raw_pages(pool),
        };
        self.slot(&live, header(virt));
        let all = pages::each_object(pool, &mut |h| {
            self.slot(&live, h.get());
            Ok(())
        });
        assert_eq!(all, Ok(()));
        self.pools.push(live);
    }

    /// Notes an object.
    fn slot(&mut self, pool: &LivePool, header: &Header) {
        let at = std::ptr::from_ref(header) as u64;
        let slot = ((at - mem_virt(pool.phys)) / 64) as u32;
        assert_eq!(
            (header.pool, header.slot),
            (pool.number, slot),
            "a header that is elsewhere"
        );
        let name = Name {
            pool: pool.number,
            pool_generation: pool.generation,
            slot,
            word: header.word.get(),
        };
        self.objects.insert(at, name);
    }

    /// All objects of a type.
    pub fn all<T: Object>(&self) -> impl Iterator<Item = Obj<T>> {
        self.objects
            .values()
            .filter(|n| n.kind() == T::KIND as u32)
            .filter_map(|n| n.get())
    }

    /// The Pool that a physical address belongs to.
    fn pool_at(&self, phys: u64) -> Option<&LivePool> {
        self.pools
            .iter()
            .find(|p| phys >= p.phys && phys - p.phys < p.pages * PAGE)
    }

    /// The Memories that user level could map and write now.
    pub fn mappable(&self) -> impl Iterator<Item = Obj<Memory>> {
        self.all::<Memory>()
            .filter(|m| !m.device && m.get().mappable().is_ok())
    }

    /// RAM that can be mapped is not the kernel's, and only one Memory's.
    fn memory(&self) {
        let all: Vec<_> = self.mappable().collect();
        for (i, a) in all.iter().enumerate() {
            let apart = |phys: u64, len: u64| a.phys + a.len <= phys || phys + len <= a.phys;
            assert!(
                self.pools.iter().all(|p| apart(p.phys, p.pages * PAGE)),
                "kernel memory to be mapped"
            );
            assert!(
                all[..i].iter().all(|b| apart(b.phys, b.len)),
                "RAM that two may map"
            );
        }
    }

    /// What must hold between any two steps.
    ///
    /// # Panics
    /// It does not.
    pub fn check(&self) {
        if let Err(finding) = crate::checker::check() {
            panic!("{finding:x?}");
        }
        self.memory();
    }

    /// What takes longer to see: tables hold nothing that they should not, and no page is lost or used twice.
    pub fn check_pages(&self) {
        let mut raw: HashMap<u16, u64> = HashMap::new();
        for p in &self.pools {
            raw.insert(p.number, (64 + p.pages).div_ceil(PAGE));
        }
        let mut add = |name: Name, n: u64| *raw.entry(name.pool).or_default() += n;
        for s in self.all::<Space>() {
            let mut leaves = Vec::new();
            let tables = walk(s.table.root, 4, 0, 256, &mut leaves);
            add(Name::object(s), tables + s.caps_len * 32 / PAGE);
            let shared = |at: u64, phys: u64| {
                let utcb = |t: Obj<Thread>| t.space == s && t.utcb == mem_virt(phys);
                self.all::<Thread>().any(utcb)
                    || self.all::<Vcpu>().any(|v| v.state_virt == mem_virt(phys))
                    || (at, phys) == (ipc_schema::abi::layout::STUB, crate::arch::stub_page())
            };
            for (at, phys, e) in leaves {
                assert!(e.contains(Entry::USER));
                assert!(
                    !e.contains(Entry::WRITE) || e.contains(Entry::NO_EXECUTE),
                    "W^X"
                );
                assert!(
                    self.pool_at(phys).is_none() || shared(at, phys),
                    "kernel memory at {at:#x}"
                );
            }
            self.capabilities(s.get());
        }
        for g in self.all::<GuestSpace>() {
            let mut leaves = Vec::new();
            let routes = g.get().route_pages().count() as u64;
            add(
                Name::object(g),
                routes + walk(g.table.root, 4, 0, 512, &mut leaves),
            );
            assert!(
                leaves.iter().all(|l| self.pool_at(l.1).is_none()),
                "kernel memory in a VM"
            );
        }
        self.all::<Thread>().for_each(|t| add(Name::object(t), 1));
        self.all::<Vcpu>().for_each(|v| add(Name::object(v), 3));
        for p in &self.pools {
            assert_eq!(p.raw, raw[&p.number], "pages in use in Pool {}", p.number);
        }
    }

    /// A capability that is not refused names what is there.
    fn capabilities(&self, s: &Space) {
        for slot in 1..s.caps_len {
            let Ok(cell) = s.slot(slot) else { continue };
            let cap = cell.get();
            if let Ok(o) = cap.object() {
                assert_eq!(self.objects.get(&o.addr()), Some(&Name::of(&cap)));
            }
        }
    }

    /// The rights that there are to each object, over all tables.
    #[must_use]
    pub fn rights(&self) -> HashMap<Name, u16> {
        let mut all = HashMap::new();
        for s in self.all::<Space>() {
            let table = (1..s.caps_len).filter_map(|slot| s.get().slot(slot).ok());
            for cap in table
                .map(|cell| cell.get())
                .filter(|c| c.pool_generation != 0)
            {
                *all.entry(Name::of(&cap)).or_insert(0) |= cap.rights;
            }
        }
        all
    }

    /// The threads that could be running on `cpu`: ready, on a Budget with time.
    #[must_use]
    pub fn runnable(&self, cpu: &Cpu) -> Vec<Obj<Thread>> {
        let can = |t: &Obj<Thread>| {
            t.state.get() == State::Ready
                && t.cpu.get() == cpu.number
                && t.budget.get().is_some_and(|b| !b.exhausted.get())
        };
        let mut all: Vec<_> = self.all::<Thread>().filter(can).collect();
        all.sort_by_key(|t| t.addr());
        all
    }
}

/// Pages of a table, its leaves noted as (address, target, entry).
fn walk(phys: u64, level: u32, at: u64, top: usize, leaves: &mut Vec<(u64, u64, Entry)>) -> u64 {
    let mut pages = 1;
    for (i, e) in table(phys).0[..top].iter().enumerate() {
        let v = e.get();
        let entry = Entry::from_bits_truncate(v);
        if !entry.contains(Entry::PRESENT) {
            continue;
        }
        let here = at | (i as u64) << (12 + 9 * (level - 1));
        let target = v & 0x000f_ffff_ffff_f000;
        if level == 1 {
            leaves.push((here, target, entry));
        } else if entry.contains(Entry::LARGE) {
            for p in 0..size(level) / PAGE {
                leaves.push((here + p * PAGE, target + p * PAGE, entry));
            }
        } else {
            pages += walk(target, level - 1, here, 512, leaves);
        }
    }
    pages
}

/// The kernel's address of a physical one.
fn mem_virt(phys: u64) -> u64 {
    crate::mem::virt(phys)
}

/// Whether `t` is in the middle of a long operation: it makes its system call again from the stub page.
#[must_use]
pub fn goes_on(t: Obj<Thread>) -> bool {
    t.resume.get() == Resume::Interrupt && t.regs.rip.get() == layout::STUB
}

/// Whether `t` is in its guest.
#[must_use]
pub fn in_guest(t: Obj<Thread>) -> bool {
    t.resume.get() >= Resume::Guest
}
