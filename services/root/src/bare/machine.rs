//! RAM, slots and the boot archive, by system calls.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use ipc_schema::abi::layout::slot;
use ipc_schema::abi::rights::{READ, WRITE};
use ipc_schema::abi::{ABI_VERSION, BootInfo, BootMemory, Status};
use ipc_schema::archive::{ArchiveError, Index};
use root::image::{Image, ImageError, Place};
use root::ram::{LARGE, PAGE, Ram, Run};
use root::wall_clock;
use runtime::object::{Log, Memory, Pool, Ports};
use runtime::slots::MAX;
use runtime::time::WallClock;
use runtime::{Slot, Slots, now};

use super::{LOG, SPACE, complain};

/// Root's own Pool, which pays for parts and for what outlives servers.
pub const POOL: Pool = Pool(slot::POOL);
const PORTS: Ports = Ports(slot::PORTS);

/// Where the boot archive is mapped.
const ARCHIVE: u64 = 0x20_0000_0000;
/// Where a server's memory is mapped while root fills or reads it.
const WINDOW: u64 = 0x30_0000_0000;

/// Root's number as a source of log records.
pub const ROOT_ID: u64 = 1;
/// Source of records that name other sources.
const ANNOUNCE_ID: u64 = 0xff;

/// Kinds of `BootMemory`.
mod kind {
    pub const RAM: u32 = 0;
    pub const DEVICE: u32 = 1;
    pub const ARCHIVE: u32 = 2;
}

