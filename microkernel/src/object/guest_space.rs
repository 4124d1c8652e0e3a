//! GuestSpaces: what a VM's processors share: the nested page table and the exit routes.

use super::step::Step;
use super::{Cap, Domain, Object, Pool, Vcpu, is_domain};
use crate::list::List;
use crate::mem::{self, Obj};
use crate::virt::Plain;
use core::cell::Cell;
use core::ops::RangeInclusive;
use ipc_schema::abi::{Kind, Status};

/// Routes of a GuestSpace at most.
const ROUTES: usize = 48;
/// Ports of a route at most: what it takes to enter them is bounded.
const PORTS: u64 = 1024;
/// Bits of a port number that find it in a page of the index; the others find the page.
const PAGE_BITS: u32 = 12;

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

/// The routes themselves, in a page.
type RouteTable = [Cell<Option<Route>>; ROUTES];

/// A page of the index: for each port 1 + the number of its route, 0: none.
type IndexPage = [Cell<u8>; 1 << PAGE_BITS];

const _: () = assert!(core::mem::size_of::<RouteTable>() <= 4096);

/// A VM's memory and routes.
#[repr(C)]
pub struct GuestSpace {
    domain: Domain,
    /// Its vCPUs.
    pub vcpus: List<Vcpu, 0>,
    /// Kernel addresses of the pages of the index; 0: no route there so far.
    index: [Cell<u64>; 1 << (16 - PAGE_BITS)],
    /// Routes in use, a bit each.
    used: Cell<u64>,
    table_virt: u64,
}
is_domain!(GuestSpace, Kind::GuestSpace);

/// Entries of the root page that lead to addresses that can be mapped.
const GUEST_ENTRIES: usize = 256;

impl GuestSpace {
    /// An empty one.
    ///
    /// # Errors
    /// `NoMemory`.
    pub fn create(pool: &Pool) -> Result<Obj<Self>, Status> {
        let mut pages = [0; 2];
        pool.take_pages(&mut pages)?;
        let [root, table_phys] = pages;
        let made = pool.create_object(|header| Self {
            domain: Domain::new(header, root, true),
            vcpus: List::default(),
            index: Default::default(),
            used: Cell::new(0),
            table_virt: mem::virt(table_phys),
        });
        let g = made.inspect_err(|_| pool.give_pages(&pages))?;
        // A cleared page is an empty index, but `None` need not be zero.
        g.routes().iter().for_each(|e| e.set(None));
        Ok(g)
    }

    /// The pages that routes are in.
    pub fn route_pages(&self) -> impl Iterator<Item = u64> {
        let index = self.index.iter().map(Cell::get).filter(|&p| p != 0);
        index.chain([self.table_virt]).map(|v| v - mem::virt(0))
    }

    fn routes(&self) -> &RouteTable {
        // SAFETY: a page of this object's own, of cells only; `create` writes its entries before anyone reads them (through `Cell::set`,
        // and an uninitialised `None` has nothing to drop).
        unsafe { &*(self.table_virt as *const RouteTable) }
    }

    /// The route of a plain access that lies wholly in one range.
    #[inline(always)]
    #[must_use]
    pub fn route(&self, a: Plain) -> Option<&Route> {
        let i = self.number(a.port)?;
        // SAFETY: routes are set and taken in operations on the GuestSpace only, never while an access looks for its route: both
        // happen with interrupts off on the runner's processor.
        let route = unsafe { (*self.routes().get(i)?.as_ptr()).as_ref()? };
        let end = u32::from(a.port) + a.width;
        (end <= u32::from(route.first) + route.count).then_some(route)
    }

    /// Where the index has a port, if there is a page of it for that.
    #[inline(always)]
    fn entry(&self, port: u16) -> Option<&Cell<u8>> {
        let page = self.index[usize::from(port >> PAGE_BITS)].get();
        if page == 0 {
            return None;
        }
        // SAFETY: a page of this object's own, of cells only, cleared by the Pool.
        let page = unsafe { &*(page as *const IndexPage) };
        Some(&page[usize::from(port) % page.len()])
    }

    #[inline(always)]
    fn number(&self, port: u16) -> Option<usize> {
        usize::from(self.entry(port)?.get()).checked_sub(1)
    }

    /// Adds a route for `count` ports from `first` on.
    ///
    /// # Errors
    /// `OutOfRange`, `Overlap`, `NoMemory`.
    pub fn add_route(
        &self,
        first: u64,
        count: u64,
        way: Way,
        target: Cap,
        limit: u64,
    ) -> Result<(), Status> {
        if count == 0 || count > PORTS || first > 0xffff || count > 0x1_0000 - first {
            return Err(Status::OutOfRange);
        }
        self.alive()?;
        let ports = first as u16..=(first + count - 1) as u16;
        if ports.clone().any(|p| self.number(p).is_some()) {
            return Err(Status::Overlap);
        }
        let number = self.used.get().trailing_ones() as usize;
        let entry = self.routes().get(number).ok_or(Status::NoMemory)?;
        for p in [ports.start(), ports.end()] {
            let page = &self.index[usize::from(p >> PAGE_BITS)];
            if page.get() == 0 {
                page.set(mem::virt(self.pool().take_page()?));
            }
        }
        entry.set(Some(Route {
            first: first as u16,
            count: count as u32,
            way,
            target,
            // So far away that it never comes, and no sum overflows.
            limit: limit.min(1 << 62),
        }));
        self.used.set(self.used.get() | 1 << number);
        self.mark(ports, number as u8 + 1);
        Ok(())
    }

    /// Enters `number` (0: none) for ports whose pages are there.
    fn mark(&self, ports: RangeInclusive<u16>, number: u8) {
        ports
            .filter_map(|p| self.entry(p))
            .for_each(|e| e.set(number));
    }

    /// Takes the route that begins at `first` away.
    ///
    /// # Errors
    /// `InvalidArg`: no route begins there.
    pub fn remove_route(&self, first: u64) -> Result<(), Status> {
        let number = self.number(first as u16).ok_or(Status::InvalidArg)?;
        let entry = &self.routes()[number];
        let route = entry.take().ok_or(Status::InvalidArg)?;
        if u64::from(route.first) != first {
            entry.set(Some(route));
            return Err(Status::InvalidArg);
        }
        let last = first + u64::from(route.count) - 1;
        self.mark(first as u16..=last as u16, 0);
        self.used.set(self.used.get() & !(1 << number));
        Ok(())
    }

    /// Ends it, its vCPUs and its mappings.
    ///
    /// # Errors
    /// `Again`: there is more to do.
    pub fn destroy(&self, step: &Step) -> Result<(), Status> {
        self.dies();
        while let Some(v) = self.vcpus.first() {
            step.spend(1000)?;
            v.get().destroy();
        }
        while let Some(m) = self.mappings.any() {
            m.get().destroy(step)?;
        }
        step.spend(1000)?;
        let pool = self.pool();
        self.table.destroy(pool, GUEST_ENTRIES, step)?;
        self.route_pages().for_each(|p| pool.give_page(p));
        pool.free_object(Obj::of(self));
        Ok(())
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/guest_space.rs"]
pub(crate) mod check;
