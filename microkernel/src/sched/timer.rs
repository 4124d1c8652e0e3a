//! Deadlines: a leftist heap a processor, so that no number of armed threads makes arming one more cost more than its logarithm.
//!
//! An element is left where it is when its owner's deadline moves to a later time or goes away; when it comes up, the owner is asked
//! what it wants now. So the common case, a deadline that never fires, costs no work on the heap; and the next most common, a deadline
//! sooner than all others, two or three steps.

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

type Node = Option<Obj<Timer>>;

/// An element, inside its owner. None below it comes up sooner.
#[derive(Default)]
pub struct Timer {
    at: Cell<u64>,
    owner: Cell<Option<Owner>>,
    /// Left and right; the rank on the left is no less.
    below: [Cell<Node>; 2],
    above: Cell<Node>,
    /// Steps to the right until there is nothing: at most the logarithm of the number of those below.
    rank: Cell<u32>,
}

fn rank(n: Node) -> u32 {
    n.map_or(0, |t| t.rank.get())
}

impl Timer {
    /// After a change below: the higher rank to the left. Whether its own rank has changed.
    fn settle(&self) -> bool {
        let [left, right] = &self.below;
        if rank(left.get()) < rank(right.get()) {
            left.swap(right);
        }
        let new = rank(right.get()) + 1;
        self.rank.replace(new) != new
    }
}

/// One heap of two. Each step goes right in one of them, so there are few, and the recursion is as shallow.
fn merge(a: Node, b: Node) -> Node {
    let (Some(a), Some(b)) = (a, b) else {
        return a.or(b);
    };
    let (top, other) = if b.at.get() < a.at.get() {
        (b, a)
    } else {
        (a, b)
    };
    let below = merge(top.get().below[1].get(), Some(other));
    if let Some(n) = below {
        n.above.set(Some(top));
    }
    top.get().below[1].set(below);
    top.settle();
    Some(top)
}

/// A processor's deadlines.
pub struct Timers {
    top: Cell<Node>,
}

impl Timers {
    /// None.
    pub(crate) const fn new() -> Self {
        Self {
            top: Cell::new(None),
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
        timer.rank.set(1);
        let this = Obj::of(timer);
        let top = self.top.get();
        match top {
            // The soonest: all others are below it.
            Some(t) if at < t.at.get() => {
                timer.below[0].set(top);
                timer.below[1].set(None);
                t.above.set(Some(this));
                self.top.set(Some(this));
                timer.above.set(None);
            }
            _ => {
                timer.below.iter().for_each(|b| b.set(None));
                self.set_top(merge(top, Some(this)));
            }
        }
    }

    fn set_top(&self, n: Node) {
        if let Some(t) = n {
            t.above.set(None);
        }
        self.top.set(n);
    }

    /// Takes it out.
    #[inline(always)]
    pub fn cancel(&self, timer: &Timer) {
        if timer.owner.take().is_some() {
            self.remove(timer);
        }
    }

    #[inline(never)]
    fn remove(&self, timer: &Timer) {
        let [left, right] = &timer.below;
        let heir = merge(left.get(), right.get());
        let Some(above) = timer.above.get() else {
            return self.set_top(heir);
        };
        if let Some(n) = heir {
            n.above.set(Some(above));
        }
        let [left, right] = &above.get().below;
        let place = if left.get() == Some(Obj::of(timer)) {
            left
        } else {
            right
        };
        place.set(heir);
        // A change of rank goes up only along steps to the right.
        let mut up = Some(above);
        while let Some(t) = up {
            if !t.settle() {
                break;
            }
            up = t.above.get();
        }
    }

    /// When the first comes up.
    #[inline(always)]
    pub fn next(&self) -> u64 {
        self.top.get().map_or(NEVER, |t| t.at.get())
    }

    /// Takes one that is due at `now`, the soonest first.
    pub fn due(&self, now: u64) -> Option<Owner> {
        let t = self.top.get()?;
        if t.at.get() > now {
            return None;
        }
        self.remove(t.get());
        t.owner.take()
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "../checker/timer.rs"]
pub(crate) mod check;
