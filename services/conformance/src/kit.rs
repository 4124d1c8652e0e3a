//! What there is to try things on: one living object of each kind, a stale capability of each kind, RAM, and slots.

mod figures;

use alloc::vec::Vec;

use ipc_schema::abi::layout::{self, slot};
use ipc_schema::abi::operations::{ETERNAL, KINDS};
use ipc_schema::abi::{Kind, Status, op, rights};
use runtime::StartInfo;
use runtime::slots::Slots;

use crate::case::{Outcome, same};
use crate::kernel::{Page, ask};

pub use figures::Figures;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of the standing Memory.
pub const MEMORY: u64 = 16 * PAGE;
/// Slots of the standing Space's table (what is asked for is rounded up to whole pages of 128).
pub const THERE: u64 = 128;
/// A slot there that is occupied.
pub const TAKEN: u64 = 2;
/// UTCB of the standing Thread, in the standing Space.
pub const UTCB: u64 = layout::UTCB;
/// State page of the standing Vcpu, there.
pub const STATE: u64 = layout::UTCB + 0x10_0000;
/// Where this server maps what it looks into.
const WINDOWS: u64 = layout::SHARED + 0x1000_0000;
/// First of the ports that root gives: an old delay port's group, which no device answers.
pub const PORT: u64 = 0xe0;
/// How many.
pub const PORTS: u64 = 16;

/// Local APIC id of no processor of the machine; so is the next one.
pub const NO_PROCESSOR: u64 = 0xc0;

/// Processors that root may have put into the table.
const CPUS: u32 = 64;

/// What the binary knows of its partner's code.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// First address, of a page.
    pub from: u64,
    /// End, of a page.
    pub to: u64,
    /// Where a partner starts.
    pub entry: u64,
}

/// How a slot is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    /// Its object is destroyed with it.
    Object,
    /// Only a copy.
    Copy,
}

/// A point to go back to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    held: usize,
    ram: u64,
    windows: u64,
}

/// Everything.
pub struct Kit {
    slots: Slots,
    held: Vec<(u64, Held)>,
    ram: u64,
    ram_next: u64,
    windows: u64,
    live: [u64; 16],
    stale: [u64; 16],
    /// A slot that stays empty.
    pub empty: u64,
    /// Slots of this server's table.
    pub table: u64,
    /// Device registers.
    pub device: u64,
    /// The Cpu of a processor that the machine does not have: it stays off.
    pub off: u64,
    /// The server's own pages.
    pub image: u64,
    /// Supervisor of partners: this server's own Endpoint.
    pub supervisor: u64,
    /// The partner's code.
    pub code: Code,
}

impl Kit {
    /// Makes one of each.
    pub fn new(start: &StartInfo, code: Code) -> Result<Self, Status> {
        let cap = |name| {
            start
                .cap(name)
                .map(u64::from)
                .map_err(|_| Status::InvalidCap)
        };
        let mut kit = Self {
            slots: start.free_slots(),
            held: Vec::new(),
            ram: cap("ram")?,
            ram_next: 0,
            windows: 0,
            live: [0; 16],
            stale: [0; 16],
            empty: 0,
            table: u64::from(start.slots).next_multiple_of(128),
            device: cap("device")?,
            off: 0,
            image: cap("image")?,
            supervisor: cap("self")?,
            code,
        };
        kit.empty = kit.slot()?;
        let pool = kit.part(1 << 20)?;
        let pool = kit.make_pool(pool)?;
        kit.set(Kind::Pool, pool);
        let memory = kit.part(MEMORY)?;
        kit.set(Kind::Memory, memory);
        for (kind, name) in [
            (Kind::Ports, "ports"),
            (Kind::Cpu, "cpu"),
            (Kind::Log, "log"),
        ] {
            kit.set(kind, cap(name)?);
        }
        for kind in [
            Kind::Space,
            Kind::Thread,
            Kind::Budget,
            Kind::Endpoint,
            Kind::Notification,
            Kind::GuestSpace,
            Kind::Vcpu,
            Kind::Irq,
        ] {
            let made = kit.make_standing(kind)?;
            kit.set(kind, made);
        }
        kit.off = kit.slot()?;
        let words = [kit.off, pool, NO_PROCESSOR, 0];
        ask(kit.live(Kind::Cpu), op::cpu::ADD, words)?;
        let (space, notification) = (kit.live(Kind::Space), kit.live(Kind::Notification));
        ask(
            space,
            op::space::COPY_CAP,
            [notification, TAKEN, u64::from(rights::ALL), 0],
        )?;
        for kind in KINDS.into_iter().filter(|k| !ETERNAL.contains(k)) {
            let stale = kit.make_stale(kind)?;
            if let Some(place) = kit.stale.get_mut(kind as usize) {
                *place = stale;
            }
        }
        Ok(kit)
    }

