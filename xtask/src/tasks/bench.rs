//! `bench`: boots two systems deterministically, one for the kernel's own operations and one for
//! exits (together they would disturb each other), and reports what things cost.
//!
//! The bench server (to the log) and its guest (to its serial port) write lines
//! `BENCH <name> <unit> <min> <median> <max>`, and `SKIP <name>: <why>` for what they cannot measure.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{ArgMatches, Args};
use serde::{Deserialize, Serialize};

mod trace;

use super::Task;
use crate::{
    build::image,
    description::Description,
    emulator::{Exit, Machine, Options},
    host,
    setup::image_maker::Firmware,
};

/// The systems that measure.
const SYSTEMS: [&str; 2] = ["guests/bench-ipc.toml", "guests/bench.toml"];

/// How much a median may grow over the committed figure, in percent.
const TOLERANCE: u64 = 3;

/// What a figure must not exceed, and what others take, in instructions under the same emulator.
const REFERENCES: [(&str, u64, &str); 12] = [
    ("null_call", 100, "seL4 with budgets 317"),
    ("ipc_call_reply", 350, "seL4 with budgets 521"),
    ("ipc_call_reply_4w", 380, "seL4 with budgets 563"),
    ("signal_wake", 450, "seL4 with budgets 1262"),
    ("user_fault", 600, "seL4 with budgets 1875"),
    ("map_page", 400, "seL4 with budgets 853"),
    ("exit_port_routed", 550, "KVM to user space 2892"),
    ("exit_cpuid_vmm", 400, "KVM in kernel 2436"),
    ("exit_mmio_vmm", 1100, "KVM to user space 4916"),
    ("exit_doorbell", 250, ""),
    ("irq_to_guest", 700, ""),
    ("guest_timer_tick", 1500, ""),
];

/// Measure costs in instructions and compare them with the committed figures.
#[derive(Debug, Args)]
pub struct Bench {
    /// Write the figures here too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Make these figures the committed ones (xtask/bench-baseline.json)
    #[arg(long)]
    update: bool,
    /// Trace one sample of each of these rows instead (`all`: those with a goal): the tables of COSTS.md
    #[arg(long, value_name = "ROW,...", value_delimiter = ',', conflicts_with_all = ["json", "update"])]
    trace: Vec<String>,
    /// Processors of the machine: with 2 the second is online and halted, and the figures have a baseline of their own
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2))]
    cpus: u32,
    /// Seconds that each of its two runs may take
    #[arg(long, value_name = "S", default_value_t = 600)]
    timeout: u64,
}

/// All figures of a run.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Figures {
    /// On a machine with one processor.
    rows: Vec<Row>,
    /// On one with two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rows_2_cpus: Vec<Row>,
}

