//! The device: one queue of the crate's, and what is under way in it.

extern crate alloc;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::ptr::NonNull;

use driver_virtio_blk::gpt::{MAX_TABLE, SECTOR};
use driver_virtio_blk::pci;
use driver_virtio_blk::server::{Device, Job, Region, Ticket, Work};
use ipc_schema::disk::DriverConfig;
use runtime::start::StartError;
use runtime::{StartInfo, now};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::{Error, PAGE_SIZE};

use crate::dma::{self, Dma, Reached};
use crate::registers::Registers;

/// Feature bits (5.2.3, 6).
mod feature {
    pub const RO: u64 = 1 << 5;
    pub const FLUSH: u64 = 1 << 9;
    pub const DISCARD: u64 = 1 << 13;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Descriptors of the queue, of which each job takes three at most.
const QUEUE: usize = 64;
/// Most jobs under way.
const JOBS: usize = QUEUE / 3;
/// The queue's number.
const NUMBER: u16 = 0;
/// Bytes of what goes with each job: its header (5.2.6), its status at [`STATUS`], and what a discard is about at [`SEGMENT`].
const NOTE: usize = 48;
const STATUS: usize = 16;
const SEGMENT: usize = 32;
/// The type of a discard (5.2.6).
const DISCARD: u32 = 11;
/// A status that no device gives.
const UNDECIDED: u8 = 0xff;
const _: () = assert!(JOBS * NOTE <= PAGE_SIZE);

type Queue = VirtQueue<Dma, QUEUE>;

/// A job under way.
struct Flight {
    ticket: Ticket,
    job: Job,
    /// The number of its note.
    note: usize,
}

/// The disk.
pub struct Disk {
    registers: Registers,
    queue: Queue,
    capacity: u64,
    /// Most sectors of a discard; 0: it does not do such.
    most: u64,
    features: u64,
    clients: Vec<Reached>,
    /// Where the driver itself reads.
    own: NonNull<u8>,
    notes: NonNull<u8>,
    free: Vec<usize>,
    /// By the number of the first descriptor.
    flights: [Option<Flight>; QUEUE],
    under_way: usize,
    /// When one last began or ended.
    moved: u64,
    unsaid: bool,
    /// Done already.
    done: Vec<Ticket>,
}

impl Disk {
    /// Resets the device and makes it ready.
    pub fn new(start: &StartInfo, config: &DriverConfig) -> Result<Self, StartError> {
        let reached = |name: &str| {
            let told = config.physical.iter().find(|(n, _)| n == name);
            let (_, physical) = told.ok_or(StartError::BadConfig)?;
            Ok(Reached::new(start.region(name)?, *physical))
        };
        let clients = (0..config.clients.len()).map(|n| reached(&format!("pages:{n}")));
        let clients = clients.collect::<Result<Vec<_>, StartError>>()?;
        let own = core::iter::once(reached("dma")?);
        dma::use_regions(own.chain(clients.iter().copied()).collect::<Box<[_]>>());
        let places = pci::places(&config.function.config);
        let places = places.unwrap_or_else(|| panic!("the function has no registers of virtio 1"));
        let registers = Registers::new(start, &places);
        let mut registers =
            registers.unwrap_or_else(|| panic!("the function's registers cannot be reached"));
        assert!(registers.reset(), "the device cannot be reset");
        let features = registers
            .agree(feature::RO | feature::FLUSH | feature::DISCARD | feature::VERSION_1)
            .filter(|features| features & feature::VERSION_1 != 0);
        let features = features.unwrap_or_else(|| panic!("the device is not of virtio 1"));
        let queue = VirtQueue::new(&mut registers, NUMBER, false, false)
            .unwrap_or_else(|e| panic!("the device's queue: {e}"));
        registers.finish_init();
        let room = |pages| {
            let taken = dma::take(pages);
            taken.map_or_else(|| panic!("the driver's own memory is too small"), |t| t.1)
        };
        Ok(Self {
            capacity: registers.capacity(),
            most: match features & feature::DISCARD {
                0 => 0,
                _ => registers.max_discard(),
            },
            registers,
            queue,
            features,
            clients,
            own: room(MAX_TABLE / PAGE_SIZE),
            notes: room(1),
            free: (0..JOBS).collect(),
            flights: [const { None }; QUEUE],
            under_way: 0,
            moved: 0,
            unsaid: false,
            done: Vec::new(),
        })
    }

