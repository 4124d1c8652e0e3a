//! `fuzz`: builds the fuzz targets of `tests/fuzz` and runs one or all of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::{ArgMatches, Args};

use super::Task;
use crate::{
    host,
    setup::{apt, fuzzing::Compiler},
};

/// Inputs of each target in `cargo xtask test`, and the seconds after which it is enough all the same.
const SHORT: Limit = Limit {
    runs: Some(10_000),
    seconds: 5,
    fresh: true,
};
/// The same for models of virtio devices, whose rings and chains take longer to be explored.
const LONG: Limit = Limit {
    runs: None,
    seconds: 120,
    fresh: true,
};
/// How the names of those begin.
const LONG_NAMES: &str = "device_virtio_";
/// Seconds of each target when nothing else is said.
const SECONDS: u64 = 60;
/// Fuzz targets that run at the same time in `cargo xtask test`.
const JOBS: usize = 2;
/// Most bytes of the cache of compiled crates; it is made anew when it has grown over that.
const MOST_CACHE: u64 = 4 << 30;

/// Fuzz the parsers of outside input and the kernel's pure part.
///
/// Without TARGET all targets are run, one after the other. What is found is kept in target/fuzz.
#[derive(Debug, Args)]
pub struct Fuzz {
    /// The target; all of them if none is named
    target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    seconds: u64,
    /// Run one input, as a crash's message says
    #[arg(long, value_name = "FILE", requires = "target")]
    replay: Option<PathBuf>,
    /// Say which targets there are
    #[arg(long)]
    list: bool,
}

/// When a target has run enough.
#[derive(Clone, Copy)]
struct Limit {
    runs: Option<u64>,
    seconds: u64,
    /// It begins with the seeds alone, and not with what was found before.
    fresh: bool,
}

/// How a target has done.
struct Outcome {
    target: String,
    inputs: u64,
    /// What it found: the last lines of its output, and how to see it again.
    found: Option<String>,
}

impl Task for Fuzz {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        let all = targets()?;
        if self.list {
            println!("{}", all.join("\n"));
            return Ok(0);
        }
        let chosen: Vec<String> = match &self.target {
            None => all,
            Some(name) if all.contains(name) => vec![name.clone()],
            Some(name) => bail!("no target `{name}`\n  remedy: one of {}", all.join(", ")),
        };
        let bin = build(&Compiler::get()?, self.target.as_deref())?;
        if let (Some(file), Some(target)) = (&self.replay, &self.target) {
            let status = command(&bin, target).arg(file).status()?;
            return Ok(u8::from(!status.success()));
        }
        let limit = Limit {
            runs: None,
            seconds: self.seconds,
            fresh: false,
        };
        let mut failed = 0;
        for target in &chosen {
            let outcome = run_one(&bin, target, limit, true)?;
            println!("{target}: {} inputs", outcome.inputs);
            if let Some(found) = outcome.found {
                println!("{found}");
                failed += 1;
            }
        }
        println!("{} targets, {failed} with a crash", chosen.len());
        Ok(u8::from(failed > 0))
    }
}

/// What `cargo xtask test` makes of the targets.
pub enum Short {
    /// Not possible here, because of this.
    Skipped(String),
    /// Targets that passed, and what the others found.
    Ran {
        /// Targets without a crash.
        passed: u64,
        /// Name and finding of each other one.
        failed: Vec<(String, String)>,
    },
}

/// The limit of a target in `cargo xtask test`.
fn limit_of(target: &str) -> Limit {
    if target.starts_with(LONG_NAMES) {
        LONG
    } else {
        SHORT
    }
}

/// Runs every target for a bounded time.
///
/// # Errors
/// They do not compile, or cannot be started.
pub fn short() -> Result<Short> {
    let compiler = match Compiler::get() {
        Ok(compiler) => compiler,
        // On the machine that judges, nothing may be left out.
        Err(error) if std::env::var_os("CI").is_some() => return Err(error),
        Err(error) => return Ok(Short::Skipped(format!("{error:#}"))),
    };
    let started = Instant::now();
    let mut all = targets()?;
    // Long ones first, so that both jobs end at about the same time.
    all.sort_by_key(|target| core::cmp::Reverse(limit_of(target).seconds));
    let bin = build(&compiler, None)?;
    let built = started.elapsed().as_secs_f32();
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                while let Some(target) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run_one(&bin, target, limit_of(target), false);
                    outcomes
                        .lock()
                        .unwrap_or_else(|e| e.into_inner())
                        .push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(|e| e.into_inner());
    let outcomes = outcomes.into_iter().collect::<Result<Vec<_>>>()?;
    let inputs: u64 = outcomes.iter().map(|o| o.inputs).sum();
    let failed: Vec<_> = outcomes
        .into_iter()
        .filter_map(|o| Some((o.target, o.found?)))
        .collect();
    let passed = all.len() - failed.len();
    host::step(format!(
        "fuzz: {passed} of {} targets clean, {inputs} inputs, {built:.0} s to build, {:.0} s in all",
        all.len(),
        started.elapsed().as_secs_f32()
    ));
    Ok(Short::Ran {
        passed: passed as u64,
        failed,
    })
}

/// The folder of the targets' package.
fn package() -> PathBuf {
    host::root().join("tests/fuzz")
}

