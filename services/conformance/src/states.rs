//! A case for each state that the table says an operation refuses.

mod machine;
mod memory;
mod partners;
pub(crate) mod pools;
mod thread;

use alloc::format;

use ipc_schema::abi::Status;
use ipc_schema::abi::operations::{self, Check, Operation};

use crate::case::{Failure, Outcome, Report, expect, same};
use crate::kernel::Call;
use crate::kit::{self, Kit};
use crate::right;

/// Brings the state about, makes the call, sees that it is refused with this error.
type Case = fn(&mut Kit, &'static Operation, Status) -> Outcome;

/// Beginning of the operation's name, the state, the case.
type Row = (&'static str, &'static str, Case);

fn rows() -> impl Iterator<Item = &'static Row> {
    [
        pools::ROWS,
        memory::ROWS,
        thread::ROWS,
        machine::ROWS,
        partners::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// The case of an operation's state.
#[must_use]
pub fn find(operation: &str, state: &str) -> Option<Case> {
    let fits = |row: &&Row| operation.starts_with(row.0) && row.1 == state;
    rows().find(fits).map(|row| row.2)
}

/// Tries all; afterwards the right call must work again, and cost nothing.
pub fn all(kit: &mut Kit, report: &mut Report) {
    for operation in operations::all() {
        for check in operation.checks {
            let Check::State { name, error, .. } = *check else {
                continue;
            };
            let Some(case) = find(operation.name, name) else {
                continue;
            };
            report.case(&format!("{}: {name}", operation.name), || {
                kit.tidy(|kit| case(kit, operation, error))?;
                kit.tidy(|kit| still_works(kit, operation))
            });
        }
    }
}

fn still_works(kit: &mut Kit, operation: &Operation) -> Outcome {
    let right = right::prepare(kit, operation)?;
    let mut outcome = right::works(kit, operation, &right);
    let before = kit.figures()?;
    outcome = outcome.and_then(|()| right::works(kit, operation, &right));
    right::finish(kit, operation)?;
    outcome?;
    same("figures of the standing objects", &before, &kit.figures()?)
}

/// The call is refused, and nothing has changed.
fn refused(kit: &Kit, error: Status, call: &Call) -> Outcome {
    let before = kit.figures()?;
    let told = |f: Failure| Failure(format!("{:x?}: {}", call.words, f.0));
    expect(error, call.make().0).map_err(told)?;
    same("figures", &before, &kit.figures()?).map_err(told)
}

/// The same for a call that would fill a slot.
fn refused_dest(kit: &Kit, error: Status, call: &Call, dest: Option<u64>) -> Outcome {
    refused(kit, error, call)?;
    match dest {
        Some(dest) => same("the slot is still empty", &true, &kit::is_empty(dest)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table and the cases are about the same states.
    #[test]
    fn every_state_has_a_case() {
        let mut used = std::collections::BTreeSet::new();
        for operation in operations::all() {
            for check in operation.checks {
                if let Check::State { name, .. } = check {
                    assert!(
                        find(operation.name, name).is_some(),
                        "{}: {name}",
                        operation.name
                    );
                    let fits = |row: &&Row| operation.name.starts_with(row.0) && row.1 == *name;
                    used.insert(rows().position(|r| fits(&r)));
                }
            }
        }
        let unused: Vec<_> = (rows().enumerate())
            .filter(|(i, _)| !used.contains(&Some(*i)))
            .map(|(_, row)| (row.0, row.1))
            .collect();
        assert!(unused.is_empty(), "cases of no state: {unused:?}");
    }
}
