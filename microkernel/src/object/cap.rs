//! Capabilities and their look-up.

use super::pool::{MAX_POOLS, POOLS, pool_of};
use super::{Header, Thread};
use crate::arch::Cpu;
use crate::mem::{self, Obj};
use core::cell::Cell;
use core::ptr::NonNull;
use ipc_schema::abi::{Kind, Status, rights};

/// A capability: names an object by place and generation, never by a bare pointer.
///
/// It is dead as soon as its Pool's or its object's generation has moved on; nothing has to find and erase it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Cap {
    /// The object's header word when the capability was made: kind << 32 | generation.
    pub word: u64,
    /// The Pool's generation then; 0 in an empty slot (no Pool ever has it).
    pub pool_generation: u64,
    /// Badge, given to whom a message or signal reaches.
    pub badge: u64,
    /// Place in the Pool, in units of 64 bytes.
    pub slot: u32,
    /// Pool number.
    pub pool: u16,
    /// [`rights`].
    pub rights: u16,
}

const _: () = assert!(core::mem::size_of::<Cap>() == 32);

impl Cap {
    /// The empty slot.
    pub const EMPTY: Self = Self {
        word: 0,
        pool_generation: 0,
        badge: 0,
        slot: 0,
        pool: 0,
        rights: 0,
    };

    /// A capability with all rights for a live object.
    #[must_use]
    pub fn new(header: &Header) -> Self {
        Self {
            word: header.word.get(),
            pool_generation: pool_of(header).generation.get(),
            slot: header.slot,
            pool: header.pool,
            rights: rights::ALL as u16,
            ..Self::EMPTY
        }
    }

    /// As [`Cap::new`], for an object.
    #[must_use]
    pub fn of<T: super::Object>(o: Obj<T>) -> Self {
        Self::new(o.get().header())
    }

    /// Whether the slot is empty, or what it named is gone.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.object().is_err()
    }

    /// The header of the object, if it still lives: the Pool's generation is compared before a byte of the object is read.
    #[inline(always)]
    pub fn object(&self) -> Result<Obj<Header>, Status> {
        let pool = &POOLS[self.pool as usize & (MAX_POOLS - 1)];
        if mem::shared(&pool.generation) != self.pool_generation {
            return Err(Status::InvalidCap);
        }
        let at = pool.virt.get() + u64::from(self.slot) * 64;
        // SAFETY: the generations agree, so the Pool's memory is still kernel memory, and `slot` was a slot of this Pool when the
        // capability was made; slots keep their header for as long as their Pool lives (slab pages never become anything else).
        let header = unsafe { Obj::from_ptr(NonNull::new_unchecked(at as *mut Header)) };
        if mem::shared(&header.get().word) != self.word {
            return Err(Status::InvalidCap);
        }
        Ok(header)
    }

    /// The kind it was made for (0 if empty).
    #[inline(always)]
    #[must_use]
    pub const fn kind(&self) -> u32 {
        (self.word >> 32) as u32
    }

    /// The object as a `T`, if it is one, with `need` among the rights.
    #[inline(always)]
    pub fn typed<T: super::Object>(&self, need: u32) -> Result<Obj<T>, Status> {
        let pool = &POOLS[self.pool as usize & (MAX_POOLS - 1)];
        if mem::shared(&pool.generation) == self.pool_generation
            && self.kind() == T::KIND as u32
            && u32::from(self.rights) & need == need
        {
            let at = pool.virt.get() + u64::from(self.slot) * 64;
            // SAFETY: as in `object`.
            let header = unsafe { &*(at as *const Header) };
            if mem::shared(&header.word) == self.word {
                // SAFETY: the header's kind says that a live `T` starts here; no object is at address 0.
                return Ok(unsafe { Obj::from_ptr(NonNull::new_unchecked(at as *mut T)) });
            }
        }
        Err(self.why_not(T::KIND))
    }

    /// Why it is not for a live object of this kind with the rights that were wanted.
    #[cold]
    #[inline(never)]
    fn why_not(&self, kind: Kind) -> Status {
        match self.object() {
            Err(e) => e,
            Ok(_) if self.kind() != kind as u32 => Status::WrongType,
            Ok(_) => Status::MissingRight,
        }
    }
}

/// The capability in a slot of the thread's table, copied.
pub fn cap_at(t: &Thread, slot: u64) -> Result<Cap, Status> {
    peek(t, slot).copied()
}

/// The capability in a slot of the thread's table, in place: the fast paths read only the words that they need.
#[inline(always)]
pub fn peek(t: &Thread, slot: u64) -> Result<&Cap, Status> {
    let Ok(cell) = cell_at(t.caps.get(), t.caps_len.get(), slot) else {
        return peek_shared(t, slot);
    };
    // SAFETY: slots change only in operations on Spaces and by capability transfer, which copy what they need before they write;
    // nothing that holds this reference does either. No other processor uses this table, or `caps_len` would be 0.
    Ok(unsafe { &*cell.as_ptr() })
}

/// The same behind the first page of the table, and where other processors use it too: copied while nobody writes it.
#[cold]
#[inline(never)]
fn peek_shared(t: &Thread, slot: u64) -> Result<&Cap, Status> {
    let space = t.space.get();
    let cell = space.cell(slot)?;
    let cpu = Cpu::current();
    let n = cpu.next_copy.get();
    cpu.next_copy.set(n + 1);
    let copy = &cpu.copies[n % cpu.copies.len()];
    copy.set(space.writes.read(|| {
        // SAFETY: an aligned slot of the table; what a writer makes of it meanwhile is thrown away.
        unsafe { cell.as_ptr().read_volatile() }
    }));
    // SAFETY: this processor's own; it is used again only seven look-ups later, and no system call makes as many.
    Ok(unsafe { &*copy.as_ptr() })
}

/// A slot of a page of a table.
#[inline(always)]
pub fn cell_at<'a>(table: u64, len: u64, slot: u64) -> Result<&'a Cell<Cap>, Status> {
    if slot >= len {
        return Err(Status::InvalidCap);
    }
    // SAFETY: a page of the table holds `len` capabilities, and lives as long as the Space, whose threads are stopped before it goes.
    Ok(unsafe { &*(table as *const Cell<Cap>).add(slot as usize) })
}

/// Looks up a slot as an object of type `T`.
#[inline(always)]
pub fn lookup<T: super::Object>(
    t: &Thread,
    slot: u64,
    need: u32,
) -> Result<(&Cap, Obj<T>), Status> {
    let cap = peek(t, slot)?;
    Ok((cap, cap.typed(need)?))
}
