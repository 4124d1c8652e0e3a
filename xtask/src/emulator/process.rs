//! An emulator's process, and the ways in and out of its machine.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context, Result};

use super::{Exit, Options};
use crate::{host, setup::image_maker::Firmware};

/// What is booted.
pub struct Boot<'a> {
    /// The disk image.
    pub disk: &'a Path,
    /// The second disk's image, if there is one.
    pub second_disk: Option<&'a Path>,
    /// What it boots from.
    pub firmware: Firmware,
    /// Memory in bytes.
    pub memory: u64,
    /// The rest.
    pub options: &'a Options,
    /// A folder of this run's own.
    pub dir: &'a Path,
}

/// A started emulator.
pub struct Process {
    /// The process.
    pub child: Child,
    /// Into the machine's serial port.
    pub input: Box<dyn Write + Send>,
    /// Out of it; ends with the machine.
    pub output: Box<dyn Read + Send>,
    /// The file that grows by what the machine writes to port 0xe9.
    pub log: PathBuf,
    /// What the emulator itself has to say.
    pub diary: Box<dyn Diary>,
}

/// A command for an emulator, which the kernel of the host ends when xtask ends in whatever way.
pub fn command(emulator: &Path) -> Command {
    let mut cmd = host::command("setpriv");
    cmd.args(["--pdeathsig", "KILL"]).arg(emulator);
    cmd
}

/// Starts it.
pub fn spawn(cmd: &mut Command) -> Result<Child> {
    cmd.spawn()
        .with_context(|| format!("starting `{}`", host::shown(cmd)))
}

/// What an emulator says about its machine.
pub trait Diary: Send {
    /// How the machine ended, by the process's exit status and the machine's decoded log.
    fn exit(&self, status: Option<i32>, log: &[String]) -> Exit;
    /// What a failure's message should show of it.
    fn remarks(&self) -> Option<String>;
    /// Whether the run's folder holds something that a person should see.
    fn keep(&self) -> bool;
}