    /// Its sectors.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Whether it can be written.
    #[must_use]
    pub const fn writable(&self) -> bool {
        self.features & feature::RO == 0
    }

    /// Whether it wants to know what nobody needs.
    #[must_use]
    pub const fn discards(&self) -> bool {
        self.most > 0
    }

    /// Since when something is under way and nothing has happened: TSC.
    #[must_use]
    pub fn waits_since(&self) -> Option<u64> {
        (self.under_way > 0).then_some(self.moved)
    }

    /// A copy of what the driver itself has read.
    #[must_use]
    pub fn own(&self, len: u64) -> Vec<u8> {
        let len = (len as usize).min(MAX_TABLE);
        // SAFETY: `MAX_TABLE` bytes of the driver's own were taken for this in `new`, and no job is under way there: the caller has seen its
        // end.
        unsafe { core::slice::from_raw_parts(self.own.as_ptr(), len) }.to_vec()
    }

    /// Header, data and status of a job. `None`: its memory is not what it says.
    fn buffers(&self, job: &Job, note: usize) -> Option<Buffers> {
        // SAFETY: `JOBS` notes fit into the page that was taken for them (asserted above), and `note` is one of their numbers.
        let (header, status, segment) = unsafe {
            let at = self.notes.add(note * NOTE);
            (at, at.add(STATUS), at.add(SEGMENT))
        };
        let data = match (job.work, job.region) {
            (Work::Flush, _) => None,
            (Work::Discard, _) => Some(NonNull::slice_from_raw_parts(segment, NOTE - SEGMENT)),
            (_, Region::Client(n)) => Some(self.clients.get(n)?.bytes(job.at, job.len)?),
            (_, Region::Own) => {
                let len = usize::try_from(job.len)
                    .ok()
                    .filter(|&len| job.at == 0 && (1..=MAX_TABLE).contains(&len))?;
                Some(NonNull::slice_from_raw_parts(self.own, len))
            }
        };
        Some(Buffers {
            header: NonNull::slice_from_raw_parts(header, STATUS),
            data,
            status: NonNull::slice_from_raw_parts(status, 1),
            reads: job.work == Work::Read,
        })
    }
}

/// What a job's descriptors are about.
struct Buffers {
    header: NonNull<[u8]>,
    data: Option<NonNull<[u8]>>,
    status: NonNull<[u8]>,
    reads: bool,
}

impl Buffers {
    /// Adds them to the queue: what the device reads, then what it writes.
    ///
    /// # Safety
    /// Nobody else may use them until they are popped, but for the device, and the client that has the data's pages mapped too: the crate
    /// takes their addresses and lengths alone.
    unsafe fn add(&mut self, queue: &mut Queue) -> Result<u16, Error> {
        // SAFETY: mapped, as `buffers` has found them; the rest is the caller's obligation.
        unsafe {
            let (header, status) = (self.header.as_ref(), self.status.as_mut());
            match self.data {
                None => queue.add(&[header], &mut [status]),
                Some(mut data) if self.reads => queue.add(&[header], &mut [data.as_mut(), status]),
                Some(data) => queue.add(&[header, data.as_ref()], &mut [status]),
            }
        }
    }

    /// Takes them out of the queue, as they were added.
    ///
    /// # Safety
    /// They are those that were added when `head` was the answer.
    unsafe fn pop(&mut self, queue: &mut Queue, head: u16) -> Result<u32, Error> {
        // SAFETY: as in `add`.
        unsafe {
            let (header, status) = (self.header.as_ref(), self.status.as_mut());
            match self.data {
                None => queue.pop_used(head, &[header], &mut [status]),
                Some(mut data) if self.reads => {
                    queue.pop_used(head, &[header], &mut [data.as_mut(), status])
                }
                Some(data) => queue.pop_used(head, &[header, data.as_ref()], &mut [status]),
            }
        }
    }

