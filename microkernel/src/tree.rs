//! Digital search trees through the objects themselves: look-up, insertion and removal take at most as many steps as a key has bits,
//! without balancing or allocation.
//!
//! Each node stands at a place that the first bits of its key lead to; nothing is said about the order of a node and those below it.

use crate::mem::Obj;
use core::cell::Cell;

/// The places below a node: for a next bit of 0 and of 1.
pub type Branches<T> = [Cell<Option<Obj<T>>>; 2];

/// An object that can be in a tree.
pub trait Keyed: Sized {
    /// What it is found by; different for all in one tree.
    fn key(&self) -> u64;
    /// The bits of a key, first bit uppermost: different for different keys, and if [`Tree::at_most`] is to be used, in their order.
    fn bits(key: u64) -> u64;
    /// Its pointers.
    fn branches(&self) -> &Branches<Self>;
}

/// A tree.
pub struct Tree<T> {
    root: Cell<Option<Obj<T>>>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self {
            root: Cell::new(None),
        }
    }
}

impl<T: Keyed> Tree<T> {
    /// Whether nothing is in it.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.root.get().is_none()
    }

    /// Any one of those in it.
    #[inline(always)]
    pub fn any(&self) -> Option<Obj<T>> {
        self.root.get()
    }

    /// Forgets all in it.
    pub fn forget(&self) {
        self.root.set(None);
    }

    /// The one with this key.
    #[inline(always)]
    pub fn find(&self, key: u64) -> Option<Obj<T>> {
        self.place(key).get()
    }

    /// Where the one with this key is, or is to be put: `insert` without looking again. What is put there must have no branches set.
    #[inline(always)]
    pub fn place(&self, key: u64) -> &Cell<Option<Obj<T>>> {
        let mut bits = T::bits(key);
        let mut at = &self.root;
        while let Some(o) = at.get() {
            if o.key() == key {
                break;
            }
            at = &o.get().branches()[(bits >> 63) as usize];
            bits <<= 1;
        }
        at
    }

    /// Puts `o` in, whose key nothing in it has.
    #[inline(always)]
    pub fn insert(&self, o: Obj<T>) {
        o.branches().iter().for_each(|b| b.set(None));
        self.place(o.key()).set(Some(o));
    }

    /// Takes `o`, which is in it, out. Any leaf below `o` can take its place: it shares all bits that lead there.
    pub fn remove(&self, o: Obj<T>) {
        let place = self.place(o.key());
        let mut at = place;
        while let Some(n) = at.get() {
            let [a, b] = n.get().branches();
            at = match (a.get(), b.get()) {
                (Some(_), _) => a,
                (None, Some(_)) => b,
                (None, None) => break,
            };
        }
        let leaf = at.take();
        if let Some(l) = leaf.filter(|&l| l != o) {
            for (to, from) in l.branches().iter().zip(o.branches()) {
                to.set(from.get());
            }
            place.set(Some(l));
        }
    }

    /// The one with the greatest key that is not above `key`.
    pub fn at_most(&self, key: u64) -> Option<Obj<T>> {
        let mut best: Option<Obj<T>> = None;
        let mut keep = |o: Obj<T>| {
            if o.key() <= key && best.is_none_or(|b| b.key() < o.key()) {
                best = Some(o);
            }
        };
        // On the way to the key. What branches off to the left of it is below it, the more so the sooner.
        let mut left = None;
        let mut bits = T::bits(key);
        let mut at = self.root.get();
        while let Some(o) = at {
            keep(o);
            let [a, b] = o.get().branches();
            at = if bits >> 63 == 0 {
                a.get()
            } else {
                left = a.get().or(left);
                b.get()
            };
            bits <<= 1;
        }
        // The greatest there: on the rightmost way.
        while let Some(o) = left {
            keep(o);
            let [a, b] = o.get().branches();
            left = b.get().or(a.get());
        }
        best
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "checker/tree.rs"]
pub(crate) mod check;
