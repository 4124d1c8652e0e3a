//! A compiler for fuzz targets: rustup's nightly, else the default one with its unstable options unlocked.
//!
//! What it takes is the address sanitizer, whose runtime library comes with every toolchain of rustup's, stable ones included; only
//! the option is unstable.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host;

/// Coverage as libFuzzer reads it: counters, a table of the program counters, and comparisons; and the address sanitizer.
const FLAGS: [&str; 9] = [
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg=fuzzing",
    "-Cforce-frame-pointers=yes",
];

/// A compiler that can build fuzz targets.
pub struct Compiler {
    /// Its release, as `1.97.0-nightly-e50aa6fba`: names the folder of what it has compiled.
    pub version: String,
    toolchain: Option<&'static str>,
}

impl Compiler {
    /// The target to build for. It is named, so that build scripts do not get our flags.
    pub const HOST: &'static str = "x86_64-unknown-linux-gnu";

    /// Looks for one.
    ///
    /// # Errors
    /// There is none; says what to do.
    pub fn get() -> Result<Self> {
        for toolchain in [Some("nightly"), None] {
            let it = Self {
                version: String::new(),
                toolchain,
            };
            if let Ok(version) = it.usable() {
                return Ok(Self { version, ..it });
            }
        }
        bail!(
            "no Rust compiler with the address sanitizer's library for {}\n  remedy: rustup toolchain install nightly",
            Self::HOST
        )
    }

    /// Its release and commit, if it has what it takes.
    fn usable(&self) -> Result<String> {
        let libdir = host::output(self.rustc().args(["--print", "target-libdir"]))?;
        let files = std::fs::read_dir(libdir.trim()).context("reading the compiler's libraries")?;
        let runtime = |name: &str| name.starts_with("librustc-") && name.ends_with("_rt.asan.a");
        if !files
            .flatten()
            .any(|f| runtime(&f.file_name().to_string_lossy()))
        {
            bail!("no runtime library of the address sanitizer");
        }
        let said = host::output(self.rustc().arg("-vV"))?;
        let field = |name: &str| {
            said.lines()
                .find_map(|l| l.strip_prefix(name))
                .map(str::trim)
        };
        let release = field("release:").context("rustc does not tell its release")?;
        let commit = field("commit-hash:").unwrap_or_default();
        Ok(format!(
            "{release}-{}",
            commit.get(..9).unwrap_or("unknown")
        ))
    }

    fn rustc(&self) -> Command {
        self.command("rustc")
    }

    /// `cargo`, with the flags of a fuzz target.
    #[must_use]
    pub fn cargo(&self) -> Command {
        let mut cmd = self.command("cargo");
        cmd.env("RUSTFLAGS", FLAGS.join(" "));
        cmd
    }

    fn command(&self, program: &str) -> Command {
        match self.toolchain {
            Some(toolchain) => {
                let mut cmd = host::command("rustup");
                cmd.args(["run", toolchain, program]);
                cmd
            }
            None => {
                let mut cmd = host::command(program);
                cmd.env("RUSTC_BOOTSTRAP", "1");
                cmd
            }
        }
    }
}
