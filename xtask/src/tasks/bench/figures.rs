//! Figures: read from what a machine says, kept, and compared with what they were, with what they should be, and with what others take.

use serde::{Deserialize, Serialize};

use crate::emulator::{Emulator, Options};

/// How much a median may grow over the committed figure, in percent.
const TOLERANCE: u64 = 3;

/// What a figure should not exceed (0: no goal is set), and what others take, in instructions in the same emulator.
struct Reference {
    name: &'static str,
    goal: u64,
    others: &'static str,
}

const fn reference(name: &'static str, goal: u64, others: &'static str) -> Reference {
    Reference { name, goal, others }
}

/// In QEMU.
const QEMU: [Reference; 12] = [
    reference("null_call", 100, "seL4 with budgets 317"),
    reference("ipc_call_reply", 350, "seL4 with budgets 521"),
    reference("ipc_call_reply_4w", 380, "seL4 with budgets 563"),
    reference("signal_wake", 450, "seL4 with budgets 1262"),
    reference("user_fault", 600, "seL4 with budgets 1875"),
    reference("map_page", 400, "seL4 with budgets 853"),
    reference("exit_port_routed", 550, "KVM to user space 2892"),
    reference("exit_cpuid_vmm", 400, "KVM in kernel 2436"),
    reference("exit_mmio_vmm", 1100, "KVM to user space 4916"),
    reference("exit_doorbell", 250, ""),
    reference("irq_to_guest", 700, ""),
    reference("guest_timer_tick", 1500, ""),
];
/// In QEMU, of what Linux guests pay, which cannot be traced.
const LINUX: [Reference; 1] = [reference("vm_start", 5_000_000, "")];
/// In Bochs, on a processor with SVM (KVM on Bochs 3.0).
const BOCHS_SVM: [Reference; 2] = [
    reference("exit_cpuid_vmm", 0, "KVM in kernel 1174"),
    reference("exit_port_routed", 0, "KVM to user space 3311"),
];
/// In Bochs, on one with VMX (KVM on Bochs 3.0).
const BOCHS_VMX: [Reference; 4] = [
    reference("exit_cpuid_vmm", 450, "KVM in kernel 976"),
    reference("exit_port_routed", 620, "KVM to user space 3162"),
    reference("exit_mmio_vmm", 1300, "KVM to user space 5612"),
    reference("exit_doorbell", 300, ""),
];

/// The names of those with a goal in QEMU.
pub fn with_goals() -> impl Iterator<Item = &'static str> {
    QEMU.iter().map(|reference| reference.name)
}

fn references(row: &Row) -> &'static [Reference] {
    match (row.emulator.as_str(), row.cpu.as_deref()) {
        ("qemu", _) => &QEMU,
        (_, Some("ryzen")) => &BOCHS_SVM,
        _ => &BOCHS_VMX,
    }
}

/// All figures of a run, or all that are committed.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Figures {
    /// On a machine with one processor.
    rows: Vec<Row>,
    /// On one with two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rows_2_cpus: Vec<Row>,
}

impl Figures {
    fn on(&mut self, cpus: u32) -> &mut Vec<Row> {
        match cpus {
            1 => &mut self.rows,
            _ => &mut self.rows_2_cpus,
        }
    }

    /// Those of one kind of machine.
    pub fn of(&mut self, cpus: u32, options: &Options) -> Vec<Row> {
        let rows = self.on(cpus).iter();
        rows.filter(|row| row.is_of(options)).cloned().collect()
    }

