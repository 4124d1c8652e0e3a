//! Cases that follow from the table alone.
//!
//! For each operation: the right call; then every argument, and the capability that is called, wrong in every way that its kind
//! allows, one at a time; then two checks failing at once, which must give the error of the one that comes first.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use ipc_schema::abi::operations::{self, Arg, Is, KINDS, Operation, Place, Way, Wrong, right_name};
use ipc_schema::abi::{Kind, Status, Tag, rights};

use crate::case::{Failure, Outcome, Report, expect, fail, same};
use crate::kernel::Call;
use crate::kit::{self, Kit, MEMORY, PAGE, TAKEN, THERE};
use crate::right::{self, Right};

/// What one derived case tries.
#[derive(Clone, Copy, Debug)]
pub struct Derived {
    /// The operation.
    pub operation: &'static Operation,
    /// What is wrong: nothing, one thing, or two of which the first is looked at first.
    pub wrong: [Option<Wrong>; 2],
}

/// All of them, operation by operation.
pub fn cases() -> impl Iterator<Item = Derived> {
    operations::all().flat_map(|operation| {
        let mut cases = vec![Derived {
            operation,
            wrong: [None; 2],
        }];
        for check in operation.checks {
            cases.extend(operation.ways(check).map(|w| Derived {
                operation,
                wrong: [Some(w), None],
            }));
        }
        // Of each check its first way will do: which error comes first is decided by the check.
        let firsts: Vec<Wrong> = (operation.checks.iter())
            .filter_map(|check| operation.ways(check).next())
            .collect();
        for (i, first) in firsts.iter().enumerate() {
            for second in firsts.iter().skip(i + 1) {
                if can_be_both(*first, *second) {
                    cases.push(Derived {
                        operation,
                        wrong: [Some(*first), Some(*second)],
                    });
                }
            }
        }
        cases
    })
}

/// Whether two wrongs have different errors and do not undo each other.
fn can_be_both(a: Wrong, b: Wrong) -> bool {
    if a.way.error() == b.way.error() || a.arg == b.arg && a.arg.is_some() {
        return false;
    }
    // A capability that is not there lacks no right.
    let about_target = |w: Wrong| w.arg.is_none() && w.way != Way::NoSuchLabel;
    if about_target(a) && about_target(b) {
        return false;
    }
    true
}

impl Derived {
    /// The answer.
    #[must_use]
    pub fn error(&self) -> Option<Status> {
        self.wrong[0].map(|w| w.way.error())
    }

    /// Its name, unique.
    #[must_use]
    pub fn name(&self) -> String {
        let one = |w: Wrong| match w.arg.and_then(|i| self.operation.args.get(i)) {
            Some(arg) => format!("{} {}", arg.name, way_name(w.way)),
            None if w.way == Way::NoSuchLabel => way_name(w.way),
            None => format!("target {}", way_name(w.way)),
        };
        let name = self.operation.name;
        match self.wrong {
            [None, _] => format!("{name}: right"),
            [Some(a), None] => format!("{name}: {}", one(a)),
            [Some(a), Some(b)] => format!("{name}: {} before {}", one(a), one(b)),
        }
    }
}

fn way_name(way: Way) -> String {
    match way {
        Way::Lacks(right) => format!("without {}", right_name(right)),
        Way::Null => "in slot 0".into(),
        Way::Empty => "in an empty slot".into(),
        Way::Outside => "outside the table".into(),
        Way::Huge => "beyond 32 bits".into(),
        Way::Stale => "stale".into(),
        Way::OtherKind => "of another type".into(),
        Way::Occupied => "occupied".into(),
        Way::Misaligned => "misaligned".into(),
        Way::Below => "too small".into(),
        Way::Above => "too large".into(),
        Way::Unknown => "unknown".into(),
        Way::NoSuchLabel => "no such operation".into(),
    }
}

/// Tries all.
pub fn all(kit: &mut Kit, report: &mut Report) {
    for case in cases() {
        report.case(&case.name(), || kit.tidy(|kit| try_one(kit, &case)));
    }
}

fn try_one(kit: &mut Kit, case: &Derived) -> Outcome {
    let operation = case.operation;
    let right = right::prepare(kit, operation)?;
    // Once before, so that tables and slabs that stay are there.
    let mut outcome = right::works(kit, operation, &right);
    if outcome.is_ok() {
        outcome = wrong(kit, case, &right);
    }
    right::finish(kit, operation)?;
    outcome
}

/// Every form of the wrong call, with its name.
fn all_forms(kit: &mut Kit, case: &Derived, right: &Right) -> Outcome<Vec<(String, Call)>> {
    let mut calls = vec![(String::new(), right.call.clone())];
    for wrong in case.wrong.iter().rev().flatten() {
        let mut all = Vec::new();
        for (_, call) in &calls {
            all.extend(forms(kit, case.operation, call, *wrong)?);
        }
        calls = all;
    }
    Ok(calls)
}

fn wrong(kit: &mut Kit, case: &Derived, right: &Right) -> Outcome {
    let operation = case.operation;
    let Some(error) = case.error() else {
        let before = kit.figures()?;
        right::works(kit, operation, right)?;
        return same("figures after doing and undoing", &before, &kit.figures()?);
    };
    for i in 0.. {
        // Made anew each time: undoing the right call may have replaced the object that a copy was for.
        let Some((form, call)) = all_forms(kit, case, right)?.into_iter().nth(i) else {
            if i == 0 {
                return fail("there is no form of it");
            }
            break;
        };
        let told = |f: Failure| Failure(format!("{form}: {}", f.0));
        let before = kit.figures()?;
        let (status, _) = call.make();
        expect(error, status).map_err(told)?;
        same("figures after the refusal", &before, &kit.figures()?).map_err(told)?;
        if let Some(dest) = right.dest {
            same("the slot is still empty", &true, &kit::is_empty(dest)).map_err(told)?;
        }
        right::works(kit, operation, right).map_err(told)?;
        same("figures after all", &before, &kit.figures()?).map_err(told)?;
    }
    Ok(())
}

