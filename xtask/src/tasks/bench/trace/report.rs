//! What a trace says, in the form of `microkernel/docs/COSTS.md`: a table by phase for each row, and one for all of them of what
//! costs more than an instruction. What is too long for there, by function and one by one, goes to a file for each row.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Result;

use super::{Code, Tracer};
use crate::{
    build::{bare::KERNEL, image::Image},
    emulator::symbols::{Place, Symbols},
    host,
};

/// Source files that a table names at most for one piece of the way.
const FILES: usize = 8;

/// The columns of [`Report::hidden`]: kinds of instructions in the order of the table.
const KINDS: [&str; 20] = [
    "mov cr3", "invlpg", "mov cr", "mov dr", "rdmsr", "wrmsr", "vmrun", "vmload", "vmsave", "clgi",
    "stgi", "swapgs", "syscall", "sysret", "iret", "cpuid", "clts", "in/out", "rdtsc", "locked",
];

/// The tables of the rows traced so far.
#[derive(Default)]
pub struct Report {
    rows: BTreeMap<String, Row>,
}

struct Row {
    /// Component, instructions, and which files they are of; in the order of time.
    phases: Vec<(String, usize, String)>,
    /// How many of each kind.
    kinds: BTreeMap<&'static str, usize>,
    total: usize,
}

impl Report {
    /// Whether a row is in it.
    pub fn has(&self, row: &str) -> bool {
        self.rows.contains_key(row)
    }

    /// Adds a row, which `tracer` has just traced.
    pub fn add(&mut self, row: &str, tracer: &Tracer, image: &Image) -> Result<()> {
        let sample = tracer.timed(row)?;
        let mut symbols = Symbols::new(image.binaries.clone());
        let mut places: BTreeMap<(Option<usize>, u64), (String, String)> = BTreeMap::new();
        let mut pieces: Vec<(String, BTreeMap<String, usize>)> = Vec::new();
        let mut functions: BTreeMap<(String, String), usize> = BTreeMap::new();
        let mut kinds: BTreeMap<&'static str, usize> = BTreeMap::new();
        let mut listing = String::new();
        for e in sample {
            let code = tracer.code(e.code);
            // The stub page belongs to whoever jumps there.
            let component = match code {
                Some(code) => code.name.clone(),
                None => pieces
                    .last()
                    .map_or_else(String::new, |(name, _)| name.clone()),
            };
            let (file, function) = places
                .entry((e.code, e.address))
                .or_insert_with(|| match code {
                    Some(code) => place(&mut symbols, code, e.address),
                    None => ("stub page".to_owned(), String::new()),
                })
                .clone();
            let name = short(&component, &file);
            match pieces.last_mut() {
                Some((last, files)) if *last == component => *files.entry(name).or_default() += 1,
                _ => pieces.push((component.clone(), BTreeMap::from([(name, 1)]))),
            }
            let whose = (component.clone(), format!("{file}  {function}"));
            *functions.entry(whose).or_default() += 1;
            // A guest's own instructions are what is measured.
            if let Some(kind) = e.kind
                && !code.is_some_and(Code::nested)
            {
                *kinds.entry(kind).or_default() += 1;
            }
            let kind = e.kind.unwrap_or("-");
            writeln!(
                listing,
                "{component} {:#x} {kind} {file} {function}",
                e.address
            )?;
        }
        let measuring = tracer.code(Some(tracer.measuring));
        let phases = pieces
            .into_iter()
            .map(|(component, files)| {
                let total = files.values().sum();
                let files = match measuring.filter(|code| code.name == component) {
                    Some(_) => "what is measured, and what is around the clock".to_owned(),
                    None => listed(files),
                };
                (component, total, files)
            })
            .collect();
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let mut text = String::new();
        for ((component, function), count) in functions {
            writeln!(text, "{count:>6} {component:<16} {function}")?;
        }
        let path = host::target().join(format!("trace-{row}.txt"));
        host::write_whole(&path, format!("{text}\n{listing}").as_bytes())?;
        let row_of_it = Row {
            phases,
            kinds,
            total: sample.len(),
        };
        self.rows.insert(row.to_owned(), row_of_it);
        Ok(())
    }

    /// The tables, as `COSTS.md` holds them.
    pub fn text(&self, rows: &[&str]) -> Result<String> {
        let mut text = self.hidden(rows)?;
        for (name, row) in rows
            .iter()
            .filter_map(|name| Some((name, self.rows.get(*name)?)))
        {
            writeln!(text, "\n### `{name}`: {}\n", row.total)?;
            writeln!(text, "| where | instructions | of which |\n|---|---|---|")?;
            for (component, count, files) in &row.phases {
                writeln!(text, "| {component} | {count} | {files} |")?;
            }
        }
        Ok(text)
    }