impl Figures {
    fn of(&mut self, cpus: u32) -> &mut Vec<Row> {
        match cpus {
            1 => &mut self.rows,
            _ => &mut self.rows_2_cpus,
        }
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Row {
    name: String,
    unit: String,
    min: u64,
    median: u64,
    max: u64,
}

impl Task for Bench {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        if !self.trace.is_empty() {
            let rows: Vec<&str> = match self.trace.as_slice() {
                [all] if all == "all" => REFERENCES.iter().map(|(name, ..)| *name).collect(),
                rows => rows.iter().map(String::as_str).collect(),
            };
            print!("{}", trace::trace(&rows, &SYSTEMS)?);
            return Ok(0);
        }
        if let Some(path) = &self.json {
            host::writable(path)?;
        }
        let mut rows = Vec::new();
        for system in SYSTEMS {
            rows.extend(self.measure(system)?);
        }
        let baseline_path = host::root().join("xtask/bench-baseline.json");
        let mut baseline = load(&baseline_path)?;
        let committed = baseline.of(self.cpus);
        print!("{}", table(&rows, committed));
        let worse = regressions(&rows, committed);
        if let Some(path) = &self.json {
            let mut figures = Figures::default();
            figures.of(self.cpus).clone_from(&rows);
            write(path, &figures)?;
        }
        if self.update {
            *committed = rows;
            write(&baseline_path, &baseline)?;
            return Ok(0);
        }
        for line in &worse {
            eprintln!("error: {line}");
        }
        if !worse.is_empty() {
            bail!(
                "figures are worse than the committed ones; if that is meant: cargo xtask bench --update"
            );
        }
        Ok(0)
    }
}

impl Bench {
    /// Boots one system to its end; gives its figures.
    fn measure(&self, system: &str) -> Result<Vec<Row>> {
        let description = Description::load(&host::root().join(system), None)?;
        let image = image::build(&description, Firmware::Bios)?;
        host::step(format!(
            "measuring {system}, with time counted in instructions"
        ));
        let options = Options {
            icount: true,
            cpus: self.cpus,
            ..Options::default()
        };
        let mut machine = Machine::start(&image, &options)?;
        let exit = machine.wait_exit(Duration::from_secs(self.timeout))?;
        if !matches!(exit, Exit::PowerOff | Exit::Guest(0)) {
            return Err(machine.failure(&format!("the bench ended with {exit:?}")));
        }
        let (serial, log) = (machine.serial(), machine.log());
        let lines = || log.iter().map(String::as_str).chain(serial.lines());
        for skipped in lines().filter(|line| line.contains("SKIP ")) {
            eprintln!("not measured: {}", skipped.trim());
        }
        let rows: Vec<Row> = lines().filter_map(parse).collect();
        if rows.is_empty() {
            return Err(machine.failure("the bench reported no figure"));
        }
        Ok(rows)
    }
}

fn write(path: &Path, figures: &Figures) -> Result<()> {
    let json = format!("{}\n", serde_json::to_string_pretty(figures)?);
    host::write_whole(path, json.as_bytes())
}

fn load(path: &Path) -> Result<Figures> {
    if !path.exists() {
        host::step("there are no committed figures yet");
        return Ok(Figures::default());
    }
    serde_json::from_slice(&host::read(path)?)
        .with_context(|| format!("reading {}", path.display()))
}

/// A figure out of a line of serial output or log, which may have something else before it, and
/// the place in the source after it.
fn parse(line: &str) -> Option<Row> {
    let (_, rest) = line.split_once("BENCH ")?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let [name, unit, min, median, max, place @ ..] = words.as_slice() else {
        return None;
    };
    if place.first().is_some_and(|word| !word.starts_with('(')) {
        return None;
    }
    Some(Row {
        name: (*name).to_owned(),
        unit: (*unit).to_owned(),
        min: min.parse().ok()?,
        median: median.parse().ok()?,
        max: max.parse().ok()?,
    })
}

fn table(rows: &[Row], baseline: &[Row]) -> String {
    let mut text = format!(
        "{:<28} {:>8} {:>8} {:>8} {:>9} {:>8}  {}\n",
        "operation", "min", "median", "max", "committed", "goal", "others"
    );
    for row in rows {
        let committed = find(baseline, row).map_or_else(String::new, |b| b.median.to_string());
        let reference = REFERENCES.iter().find(|(name, ..)| *name == row.name);
        let (goal, others) = reference.map_or((String::new(), ""), |(_, goal, others)| {
            let mark = if row.median > *goal { "!" } else { "" };
            (format!("{mark}{goal}"), *others)
        });
        text.push_str(&format!(
            "{:<28} {:>8} {:>8} {:>8} {:>9} {:>8}  {}\n",
            row.name, row.min, row.median, row.max, committed, goal, others
        ));
    }
    text
}

fn find<'a>(baseline: &'a [Row], row: &Row) -> Option<&'a Row> {
    baseline
        .iter()
        .find(|b| b.name == row.name && b.unit == row.unit)
}

fn regressions(rows: &[Row], baseline: &[Row]) -> Vec<String> {
    let mut worse = Vec::new();
    for row in rows {
        let Some(old) = find(baseline, row) else {
            continue;
        };
        if row.median * 100 > old.median * (100 + TOLERANCE) {
            worse.push(format!(
                "{}: {} {}, committed {}",
                row.name, row.median, row.unit, old.median
            ));
        }
    }
    for old in baseline
        .iter()
        .filter(|b| !rows.iter().any(|r| r.name == b.name))
    {
        worse.push(format!("{} was not measured", old.name));
    }
    worse
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, median: u64) -> Row {
        Row {
            name: name.into(),
            unit: "instructions".into(),
            min: 1,
            median,
            max: 999,
        }
    }

    #[test]
    fn lines() {
        let line = "\r[bench] BENCH ipc_call_reply instructions 400 410 999\r";
        let want = Row {
            min: 400,
            ..row("ipc_call_reply", 410)
        };
        assert_eq!(parse(line), Some(want));
        let logged = "bench: [0.1] INFO BENCH a instructions 1 2 999  (services/bench/src/x.rs:4)";
        assert_eq!(parse(logged), Some(row("a", 2)));
        assert_eq!(parse("BENCH x instructions 1 2 3 4"), None);
        assert_eq!(parse("BENCH x instructions 1 2"), None);
        assert_eq!(parse("BENCH x instructions 1 2 z"), None);
    }

    #[test]
    fn baselines_stand_side_by_side() {
        let mut figures = Figures::default();
        *figures.of(1) = vec![row("a", 1)];
        let one = serde_json::to_string(&figures).unwrap();
        assert!(!one.contains("rows_2_cpus"), "{one}");
        *figures.of(2) = vec![row("a", 2)];
        let both = serde_json::to_string(&figures).unwrap();
        let mut read: Figures = serde_json::from_str(&both).unwrap();
        assert_eq!((read.of(1)[0].median, read.of(2)[0].median), (1, 2));
        let mut old: Figures = serde_json::from_str(&one).unwrap();
        assert!(old.of(2).is_empty());
    }

    #[test]
    fn three_percent() {
        let old = [row("a", 100), row("gone", 1)];
        assert_eq!(
            regressions(&[row("a", 103), row("gone", 1)], &old),
            Vec::<String>::new()
        );
        assert_eq!(regressions(&[row("a", 104), row("gone", 1)], &old).len(), 1);
        assert_eq!(
            regressions(&[row("a", 100), row("new", 5)], &old),
            ["gone was not measured"]
        );
        assert!(table(&[row("exit_doorbell", 400)], &[]).contains("!250"));
    }
}