/// Why something could not be done.
#[derive(Debug)]
pub enum Error {
    /// The kernel refused an operation.
    Kernel(&'static str, Status),
    /// Not so many bytes of RAM are free.
    NoRam(u64),
    /// No slot of root's table is free.
    NoSlot,
    /// The boot archive is bad.
    Archive(ArchiveError),
    /// The manifest is bad.
    Manifest(String),
    /// A server's file is bad.
    Image(String, ImageError),
    /// Anything else.
    Text(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(what, Status::NoMemory) => write!(
                f,
                "{what}: the Pool that pays for it is full; a server's is as large as its plan says (services/root/src/plan): enlarge it there"
            ),
            Self::Kernel(what, status) => write!(f, "{what}: {status:?}"),
            Self::NoRam(bytes) => write!(f, "no {bytes} bytes of RAM left"),
            Self::NoSlot => f.write_str("no slot left"),
            Self::Archive(e) => e.fmt(f),
            Self::Manifest(text) => f.write_str(text),
            Self::Image(file, e) => write!(f, "{file}: {e}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Names what was being done when the kernel refused.
pub fn at(what: &'static str) -> impl Fn(Status) -> Error {
    move |status| Error::Kernel(what, status)
}

/// A run of RAM with the capability to it.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// The capability.
    pub memory: Memory,
    /// The run.
    pub run: Run,
}

/// What root has.
pub struct Machine {
    /// Root's own slots.
    pub slots: Slots,
    /// RAM.
    pub ram: Ram,
    /// When it is.
    pub wall_clock: WallClock,
    /// TSC cycles a second.
    pub tsc_hz: u64,
    /// The archive's Memory.
    pub archive_memory: Memory,
    archive: &'static [u8],
    announce: Log,
    /// Ranges of device registers: physical address, bytes, slot.
    devices: Vec<(u64, u64, Slot)>,
    /// What all instances of a program share, by archive file.
    programs: Vec<(String, Memory)>,
}

/// The memory that the kernel gave.
pub fn memories(boot: &BootInfo) -> impl Iterator<Item = &BootMemory> {
    boot.memory.iter().take(boot.memory_count as usize)
}

impl Machine {
    /// Takes stock.
    pub fn new(boot: &'static BootInfo) -> Result<Self, Error> {
        if boot.abi_version != ABI_VERSION {
            return Err(Error::Text("the kernel has another ABI version"));
        }
        let mut slots = Slots::new(boot.first_free_slot, MAX);
        let mut badged = |badge| {
            let dest = slots.take().ok_or(Error::NoSlot)?;
            SPACE
                .copy_cap(LOG.0, dest, WRITE, badge)
                .map_err(at("badge the log"))?;
            Ok(Log(dest))
        };
        runtime::log::use_slot(badged(ROOT_ID)?.0);
        let announce = badged(ANNOUNCE_ID)?;
        // First of all, so that even what goes wrong next can be read.
        announce_to(announce, ROOT_ID as u8, "root@root");
        let mut ram = Ram::default();
        for m in memories(boot).filter(|m| m.kind == kind::RAM) {
            ram.add(m.phys, m.len, m.slot);
        }
        let devices = memories(boot).filter(|m| m.kind == kind::DEVICE);
        let devices = devices.map(|m| (m.phys, m.len, m.slot)).collect();
        let of_archive = memories(boot).find(|m| m.kind == kind::ARCHIVE);
        let of_archive = of_archive.ok_or(Error::Text("there is no boot archive"))?;
        let archive_memory = Memory(of_archive.slot);
        let mapped = boot.archive_len.next_multiple_of(PAGE).min(of_archive.len);
        SPACE
            .map(ARCHIVE, archive_memory, READ, 0, mapped)
            .map_err(at("map the boot archive"))?;
        // SAFETY: `mapped` bytes are mapped there from now on, read-only here and wherever else root maps them, so that
        // they never change.
        let archive = unsafe {
            core::slice::from_raw_parts(
                core::ptr::with_exposed_provenance(ARCHIVE as usize),
                mapped as usize,
            )
        };
        Index::parse(archive, mapped).map_err(Error::Archive)?;
        let time = wall_clock::read(|register| {
            PORTS.out8(0x70, register).ok()?;
            PORTS.in8(0x71).ok()
        });
        let wall_clock = WallClock {
            unix_seconds: time.unwrap_or(0),
            at_tsc: now(),
        };
        Ok(Self {
            slots,
            ram,
            wall_clock,
            tsc_hz: boot.tsc_hz,
            archive_memory,
            archive,
            announce,
            devices,
            programs: Vec::new(),
        })
    }

    /// A file of the boot archive.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        let index = Index::parse(self.archive, self.archive.len() as u64).ok()?;
        index.find(name)?.data(self.archive)
    }

    /// Where a file is in the archive's Memory.
    pub fn file_offset(&self, name: &str) -> Option<u64> {
        let index = Index::parse(self.archive, self.archive.len() as u64).ok()?;
        Some(index.find(name)?.offset)
    }

    /// Says in the log which server has which number.
    pub fn announce(&self, id: u8, name: &str) {
        announce_to(self.announce, id, name);
    }

    /// A free slot.
    pub fn slot(&mut self) -> Result<Slot, Error> {
        self.slots.take().ok_or(Error::NoSlot)
    }

    /// Makes an object whose capability goes to a free slot.
    pub fn make<T>(
        &mut self,
        what: &'static str,
        f: impl FnOnce(Slot) -> Result<T, Status>,
    ) -> Result<T, Error> {
        let dest = self.slot()?;
        f(dest).map_err(|status| {
            self.slots.give_back(dest);
            Error::Kernel(what, status)
        })
    }

    /// Empties a slot and makes it free.
    pub fn drop_slot(&mut self, slot: Slot) {
        match SPACE.drop_cap(slot) {
            Ok(()) => self.slots.give_back(slot),
            // The slot is lost, nothing else.
            Err(status) => complain!("drop slot {slot}: {status:?}"),
        }
    }

    /// Takes RAM. What was used before is not cleared.
    pub fn block(&mut self, len: u64) -> Result<Block, Error> {
        let run = self.ram.take(len, PAGE).ok_or(Error::NoRam(len))?;
        self.block_of(run)
    }

    /// Takes RAM and fills it with zeroes. A large piece begins where a large page can.
    pub fn clean_block(&mut self, len: u64) -> Result<Block, Error> {
        let align = if len < LARGE { PAGE } else { LARGE };
        let run = self.ram.take(len, align).ok_or(Error::NoRam(len))?;
        let block = self.block_of(run)?;
        self.clear(block)?;
        Ok(block)
    }

    /// The capability to a run that was taken.
    pub fn block_of(&mut self, run: Run) -> Result<Block, Error> {
        let part = |machine: &mut Self| {
            let (source, offset) = machine.ram.place(run).ok_or(Error::NoRam(run.len))?;
            machine.make("divide RAM", |dest| {
                Memory(source).divide(offset, run.len, dest, POOL)
            })
        };
        match part(self) {
            Ok(memory) => Ok(Block { memory, run }),
            Err(error) => {
                self.ram.give(run);
                Err(error)
            }
        }
    }

    /// Device registers: whole pages, which nobody else has divided off.
    pub fn registers(&mut self, phys: u64, len: u64) -> Result<Block, Error> {
        if !(phys | len).is_multiple_of(PAGE) {
            return Err(Error::Text("registers share a page with others"));
        }
        let within = |&&(base, size, _): &&(u64, u64, Slot)| {
            let at = phys.checked_sub(base);
            at.and_then(|at| at.checked_add(len))
                .is_some_and(|end| end <= size)
        };
        let found = self.devices.iter().find(within).copied();
        let (base, _, slot) = found.ok_or(Error::Text("registers lie where no device may be"))?;
        let memory = self.make("divide registers", |dest| {
            Memory(slot).divide(phys - base, len, dest, POOL)
        })?;
        let run = Run { phys, len };
        Ok(Block { memory, run })
    }

    /// Gives RAM back: it is gone from every Space.
    pub fn give(&mut self, block: Block) {
        // SAFETY: root keeps no references into blocks outside `window`.
        match unsafe { SPACE.destroy_object(block.memory.0) } {
            Ok(()) => {
                self.drop_slot(block.memory.0);
                self.ram.give(block.run);
            }
            // It stays taken: lost, but nobody else's.
            Err(status) => complain!("give {:#x} back: {status:?}", block.run.phys),
        }
    }

    /// Calls `f` with the block mapped.
    pub fn window<T>(&mut self, block: Block, f: impl FnOnce(Window) -> T) -> Result<T, Error> {
        SPACE
            .map(WINDOW, block.memory, READ | WRITE, 0, block.run.len)
            .map_err(at("map a block"))?;
        let result = f(Window { len: block.run.len });
        // SAFETY: `Window` is gone, and it hands out no references that outlive a call.
        unsafe { SPACE.unmap(WINDOW) }.map_err(at("unmap a block"))?;
        Ok(result)
    }

    /// The pages that all instances of a program share, if there are any; made with the first, and kept.
    pub fn program(&mut self, file: &str, image: &Image<'_>) -> Result<Option<Memory>, Error> {
        if image.common == 0 {
            return Ok(None);
        }
        if let Some((_, memory)) = self.programs.iter().find(|(name, _)| name == file) {
            return Ok(Some(*memory));
        }
        let block = self.block(image.common)?;
        let filled = self.window(block, |mut w| {
            w.clear();
            image.segments.iter().try_for_each(|s| match s.place {
                Place::Common(offset) => w.write(offset + s.lead, s.data),
                Place::Own(_) => Some(()),
            })
        });
        match filled {
            Ok(Some(())) => {
                self.programs.push((file.to_string(), block.memory));
                Ok(Some(block.memory))
            }
            other => {
                self.give(block);
                other?;
                Err(Error::Text("the image is longer than it said"))
            }
        }
    }

    /// Fills a block with zeroes.
    pub fn clear(&mut self, block: Block) -> Result<(), Error> {
        self.window(block, |mut w| w.clear())
    }
}

/// A block mapped for a moment. Others may have it mapped too, so that there are only copies, no references.
pub struct Window {
    len: u64,
}

impl Window {
    fn at(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len as u64)?;
        let inside = end <= self.len;
        inside.then(|| core::ptr::with_exposed_provenance_mut((WINDOW + offset) as usize))
    }

    /// Fills all with zeroes.
    pub fn clear(&mut self) {
        if let Some(to) = self.at(0, self.len as usize) {
            // SAFETY: the whole window is mapped and writable; no reference points there.
            unsafe { core::ptr::write_bytes(to, 0, self.len as usize) };
        }
    }

    /// Copies bytes to `offset`; `None` if they do not fit.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Option<()> {
        let to = self.at(offset, bytes.len())?;
        // SAFETY: the range is in the window, mapped and writable; `bytes` is a Rust slice, so not in it.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Some(())
    }

    /// Copies `N` bytes from `offset`; `None` outside the window.
    pub fn read<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let from = self.at(offset, N)?;
        // SAFETY: the range is in the window and mapped; bytes need no alignment.
        Some(unsafe { from.cast::<[u8; N]>().read_volatile() })
    }
}

fn announce_to(log: Log, id: u8, name: &str) {
    let mut record = alloc::vec![id];
    record.extend_from_slice(name.as_bytes());
    if let Err(status) = log.write(&record) {
        complain!("announce {name}: {status:?}");
    }
}
