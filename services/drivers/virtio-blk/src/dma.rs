//! Memory that the device reaches: the regions whose physical addresses root has told.
//!
//! [`Hal`] has no `self`: what it needs is set once, before the first queue is made.

extern crate alloc;

use alloc::boxed::Box;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use runtime::start::Region;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// A region.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// Where it is here.
    pub va: u64,
    /// Bytes.
    pub len: u64,
    /// Where the device finds it.
    pub physical: u64,
}

impl Reached {
    /// A region of the start page's at a physical address.
    #[must_use]
    pub fn new(region: &Region, physical: u64) -> Self {
        Self {
            va: region.va,
            len: region.len,
            physical,
        }
    }

    /// The address here of `len` bytes from byte `at` on; `None`: they are not all in it.
    #[must_use]
    pub fn bytes(&self, at: u64, len: u64) -> Option<NonNull<[u8]>> {
        let end = at.checked_add(len)?;
        if end > self.len || len == 0 {
            return None;
        }
        let start = core::ptr::with_exposed_provenance_mut::<u8>((self.va + at) as usize);
        Some(NonNull::slice_from_raw_parts(
            NonNull::new(start)?,
            len as usize,
        ))
    }
}

/// All regions; the first is the driver's own.
static REGIONS: AtomicPtr<Box<[Reached]>> = AtomicPtr::new(core::ptr::null_mut());
/// Bytes of the own one that were handed out.
static USED: AtomicU64 = AtomicU64::new(0);

/// Sets the regions, of which the first is the driver's own, cleared memory but for what a predecessor left. To be called once.
pub fn use_regions(regions: Box<[Reached]>) {
    REGIONS.store(Box::leak(Box::new(regions)), Ordering::Release);
}

fn regions() -> &'static [Reached] {
    let regions = REGIONS.load(Ordering::Acquire);
    // SAFETY: null, or the box that `use_regions` has leaked; nobody writes it.
    unsafe { regions.as_ref() }.map_or(&[], |regions| regions)
}

/// Takes whole pages of the driver's own region for good, and clears them.
pub fn take(pages: usize) -> Option<(PhysAddr, NonNull<u8>)> {
    let own = regions().first()?;
    let len = (pages * PAGE_SIZE) as u64;
    let at = USED.fetch_add(len, Ordering::Relaxed);
    let bytes = own.bytes(at, len)?.cast::<u8>();
    // SAFETY: mapped and writable, as root's start page says, and handed out to nobody yet.
    unsafe { core::ptr::write_bytes(bytes.as_ptr(), 0, len as usize) };
    Some((own.physical + at, bytes))
}

/// The crate's way to memory.
pub struct Dma;

// SAFETY: `dma_alloc` hands out each page once, aligned (regions are) and cleared; nothing else here makes references of them.
unsafe impl Hal for Dma {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        take(pages).unwrap_or_else(|| panic!("the driver's own memory is used up"))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        // There is one queue, for this server's life.
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        panic!("registers are not found by their physical addresses here")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        let va = buffer.cast::<u8>().as_ptr().expose_provenance() as u64;
        let within = |r: &&Reached| {
            let at = va.checked_sub(r.va);
            at.and_then(|at| at.checked_add(buffer.len() as u64))
                .is_some_and(|end| end <= r.len)
        };
        match regions().iter().find(within) {
            Some(region) => region.physical + (va - region.va),
            None => panic!("the device cannot reach {va:#x}"),
        }
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {
        // Shared for good.
    }
}