    fn set(&mut self, kind: Kind, slot: u64) {
        if let Some(place) = self.live.get_mut(kind as usize) {
            *place = slot;
        }
    }

    /// The standing object of a kind, with all rights.
    #[must_use]
    pub fn live(&self, kind: Kind) -> u64 {
        self.live.get(kind as usize).copied().unwrap_or(0)
    }

    /// A capability whose object is gone and whose slot in the Pool another object of the kind has now.
    #[must_use]
    pub fn stale(&self, kind: Kind) -> u64 {
        self.stale.get(kind as usize).copied().unwrap_or(0)
    }

    /// A further object of a kind that is made from a Pool without arguments.
    pub fn make(&mut self, kind: Kind) -> Result<u64, Status> {
        self.make_from(self.live(Kind::Pool), kind, 0, [0; 2])
    }

    /// A further object from a Pool; `high`: upper half of word 0, `words`: words 2 and 3.
    pub fn make_from(
        &mut self,
        pool: u64,
        kind: Kind,
        high: u64,
        [w2, w3]: [u64; 2],
    ) -> Result<u64, Status> {
        let dest = self.slot()?;
        ask(
            pool,
            op::pool::CREATE,
            [kind as u64 | high << 32, dest, w2, w3],
        )?;
        self.hold(dest);
        Ok(dest)
    }

    /// An object as the standing one of its kind is.
    pub fn make_standing(&mut self, kind: Kind) -> Result<u64, Status> {
        let pool = self.live(Kind::Pool);
        let space = self.live(Kind::Space);
        match kind {
            Kind::Space => self.make_from(pool, kind, 0, [64, 0]),
            Kind::Thread => self.make_from(pool, kind, 0, [space, UTCB]),
            Kind::Vcpu => {
                let guest = self.live(Kind::GuestSpace);
                self.make_from(pool, kind, guest, [space, STATE])
            }
            Kind::Budget => {
                let budget = self.make(kind)?;
                let cpu = self.live(Kind::Cpu);
                ask(budget, op::budget::CONFIGURE, [cpu, 1, 1000, 1000])?;
                Ok(budget)
            }
            Kind::Irq => {
                let dest = self.slot()?;
                ask(
                    self.live(Kind::Cpu),
                    op::cpu::CREATE_IRQ,
                    [dest, pool, 0, 0],
                )?;
                self.hold(dest);
                Ok(dest)
            }
            Kind::Ports => {
                let dest = self.slot()?;
                ask(
                    self.live(Kind::Ports),
                    op::ports::DIVIDE,
                    [PORT, 1, dest, pool],
                )?;
                self.hold(dest);
                Ok(dest)
            }
            Kind::Memory => self.part(2 * PAGE),
            Kind::Pool => {
                let memory = self.part(4 * PAGE)?;
                self.make_pool(memory)
            }
            _ => self.make(kind),
        }
    }

