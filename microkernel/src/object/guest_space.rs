//! GuestSpaces: what a VM's processors share: the nested page table and the exit routes.

use super::mapping::{Mapping, Request, Target};
use super::step::Step;
use super::{Cap, Header, Pool, Vcpu, object, pool::pool_of};
use crate::arch::paging::{Access, Table};
use crate::list::List;
use crate::mem::{self, Obj};
use crate::tree::Tree;
use core::cell::Cell;
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::abi::{Kind, Status};

/// Routes of a GuestSpace at most.
const ROUTES: usize = 48;
/// Groups of 256 ports that can hold routes.
const BLOCKS: usize = 8;

/// Which way an access goes.
#[derive(Clone, Copy)]
pub enum Way {
    /// A call on an Endpoint.
    Endpoint,
    /// A signal; with a value, only a write of that value.
    Doorbell(Option<u64>),
}

/// One exit route.
pub struct Route {
    first: u16,
    count: u32,
    /// Which way.
    pub way: Way,
    /// The Endpoint or Notification.
    pub target: Cap,
    /// TSC cycles that the server has.
    pub limit: u64,
}

/// A page that finds a port's route in two steps: `blocks` by the port's high byte, `ports` by its low byte.
#[repr(C)]
pub struct Routes {
    /// 1 + index into `ports`, 0: none.
    blocks: [Cell<u8>; 256],
    /// 1 + index into `routes`, 0: none.
    ports: [[Cell<u8>; 256]; BLOCKS],
    /// Routes in each of `ports`.
    owners: [Cell<u8>; BLOCKS],
    used: Cell<u64>,
}

/// The routes themselves.
#[repr(C)]
pub struct RouteTable {
    entries: [Cell<Option<Route>>; ROUTES],
}

const _: () =
    assert!(core::mem::size_of::<Routes>() <= 4096 && core::mem::size_of::<RouteTable>() <= 4096);

/// The routes of one GuestSpace, by reference.
#[derive(Clone, Copy)]
pub struct RouteView<'a> {
    index: &'a Routes,
    table: &'a RouteTable,
}

impl<'a> RouteView<'a> {
    /// The route of a plain access that lies wholly in one range.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, a: PortAccess) -> Option<&'a Route> {
        let i = self.number(a.port())?;
        // SAFETY: routes are set and taken in operations on the GuestSpace only, never while an access looks for its route: both
        // happen with interrupts off on the runner's processor.
        let route = unsafe { (*self.table.entries.get(i)?.as_ptr()).as_ref()? };
        let end = u32::from(a.port()) + u32::from(a.width());
        if end > u32::from(route.first) + route.count || a.string() {
            return None;
        }
        Some(route)
    }

    /// All routes.
    fn each(&self) -> impl Iterator<Item = &'a Route> {
        // SAFETY: as in `find`.
        let get = |e: &'a Cell<Option<Route>>| unsafe { (*e.as_ptr()).as_ref() };
        self.table.entries.iter().filter_map(get)
    }

    #[inline(always)]
    fn number(&self, port: u16) -> Option<usize> {
        let block = self.index.blocks[usize::from(port >> 8)].get();
        let n = self.index.ports.get(usize::from(block).wrapping_sub(1))?[usize::from(port & 255)]
            .get();
        usize::from(n).checked_sub(1)
    }
}

/// A VM's memory and routes.
#[repr(C)]
pub struct GuestSpace {
    header: Header,
    /// Its nested page table.
    pub table: Table,
    /// Moves on whenever something was taken out of the table: each vCPU flushes before it next enters.
    pub flushes: Cell<u64>,
    /// Mappings in it.
    pub mappings: Tree<Mapping>,
    /// Its vCPUs.
    pub vcpus: List<Vcpu, 0>,
    index_phys: u64,
    table_phys: u64,
}
object!(GuestSpace, Kind::GuestSpace);

/// First guest-physical address that can't be mapped (48 bits).
pub const GUEST_END: u64 = 1 << 47;
/// Entries of the root page that lead there.
const GUEST_ENTRIES: usize = 256;
/// `Header::flags`: it is being destroyed.
const DYING: u16 = 1;

