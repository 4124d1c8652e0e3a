//! What the table cannot say: time, precedence, donation, death in the middle, memory that is gone, pages' edges.

use crate::case::{Outcome, Report};
use crate::kit::Kit;

mod budgets;
mod caps;
mod deaths;
pub mod guest;
mod memory;
mod messages;
mod routes;
mod signals;
mod threads;

/// A case: its name, and what it does.
type Special = (&'static str, fn(&mut Kit) -> Outcome);

/// All of them.
fn cases() -> impl Iterator<Item = &'static Special> {
    [
        caps::CASES,
        messages::CASES,
        signals::CASES,
        threads::CASES,
        budgets::CASES,
        memory::CASES,
        deaths::CASES,
        guest::CASES,
        routes::CASES,
    ]
    .into_iter()
    .flatten()
}

/// Tries all. After each the figures are what they were, but for tables and slabs that the first of a kind leaves.
pub fn all(kit: &mut Kit, report: &mut Report) {
    for (name, case) in cases() {
        report.case(name, || kit.tidy(case));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<&str> = cases().map(|c| c.0).collect();
        assert_eq!(names.len(), cases().count());
    }
}