    /// Makes a standing object anew, in the same slot, after a case that wore it out.
    pub fn renew(&mut self, kind: Kind) -> Result<(), Status> {
        let slot = self.live(kind);
        let (pool, space) = (self.live(Kind::Pool), self.live(Kind::Space));
        destroy(slot)?;
        self.drop_cap(slot)?;
        let (high, words) = match kind {
            Kind::Thread => (0, [space, UTCB]),
            Kind::Vcpu => (self.live(Kind::GuestSpace), [space, STATE]),
            _ => (0, [0; 2]),
        };
        ask(
            pool,
            op::pool::CREATE,
            [kind as u64 | high << 32, slot, words[0], words[1]],
        )?;
        Ok(())
    }

    fn make_stale(&mut self, kind: Kind) -> Result<u64, Status> {
        // Two threads or vCPUs cannot have the same page: the standing ones are made anew instead.
        if matches!(kind, Kind::Thread | Kind::Vcpu) {
            let stale = self.copy(self.live(kind), rights::ALL)?;
            self.renew(kind)?;
            return Ok(stale);
        }
        if kind == Kind::Pool {
            let memory = self.part(4 * PAGE)?;
            let slot = self.slot()?;
            ask(memory, op::memory::MAKE_POOL, [slot, 0, 0, 0])?;
            let stale = self.copy(slot, rights::ALL)?;
            destroy_pool(slot)?;
            self.drop_cap(slot)?;
            self.slots.give_back(slot as u32);
            // The Pool that takes its number, from the same memory.
            self.make_pool(memory)?;
            return Ok(stale);
        }
        let mark = self.mark();
        let first = self.make_standing(kind)?;
        self.held.truncate(mark.held);
        let stale = self.copy(first, rights::ALL)?;
        destroy(first)?;
        self.drop_cap(first)?;
        self.slots.give_back(first as u32);
        self.ram_next = mark.ram;
        // Its successor in the slot.
        self.make_standing(kind)?;
        Ok(stale)
    }

    /// A free slot, nobody's business yet.
    pub fn slot(&mut self) -> Result<u64, Status> {
        loop {
            let slot = self.slots.take().ok_or(Status::NoMemory)?;
            // Root's for the machine's processors, those that run.
            if !(slot::CPUS..slot::CPUS + CPUS).contains(&slot) {
                return Ok(u64::from(slot));
            }
        }
    }

    /// A slot that is empty now; what a case puts there is destroyed at its end.
    pub fn dest(&mut self) -> Result<u64, Status> {
        let slot = self.slot()?;
        self.hold(slot);
        Ok(slot)
    }

    fn hold(&mut self, slot: u64) {
        self.held.push((slot, Held::Object));
    }

    /// A copy of a capability with fewer rights.
    pub fn copy(&mut self, source: u64, keep: u32) -> Result<u64, Status> {
        self.badged(source, keep, 0)
    }

    /// A copy with a badge.
    pub fn badged(&mut self, source: u64, keep: u32, badge: u64) -> Result<u64, Status> {
        let dest = self.slot()?;
        ask(
            u64::from(slot::SPACE),
            op::space::COPY_CAP,
            [source, dest, u64::from(keep), badge],
        )?;
        self.held.push((dest, Held::Copy));
        Ok(dest)
    }

    /// Empties one of this server's slots.
    pub fn drop_cap(&self, slot: u64) -> Result<(), Status> {
        ask(u64::from(slot::SPACE), op::space::DROP_CAP, [slot, 0, 0, 0]).map(drop)
    }

    /// A part of the RAM, cleared by nobody.
    pub fn part(&mut self, len: u64) -> Result<u64, Status> {
        let dest = self.slot()?;
        let words = [self.ram_next, len, dest, u64::from(slot::POOL)];
        ask(self.ram, op::memory::DIVIDE, words)?;
        self.ram_next += len;
        self.hold(dest);
        Ok(dest)
    }

    /// A Pool made of a Memory.
    pub fn make_pool(&mut self, memory: u64) -> Result<u64, Status> {
        let dest = self.slot()?;
        ask(memory, op::memory::MAKE_POOL, [dest, 0, 0, 0])?;
        self.hold(dest);
        Ok(dest)
    }

