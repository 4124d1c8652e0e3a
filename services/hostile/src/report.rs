//! Calls counted by operation and result.

use core::fmt::{self, Write};

use ipc_schema::abi::Status;

use crate::ops::OPS;

/// Columns: each status of the ABI, then anything else.
const RESULTS: [(&str, Status); 17] = [
    ("ok", Status::Ok),
    ("signal", Status::Signal),
    ("timeout", Status::Timeout),
    ("cap", Status::InvalidCap),
    ("type", Status::WrongType),
    ("right", Status::MissingRight),
    ("op", Status::BadOperation),
    ("arg", Status::InvalidArg),
    ("range", Status::OutOfRange),
    ("align", Status::Misaligned),
    ("overlap", Status::Overlap),
    ("memory", Status::NoMemory),
    ("busy", Status::Busy),
    ("dead", Status::Dead),
    ("occupied", Status::Occupied),
    ("again", Status::Again),
    ("unsupported", Status::Unsupported),
];
/// Columns of [`Counts`].
pub const COLUMNS: usize = RESULTS.len() + 1;

/// How many calls of each row had each result.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Counts(pub [[u32; COLUMNS]; OPS.len()]);

impl Counts {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self([[0; COLUMNS]; OPS.len()])
    }

    /// One more. What is no status of the ABI is counted last.
    pub fn add(&mut self, row: usize, status: u64) {
        let column = RESULTS.iter().position(|(_, s)| *s as u64 == status);
        let cell = self
            .0
            .get_mut(row)
            .and_then(|r| r.get_mut(column.unwrap_or(RESULTS.len())));
        if let Some(cell) = cell {
            *cell = cell.saturating_add(1);
        }
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

/// The sum over all attackers and rounds.
#[derive(Clone, Debug)]
pub struct Total([[u64; COLUMNS]; OPS.len()]);

impl Default for Total {
    fn default() -> Self {
        Self([[0; COLUMNS]; OPS.len()])
    }
}

impl Total {
    /// Adds an attacker's round.
    pub fn add(&mut self, counts: &Counts) {
        let cells = self.0.iter_mut().flatten();
        for (to, from) in cells.zip(counts.0.iter().flatten()) {
            *to += u64::from(*from);
        }
    }

    /// Calls, those that succeeded, and those with a result that the ABI does not know.
    #[must_use]
    pub fn sums(&self) -> (u64, u64, u64) {
        let column = |n: usize| self.0.iter().filter_map(|r| r.get(n)).sum::<u64>();
        let all = self.0.iter().flatten().sum();
        (all, column(0) + column(1), column(RESULTS.len()))
    }

    /// Calls of the row of this name that succeeded.
    #[must_use]
    pub fn ok(&self, name: &str) -> u64 {
        let mut rows = self.0.iter().zip(&OPS);
        rows.find(|(_, op)| op.name == name)
            .map_or(0, |(r, _)| r[0] + r[1])
    }

    /// Rows of which no call has succeeded.
    pub fn never_ok(&self) -> impl Iterator<Item = &'static str> {
        let rows = self.0.iter().zip(&OPS);
        rows.filter_map(|(r, op)| (r[0] + r[1] == 0).then_some(op.name))
    }

    /// Writes one row: its name and each result that came.
    pub fn row(&self, n: usize, to: &mut impl Write) -> fmt::Result {
        let (Some(op), Some(cells)) = (OPS.get(n), self.0.get(n)) else {
            return Ok(());
        };
        write!(to, "{}:", op.name)?;
        let names = RESULTS.iter().map(|(name, _)| *name).chain(["unknown"]);
        for (name, count) in names.zip(cells).filter(|(_, c)| **c > 0) {
            write!(to, " {name} {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_rows() {
        let mut counts = Counts::new();
        counts.add(0, Status::Ok as u64);
        counts.add(0, Status::Dead as u64);
        counts.add(3, Status::Signal as u64);
        counts.add(5, 12345);
        counts.add(5000, 0);
        let mut total = Total::default();
        total.add(&counts);
        total.add(&counts);
        assert_eq!(total.sums(), (8, 4, 2));
        assert_eq!((total.ok(OPS[0].name), total.ok("nothing")), (2, 0));
        let mut text = String::new();
        total.row(0, &mut text).unwrap();
        assert_eq!(text, "call endpoint: ok 2 dead 2");
        text.clear();
        total.row(5, &mut text).unwrap();
        assert_eq!(text, "yield: unknown 2");
        assert!(total.never_ok().any(|n| n == "yield"));
        assert!(!total.never_ok().any(|n| n == "wait"));
    }

    #[test]
    fn every_status_has_a_column() {
        for raw in (0..3).chain(16..30) {
            let mut counts = Counts::new();
            counts.add(1, raw);
            assert_eq!(counts.0[1][RESULTS.len()], 0, "status {raw}");
        }
    }
}
