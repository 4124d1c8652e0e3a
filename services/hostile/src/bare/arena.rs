//! The arena: everything that a round is made of, from one Pool that ends it.

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use hostile::attack::{FREE, PLAY, SLOTS, VCPU_PAGES};
use hostile::rng::Rng;
use runtime::abi::layout::{self, slot};
use runtime::abi::rights::{ALL, DESTROY, EXEC, READ, SEND, WRITE};
use runtime::abi::{Kind, Status};
use runtime::object::{Budget, Cpu, Memory, Pool, Space, Thread};
use runtime::{Endpoint, Slot, StartInfo, time};

use super::attacker::{DESK, Desk, attack, child};
use super::keeper::{PATIENCE, RESTARTS, keep};

/// Result of this module.
pub type Result<T> = core::result::Result<T, Status>;

const PAGE: u64 = 4096;
/// Where desks and stacks are in the attackers' Spaces: 64 KiB a thread, the stack's top at half of it.
const DESKS: u64 = 0x5200_0000;
const STRIDE: u64 = 0x1_0000;
/// Top of the stack of threads that attackers start.
const CHILD_STACK: u64 = 0x5400_0000;
/// Where the random code is, in its Space.
pub const CODE: u64 = 0x4000_0000;
const CODE_STACK: u64 = 0x4800_0000;
/// Where this server sees the pages that it shares with them.
const VIEW: u64 = layout::SHARED + 0x4000_0000;
/// Where keepers' UTCBs are in this server.
const KEEPER_UTCBS: u64 = layout::UTCB + 0x10_0000;

/// Pages of a thread: desk and stack.
const THREAD_PAGES: u64 = 4;
const EXTRA: u64 = hostile::args::MAX_THREADS * THREAD_PAGES;
/// After two stacks of children, the random code and its stack: a stack for each keeper.
const KEEPERS: u64 = EXTRA + 4;
const SHARED: u64 = (KEEPERS + 8) * PAGE;
/// Parts of this server's RAM: first byte and bytes of the Pool; the attackers' Memory.
const ARENA: (u64, u64) = (1 << 20, 3 << 20);
const PLAY_AT: u64 = 4 << 20;
/// Pools that the attackers can make.
const POOLS: u64 = 3;
/// One round in so many is over as soon as an attacker destroys the Pool that everything is in.
const BRIEF: u64 = 4;
/// Slots of a round.
const ROUND_SLOTS: usize = 96;

/// Below this server, and so below every VM.
pub const PRIORITY: u64 = 3;
/// Badges of attackers' faults: this and their number.
pub const FAULTS: u64 = 100;
/// Badge of calls from attackers.
const CALLS: u64 = 77;

/// What stays from round to round, and the round's own.
pub struct Arena {
    ram: Memory,
    shared: Memory,
    memory: Memory,
    image: Memory,
    image_len: u64,
    supervisor: Slot,
    cpus: Vec<Cpu>,
    slots: Vec<Slot>,
    used: usize,
    /// Odd rounds have other slots than even ones: what a keeper is about to do to a thread of the round before meets no thread of this.
    odd: bool,
    /// This round's Pool.
    pub pool: Pool,
    /// Attackers, by number; the last executes random bytes if there is such a one.
    pub threads: Vec<(Thread, Budget)>,
    attackers: u64,
    code: bool,
}

/// A slot's capability and its kind, as attackers get it.
type Given = (Slot, Kind);

impl Arena {
    /// Sets up what stays.
    pub fn new(start: &StartInfo, attackers: u64, cpus: u64, code: bool) -> Result<Self> {
        let cap = |name: &str| start.cap(name).map_err(|_| Status::InvalidCap);
        let mut free = start.free_slots();
        let mut slot = || free.take().ok_or(Status::NoMemory);
        let (ram, image) = (Memory(cap("ram")?), Memory(cap("image")?));
        let pool = Pool(slot::POOL);
        let shared = ram.divide(0, SHARED, slot()?, pool)?;
        let memory = ram.divide(ARENA.0, ARENA.1, slot()?, pool)?;
        Space(slot::SPACE).map(VIEW, shared, READ | WRITE, 0, SHARED)?;
        let mut all = Vec::from([Cpu(slot::CPU)]);
        for n in 1..cpus {
            let cpu = Cpu(slot::CPUS + n as Slot);
            if cpu.info().is_err() {
                defmt::warn!("HOSTILE there is no processor {=u64}", n);
                continue;
            }
            let thread =
                pool.create_thread(slot()?, Space(slot::SPACE), KEEPER_UTCBS + n * 2 * PAGE)?;
            let budget = pool.create_budget(slot()?)?;
            let period = time::cycles(1_000);
            budget.configure(cpu, PRIORITY + 1, period, period)?;
            thread.configure(Some(budget), Some(Endpoint(cap("self")?)), 1, None)?;
            let entry = (keep as extern "C" fn() -> !) as usize as u64;
            let stack = VIEW + (KEEPERS + n + 1) * PAGE - 8;
            // SAFETY: it shares nothing with this thread but the statics of its module; the stack is a page of its own.
            unsafe { thread.start(entry, stack, 0)? };
            all.push(cpu);
        }
        let mut slots = Vec::new();
        for _ in 0..2 * ROUND_SLOTS {
            slots.push(slot()?);
        }
        Ok(Self {
            ram,
            shared,
            memory,
            image,
            image_len: image.info()?.len.min(512 << 10),
            supervisor: cap("self")?,
            cpus: all,
            slots,
            used: 0,
            odd: false,
            pool: Pool(slot::NULL),
            threads: Vec::new(),
            attackers,
            code,
        })
    }

