//! When a driver is asked whether it wants an interrupt for the frames that it has sent: not at once, if it will soon be interrupted anyway.
//!
//! A driver looks at what it has sent when it sends more, or when it takes frames that came. Where each side answers the other it is
//! interrupted for the answer, and one for what it had sent before would only wake it for nothing. So while answers come soon the
//! question is put off: until the driver has sent more, many frames have been sent, or some time has passed. If it still waits for
//! the interrupt then, nobody has answered: it is asked at once from now on, until answers come soon again.

use ipc_schema::abi::NEVER;

/// Whether to ask at once. Times are the TSC's.
#[derive(Clone, Copy, Debug)]
pub struct Restraint {
    /// How long the question is put off; 0: never.
    most: u64,
    /// Answers come soon.
    answers: bool,
    /// When the driver was last interrupted for what it had sent.
    raised: Option<u64>,
    until: u64,
}

impl Restraint {
    /// It is put off for so long at most.
    #[must_use]
    pub const fn new(most: u64) -> Self {
        Self {
            most,
            answers: false,
            raised: None,
            until: NEVER,
        }
    }

    /// Frames have been sent, and nothing of before is put off any more: whether the driver may be asked later. Then it is to be by
    /// [`Self::deadline`].
    pub fn waits(&mut self, now: u64) -> bool {
        let waits = self.answers && self.most != 0;
        self.until = if waits {
            now.saturating_add(self.most)
        } else {
            NEVER
        };
        waits
    }

    /// The time has come: the driver is to be asked now.
    #[must_use]
    pub fn is_over(&mut self, now: u64) -> bool {
        let over = now >= self.until;
        if over {
            self.until = NEVER;
        }
        over
    }

    /// It was interrupted; `late`: since the time had come.
    pub fn interrupted(&mut self, now: u64, late: bool) {
        self.raised = Some(now);
        self.answers &= !late;
    }

    /// A frame has come for the guest.
    pub fn answered(&mut self, now: u64) {
        let raised = self.raised.take();
        self.answers |= raised.is_some_and(|at| now.saturating_sub(at) < self.most);
    }

    /// When the driver is to be asked.
    #[must_use]
    pub const fn deadline(&self) -> u64 {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_later_while_answers_come_soon() {
        let mut r = Restraint::new(100);
        assert!(!r.waits(0), "nothing is known yet");
        r.interrupted(0, false);
        r.answered(150);
        assert!(!r.waits(150), "that was late");
        r.interrupted(150, false);
        r.answered(249);
        assert!(r.waits(300) && r.waits(350));
        assert_eq!(r.deadline(), 450);
        assert!(!r.is_over(449) && r.is_over(450) && !r.is_over(450));
        // It wanted none any more.
        assert!(r.waits(500) && r.is_over(600));
        r.interrupted(600, true);
        assert!(!r.waits(601) && r.deadline() == NEVER);
        r.answered(650);
        assert!(r.waits(700));
    }

    #[test]
    fn without_a_clock_it_never_waits() {
        let mut r = Restraint::new(0);
        r.interrupted(0, false);
        r.answered(0);
        assert!(!r.waits(0) && r.deadline() == NEVER);
    }
}