/// A call wrong in one way: every form of it, with its name.
fn forms(
    kit: &mut Kit,
    operation: &Operation,
    call: &Call,
    wrong: Wrong,
) -> Outcome<Vec<(String, Call)>> {
    if wrong.way == Way::NoSuchLabel {
        // The labels of the kernel's own calls are among them.
        let labels = [
            0,
            99,
            0x7fff,
            1 << 47,
            Tag::FAULT,
            Tag::PORT,
            u64::MAX >> 16,
        ];
        let form = |label| {
            let mut call = call.clone();
            call.tag = Tag(Tag::new(label).0 | (call.tag.0 & 0xffff));
            (format!("label {label:#x}"), call)
        };
        return Ok(labels.into_iter().map(form).collect());
    }
    let Some(arg) = wrong.arg.and_then(|i| operation.args.get(i)) else {
        let kind = operation.target.unwrap_or(Kind::Mapping);
        let slots = slots(kit, kind, call.slot, wrong.way, kit.table)?;
        let form = |slot| {
            let mut call = call.clone();
            call.slot = slot;
            (format!("slot {slot:#x}"), call)
        };
        return Ok(slots.into_iter().map(form).collect());
    };
    let values = values(kit, arg, call, wrong.way)?;
    let form = |value| (format!("{value:#x}"), right::with(call.clone(), arg, value));
    Ok(values.into_iter().map(form).collect())
}

/// Slots that are wrong instead of `right`, which is for an object of `kind`, in a table of `end` slots.
fn slots(kit: &mut Kit, kind: Kind, right: u64, way: Way, end: u64) -> Outcome<Vec<u64>> {
    Ok(match way {
        Way::Null => vec![0],
        Way::Empty => vec![kit.empty],
        Way::Outside => vec![end, end + 1, 0xffff, 0xffff_ffff],
        Way::Huge => vec![right | 1 << 32, right | 1 << 63, u64::MAX],
        Way::Stale => vec![kit.stale(kind)],
        Way::OtherKind => KINDS
            .into_iter()
            .filter(|k| *k != kind)
            .map(|k| kit.live(k))
            .collect(),
        Way::Lacks(lacking) => vec![kit.copy(right, rights::ALL & !lacking)?],
        _ => vec![],
    })
}

fn values(kit: &mut Kit, arg: &Arg, call: &Call, way: Way) -> Outcome<Vec<u64>> {
    let right = right::value(call, arg);
    let top = match arg.at {
        Place::Word { low, high, .. } => u64::MAX >> (64 - (high - low)),
        Place::Length => 0xfff,
        Place::Payload(_) => u64::MAX,
    };
    Ok(match (arg.is, way) {
        (Is::Cap { kind, .. }, _) => slots(kit, kind, right, way, kit.table)?,
        (Is::Any { .. }, _) => slots(kit, Kind::Notification, right, way, kit.table)?,
        (Is::Dest, Way::Occupied) => KINDS.into_iter().map(|k| kit.live(k)).collect(),
        (Is::DestThere, Way::Occupied) => vec![TAKEN],
        (Is::Dest, _) => slots(kit, Kind::Mapping, right, way, kit.table)?,
        (Is::DestThere | Is::SlotThere, _) => slots(kit, Kind::Mapping, right, way, THERE)?,
        (_, Way::Misaligned) => vec![right + 1, right + 8, right + PAGE / 2, right | (PAGE - 1)],
        (Is::Number { least, .. }, Way::Below) => vec![least - 1],
        (Is::Number { most, .. }, Way::Above) => vec![most + 1, top],
        (Is::Choice(of), _) => (0..=16).chain([top]).filter(|c| !of.contains(c)).collect(),
        (Is::Existing, _) => [0, right + 1, right + PAGE, right + 4, top, top & !0xfff]
            .into_iter()
            .filter(|c| c & top != right)
            .collect(),
        (Is::Page(end), _) => vec![end, end + PAGE, 1 << 63, top & !(PAGE - 1)],
        (Is::Address(end), _) => vec![end, end + 1, 1 << 63, top],
        (Is::Offset, _) => vec![MEMORY, MEMORY + PAGE, 1 << 63, top & !(PAGE - 1)],
        (Is::Extent, Way::Below) => vec![0],
        (Is::Extent, _) => vec![MEMORY + PAGE, 1 << 63, top & !(PAGE - 1)],
        _ => vec![],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn at_least_four_hundred_and_each_once() {
        let names: Vec<String> = cases().map(|c| c.name()).collect();
        let different: BTreeSet<&String> = names.iter().collect();
        let single = cases().filter(|c| c.wrong[1].is_none()).count();
        assert_eq!(names.len(), different.len());
        assert!(
            single >= 400,
            "{single} of one wrong, {} in all",
            names.len()
        );
    }

    /// Each case of two wrongs expects the error of the check that stands first in the table.
    #[test]
    fn pairs_in_order() {
        let case = |name: &str| cases().find(|c| c.name() == name).map(|c| c.error());
        assert_eq!(
            case("space.map: address misaligned before bytes too small"),
            Some(Some(Status::Misaligned))
        );
        assert_eq!(
            case("space.map: target without CONTROL before no such operation"),
            Some(Some(Status::MissingRight))
        );
        assert_eq!(
            case("space.map: no such operation before target without CONTROL"),
            None
        );
    }
}