    /// Puts others in the place of those of one kind of machine.
    pub fn replace(&mut self, cpus: u32, options: &Options, rows: Vec<Row>) {
        let all = self.on(cpus);
        all.retain(|row| !row.is_of(options));
        all.extend(rows);
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Row {
    /// Where it was measured.
    #[serde(default = "qemu")]
    emulator: String,
    /// The emulator's processor, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
    name: String,
    unit: String,
    min: u64,
    median: u64,
    max: u64,
}

fn qemu() -> String {
    Emulator::Qemu.name().to_owned()
}

impl Row {
    fn is_of(&self, options: &Options) -> bool {
        self.emulator == options.emulator.name() && self.cpu == options.cpu
    }
    /// One of a single measurement, in instructions.
    pub fn single(name: &str, options: &Options, value: u64) -> Self {
        Self {
            emulator: options.emulator.name().to_owned(),
            cpu: options.cpu.clone(),
            name: name.to_owned(),
            unit: "instructions".to_owned(),
            min: value,
            median: value,
            max: value,
        }
    }
    /// Its name and median.
    pub fn figure(&self) -> (&str, u64) {
        (&self.name, self.median)
    }
    /// As a person reads it: the emulator, and its processor where it has several.
    fn machine(&self) -> String {
        let cpu = self.cpu.as_deref().unwrap_or_default();
        format!("{} {cpu}", self.emulator).trim_end().to_owned()
    }
}

/// A figure out of a line of serial output or log, which may have something else before it, and
/// the place in the source after it.
pub fn parse(line: &str, options: &Options) -> Option<Row> {
    let (_, rest) = line.split_once("BENCH ")?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let [name, unit, min, median, max, place @ ..] = words.as_slice() else {
        return None;
    };
    if place.first().is_some_and(|word| !word.starts_with('(')) {
        return None;
    }
    Some(Row {
        emulator: options.emulator.name().to_owned(),
        cpu: options.cpu.clone(),
        name: (*name).to_owned(),
        unit: (*unit).to_owned(),
        min: min.parse().ok()?,
        median: median.parse().ok()?,
        max: max.parse().ok()?,
    })
}

/// Figures as a person reads them.
pub fn table(rows: &[Row], baseline: &[Row]) -> String {
    let mut text = format!(
        "{:<28} {:<22} {:>8} {:>8} {:>8} {:>9} {:>8}  {}\n",
        "operation", "emulator", "min", "median", "max", "committed", "goal", "others"
    );
    for row in rows {
        let committed = find(baseline, row).map_or_else(String::new, |b| b.median.to_string());
        let mut all = references(row).iter().chain(&LINUX);
        let reference = all.find(|r| r.name == row.name);
        let (goal, others) = reference.map_or((String::new(), ""), |r| {
            let goal = match r.goal {
                0 => String::new(),
                goal if row.median > goal => format!("!{goal}"),
                goal => goal.to_string(),
            };
            (goal, r.others)
        });
        text.push_str(&format!(
            "{:<28} {:<22} {:>8} {:>8} {:>8} {:>9} {:>8}  {}\n",
            row.name,
            row.machine(),
            row.min,
            row.median,
            row.max,
            committed,
            goal,
            others
        ));
    }
    text
}

fn find<'a>(baseline: &'a [Row], row: &Row) -> Option<&'a Row> {
    baseline
        .iter()
        .find(|b| b.name == row.name && b.unit == row.unit)
}

/// What is worse than it was, a line each.
pub fn regressions(rows: &[Row], baseline: &[Row]) -> Vec<String> {
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
            emulator: qemu(),
            cpu: None,
            name: name.into(),
            unit: "instructions".into(),
            min: 1,
            median,
            max: 999,
        }
    }

    fn read(line: &str) -> Option<Row> {
        parse(line, &Options::default())
    }

    #[test]
    fn lines() {
        let line = "\r[bench] BENCH ipc_call_reply instructions 400 410 999\r";
        let want = Row {
            min: 400,
            ..row("ipc_call_reply", 410)
        };
        assert_eq!(read(line), Some(want));
        let logged = "bench: [0.1] INFO BENCH a instructions 1 2 999  (services/bench/src/x.rs:4)";
        assert_eq!(read(logged), Some(row("a", 2)));
        assert_eq!(read("BENCH x instructions 1 2 3 4"), None);
        assert_eq!(read("BENCH x instructions 1 2"), None);
        assert_eq!(read("BENCH x instructions 1 2 z"), None);
    }

    #[test]
    fn baselines_stand_side_by_side() {
        let (here, there) = (Options::default(), Options::bochs("ryzen"));
        let mut figures = Figures::default();
        figures.replace(1, &here, vec![row("a", 1)]);
        let one = serde_json::to_string(&figures).unwrap();
        assert!(!one.contains("rows_2_cpus"), "{one}");
        figures.replace(2, &here, vec![row("a", 2)]);
        let other = parse("BENCH a instructions 3 3 3", &there).unwrap();
        figures.replace(1, &there, vec![other]);
        figures.replace(1, &here, vec![row("a", 4)]);
        let all = serde_json::to_string(&figures).unwrap();
        assert!(
            all.contains(r#""emulator":"bochs","cpu":"ryzen","name":"a""#),
            "{all}"
        );
        let mut read: Figures = serde_json::from_str(&all).unwrap();
        let mut median = |cpus, options: &Options| {
            let rows = read.of(cpus, options);
            rows.iter().map(|row| row.median).collect::<Vec<_>>()
        };
        assert_eq!(median(1, &here), [4]);
        assert_eq!(median(2, &here), [2]);
        assert_eq!(median(1, &there), [3]);
        assert!(median(2, &there).is_empty());
        assert!(median(1, &Options::bochs("corei7_skylake_x")).is_empty());
        // What was written before there was a second emulator.
        let old = r#"{"rows":[{"name":"a","unit":"x","min":1,"median":7,"max":9}]}"#;
        let mut old: Figures = serde_json::from_str(old).unwrap();
        assert_eq!(old.of(1, &here)[0].median, 7);
        assert!(old.of(2, &here).is_empty() && old.of(1, &there).is_empty());
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
        let bochs = |model, row| {
            let row = parse(row, &Options::bochs(model));
            table(&[row.unwrap()], &[])
        };
        let intel = bochs(
            "corei7_skylake_x",
            "BENCH exit_doorbell instructions 1 280 999",
        );
        assert!(intel.contains(" 300") && intel.contains(" bochs corei7_skylake_x "));
        let amd = bochs("ryzen", "BENCH exit_cpuid_vmm instructions 1 280 999");
        assert!(
            amd.ends_with("  KVM in kernel 1174\n") && !amd.contains('!'),
            "{amd}"
        );
    }
}
