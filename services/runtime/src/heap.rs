//! The heap: talc over the region that root mapped at `layout::HEAP`.

use core::sync::atomic::{AtomicBool, Ordering};

use talc::TalcLock;
use talc::lock_api::{GuardNoSend, RawMutex};
use talc::source::Manual;

/// A lock for one thread: it only finds out that it is used otherwise.
struct OneThread(AtomicBool);

// SAFETY: `lock` returns only when nobody else holds it: it aborts instead of waiting.
unsafe impl RawMutex for OneThread {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "lock_api initialises locks with it"
    )]
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        if !self.try_lock() {
            crate::rt::abort();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        // One thread: a plain load and store, not a locked exchange.
        !self.0.load(Ordering::Relaxed) && {
            self.0.store(true, Ordering::Relaxed);
            true
        }
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[global_allocator]
static HEAP: TalcLock<OneThread, Manual> = TalcLock::new(Manual);

/// Gives the heap its memory. Without enough of it the first allocation fails, which aborts.
///
/// # Safety
///
/// The memory is mapped, writable, and nobody else's.
pub(crate) unsafe fn init(base: *mut u8, bytes: usize) {
    // SAFETY: the caller's obligation.
    let _ = unsafe { HEAP.lock().claim(base, bytes) };
}
