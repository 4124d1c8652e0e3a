//! `test`: formatting, lints, host tests, whole-system tests; ends with one line of counts.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::{ArgMatches, Args};

use super::{Task, fuzz};
use crate::{
    build::bare,
    emulator::{bochs, qemu},
    host,
    setup::{
        guests,
        image_maker::ImageMaker,
        toolchain::{TARGET, Toolchain},
    },
};

/// The crate of whole-system tests.
const SYSTEM_TESTS: &str = "system-tests";

/// Check everything: formatting, lints, tests on the host, tests of whole systems.
///
/// With FILTER only tests whose name contains it are run, and no formatting or lint checks.
#[derive(Debug, Args)]
pub struct Test {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Leave out the whole-system tests
    #[arg(long)]
    host: bool,
    /// Nothing but deaths of servers under load, an hour and more: each is killed N times, and hangs, and dies with another, a fifth as often
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "100", conflicts_with_all = ["filter", "host"])]
    soak: Option<u32>,
}

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    failures: Vec<String>,
}

impl Task for Test {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        let mut tally = Tally::default();
        if let Some(kills) = self.soak {
            tally.step("building kernel, servers and guests", prepare());
            let mut test = host_cargo(&["test", "--package", SYSTEM_TESTS, "--no-fail-fast"]);
            test.env("VIREO_SOAK", kills.to_string());
            let flags = ["--ignored", "--nocapture"];
            tally.tests("deaths of servers", test, Some("soak::"), &flags);
            return Ok(tally.tell());
        }
        if self.filter.is_none() {
            tally.check("formatting", host_cargo(&["fmt", "--all", "--check"]));
            let fuzz = ["fmt", "--check", "--manifest-path", "tests/fuzz/Cargo.toml"];
            tally.check("formatting, fuzz targets", host_cargo(&fuzz));
            let lint = [
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ];
            tally.check("lints, host", host_cargo(&lint));
        }
        let exclude = [
            "test",
            "--workspace",
            "--exclude",
            SYSTEM_TESTS,
            "--no-fail-fast",
        ];
        tally.tests(
            "host tests",
            host_cargo(&exclude),
            self.filter.as_deref(),
            &[],
        );
        if self.filter.is_none() {
            tally.fuzz();
        }
        if !self.host {
            let ready = prepare();
            let built = ready.is_ok();
            tally.step("building kernel, servers and guests", ready.map(|_| ()));
            if built && self.filter.is_none() {
                let tc = Toolchain::get()?;
                tally.check("lints, servers", bare_clippy(&tc, &bare::SERVERS, &[]));
                tally.check("lints, guests", bare_clippy(&tc, &bare::GUESTS, &[]));
                for features in [&[][..], &["--features", "unproven"]] {
                    let lint = bare_clippy(&tc, &[bare::KERNEL], features);
                    tally.check("lints, kernel", lint);
                }
            }
            if built {
                // A thread for each processor of the host; they see to it that each emulator has what it needs.
                let test = host_cargo(&["test", "--package", SYSTEM_TESTS, "--no-fail-fast"]);
                let flags = ["--nocapture"];
                tally.tests("whole-system tests", test, self.filter.as_deref(), &flags);
            }
        }
        Ok(tally.tell())
    }
}

/// Everything that whole-system tests need, built before the first of them.
fn prepare() -> Result<()> {
    let tc = Toolchain::get()?;
    qemu::program()?;
    // Without it its own tests fail, and no others.
    if let Err(error) = bochs::program() {
        host::step(format!("the tests in Bochs will fail: {error:#}"));
    }
    ImageMaker::get()?;
    for file in [guests::File::CloudKernel, guests::File::Busybox] {
        file.get()?;
    }
    bare::system(&tc, &bare::SERVERS)?;
    for guest in bare::GUESTS {
        bare::guest(&tc, guest)?;
    }
    Ok(())
}

fn host_cargo(args: &[&str]) -> Command {
    let mut cmd = host::command("cargo");
    cmd.current_dir(host::root()).args(args);
    cmd
}