impl GuestSpace {
    /// An empty one.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool) -> Result<Obj<Self>, Status> {
        let mut pages = [0; 3];
        for i in 0..3 {
            match pool.take_pages(1) {
                Ok(p) => pages[i] = p,
                Err(e) => {
                    pages[..i].iter().for_each(|&p| pool.give_pages(p, 1));
                    return Err(e);
                }
            }
        }
        let [root, index_phys, table_phys] = pages;
        let made = pool.create_object(|header| Self {
            header,
            table: Table { root },
            flushes: Cell::new(1),
            mappings: Tree::default(),
            vcpus: List::default(),
            index_phys,
            table_phys,
        });
        let g = made.inspect_err(|_| pages.iter().for_each(|&p| pool.give_pages(p, 1)))?;
        // A cleared page is an empty index, but `None` need not be zero.
        g.routes().table.entries.iter().for_each(|e| e.set(None));
        Ok(g)
    }

    /// Its routes.
    #[inline(always)]
    pub fn routes(&self) -> RouteView<'_> {
        // SAFETY: two pages of this object's own, of cells only; `create` writes the table's entries before anyone reads them (through
        // `Cell::set`, and an uninitialised `None` has nothing to drop).
        unsafe {
            RouteView {
                index: &*(mem::virt(self.index_phys) as *const Routes),
                table: &*(mem::virt(self.table_phys) as *const RouteTable),
            }
        }
    }

    /// Whether anything can be added to it.
    ///
    /// # Errors
    /// `Busy`: it is being destroyed.
    pub fn alive(&self) -> Result<(), Status> {
        if self.header.flags.get() & DYING != 0 {
            Err(Status::Busy)
        } else {
            Ok(())
        }
    }

    /// Maps a range of a Memory at a guest-physical address.
    ///
    /// # Errors
    /// As [`Mapping::create`]; `InvalidArg` for device registers.
    pub fn map(&self, r: &Request, step: &Step, stop: impl Fn()) -> Result<(), Status> {
        self.alive()?;
        if r.memory.get().device {
            return Err(Status::InvalidArg);
        }
        let access = Access::new(r.rights, false);
        Mapping::create(r, Target::Guest(Obj::of(self)), access, step, stop)
    }

    /// Adds a route for `count` ports from `first` on.
    ///
    /// # Errors
    /// `OutOfRange`, `Overlap`, `NoMemory` (no free entry, or too many different groups of 256 ports).
    pub fn add_route(
        &self,
        first: u64,
        count: u64,
        way: Way,
        target: Cap,
        limit: u64,
    ) -> Result<(), Status> {
        if count == 0 || first > 0xffff || count > 0x1_0000 - first {
            return Err(Status::OutOfRange);
        }
        self.alive()?;
        let view = self.routes();
        let overlaps = |r: &Route| {
            u64::from(r.first) < first + count && first < u64::from(r.first) + u64::from(r.count)
        };
        if view.each().any(overlaps) {
            return Err(Status::Overlap);
        }
        let number = view.index.used.get().trailing_ones() as usize;
        if number >= ROUTES {
            return Err(Status::NoMemory);
        }
        let blocks = (first >> 8)..=((first + count - 1) >> 8);
        let missing = blocks
            .clone()
            .filter(|&b| view.index.blocks[b as usize & 255].get() == 0)
            .count();
        let free = view.index.owners.iter().filter(|o| o.get() == 0).count();
        if missing > free {
            return Err(Status::NoMemory);
        }
        for b in blocks {
            let cell = &view.index.blocks[b as usize & 255];
            if cell.get() == 0
                && let Some(i) = view.index.owners.iter().position(|o| o.get() == 0)
            {
                view.index.ports[i].iter().for_each(|p| p.set(0));
                cell.set(i as u8 + 1);
            }
            if let Some(o) = view
                .index
                .owners
                .get(usize::from(cell.get()).wrapping_sub(1))
            {
                o.set(o.get() + 1);
            }
        }
        let route = Route {
            first: first as u16,
            count: count as u32,
            way,
            target,
            // So far away that it never comes, and no sum overflows.
            limit: limit.min(1 << 62),
        };
        view.table.entries[number].set(Some(route));
        view.index.used.set(view.index.used.get() | 1 << number);
        self.mark(first, count, number as u8 + 1);
        Ok(())
    }

    /// Enters `number` (0: none) for a range whose blocks are there.
    fn mark(&self, first: u64, count: u64, number: u8) {
        let index = self.routes().index;
        let end = first + count;
        let mut p = first;
        while p < end {
            let next = ((p | 255) + 1).min(end);
            let block = usize::from(index.blocks[(p >> 8) as usize & 255].get());
            if let Some(ports) = index.ports.get(block.wrapping_sub(1)) {
                let range = (p & 255) as usize..=((next - 1) & 255) as usize;
                ports[range].iter().for_each(|p| p.set(number));
            }
            p = next;
        }
    }

    /// Takes the route that begins at `first` away.
    ///
    /// # Errors
    /// `InvalidArg`: no route begins there.
    pub fn remove_route(&self, first: u64) -> Result<(), Status> {
        let view = self.routes();
        let number = view.number(first as u16).ok_or(Status::InvalidArg)?;
        let entry = &view.table.entries[number];
        let route = entry.take().ok_or(Status::InvalidArg)?;
        if u64::from(route.first) != first {
            entry.set(Some(route));
            return Err(Status::InvalidArg);
        }
        let count = u64::from(route.count);
        self.mark(first, count, 0);
        // A block of the index without routes is free for other ports.
        for b in (first >> 8)..=((first + count - 1) >> 8) {
            let cell = &view.index.blocks[b as usize & 255];
            if let Some(o) = view
                .index
                .owners
                .get(usize::from(cell.get()).wrapping_sub(1))
            {
                o.set(o.get() - 1);
                if o.get() == 0 {
                    cell.set(0);
                }
            }
        }
        view.index.used.set(view.index.used.get() & !(1 << number));
        Ok(())
    }

    /// The processors, a bit each, where a vCPU of it may be running.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        let mut cpus = 0;
        let mut v = self.vcpus.first();
        while let Some(o) = v {
            cpus |= 1 << o.cpu.get();
            v = List::<Vcpu, 0>::after(o);
        }
        cpus
    }

    /// What was taken out of the table must not be used any more by any vCPU.
    pub fn flush(&self) {
        self.flushes.set(self.flushes.get() + 1);
    }

    /// Ends it, its vCPUs and its mappings.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn destroy(&self, step: &Step) -> Result<(), Status> {
        self.header.flags.set(DYING);
        while let Some(v) = self.vcpus.first() {
            step.spend(1000)?;
            v.get().destroy();
        }
        while let Some(m) = self.mappings.any() {
            m.get().destroy(step)?;
        }
        step.spend(1000)?;
        let pool = pool_of(&self.header);
        self.table.destroy(pool, GUEST_ENTRIES, step)?;
        pool.give_pages(self.index_phys, 1);
        pool.give_pages(self.table_phys, 1);
        pool.free_object(Obj::of(self));
        Ok(())
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/guest_space.rs"]
pub(crate) mod check;
