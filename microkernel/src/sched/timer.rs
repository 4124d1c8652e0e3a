//! Deadlines: a tree a processor, so that no number of armed threads makes one more expensive than the bits of a time.
//!
//! An element is left where it is when its owner's deadline moves to a later time or goes away; when it comes up, the owner is asked
//! what it wants now. So the common case, a deadline that never fires, costs no work on the tree.

use crate::list::{Link, Linked, List};
use crate::mem::Obj;
use crate::object::{Budget, Thread};
use crate::tree::{Branches, Keyed, Tree};
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

/// An element, inside its owner. Those of the very same time hang at one of them.
#[derive(Default)]
pub struct Timer {
    at: Cell<u64>,
    owner: Cell<Option<Owner>>,
    /// It stands in the tree itself.
    first: Cell<bool>,
    branches: Branches<Timer>,
    /// Others of its time.
    same: List<Timer, 0>,
    link: Link<Timer>,
}
impl Linked<0> for Timer {
    fn link(&self) -> &Link<Self> {
        &self.link
    }
}
impl Keyed for Timer {
    /// The sooner, the greater.
    fn key(&self) -> u64 {
        !self.at.get()
    }
    fn bits(key: u64) -> u64 {
        key
    }
    fn branches(&self) -> &Branches<Self> {
        &self.branches
    }
}

/// A processor's deadlines.
pub struct Timers {
    tree: Tree<Timer>,
    next: Cell<u64>,
}

impl Timers {
    /// None.
    pub(crate) const fn new() -> Self {
        Self {
            tree: Tree::new(),
            next: Cell::new(NEVER),
        }
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
        let this = Obj::of(timer);
        match self.tree.find(!at) {
            Some(o) => {
                timer.first.set(false);
                o.get().same.push_back(this);
            }
            None => self.stand(this),
        }
        self.next.set(self.next.get().min(at));
    }

    fn stand(&self, t: Obj<Timer>) {
        t.first.set(true);
        self.tree.insert(t);
    }

    /// Takes it out.
    pub fn cancel(&self, timer: &Timer) {
        if timer.owner.take().is_some() {
            self.remove(Obj::of(timer));
        }
    }

    fn remove(&self, t: Obj<Timer>) {
        if t.first.get() {
            self.tree.remove(t);
            // The next of its time takes its place, and the rest over.
            if let Some(heir) = t.get().same.pop_front() {
                heir.get().same.take_over(&t.get().same);
                self.stand(heir);
            } else if t.at.get() == self.next.get() {
                let soonest = self.tree.at_most(u64::MAX);
                self.next.set(soonest.map_or(NEVER, |o| o.at.get()));
            }
        } else if let Some(o) = self.tree.find(t.key()) {
            o.get().same.remove(t);
        }
    }

    /// When the first comes up.
    #[inline(always)]
    pub fn next(&self) -> u64 {
        self.next.get()
    }

    /// Takes one that is due at `now`, the soonest first.
    pub fn due(&self, now: u64) -> Option<Owner> {
        if self.next.get() > now {
            return None;
        }
        let t = self.tree.at_most(u64::MAX)?;
        self.remove(t);
        t.owner.take()
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/timer.rs"]
pub(crate) mod check;