    /// What costs more than an instruction: kinds that no row has are left out.
    fn hidden(&self, rows: &[&str]) -> Result<String> {
        let count = |row: &str, kind: &str| {
            let kinds = self.rows.get(row).map(|row| &row.kinds);
            kinds.and_then(|k| k.get(kind)).copied().unwrap_or(0)
        };
        let kinds: Vec<_> = KINDS
            .into_iter()
            .filter(|kind| rows.iter().any(|row| count(row, kind) > 0))
            .collect();
        let mut text = String::new();
        writeln!(text, "| row | {} |", kinds.join(" | "))?;
        writeln!(text, "|---|{}", "---|".repeat(kinds.len()))?;
        for row in rows {
            let counts: Vec<String> = kinds
                .iter()
                .map(|kind| match count(row, kind) {
                    0 => String::new(),
                    n => n.to_string(),
                })
                .collect();
            writeln!(text, "| `{row}` | {} |", counts.join(" | "))?;
        }
        Ok(text)
    }
}

/// The files of a piece, those with the most instructions first.
fn listed(files: BTreeMap<String, usize>) -> String {
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rest: usize = files.iter().skip(FILES).map(|(_, count)| count).sum();
    let mut names: Vec<String> = files
        .iter()
        .take(FILES)
        .map(|(file, count)| format!("{file} {count}"))
        .collect();
    if rest > 0 {
        names.push(format!("other {rest}"));
    }
    names.join(", ")
}

/// A source file as the tables call it, beside its component.
fn short(component: &str, file: &str) -> String {
    if file == "assembly" && component == KERNEL {
        return "entry and return (assembly)".to_owned();
    }
    if file.starts_with('/') || file.contains("library/") {
        return "core".to_owned();
    }
    let name = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let name = name
        .strip_prefix("microkernel/")
        .or_else(|| name.strip_prefix("services/"))
        .unwrap_or(name);
    let name = name.strip_prefix("src/").unwrap_or(name);
    name.replace("ipc-schema/src", "schema")
        .replace("/src/", "/")
}

/// File and function of the innermost code of ours at an address.
fn place(symbols: &mut Symbols, code: &Code, address: u64) -> (String, String) {
    let frames = symbols.frames_of(&code.path, address, Place::At);
    let ours = frames.iter().find(|frame| {
        let file = frame.file.as_str();
        !file.is_empty() && !file.starts_with('/') && !file.contains("library/")
    });
    match ours.or(frames.first()) {
        // Assembly has no line numbers.
        Some(frame) if frame.file.is_empty() => ("assembly".to_owned(), frame.function.clone()),
        Some(frame) => (frame.file.clone(), frame.function.clone()),
        None => ("?".to_owned(), "?".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short() {
        for (component, file, name) in [
            (KERNEL, "assembly", "entry and return (assembly)"),
            ("vmm", "assembly", "assembly"),
            (KERNEL, "microkernel/src/virt/svm/mod.rs", "virt/svm"),
            (KERNEL, "microkernel/src/mem.rs", "mem"),
            ("vmm", "services/vmm/src/machine/mod.rs", "vmm/machine"),
            ("vmm", "services/runtime/src/sys.rs", "runtime/sys"),
            (
                "device",
                "ipc-schema/src/state_page.rs",
                "schema/state_page",
            ),
            ("vmm", "/x/library/core/src/option.rs", "core"),
        ] {
            assert_eq!(short(component, file), name);
        }
    }

    #[test]
    fn columns_stay_with_their_kinds() {
        let row = |kinds: &[(&'static str, usize)], phases: &[&str]| Row {
            phases: phases
                .iter()
                .map(|&c| (c.to_owned(), 7, "a 4, b 3".to_owned()))
                .collect(),
            kinds: kinds.iter().copied().collect(),
            total: 7,
        };
        let mut report = Report::default();
        report.rows.insert(
            "x".into(),
            row(&[("locked", 4), ("vmrun", 1)], &["vmm", "microkernel"]),
        );
        report
            .rows
            .insert("y".into(), row(&[("mov cr3", 2)], &["vmm"]));
        let text = report.text(&["y", "x"]).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines.get(..4),
            Some(
                &[
                    "| row | mov cr3 | vmrun | locked |",
                    "|---|---|---|---|",
                    "| `y` | 2 |  |  |",
                    "| `x` |  | 1 | 4 |",
                ][..]
            )
        );
        assert!(text.contains("### `x`: 7\n\n| where | instructions | of which |\n|---|---|---|\n| vmm | 7 | a 4, b 3 |\n| microkernel | 7 |"));
    }

    #[test]
    fn the_tail_is_added_up() {
        let files = (0..FILES + 3).map(|n| (format!("f{n:02}"), 20 - n));
        let text = listed(files.collect());
        assert!(
            text.starts_with("f00 20, f01 19") && text.ends_with("other 33"),
            "{text}"
        );
    }
}
