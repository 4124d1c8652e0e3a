//! Whether a server still comes round its loop.
//!
//! Root asks twice a second, by a bit of the server's Notification, and looks a little later whether the server has counted a word of its
//! state page up (`runtime::heart`). One that has not is looked at again and again, and ended when it is sure to hang:
//!
//! * It is stopped, or waits in a system call, and has not run at all in [`STILL`] looks: the question would have woken whoever waits in
//!   his loop, so it waits elsewhere. Nothing that a server does for one event waits so long.
//! * It has used [`OWN_MICROS`] of *its own* processor time since it was asked, in no less than [`STILL`] looks. Nothing that it does for
//!   one event takes a tenth of that. On its own time and not on the clock, because a server that does not answer may have had no turn: its
//!   VM's share of a busy processor is small, or its Budget is used up. However long that lasts, it is not its fault, and a successor
//!   would be no faster. In several looks, because a machine that is emulated stands still now and then with the TSC running on: what such
//!   a moment counts is one look.
//!
//! A server that starts reads what its predecessor left, which may be much, before it hears anything: [`START`] times as much is
//! allowed until its first answer. A server that spins in a routed access runs on its caller's time; that one's time limit ends it
//! (`RootRequest::Hung`), or its caller leaves, and then it runs on its own.

use runtime::abi::thread_state;

/// From one question to the next, in microseconds.
pub const EVERY_MICROS: u64 = 500_000;
/// From a question to the look whether it was answered, and from look to look, in microseconds.
pub const LOOK_MICROS: u64 = 100_000;
/// Looks in which a server has not run, or has run and not answered.
pub const STILL: u32 = 5;
/// Processor time of its own that a server may use without an answer, in microseconds.
pub const OWN_MICROS: u64 = 1_000_000;
/// How many times as much of all is allowed until the first answer.
pub const START: u32 = 5;

/// What is seen of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The word that it changes.
    pub alive: u64,
    /// One of `thread_state`.
    pub state: u64,
    /// TSC cycles of its own that it has used.
    pub used: u64,
}

/// What is to be done.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    Nothing,
    /// Ask it.
    Ask,
    /// It hangs: end it.
    End,
}

/// A question that has not been answered.
#[derive(Clone, Copy, Debug)]
struct Question {
    asked: Look,
    last: Look,
    /// Looks in a row in which it had not run and could not.
    still: u32,
    /// Looks in which it had run.
    ran: u32,
}

/// One server's; of one life.
#[derive(Clone, Copy, Debug)]
pub struct Heart {
    due: u64,
    question: Option<Question>,
    answered: bool,
}

impl Heart {
    /// Of a server that starts at `now`.
    #[must_use]
    pub const fn new(now: u64) -> Self {
        Self {
            due: now,
            question: None,
            answered: false,
        }
    }

    /// When [`Self::turn`] is due.
    #[must_use]
    pub const fn due(&self) -> u64 {
        self.due
    }

    /// It is due, and this is what is seen; `cycles` is how many TSC cycles so many microseconds are.
    pub fn turn(&mut self, now: u64, look: Look, cycles: impl Fn(u64) -> u64) -> Turn {
        let Some(mut question) = self.question.take() else {
            self.due = now.saturating_add(cycles(LOOK_MICROS));
            self.question = Some(Question {
                asked: look,
                last: look,
                still: 0,
                ran: 0,
            });
            return Turn::Ask;
        };
        if look.alive != question.asked.alive {
            self.answered = true;
            self.due = now.saturating_add(cycles(EVERY_MICROS - LOOK_MICROS));
            return Turn::Nothing;
        }
        let ran = look.used != question.last.used;
        // A fault has been told, and is dealt with.
        let waits = !matches!(look.state, thread_state::READY | thread_state::FAULTED);
        question.still = if waits && !ran { question.still + 1 } else { 0 };
        question.ran = question.ran.saturating_add(ran.into());
        question.last = look;
        let times = if self.answered { 1 } else { START };
        let own = look.used.saturating_sub(question.asked.used);
        let spins =
            own >= cycles(OWN_MICROS).saturating_mul(times.into()) && question.ran >= STILL * times;
        if spins || question.still >= STILL * times {
            return Turn::End;
        }
        self.due = now.saturating_add(cycles(LOOK_MICROS));
        self.question = Some(question);
        Turn::Nothing
    }
}

#[cfg(test)]
#[path = "heartbeat_tests.rs"]
mod tests;