    /// A slot of this round's.
    pub fn slot(&mut self) -> Result<Slot> {
        let half = self.slots.chunks(ROUND_SLOTS).nth(self.odd.into());
        let slot = half.and_then(|h| h.get(self.used)).copied();
        self.used += 1;
        slot.ok_or(Status::NoMemory)
    }

    /// The processor for thread `i`. The random code stays on the first, where this server fills its page.
    pub fn cpu(&self, i: usize) -> Cpu {
        let n = if i as u64 >= self.attackers {
            0
        } else {
            i % self.cpus.len().max(1)
        };
        self.cpus.get(n).copied().unwrap_or(Cpu(slot::CPU))
    }

    /// The desk of attacker `i`.
    pub fn desk(&self, i: u64) -> *mut Desk {
        core::ptr::with_exposed_provenance_mut((VIEW + i * THREAD_PAGES * PAGE) as usize)
    }

    /// The page of random code, as bytes to fill.
    pub fn code_page(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut((VIEW + (EXTRA + 2) * PAGE) as usize)
    }

    /// How many attackers there are, the one with the random bytes not counted.
    pub fn attackers(&self) -> u64 {
        self.attackers
    }

    /// Builds a round: nothing runs yet. `rng` makes each attacker's numbers.
    pub fn build(&mut self, rng: &mut Rng) -> Result<()> {
        (self.used, self.odd) = (0, !self.odd);
        self.threads.clear();
        let dest = self.slot()?;
        // SAFETY: this Memory is mapped nowhere.
        self.pool = unsafe { self.memory.make_pool(dest, POOLS) }?;
        let pool = self.pool;
        let play = self.ram.divide(PLAY_AT, PLAY, self.slot()?, pool)?;
        let spaces = [
            pool.create_space(self.slot()?, SLOTS as u32)?,
            pool.create_space(self.slot()?, SLOTS as u32)?,
        ];
        let mut given: Vec<Given> = Vec::from([(play.0, Kind::Memory), (pool.0, Kind::Pool)]);
        for (n, space) in (0..).zip(spaces) {
            space.map(layout::IMAGE, self.image, READ | EXEC, 0, self.image_len)?;
            let stack = (EXTRA + n) * PAGE;
            space.map(CHILD_STACK - PAGE, self.shared, READ | WRITE, stack, PAGE)?;
            given.push((space.0, Kind::Space));
        }
        for _ in 0..2 {
            let e = pool.create_endpoint(self.slot()?)?;
            given.push((e.0, Kind::Endpoint));
            let guest = pool.create_guest_space(self.slot()?)?;
            given.push((guest.0, Kind::GuestSpace));
            let space = spaces[usize::from(given.len() > 8)];
            let vcpu = pool.create_vcpu(self.slot()?, guest, space, VCPU_PAGES)?;
            given.push((vcpu.0, Kind::Vcpu));
        }
        let mut bells = Vec::new();
        for _ in 0..3 {
            let n = pool.create_notification(self.slot()?)?;
            given.push((n.0, Kind::Notification));
            bells.push(n);
        }
        for i in 0..self.attackers {
            let space = spaces[i as usize % 2];
            let at = DESKS + i * STRIDE;
            let offset = i * THREAD_PAGES * PAGE;
            space.map(at, self.shared, READ | WRITE, offset, DESK)?;
            let stack = at + STRIDE / 2 - 2 * PAGE;
            space.map(stack, self.shared, READ | WRITE, offset + DESK, 2 * PAGE)?;
            let utcb = layout::UTCB + i * 2 * PAGE;
            let (thread, budget) = self.thread(space, utcb, i, bells.get(i as usize).copied())?;
            given.push((thread.0, Kind::Thread));
            given.push((budget.0, Kind::Budget));
            // SAFETY: the desk's two pages, which no thread uses now.
            unsafe { self.desk(i).write(Desk::new(Rng(rng.word()), utcb)) };
        }
        self.hand_out(&given, &spaces, !rng.once_in(BRIEF))?;
        if self.code {
            let space = pool.create_space(self.slot()?, 16)?;
            space.map(CODE, self.shared, READ | EXEC, (EXTRA + 2) * PAGE, PAGE)?;
            let stack = (EXTRA + 3) * PAGE;
            space.map(CODE_STACK - PAGE, self.shared, READ | WRITE, stack, PAGE)?;
            self.thread(space, layout::UTCB, self.attackers, None)?;
        }
        Ok(())
    }

