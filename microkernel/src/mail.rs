//! Mailboxes: a lock-free stack through the objects themselves, by which processors hand Notifications to the one where they are waited for.
//!
//! Anyone pushes; only the owner takes, everything at once. An object is in at most one mailbox: its flag is set before it is linked and
//! cleared after it has been unlinked, so that a signal in between links it again and nothing is lost.

// From the crate's root, so that the model checker's test can put its own in their place (`tests/mailbox.rs`).
use crate::atomic::{AtomicBool, AtomicPtr, Ordering, constant};

use core::ptr::{NonNull, null_mut};

/// What an object needs to be in a mailbox.
#[derive(Debug)]
pub struct Letter<T> {
    next: AtomicPtr<T>,
    linked: AtomicBool,
}

impl<T> Letter<T> {
    /// Whether it is in a mailbox.
    pub fn linked(&self) -> bool {
        self.linked.load(Ordering::Acquire)
    }
}

impl<T> Default for Letter<T> {
    /// In no mailbox.
    fn default() -> Self {
        Self {
            next: AtomicPtr::new(null_mut()),
            linked: AtomicBool::new(false),
        }
    }
}

/// An object that can be in a mailbox.
pub trait Mail: Sized {
    /// Its link.
    fn letter(&self) -> &Letter<Self>;
}

/// A mailbox.
#[derive(Debug)]
pub struct Mailbox<T> {
    head: AtomicPtr<T>,
}

impl<T: Mail> Mailbox<T> {
    constant! {
        /// An empty one.
        pub(crate) fn new() -> Self {
            Self {
                head: AtomicPtr::new(null_mut()),
            }
        }
    }

    /// Puts `o` in, unless it is in one already; answers whether the owner has to be told (it was empty).
    ///
    /// # Safety
    /// `o` stays where it is until it has been taken out.
    pub unsafe fn push(&self, o: NonNull<T>) -> bool {
        // SAFETY: the caller's live object.
        let letter = unsafe { o.as_ref() }.letter();
        if letter.linked.swap(true, Ordering::AcqRel) {
            return false;
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            letter.next.store(head, Ordering::Relaxed);
            match self
                .head
                .compare_exchange(head, o.as_ptr(), Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return head.is_null(),
                Err(now) => head = now,
            }
        }
    }

    /// Takes everything out, and gives it to `each` one by one, the newest first. Only the owner does this.
    pub fn take(&self, mut each: impl FnMut(NonNull<T>)) {
        let mut next = self.head.swap(null_mut(), Ordering::Acquire);
        while let Some(o) = NonNull::new(next) {
            // SAFETY: it was pushed, and stays until it has been taken (`push`).
            let letter = unsafe { o.as_ref() }.letter();
            next = letter.next.load(Ordering::Relaxed);
            // From here on it may be linked again, here or elsewhere.
            letter.linked.store(false, Ordering::Release);
            each(o);
        }
    }

    /// Takes out what `which` says, and leaves the rest. While no one else uses the mailbox (the other processors are stopped).
    pub fn remove(&self, which: NonNull<T>) {
        self.take(|o| {
            if o != which {
                // SAFETY: it was in a mailbox, so it stays.
                unsafe { self.push(o) };
            }
        });
    }
}
