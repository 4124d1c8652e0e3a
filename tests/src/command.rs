//! `cargo xtask` as a person types it.

use std::process::{Output, Stdio};

use anyhow::{Context, Result};
use xtask::host;

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Said {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// An error that shows everything, unless the exit code is this one.
    pub fn code(&self, expected: i32) -> Result<&Self> {
        anyhow::ensure!(
            self.code == Some(expected),
            "exit code {:?}, not {expected}\n--- output\n{}\n--- errors\n{}",
            self.code,
            self.out,
            self.err
        );
        Ok(self)
    }
}

/// Runs `cargo xtask` with these arguments, in the repository's folder.
pub fn xtask(arguments: &[&str]) -> Result<Said> {
    let mut command = host::command("cargo");
    command
        .current_dir(host::root())
        .args(["run", "--quiet", "--package", "xtask", "--"])
        .args(arguments)
        .stdin(Stdio::null());
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().context("starting `cargo xtask`")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said {
        code: status.code(),
        out: text(stdout),
        err: text(stderr),
    })
}
