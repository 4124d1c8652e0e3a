//! One disk: its map, and what its writer has been given out and has not committed.

use alloc::collections::BTreeMap;
use core::sync::atomic::AtomicU64;

use ipc_schema::disk::{Geometry, Op, Place, Places, Request, SPAN, Status};

use crate::map::{Damaged, Map, Report};

/// A disk.
pub struct Disk<'a> {
    map: Map<'a>,
    read_only: bool,
    /// Blocks that were given a fresh page, with its number.
    given: BTreeMap<u32, u32>,
    /// Tells pages given out since the last [`Op::Begin`] from those given out before.
    epoch: u64,
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// How it ended.
    pub status: Status,
    /// What goes with it: epoch and places.
    pub places: Option<(u64, Places)>,
}

impl From<Status> for Reply {
    fn from(status: Status) -> Self {
        let places = None;
        Self { status, places }
    }
}

impl From<Damaged> for Status {
    fn from(_: Damaged) -> Self {
        Self::Damaged
    }
}

impl<'a> Disk<'a> {
    /// Takes a disk over. `now` is another for each life of the server. `None`: its map's memory is too small.
    #[must_use]
    pub fn new(words: &'a [AtomicU64], geometry: &Geometry, now: u64) -> Option<(Self, Report)> {
        let (map, report) = Map::new(words, geometry)?;
        let disk = Self {
            map,
            read_only: geometry.pages == 0,
            given: BTreeMap::new(),
            epoch: now,
        };
        Some((disk, report))
    }

    /// Pages that are free.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.map.free()
    }

    /// Carries a request out.
    pub fn handle(&mut self, request: &Request) -> Reply {
        let Some(op) = request.op.filter(|op| self.fits(*op, request)) else {
            return Status::Malformed.into();
        };
        if self.read_only && !matches!(op, Op::Begin | Op::Read | Op::Flush) {
            return Status::ReadOnly.into();
        }
        let done = match op {
            Op::Begin => self.begin(),
            Op::Read => return self.read(request),
            Op::Write => return self.write(request),
            Op::Commit => self.commit(request),
            Op::Discard | Op::Zero => self.clear(request),
            // What is committed is where it is to be.
            Op::Flush => Ok(()),
        };
        done.err().unwrap_or(Status::Ok).into()
    }

    fn fits(&self, op: Op, request: &Request) -> bool {
        let end = request.first.checked_add(request.count);
        let inside = end.is_some_and(|end| end <= self.map.blocks());
        match op {
            Op::Begin | Op::Flush => true,
            Op::Read | Op::Write | Op::Commit => {
                inside && (1..=SPAN as u32).contains(&request.count)
            }
            Op::Discard | Op::Zero => inside,
        }
    }

    fn begin(&mut self) -> Result<(), Status> {
        // Clients that share a disk share one that cannot be written: nothing is given out.
        while let Some((_, page)) = self.given.pop_first() {
            self.map.give(page);
        }
        self.epoch = self.epoch.wrapping_add(1);
        Ok(())
    }

    fn read(&self, request: &Request) -> Reply {
        let mut places = [0; SPAN];
        for (to, block) in places.iter_mut().zip(blocks(request)) {
            match self.map.get(block) {
                Ok(place) => *to = place.pack(),
                Err(damaged) => return Status::from(damaged).into(),
            }
        }
        Reply {
            status: Status::Ok,
            places: Some((self.epoch, places)),
        }
    }

    fn write(&mut self, request: &Request) -> Reply {
        let mut places = [0; SPAN];
        for (i, block) in blocks(request).enumerate() {
            match (self.place(block), places.get_mut(i)) {
                (Ok(place), Some(to)) => *to = place.pack(),
                (Err(status), _) => {
                    self.take_back(request, places.get(..i).unwrap_or(&[]));
                    return status.into();
                }
                (Ok(_), None) => {}
            }
        }
        Reply {
            status: Status::Ok,
            places: Some((self.epoch, places)),
        }
    }

    /// Where a block is to be written.
    fn place(&mut self, block: u32) -> Result<Place, Status> {
        if let Some(&page) = self.given.get(&block) {
            // Whoever was given it first has filled it by now.
            return Ok(Place::Page(page));
        }
        match self.map.get(block)? {
            Place::Base(base) => {
                let page = self.map.take_free().ok_or(Status::Full)?;
                self.given.insert(block, page);
                Ok(Place::Fresh(page, base))
            }
            place => Ok(place),
        }
    }

    /// Takes back what a request that cannot be carried out has been given.
    fn take_back(&mut self, request: &Request, places: &[u32]) {
        for (block, &place) in blocks(request).zip(places) {
            if let Place::Fresh(page, _) = Place::unpack(place) {
                self.given.remove(&block);
                self.map.give(page);
            }
        }
    }

    fn commit(&mut self, request: &Request) -> Result<(), Status> {
        if request.epoch != self.epoch {
            return Err(Status::Stale);
        }
        // All of it is looked at first.
        for (block, &place) in blocks(request).zip(&request.places) {
            let page = match Place::unpack(place) {
                Place::Page(page) | Place::Fresh(page, _) => page,
                Place::Base(_) => return Err(Status::Malformed),
            };
            let given = self.given.get(&block) == Some(&page);
            if !given && self.map.get(block)? != Place::Page(page) {
                return Err(Status::Stale);
            }
        }
        for block in blocks(request) {
            if let Some(page) = self.given.remove(&block) {
                self.map.set(block, Place::Page(page));
            }
        }
        Ok(())
    }

    fn clear(&mut self, request: &Request) -> Result<(), Status> {
        let hole = Place::Base(ipc_schema::disk::Base::Hole);
        for block in blocks(request) {
            if self.map.get(block) != Ok(hole) {
                self.map.set(block, hole);
            }
        }
        Ok(())
    }
}

/// The blocks of a request, which was seen to fit.
fn blocks(request: &Request) -> core::ops::Range<u32> {
    request.first..request.first.saturating_add(request.count)
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
