//! The table is consistent with itself and complete.

use super::*;
use std::collections::BTreeSet;

#[test]
fn names_are_unique() {
    let mut names = BTreeSet::new();
    for op in all() {
        assert!(names.insert(op.name), "{}", op.name);
        let mut states = BTreeSet::new();
        for check in op.checks {
            if let Check::State { name, when, .. } = check {
                assert!(
                    states.insert(name) && !when.is_empty(),
                    "{}: {name}",
                    op.name
                );
            }
        }
    }
}

/// Every operation that `op.rs` numbers is in the table.
#[test]
fn every_operation_has_a_row() {
    let source = include_str!("../op.rs");
    let (mut module, mut missing, mut found) = (String::new(), Vec::new(), 0);
    let rows: BTreeSet<(String, u64)> = all()
        .filter_map(|op| match op.entry {
            Entry::Call(kind, label) => Some((
                format!("{kind:?}")
                    .replace("GuestSpace", "Guest_Space")
                    .to_lowercase(),
                label,
            )),
            Entry::System(_) => None,
        })
        .collect();
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("pub mod ") {
            module = name.trim_end_matches(" {").to_owned();
        }
        if let Some((name, number)) = line
            .trim()
            .strip_prefix("pub const ")
            .and_then(|l| l.split_once(": u64 = "))
        {
            let label = number.trim_end_matches(';').parse().unwrap();
            found += 1;
            if !rows.contains(&(module.clone(), label)) {
                missing.push(format!("{module}.{name}"));
            }
        }
    }
    assert!(found >= 36, "{found} operations found in op.rs");
    assert!(missing.is_empty(), "without a row: {missing:?}");
}

/// Whatever can be wrong about an argument is looked at by some check.
#[test]
fn every_argument_is_checked() {
    for op in all() {
        if op.target.is_some() {
            assert!(
                matches!(op.checks.first(), Some(Check::Target)),
                "{}",
                op.name
            );
            let right = op.checks.iter().any(|c| matches!(c, Check::Right));
            assert_eq!(right, op.rights != 0, "{}", op.name);
            let label = op.checks.iter().any(|c| matches!(c, Check::Label));
            assert_eq!(label, matches!(op.entry, Entry::Call(..)), "{}", op.name);
        }
        for (i, arg) in op.args.iter().enumerate() {
            let named = op
                .checks
                .iter()
                .any(|c| matches!(c, Check::Arg(n) if *n == i));
            let aligned = op
                .checks
                .iter()
                .any(|c| matches!(c, Check::Aligned(n) if n.contains(&i)));
            assert_eq!(
                named,
                !matches!(arg.is, Is::Free),
                "{}: {}",
                op.name,
                arg.name
            );
            let pages = matches!(arg.is, Is::Page(_) | Is::Offset | Is::Extent);
            assert_eq!(aligned, pages, "{}: {}", op.name, arg.name);
        }
    }
}

#[test]
fn ways_of_a_few() {
    let find = |name| all().find(|op| op.name == name).unwrap();
    let ways =
        |op: &Operation, i: usize| -> Vec<Way> { op.ways(&op.checks[i]).map(|w| w.way).collect() };
    let map = find("space.map");
    assert_eq!(
        ways(map, 0),
        [Way::Empty, Way::Outside, Way::Huge, Way::Null, Way::Stale]
    );
    assert_eq!(ways(map, 1), [Way::Lacks(rights::CONTROL)]);
    // The slot of the Memory has 32 bits only, and needs no right.
    assert_eq!(
        ways(map, 3),
        [
            Way::Null,
            Way::Empty,
            Way::Outside,
            Way::Stale,
            Way::OtherKind
        ]
    );
    assert_eq!(ways(map, 4), [Way::Misaligned; 3]);
    assert!(!ways(find("reply_recv"), 0).contains(&Way::Null));
    assert_eq!(ways(find("memory.make_pool"), 2).len(), 3);
    assert_eq!(
        ways(find("guest_space.route call"), 5),
        [Way::Below, Way::Above]
    );
}

#[test]
fn the_page_has_every_operation() {
    let page = Reference.to_string();
    for op in all() {
        assert!(
            page.contains(&format!("\n## `{}`\n", op.name)),
            "{}",
            op.name
        );
        assert!(!op.does.is_empty() && !op.post.is_empty(), "{}", op.name);
    }
    assert!(!page.contains("| ? |") && !page.contains("Mapping"));
}
