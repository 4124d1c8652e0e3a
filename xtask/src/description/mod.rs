//! The TOML that describes a system: read, checked, turned into the schema's [`System`].
//!
//! Job: every mistake a person can make in the file ends in one message with file, line and
//! remedy. Place: in front of `build`. Trust: the file is the user's own; its text is not
//! executed, and paths in it are read only.

mod check;
mod consoles;
mod disks;
mod explain;
mod nets;
mod raw;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow, bail};
use ipc_schema::manifest::System;

use crate::setup::guests;

/// Where a file that goes into the boot archive comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From Debian's packages (`debian:NAME`).
    Debian(guests::File),
    /// One of our own guests, by package.
    Build(String),
    /// A file.
    File(PathBuf),
}

/// A partition of the machine's second disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its name: the disk's.
    pub name: String,
    /// Bytes, whole blocks.
    pub size: u64,
    /// What it begins with; nothing: zeroes.
    pub image: Option<Source>,
}

/// A checked description, and where its guests' files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What goes into the boot archive.
    pub system: System,
    /// For each archive file of a guest, its source.
    pub files: Vec<(String, Source)>,
    /// What is on the machine's second disk.
    pub second_disk: Vec<Partition>,
    /// The folder that the system's images are built in is named after this.
    pub stem: String,
    /// Whether the kernel is built with its invariant checker (`checker = true`), for tests: never a system that ships.
    pub checker: bool,
    /// Whether the kernel is built to measure how long interrupts are off (`measure = true`), for tests too.
    pub measure: bool,
    /// Whether the kernel uses what newer processors offer and no emulator shows (`unproven = true`; microkernel/docs/VIRT.md).
    pub unproven: bool,
}

/// One mistake in a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// File and line, as `guests/linux.toml:3`.
    pub at: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  remedy: {}", self.at, self.what, self.remedy)
    }
}

impl std::error::Error for Mistake {}

impl Description {
    /// Reads and checks a file. `memory` overrides the machine's memory in bytes.
    pub fn load(path: &Path, memory: Option<u64>) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            anyhow!(
                "cannot read the system description {}: {error}\n  remedy: give the path of a TOML, as \
                 guests/linux.toml",
                path.display()
            )
        })?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut it = parse(&text, path, memory)?;
        it.stem = stem.into_owned();
        Ok(it)
    }

    /// A system with one VM that boots `kernel`, for `run --kernel`.
    pub fn of_kernel(
        kernel: &Path,
        initrd: Option<&Path>,
        append: &str,
        debug_exit: bool,
        memory: Option<u64>,
    ) -> Result<Self> {
        for (flag, file) in [("--kernel", Some(kernel)), ("--initrd", initrd)] {
            if let Some(file) = file.filter(|file| !file.is_file()) {
                bail!(
                    "{flag}: there is no file {}\n  remedy: give the path of a file, from the folder you are in",
                    file.display()
                );
            }
        }
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let absolute = |path: &Path| -> Result<String> {
            let path = std::path::absolute(path)?;
            Ok(quoted(&path.to_string_lossy()))
        };
        let mut text = format!(
            "name = \"command-line\"\n[[vm]]\nname = \"vm\"\ndebug_exit = {debug_exit}\nkernel = {}\nappend = {}\n",
            absolute(kernel)?,
            quoted(append)
        );
        if let Some(initrd) = initrd {
            text.push_str(&format!("initrd = {}\n", absolute(initrd)?));
        }
        // Nobody has seen this text: its lines say nothing.
        let mut it = parse(&text, Path::new(""), memory).map_err(|mistake| Mistake {
            at: "the command line".into(),
            ..mistake
        })?;
        it.stem = "command-line".into();
        Ok(it)
    }
}

/// Checks the text of a description; paths in it are relative to the folder of `path`.
pub fn parse(text: &str, path: &Path, memory: Option<u64>) -> Result<Description, Mistake> {
    let raw = raw::read(text, path)?;
    check::lower(&raw, text, path, memory)
}

/// A size in bytes: a number with `K`, `M` or `G` (powers of 1024), or none of them for bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' | b'k' => (text.get(..text.len() - 1)?, 1 << 10),
        b'M' | b'm' => (text.get(..text.len() - 1)?, 1 << 20),
        b'G' | b'g' => (text.get(..text.len() - 1)?, 1 << 30),
        _ => (text, 1),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
