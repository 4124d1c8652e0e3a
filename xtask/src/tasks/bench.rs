//! `bench`: boots two systems deterministically, one for the kernel's own operations and one for
//! exits (together they would disturb each other), and reports what things cost.
//!
//! The bench server (to the log) and its guest (to its serial port) write lines
//! `BENCH <name> <unit> <min> <median> <max>`, and `SKIP <name>: <why>` for what they cannot measure.
//!
//! Three more systems have an unmodified Linux, whose first process (`guests/costs`) measures what devices cost it; the same
//! program runs under KVM ([`peer`]).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{ArgMatches, Args, ValueEnum};

mod exits;
mod figures;
mod linux;
mod peer;
mod trace;

use figures::{Figures, Row, parse, regressions, table};

use super::Task;
use crate::{
    build::image,
    description::Description,
    emulator::{Emulator, Exit, Machine, Options, bochs},
    host,
    setup::image_maker::Firmware,
};

/// The systems that measure.
const SYSTEMS: [&str; 2] = ["guests/bench-ipc.toml", "guests/bench.toml"];

/// Who else can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Other {
    /// QEMU with KVM, on Linux, all from Debian's packages.
    Kvm,
}

/// Measure costs in instructions and compare them with the committed figures.
#[derive(Debug, Args)]
pub struct Bench {
    /// Write the figures here too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Make these figures the committed ones (xtask/bench-baseline.json)
    #[arg(long)]
    update: bool,
    /// Trace one sample of each of these rows instead (`all`: those with a goal), in QEMU: the tables of COSTS.md
    #[arg(long, value_name = "ROW,...", value_delimiter = ',', conflicts_with_all = ["json", "update"])]
    trace: Vec<String>,
    /// The emulator to measure in; each has a baseline of its own
    #[arg(long, value_enum, default_value = "qemu", value_name = "NAME")]
    emulator: Emulator,
    /// The emulator's processor, as ryzen or corei7_skylake_x in Bochs
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// Processors of the machine: with 2 the second is online and halted, and the figures have a baseline of their own
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2))]
    cpus: u32,
    /// What Linux guests pay for their devices, here and with another hypervisor in the same emulator (some twenty minutes the first
    /// time; what the other takes is kept under target/peer)
    #[arg(long, value_enum, value_name = "NAME", conflicts_with_all = ["trace", "update", "json", "emulator", "cpu", "cpus"])]
    peer: Option<Other>,
    /// Leave out what Linux guests pay for their devices: a minute each of three
    #[arg(long)]
    no_linux: bool,
    /// Seconds that each of its runs may take
    #[arg(long, value_name = "S", default_value_t = 600)]
    timeout: u64,
}

impl Task for Bench {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        if !self.trace.is_empty() {
            if self.emulator != Emulator::Qemu {
                bail!(
                    "a trace is taken in QEMU, by its debug stub\n  remedy: leave --emulator out"
                );
            }
            let rows: Vec<&str> = match self.trace.as_slice() {
                [all] if all == "all" => figures::with_goals().collect(),
                rows => rows.iter().map(String::as_str).collect(),
            };
            print!("{}", trace::trace(&rows, &SYSTEMS)?);
            return Ok(0);
        }
        if let Some(path) = &self.json {
            host::writable(path)?;
        }
        let options = self.options();
        options.check(Firmware::Bios)?;
        if let Some(Other::Kvm) = self.peer {
            let other = peer::kvm()?;
            let ours = linux::measure(&options, self.timeout)?;
            print!("{}", linux::beside(&ours, &other));
            return Ok(0);
        }
        let mut rows = Vec::new();
        for system in SYSTEMS {
            rows.extend(self.measure(system, &options)?);
        }
        let linux = options.emulator == Emulator::Qemu && self.cpus == 1;
        if linux && !self.no_linux {
            rows.extend(linux::measure(&options, self.timeout)?.rows);
        }
        let baseline_path = host::root().join("xtask/bench-baseline.json");
        let mut baseline = load(&baseline_path)?;
        let committed = baseline.of(self.cpus, &options);
        print!("{}", table(&rows, &committed));
        let mut worse = regressions(&rows, &committed);
        if self.no_linux {
            worse.retain(|line| !linux::ROWS.iter().any(|row| line.starts_with(row)));
        }
        if let Some(path) = &self.json {
            let mut figures = Figures::default();
            figures.replace(self.cpus, &options, rows.clone());
            write(path, &figures)?;
        }
        if self.update {
            baseline.replace(self.cpus, &options, rows);
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
    fn options(&self) -> Options {
        let mut options = Options {
            emulator: self.emulator,
            icount: self.emulator == Emulator::Qemu,
            cpus: self.cpus,
            cpu: self.cpu.clone(),
            ..Options::default()
        };
        if options.emulator == Emulator::Bochs {
            // The figures' name for it.
            options.cpu = Some(bochs::model(&options).to_owned());
        }
        options
    }

    /// Boots one system to its end; gives its figures.
    fn measure(&self, system: &str, options: &Options) -> Result<Vec<Row>> {
        let description = Description::load(&host::root().join(system), None)?;
        let image = image::build(&description, Firmware::Bios)?;
        host::step(format!(
            "measuring {system}, with time counted in instructions"
        ));
        let mut machine = Machine::start(&image, options)?;
        let exit = machine.wait_exit(Duration::from_secs(self.timeout))?;
        if !matches!(exit, Exit::PowerOff | Exit::Guest(0)) {
            return Err(machine.failure(&format!("the bench ended with {exit:?}")));
        }
        let (serial, log) = (machine.serial(), machine.log());
        let lines = || log.iter().map(String::as_str).chain(serial.lines());
        for skipped in lines().filter(|line| line.contains("SKIP ")) {
            eprintln!("not measured: {}", skipped.trim());
        }
        let rows: Vec<Row> = lines().filter_map(|line| parse(line, options)).collect();
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
