//! Doubly linked lists through the objects themselves: constant-time removal, no allocation.

use crate::mem::Obj;
use core::cell::Cell;

/// The two pointers that an object gives to a list.
pub struct Link<T> {
    next: Cell<Option<Obj<T>>>,
    prev: Cell<Option<Obj<T>>>,
}

impl<T> Default for Link<T> {
    /// In no list.
    fn default() -> Self {
        Self {
            next: Cell::new(None),
            prev: Cell::new(None),
        }
    }
}

/// An object that can be in list number `N`.
pub trait Linked<const N: usize>: Sized {
    /// Its pointers for that list.
    fn link(&self) -> &Link<Self>;
}

/// A list; an object is in at most one list of the same number.
pub struct List<T, const N: usize> {
    head: Cell<Option<Obj<T>>>,
    tail: Cell<Option<Obj<T>>>,
}

impl<T, const N: usize> List<T, N> {
    /// An empty one.
    pub(crate) const fn new() -> Self {
        Self {
            head: Cell::new(None),
            tail: Cell::new(None),
        }
    }
}

impl<T, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Linked<N>, const N: usize> List<T, N> {
    /// The first object.
    #[inline(always)]
    pub fn first(&self) -> Option<Obj<T>> {
        self.head.get()
    }
    /// The object after `o`.
    #[inline(always)]
    pub fn after(o: Obj<T>) -> Option<Obj<T>> {
        o.get().link().next.get()
    }
    /// Whether it has none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.head.get().is_none()
    }
    /// Adds at the end.
    #[inline(always)]
    pub fn push_back(&self, o: Obj<T>) {
        let l = o.get().link();
        l.next.set(None);
        let tail = self.tail.replace(Some(o));
        l.prev.set(tail);
        match tail {
            Some(t) => t.get().link().next.set(Some(o)),
            None => self.head.set(Some(o)),
        }
    }
    /// Adds at the front.
    #[inline(always)]
    pub fn push_front(&self, o: Obj<T>) {
        let l = o.get().link();
        l.prev.set(None);
        let head = self.head.replace(Some(o));
        l.next.set(head);
        match head {
            Some(h) => h.get().link().prev.set(Some(o)),
            None => self.tail.set(Some(o)),
        }
    }
    /// Takes `o`, which is in this list, out of it.
    #[inline(always)]
    pub fn remove(&self, o: Obj<T>) {
        let l = o.get().link();
        // What it keeps of its neighbours is not looked at any more, and overwritten when it is next added somewhere.
        let (prev, next) = (l.prev.get(), l.next.get());
        match prev {
            Some(p) => p.get().link().next.set(next),
            None => self.head.set(next),
        }
        match next {
            Some(n) => n.get().link().prev.set(prev),
            None => self.tail.set(prev),
        }
    }
    /// Takes the first.
    #[inline(always)]
    pub fn pop_front(&self) -> Option<Obj<T>> {
        let o = self.first()?;
        self.remove(o);
        Some(o)
    }
}

#[cfg(any(test, feature = "checker"))]
#[path = "checker/list.rs"]
pub(crate) mod check;