fn bare_clippy(tc: &Toolchain, packages: &[&str], features: &[&str]) -> Command {
    let mut cmd = tc.clippy();
    cmd.current_dir(host::root())
        .args(["--target", TARGET, "--quiet", "--target-dir"]);
    cmd.arg(host::target().join("bare/clippy"));
    cmd.env("VIREO_ROOT_FLAT", bare::flat_root_path());
    cmd.env("DEFMT_LOG", "trace");
    for package in packages {
        cmd.args(["--package", package]);
    }
    cmd.args(features).args(["--", "-D", "warnings"]);
    cmd
}

impl Tally {
    /// Says what has failed, and the counts; gives the exit code.
    fn tell(&self) -> u8 {
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        let skipped = match self.skipped {
            0 => String::new(),
            n => format!(", {n} skipped"),
        };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed);
        u8::from(self.failed > 0)
    }

    fn check(&mut self, name: &str, mut cmd: Command) {
        host::step(format!("{name}: {}", host::shown(&cmd)));
        let result = host::run(&mut cmd);
        self.step(name, result);
    }

    fn step(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                self.failed += 1;
                self.failures.push(name.to_owned());
            }
        }
    }

    /// Every fuzz target for a short time; without a compiler for them they are skipped, and that is said.
    fn fuzz(&mut self) {
        host::step(
            "fuzz targets: models of virtio devices for two minutes each, the others for a short time",
        );
        match fuzz::short() {
            Ok(fuzz::Short::Skipped(why)) => {
                host::step(format!("fuzz targets skipped: {why}"));
                self.skipped += 1;
            }
            Ok(fuzz::Short::Ran { passed, failed }) => {
                self.passed += passed;
                self.failed += failed.len() as u64;
                for (target, found) in failed {
                    eprintln!("error: fuzz target {target}:\n{found}");
                    self.failures.push(format!("fuzz target {target}"));
                }
            }
            Err(error) => self.step("fuzz targets", Err(error)),
        }
    }

    fn tests(&mut self, name: &str, mut cmd: Command, filter: Option<&str>, flags: &[&str]) {
        cmd.args(filter).arg("--").args(flags);
        let started = Instant::now();
        host::step(format!("{name}: {}", host::shown(&cmd)));
        let before = self.failed;
        let result = self.count(cmd);
        let failed = matches!(result, Ok(false)) && self.failed == before;
        if failed || result.is_err() {
            // Did not even compile, or died without a result line.
            let why = result
                .err()
                .map_or_else(String::new, |e| format!(": {e:#}"));
            self.failed += 1;
            self.failures.push(format!("{name}{why}"));
        }
        host::step(format!("{name}: {:.0} s", started.elapsed().as_secs_f32()));
    }

    /// Shows a test run's output and adds its counts; whether it exited with 0.
    fn count(&mut self, mut cmd: Command) -> Result<bool> {
        let mut child = cmd.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().context("no output")?;
        for line in BufReader::new(out).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            // The lines of empty test binaries would drown the others.
            let quiet = line.is_empty()
                || line == "running 0 tests"
                || line.contains(" 0 passed; 0 failed");
            if !quiet {
                println!("{line}");
            }
            self.read_line(&line);
        }
        Ok(child.wait()?.success())
    }

    fn read_line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += number_before(result, " passed");
            self.failed += number_before(result, " failed");
        } else if let Some(test) = line.strip_prefix("test ")
            && let Some(name) = test.strip_suffix(" ... FAILED")
        {
            self.failures.push(name.to_owned());
        }
    }
}

fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap_or_default();
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|d| d.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_result_lines() {
        let mut tally = Tally::default();
        tally.read_line("test result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured");
        tally.read_line("test result: ok. 3 passed; 0 failed; 0 ignored");
        tally.read_line("test a::b ... FAILED");
        tally.read_line("test a::c ... ok");
        assert_eq!((tally.passed, tally.failed), (15, 2));
        assert_eq!(tally.failures, ["a::b"]);
    }
}
