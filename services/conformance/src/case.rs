//! Outcomes, and counting them.

use alloc::format;
use alloc::string::String;
use core::fmt::Debug;

use ipc_schema::abi::Status;

/// Why a case failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

/// What a case comes to.
pub type Outcome<T = ()> = Result<T, Failure>;

impl From<Status> for Failure {
    /// An operation that only prepares a case must work.
    fn from(status: Status) -> Self {
        Self(format!("the preparation failed: {status:?}"))
    }
}

/// A failure with this text.
pub fn fail<T>(text: &str) -> Outcome<T> {
    Err(Failure(text.into()))
}

/// Compares.
pub fn same<T: Debug + PartialEq>(what: &str, expected: &T, is: &T) -> Outcome {
    if expected == is {
        return Ok(());
    }
    let separator = if what.is_empty() { "" } else { ": " };
    Err(Failure(format!(
        "{what}{separator}expected {expected:?}, got {is:?}"
    )))
}

/// Compares.
pub fn expect(expected: Status, is: Status) -> Outcome {
    same("", &expected, &is)
}

/// Counts, and says what is tried.
pub struct Report {
    passed: usize,
    failed: usize,
    /// Is told each line.
    say: fn(bool, &str),
}

impl Report {
    /// Says everything by `say` (whether it is bad, the line).
    #[must_use]
    pub const fn new(say: fn(bool, &str)) -> Self {
        Self {
            passed: 0,
            failed: 0,
            say,
        }
    }

    /// Counts a case, announced before it is tried: a kernel that does not come back shows in which.
    pub fn case(&mut self, name: &str, run: impl FnOnce() -> Outcome) {
        (self.say)(false, &format!("CASE {name}"));
        match run() {
            Ok(()) => self.passed += 1,
            Err(Failure(why)) => {
                self.failed += 1;
                (self.say)(true, &format!("FAIL {name}: {why}"));
            }
        }
    }

    /// Says the counts; answers how many failed.
    pub fn end(&self) -> usize {
        (self.say)(
            self.failed > 0,
            &format!("CONFORMANCE {} passed, {} failed", self.passed, self.failed),
        );
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_says() {
        let mut report = Report::new(|_, _| {});
        report.case("good", || Ok(()));
        report.case("bad", || expect(Status::Busy, Status::Ok));
        assert_eq!((report.passed, report.end()), (1, 1));
        let Err(Failure(text)) = expect(Status::Busy, Status::Ok) else {
            panic!("passed")
        };
        assert_eq!(text, "expected Busy, got Ok");
        assert_eq!(
            same("pool", &1, &2),
            Err(Failure("pool: expected 1, got 2".into()))
        );
    }
}