    fn thread(
        &mut self,
        space: Space,
        utcb: u64,
        number: u64,
        bound: Option<runtime::Notification>,
    ) -> Result<(Thread, Budget)> {
        let thread = self.pool.create_thread(self.slot()?, space, utcb)?;
        let budget = self.pool.create_budget(self.slot()?)?;
        let period = time::cycles(1_000);
        // What loops for ever never has all the time: this server serves calls on Budgets of less precedence, and could not end it.
        let part = if number == self.attackers {
            period / 2
        } else {
            period
        };
        budget.configure(self.cpu(number as usize), PRIORITY, part, period)?;
        let supervisor = Some(Endpoint(self.supervisor));
        thread.configure(Some(budget), supervisor, FAULTS + number, bound)?;
        self.threads.push((thread, budget));
        Ok((thread, budget))
    }

    /// Gives both Spaces a capability to everything, and one to call this server. In a `lasting` round attackers cannot destroy the Pool
    /// that everything is in.
    fn hand_out(&self, given: &[Given], spaces: &[Space; 2], lasting: bool) -> Result<()> {
        for (s, space) in (0_u64..).zip(spaces) {
            let mut kinds = [0; SLOTS];
            let mut to = 1;
            for (source, kind) in given.iter().take(FREE as usize - 2) {
                let all = if lasting && *kind == Kind::Pool {
                    ALL & !DESTROY
                } else {
                    ALL
                };
                space.copy_cap(*source, to, all, 0)?;
                if let Some(k) = kinds.get_mut(to as usize) {
                    *k = *kind as u8;
                }
                to += 1;
            }
            // `self` has a badge already; without one it gets the attackers'.
            let badged = space.copy_cap(self.supervisor, to, SEND, CALLS);
            badged.or_else(|_| space.copy_cap(self.supervisor, to, SEND, 0))?;
            if let Some(k) = kinds.get_mut(to as usize) {
                *k = Kind::Endpoint as u8;
            }
            for i in (s..self.attackers).step_by(2) {
                // SAFETY: written in `build`; no thread uses it now.
                let desk = unsafe { &mut *self.desk(i) };
                desk.mind.kinds = kinds;
                desk.mind.pages = 1;
                desk.mind.entry = [child(), CHILD_STACK - 64, i];
            }
        }
        Ok(())
    }

    /// Its rip, rsp and rdi at the start.
    fn entry(&self, i: u64) -> [u64; 3] {
        if i < self.attackers {
            let entry = (attack as extern "C" fn(*mut Desk) -> !) as usize as u64;
            let desk = DESKS + i * STRIDE;
            [entry, desk + STRIDE / 2 - 8, desk]
        } else {
            [CODE, CODE_STACK - 256, 0]
        }
    }

    /// Tells the keepers how attackers are started.
    pub fn brief(&self, patience: u64) {
        PATIENCE.store(patience, Relaxed);
        for (i, (thread, _)) in (0..self.attackers).zip(&self.threads) {
            let [rip, rsp, rdi] = self.entry(i);
            let words = [u64::from(thread.0), rip, rsp, rdi];
            for (to, word) in RESTARTS
                .iter()
                .skip(i as usize)
                .take(1)
                .flatten()
                .zip(words)
            {
                to.store(word, Relaxed);
            }
        }
    }

    /// Starts thread `i`, the first time or after a fault.
    pub fn start(&self, i: u64) -> Result<()> {
        let Some((thread, _)) = self.threads.get(i as usize) else {
            return Err(Status::InvalidArg);
        };
        let [rip, rsp, argument] = self.entry(i);
        // SAFETY: it is not in this server's Space, and of its memory this server has no references.
        unsafe { thread.start(rip, rsp, argument) }
    }

    /// Ends the round while its threads run. Answers how many steps the kernel took.
    pub fn destroy(&self) -> Result<u64> {
        let mut steps = 1;
        loop {
            // SAFETY: nothing of this server's is in the Pool, and what it shares with the attackers is not either.
            let step = unsafe { runtime::sys::invoke(self.pool.0, 3, [0; 4]) };
            match step {
                Err(Status::Again) => steps += 1,
                // An attacker has done it.
                Err(Status::InvalidCap) => return Ok(steps),
                done => return done.map(|_| steps),
            }
        }
    }
}
