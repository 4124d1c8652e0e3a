//! Deadlines: one sorted list a processor.
//!
//! An element is left where it is when its owner's deadline moves to a later time or goes away; when it comes up, the owner is asked
//! what it wants now. So the common case, a deadline that never fires, costs no work on the list.

use crate::list::{Link, Linked, List};
use crate::mem::Obj;
use crate::object::{Budget, Thread};
use core::cell::Cell;
use ipc_schema::abi::NEVER;

/// Whose time it is.
#[derive(Clone, Copy)]
pub enum Owner {
    /// A thread's deadline.
    Thread(Obj<Thread>),
    /// A Budget's next period.
    Budget(Obj<Budget>),
}

/// An element of the list, inside its owner.
#[derive(Default)]
pub struct Timer {
    at: Cell<u64>,
    owner: Cell<Option<Owner>>,
    link: Link<Timer>,
}
impl Linked<0> for Timer {
    fn link(&self) -> &Link<Self> {
        &self.link
    }
}

/// A processor's deadlines, earliest first.
pub struct Timers {
    list: List<Timer, 0>,
}

impl Timers {
    /// None.
    pub(crate) const fn new() -> Self {
        Self { list: List::new() }
    }

    /// Makes sure that `timer` comes up at `at` or before.
    #[inline(always)]
    pub fn arm(&self, timer: &Timer, at: u64, owner: Owner) {
        if timer.owner.get().is_none() || at < timer.at.get() {
            self.insert(timer, at, owner);
        }
    }

    #[inline(never)]
    fn insert(&self, timer: &Timer, at: u64, owner: Owner) {
        self.cancel(timer);
        timer.at.set(at);
        timer.owner.set(Some(owner));
        let mut next = self.list.first();
        while let Some(n) = next {
            if n.at.get() > at {
                return self.list.insert_before(n, Obj::of(timer));
            }
            next = List::<Timer, 0>::after(n);
        }
        self.list.push_back(Obj::of(timer));
    }

    /// Takes it out.
    pub fn cancel(&self, timer: &Timer) {
        if timer.owner.take().is_some() {
            self.list.remove(Obj::of(timer));
        }
    }

    /// When the first comes up.
    #[inline(always)]
    pub fn next(&self) -> u64 {
        self.list.first().map_or(NEVER, |t| t.at.get())
    }

    /// Takes the first that is due at `now`.
    pub fn due(&self, now: u64) -> Option<Owner> {
        let t = self.list.first()?;
        if t.at.get() > now {
            return None;
        }
        self.list.remove(t);
        t.owner.take()
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/timer.rs"]
pub(crate) mod check;