    /// What a discard is about (5.2.6): sector, number, no flags.
    fn prepare_segment(&mut self, sector: u64, sectors: u32) {
        let mut segment = [0; NOTE - SEGMENT];
        segment[..8].copy_from_slice(&sector.to_le_bytes());
        segment[8..12].copy_from_slice(&sectors.to_le_bytes());
        if let Some(data) = self.data {
            // SAFETY: as in `prepare`: of a discard the data is in the note, and as large as this.
            unsafe { data.cast::<[u8; NOTE - SEGMENT]>().as_ptr().write(segment) };
        }
    }

    fn status(&self) -> u8 {
        // SAFETY: mapped; the device has said that it is done with it.
        unsafe { self.status.cast::<u8>().as_ptr().read_volatile() }
    }

    fn prepare(&mut self, kind: u32, sector: u64) {
        let mut header = [0; STATUS];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        if kind != DISCARD {
            header[8..].copy_from_slice(&sector.to_le_bytes());
        }
        // SAFETY: a note's memory, as large as this, which no job uses yet.
        unsafe {
            self.header.cast::<[u8; STATUS]>().as_ptr().write(header);
            self.status.cast::<u8>().as_ptr().write(UNDECIDED);
        }
    }
}

impl Device for Disk {
    fn room(&self) -> bool {
        !self.free.is_empty()
    }

    fn start(&mut self, ticket: Ticket, job: Job) {
        // 5.2.5: a device without flushes has no cache; one without discards keeps what nobody needs.
        let nothing = match job.work {
            Work::Flush => self.features & feature::FLUSH == 0,
            Work::Discard => self.most == 0,
            Work::Read | Work::Write => false,
        };
        if nothing {
            self.done.push(ticket);
            return;
        }
        // 5.2.6: the types of requests.
        let kind = match job.work {
            Work::Read => 0,
            Work::Write => 1,
            Work::Flush => 4,
            Work::Discard => DISCARD,
        };
        let Some(note) = self.free.pop() else {
            panic!("a job without room");
        };
        let buffers = self.buffers(&job, note);
        let mut buffers = buffers.unwrap_or_else(|| panic!("the device cannot reach {job:?}"));
        buffers.prepare(kind, job.sector);
        if job.work == Work::Discard {
            // What is more than the device takes at once stays as it is.
            let sectors = (job.len / SECTOR as u64).min(self.most);
            buffers.prepare_segment(job.sector, sectors as u32);
        }
        // SAFETY: they stay as they are until the job has ended: a note is used by one job, a client's pages are not given out meanwhile.
        let added = unsafe { buffers.add(&mut self.queue) };
        let head = added.unwrap_or_else(|e| panic!("the queue: {e}"));
        if self.under_way == 0 {
            self.moved = now();
        }
        self.under_way += 1;
        self.unsaid = true;
        if let Some(place) = self.flights.get_mut(usize::from(head)) {
            *place = Some(Flight { ticket, job, note });
        }
    }

    fn push(&mut self) {
        if core::mem::take(&mut self.unsaid) && self.queue.should_notify() {
            self.registers.notify(NUMBER);
        }
    }

    fn has_ended(&self) -> bool {
        !self.done.is_empty() || self.queue.can_pop()
    }

    fn ended(&mut self) -> Option<(Ticket, bool)> {
        if let Some(ticket) = self.done.pop() {
            return Some((ticket, true));
        }
        let head = self.queue.peek_used()?;
        let flight = self.flights.get_mut(usize::from(head));
        let Some(flight) = flight.and_then(Option::take) else {
            panic!("the device has done what it was not asked");
        };
        let Some(mut buffers) = self.buffers(&flight.job, flight.note) else {
            panic!("the job has changed");
        };
        // SAFETY: those that were added.
        let popped = unsafe { buffers.pop(&mut self.queue, head) };
        if let Err(e) = popped {
            panic!("the queue: {e}");
        }
        self.free.push(flight.note);
        self.under_way -= 1;
        self.moved = now();
        Some((flight.ticket, buffers.status() == 0))
    }
}
