//! How much a long operation may do before it lets interrupts, other threads and other processors in.
//!
//! Such an operation keeps its progress in the objects that it works on, answers `Again`, and is called again by itself: the thread
//! executes its system call anew. So each step starts from the arguments, and finds objects that others may have changed or destroyed
//! since the last one.

use super::refuse_if;
use core::cell::Cell;
use ipc_schema::abi::Status;

/// Instructions of a step, roughly: with the way in and out, and the last piece, a step stays under 4,000.
const SIZE: u32 = 2_500;

/// What is left of a step.
pub struct Step(Cell<u32>);

impl Default for Step {
    fn default() -> Self {
        #[cfg(test)]
        return Self(Cell::new(tests::size()));
        #[cfg(not(test))]
        Self(Cell::new(SIZE))
    }
}

impl Step {
    /// A step without an end: for what is small, and for boot.
    #[must_use]
    pub const fn endless() -> Self {
        Self(Cell::new(u32::MAX))
    }

    /// About `n` instructions are going to be spent on something that stays done. The first such piece of a step is always allowed,
    /// however large: so each step gets somewhere.
    ///
    /// # Errors
    /// `Again`: the step is used up.
    #[inline(always)]
    pub fn spend(&self, n: u32) -> Result<(), Status> {
        let left = self.0.get();
        refuse_if(left == 0, Status::Again)?;
        self.0.set(left.saturating_sub(n));
        Ok(())
    }

    /// About `n` instructions have been spent that could not wait, or that the next step has to spend again. They never use up a step
    /// that has not got anywhere yet.
    #[inline(always)]
    pub fn spent(&self, n: u32) {
        let left = self.0.get();
        self.0.set(left.saturating_sub(n).max(left.min(1)));
    }

    /// As [`Step::spend`], for `n` instructions and up to `all` pieces of eleven more; answers how many pieces fit, at least one.
    ///
    /// # Errors
    /// As [`Step::spend`].
    #[inline(always)]
    pub fn spend_pieces(&self, n: u32, all: u64) -> Result<u64, Status> {
        let left = self.0.get();
        refuse_if(left == 0, Status::Again)?;
        let pieces = all.min(u64::from(left / 11) + 1);
        self.0.set(left.saturating_sub(n + pieces as u32 * 11));
        Ok(pieces)
    }
}

/// Tests make steps small, to stop an operation wherever it can stop.
#[cfg(test)]
pub mod tests {
    use std::cell::Cell;

    thread_local! {
        static SIZE: Cell<u32> = const { Cell::new(super::SIZE) };
    }

    /// Size of a step on this thread.
    pub fn size() -> u32 {
        SIZE.with(Cell::get)
    }

    /// Changes it.
    pub fn set_size(n: u32) {
        SIZE.with(|s| s.set(n));
    }

    /// Back to the kernel's own.
    pub fn reset() {
        set_size(super::SIZE);
    }
}