    /// The Pool of [`Kit::small_pool`] in `slot` again, after it has been destroyed.
    pub fn remake_pool(&mut self, slot: u64) -> Result<(), Status> {
        let pool = self.held.iter().position(|h| h.0 == slot);
        let memory = pool.and_then(|i| self.held.get(i.checked_sub(1)?));
        let (memory, _) = *memory.ok_or(Status::InvalidCap)?;
        ask(memory, op::memory::MAKE_POOL, [slot, 0, 0, 0]).map(drop)
    }

    /// A new Pool of so many pages.
    pub fn small_pool(&mut self, pages: u64) -> Result<u64, Status> {
        let memory = self.part(pages * PAGE)?;
        self.make_pool(memory)
    }

    /// Maps a page of a Memory of this server's to look into; gone with the Memory or at the case's end.
    pub fn window(&mut self, memory: u64, offset: u64) -> Result<Page, Status> {
        let at = WINDOWS + self.windows * 2 * PAGE;
        let access = u64::from(rights::READ | rights::WRITE);
        ask(
            u64::from(slot::SPACE),
            op::space::MAP,
            [at, memory | access << 32, offset, PAGE],
        )?;
        self.windows += 1;
        Ok(Page::at(at))
    }

    /// An address of this server's where nothing is mapped, for a page that comes with an object.
    pub fn page_address(&mut self) -> u64 {
        let at = WINDOWS + self.windows * 2 * PAGE;
        self.windows += 1;
        at
    }

    /// Remembers what there is.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            held: self.held.len(),
            ram: self.ram_next,
            windows: self.windows,
        }
    }

    /// Destroys and drops what has come since, newest first. What a case destroyed itself is no matter.
    pub fn release(&mut self, mark: Mark) -> Outcome {
        let mut failed = Ok(());
        // What was looked into may belong to the standing objects.
        for n in mark.windows..self.windows {
            let at = WINDOWS + n * 2 * PAGE;
            let _ = ask(u64::from(slot::SPACE), op::space::UNMAP, [at, 0, 0, 0]);
        }
        self.windows = mark.windows;
        while self.held.len() > mark.held
            && let Some((slot, held)) = self.held.pop()
        {
            if held == Held::Object {
                let done = match destroy(slot) {
                    Err(Status::WrongType) => destroy_pool(slot),
                    other => other,
                };
                if let Err(status) = done
                    && status != Status::InvalidCap
                {
                    failed = same("destroying what the case made", &Status::Ok, &status);
                }
            }
            self.drop_cap(slot)?;
            self.slots.give_back(slot as u32);
        }
        self.ram_next = mark.ram;
        failed
    }

    /// Runs a case and cleans up after it.
    pub fn tidy(&mut self, case: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        let mark = self.mark();
        let outcome = case(self);
        let cleaned = self.release(mark);
        outcome.and(cleaned)
    }
}

/// Whether a slot of this server's holds no live capability.
#[must_use]
pub fn is_empty(slot: u64) -> bool {
    // A copy without rights to a slot that is taken: of what is there it is refused for that, or for GRANT.
    let own = u64::from(self::slot::SPACE);
    ask(own, op::space::COPY_CAP, [slot, own, 0, 0]) == Err(Status::InvalidCap)
}

/// Destroys an object.
pub fn destroy(slot: u64) -> Result<(), Status> {
    let words = [slot, 0, 0, 0];
    ask(
        u64::from(self::slot::SPACE),
        op::space::DESTROY_OBJECT,
        words,
    )
    .map(drop)
}

/// Destroys a Pool to the end: bounded, for each step frees something.
pub fn destroy_pool(slot: u64) -> Result<(), Status> {
    for _ in 0..10_000 {
        match ask(slot, op::pool::DESTROY, [0; 4]) {
            Err(Status::Again) => {}
            done => return done.map(drop),
        }
    }
    Err(Status::Again)
}