/// The targets: the files of `fuzz_targets`.
fn targets() -> Result<Vec<String>> {
    let dir = package().join("fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Builds the targets, or one of them; gives the folder they are in.
fn build(compiler: &Compiler, only: Option<&str>) -> Result<PathBuf> {
    apt::need(&["g++"])?;
    // Crates from the registry are compiled once for all clones; our own, and the targets, in this clone.
    let shared = host::cache()?.join(format!("fuzz-{}", compiler.version));
    if size(&shared) > MOST_CACHE {
        fs::remove_dir_all(&shared).with_context(|| format!("removing {}", shared.display()))?;
    }
    host::make_dir(&shared)?;
    let target = host::target().join("fuzz");
    let mut cmd = compiler.cargo();
    cmd.current_dir(package())
        .env("CARGO_BUILD_BUILD_DIR", &shared)
        .args(["build", "--release", "--quiet"])
        .args(["--target", Compiler::HOST, "--target-dir"])
        .arg(&target);
    match only {
        Some(name) => cmd.args(["--bin", name]),
        None => cmd.arg("--bins"),
    };
    host::step("building the fuzz targets");
    host::run(&mut cmd)?;
    Ok(target.join(Compiler::HOST).join("release"))
}

/// Bytes in a folder; 0 if it is not there.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| {
            let meta = e.metadata().ok()?;
            Some(if meta.is_dir() {
                size(&e.path())
            } else {
                meta.len()
            })
        })
        .sum()
}

/// A target's command with what it always has.
fn command(bin: &Path, target: &str) -> Command {
    let mut cmd = host::command(bin.join(target));
    // What a target keeps for ever (a test's processor, its RAM) is no leak of the code that it tests.
    cmd.env("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1")
        .stdin(Stdio::null());
    cmd
}

/// Runs one target until its limit or its first finding.
fn run_one(bin: &Path, target: &str, limit: Limit, shown: bool) -> Result<Outcome> {
    let work = host::target().join("fuzz");
    let corpus = work.join("corpus").join(target);
    let found = work.join("artifacts").join(target);
    // What `test` finds is the same on every machine, as far as it gets: it begins with the seeds alone.
    let corpus = if limit.fresh {
        let fresh = work.join("short").join(target);
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        fresh
    } else {
        corpus
    };
    host::make_dir(&corpus)?;
    host::make_dir(&found)?;
    let mut cmd = command(bin, target);
    cmd.env("VIREO_FUZZ_SEEDS", &corpus);
    cmd.arg(&corpus);
    let kept = package().join("corpus").join(target);
    if kept.is_dir() {
        cmd.arg(kept);
    }
    if limit.fresh {
        cmd.arg("-seed=1");
    }
    if let Some(runs) = limit.runs {
        cmd.arg(format!("-runs={runs}"));
    }
    cmd.arg(format!("-max_total_time={}", limit.seconds))
        .args(["-timeout=20", "-rss_limit_mb=6144", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", found.display()));
    if shown {
        host::step(host::shown(&cmd));
    }
    let out = cmd
        .output()
        .with_context(|| format!("starting `{}`", host::shown(&cmd)))?;
    let text = String::from_utf8_lossy(&out.stderr);
    let inputs = number_after(&text, "stat::number_of_executed_units:");
    if shown {
        for line in text.lines().filter(|l| l.contains("DONE")) {
            eprintln!("{line}");
        }
    }
    let found = (!out.status.success()).then(|| finding(target, &text));
    Ok(Outcome {
        target: target.to_owned(),
        inputs,
        found,
    })
}

/// What a target says before it dies, and the command that shows it again.
fn finding(target: &str, text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.starts_with("INFO:"))
        .collect();
    let from = lines.len().saturating_sub(40);
    let mut what = lines.get(from..).unwrap_or_default().join("\n");
    let file = text
        .lines()
        .find_map(|l| l.split_once("Test unit written to "));
    if let Some((_, file)) = file {
        what.push_str(&format!(
            "\nto see it again: cargo xtask fuzz {target} --replay {file}"
        ));
    }
    what
}

fn number_after(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|l| l.trim().strip_prefix(label));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_names_the_command_that_shows_it_again() {
        let text = "INFO: Seed: 1\n#5 NEW cov\nthread panicked at x.rs:1:1:\nTest unit written to /a/crash-12\n";
        let said = finding("ring", text);
        assert!(said.starts_with("thread panicked"));
        assert!(said.ends_with("cargo xtask fuzz ring --replay /a/crash-12"));
    }

    #[test]
    fn device_models_have_two_minutes() {
        let targets = targets().unwrap();
        let long = |name: &&String| limit_of(name).seconds == 120 && limit_of(name).runs.is_none();
        let long: Vec<&String> = targets.iter().filter(long).collect();
        let models = ["blk", "console", "net", "rng"];
        assert_eq!(
            long,
            models
                .map(|m| format!("device_virtio_{m}"))
                .iter()
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn inputs_are_counted() {
        let text = "stat::number_of_executed_units: 1234\nstat::average: 7";
        assert_eq!(number_after(text, "stat::number_of_executed_units:"), 1234);
        assert_eq!(number_after("", "stat::number_of_executed_units:"), 0);
    }

    #[test]
    fn every_target_is_in_the_manifest() {
        let manifest = fs::read_to_string(package().join("Cargo.toml")).unwrap();
        let targets = targets().unwrap();
        assert!(targets.len() >= 19, "{targets:?}");
        for name in targets {
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
                "{name}"
            );
        }
    }
}
