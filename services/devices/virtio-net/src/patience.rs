//! When a doorbell is put off: while frames come in quick succession, more of them are sent at once.
//!
//! A frame that comes alone is sent at once. Of frames that follow each other closely those behind the first wait, and the first too if the
//! last ones came so, until the guest halts, the other side has something to say, or some time has passed: all of them then take one
//! doorbell, one turn of this server's, of the switch's and of the receiver's, and one interrupt.

use ipc_schema::abi::NEVER;

/// When the transmit queue's doorbell rang, and how long it is put off. Times are the TSC's.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A doorbell follows the last frames closely if it rings so soon after them.
    close: u64,
    /// Longest delay.
    most: u64,
    /// When frames were last sent, or a doorbell rang.
    last: Option<u64>,
    /// The last frames were several.
    several: bool,
    /// What is put off follows others closely.
    follows: bool,
    until: u64,
}

impl Patience {
    /// With these lengths of time.
    #[must_use]
    pub const fn new(close: u64, most: u64) -> Self {
        Self {
            close,
            most,
            last: None,
            several: false,
            follows: false,
            until: NEVER,
        }
    }

    /// The doorbell rings; true: it may be put off.
    #[must_use]
    pub fn rings(&mut self, now: u64) -> bool {
        let last = self.last.replace(now);
        if self.until != NEVER {
            return false;
        }
        self.follows = last.is_some_and(|last| now.saturating_sub(last) < self.close);
        self.follows || self.several
    }

    /// It has been put off.
    pub fn begins(&mut self, now: u64) {
        self.until = now.saturating_add(self.most);
    }

    /// What was put off is done: so many frames have been sent.
    pub fn ends(&mut self, now: u64, frames: u64) {
        if self.until != NEVER {
            (self.until, self.last) = (NEVER, Some(now));
            self.several = self.follows || frames > 1;
        }
    }

    /// When what was put off is to be done.
    #[must_use]
    pub const fn deadline(&self) -> u64 {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_closely_waits() {
        let mut p = Patience::new(30, 200);
        assert!(!p.rings(5), "the first");
        assert!(!p.rings(35), "long after");
        assert!(p.rings(64));
        p.begins(64);
        assert_eq!(p.deadline(), 264);
        // Rung by the VMM: the guest halts.
        assert!(!p.rings(70));
        p.ends(71, 3);
        assert_eq!(p.deadline(), NEVER);
        // Those behind follow what was put off.
        assert!(p.rings(100));
        p.begins(100);
        p.ends(300, 1);
        // Time that goes back is no reason to wait for ever.
        assert!(p.rings(0));
        p.begins(0);
        assert_eq!(p.deadline(), 200);
    }

    #[test]
    fn the_first_waits_if_the_last_were_several() {
        let mut p = Patience::new(30, 200);
        assert!(!p.rings(0) && p.rings(10));
        p.begins(10);
        p.ends(50, 1);
        assert!(p.rings(1000));
        p.begins(1000);
        p.ends(1050, 2);
        assert!(p.rings(2000));
        p.begins(2000);
        // It was alone: the next does not.
        p.ends(2050, 1);
        assert!(!p.rings(3000) && !p.rings(4000));
        // What ends though nothing was put off says nothing.
        p.ends(4001, 9);
        assert!(!p.rings(5000));
    }
}
