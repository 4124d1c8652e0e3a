//! Physical memory as the kernel sees it, and references to objects in it.

use core::cell::Cell;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// The kernel's address of a physical address.
#[inline(always)]
#[must_use]
pub fn virt(phys: u64) -> u64 {
    phys + crate::arch::phys_base()
}

/// A reference to something in a Pool: a plain pointer that is copied freely.
///
/// Whoever stores one has it taken out again when the object is destroyed (each object's `destroy` says how), or keeps a
/// [`crate::object::Cap`] instead, which is checked at each use. The objects consist of `Cell`s, so that shared references suffice.
#[repr(transparent)]
pub struct Obj<T>(NonNull<T>, PhantomData<Cell<T>>);

impl<T> Clone for Obj<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Obj<T> {}
impl<T> PartialEq for Obj<T> {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Obj<T> {}

impl<T> Obj<T> {
    /// # Safety
    /// `ptr` points to a live, initialised `T` that stays where it is until nothing refers to it.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn from_ptr(ptr: NonNull<T>) -> Self {
        Self(ptr, PhantomData)
    }
    /// The reference as an `Obj`: for objects, which all live in Pools.
    #[inline(always)]
    #[must_use]
    pub fn of(r: &T) -> Self {
        Self(NonNull::from(r), PhantomData)
    }
    /// The address.
    #[inline(always)]
    #[must_use]
    pub fn addr(self) -> u64 {
        self.0.as_ptr() as u64
    }
    /// The pointer, which is never null.
    #[inline(always)]
    #[must_use]
    pub fn non_null(self) -> NonNull<T> {
        self.0
    }
    /// The pointer.
    #[inline(always)]
    #[must_use]
    pub fn ptr(self) -> *mut T {
        self.0.as_ptr()
    }
    /// The object, for as long as the kernel stays inside this system call.
    #[inline(always)]
    #[must_use]
    pub fn get<'a>(self) -> &'a T {
        // SAFETY: an `Obj` exists only while its object lives (type invariant); objects are never moved, and never borrowed
        // mutably, since all their fields are cells.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Deref for Obj<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        self.get()
    }
}

/// A page of words: a page table, a bitmap, a message page.
#[repr(C, align(4096))]
pub struct Words(pub [Cell<u64>; 512]);

/// The page at a physical address.
///
/// # Safety
/// `phys` is a page of RAM that belongs to the kernel (a page of a Pool).
#[inline(always)]
#[must_use]
pub unsafe fn page<'a>(phys: u64) -> &'a Words {
    // SAFETY: mapped by the physical map; all access to it is through cells; the caller vouches for the rest.
    unsafe { &*(virt(phys) as *const Words) }
}

/// A word that another processor may be changing: read whole, once.
///
/// For words that say whether something may be used at all (generations), and for figures that are only reported.
#[inline(always)]
#[must_use]
pub fn shared(cell: &Cell<u64>) -> u64 {
    // SAFETY: an aligned word for as long as the cell is borrowed; relaxed atomic access to it on this side.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(cell.as_ptr()) }
        .load(core::sync::atomic::Ordering::Relaxed)
}

/// Declares a struct with the value that each field begins with, all of them together as `NEW` (as Rust's RFC 3681 would have it).
macro_rules! begins {
    ($(#[$m:meta])* $v:vis struct $name:ident {
        $($(#[$about:meta])* $fv:vis $field:ident: $t:ty = $new:expr,)*
    }) => {
        $(#[$m])* $v struct $name { $($(#[$about])* $fv $field: $t,)* }
        impl $name {
            #[allow(clippy::declare_interior_mutable_const, reason = "only to make others of")]
            const NEW: Self = Self { $($field: $new,)* };
        }
    };
}
pub(crate) use begins;

/// State of the kernel as a whole. It is only touched with interrupts off.
///
/// What is in one of these is written at boot, or belongs to one processor each, or is touched only under the object lock
/// ([`crate::sync`]); what the paths of IPC and VM exits read of it on other processors changes only while those are stopped.
pub struct Global<T>(pub T);

// SAFETY: see above: whoever makes one says which of the three it is.
unsafe impl<T> Sync for Global<T> {}

impl<T> Deref for Global<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}
