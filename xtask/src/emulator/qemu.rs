//! The emulator's command line.
//!
//! Always QEMU's TCG with emulated SVM; `/dev/kvm` is never touched, for its back end on build
//! machines cannot run real guests. The machine's serial port is the child's standard input and
//! output. Port 0xe9 (isa-debugcon) takes log records, port 0xf4 (isa-debug-exit) the exit code.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    host,
    setup::{apt, image_maker::Firmware},
};

/// How a machine is emulated.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of processors.
    pub cpus: u32,
    /// Memory in bytes; `None` takes the description's.
    pub memory: Option<u64>,
    /// Deterministic: the TSC counts instructions, two runs are the same.
    pub icount: bool,
    /// QEMU's `-cpu`; `None` is the usual one with SVM and nested paging.
    pub cpu: Option<String>,
    /// Whether log records are shown on standard error as they come.
    pub show_log: bool,
    /// Further arguments for QEMU.
    pub extra: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: None,
            icount: false,
            cpu: None,
            show_log: false,
            extra: Vec::new(),
        }
    }
}

/// QEMU's path, installed if need be.
pub fn program() -> Result<PathBuf> {
    let path = PathBuf::from("/usr/bin/qemu-system-x86_64");
    let uefi = Path::new("/usr/share/ovmf/OVMF.fd");
    if !path.exists() || !uefi.exists() {
        apt::need(&apt::EMULATOR)?;
    }
    Ok(path)
}

/// The command that boots `disk`; log records go to `log`, QEMU's own notes on resets to `trace`.
pub fn command(
    disk: &Path,
    firmware: Firmware,
    memory: u64,
    options: &Options,
    log: &Path,
    trace: &Path,
) -> Result<Command> {
    let qemu = program()?;
    // The kernel ends QEMU when xtask ends in whatever way.
    let mut cmd = host::command("setpriv");
    cmd.args(["--pdeathsig", "KILL"]).arg(qemu);
    cmd.args([
        "-M",
        "q35",
        "-accel",
        "tcg",
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
    ]);
    cmd.args([
        "-vga",
        "std",
        "-m",
        &format!("{}M", memory.div_ceil(1 << 20)),
    ]);
    cmd.args(["-smp", &options.cpus.to_string()]);
    let cpu = options.cpu.as_deref().unwrap_or("max,+svm,+npt");
    if options.icount {
        cmd.args(["-cpu", &format!("{cpu},-rdrand,-rdseed"), "-seed", "1"]);
        cmd.args([
            "-icount",
            "shift=0,sleep=off",
            "-rtc",
            "base=2024-01-01,clock=vm",
        ]);
    } else {
        cmd.args(["-cpu", cpu]);
    }
    cmd.args([
        "-chardev",
        "stdio,id=com1,signal=off",
        "-serial",
        "chardev:com1",
    ]);
    cmd.arg("-chardev")
        .arg(format!("file,id=log,path={}", text(log)?));
    cmd.args(["-device", "isa-debugcon,iobase=0xe9,chardev=log"]);
    cmd.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    cmd.args(["-d", "cpu_reset", "-D"]).arg(trace);
    if firmware == Firmware::Uefi {
        cmd.args(["-bios", "/usr/share/ovmf/OVMF.fd"]);
    }
    cmd.arg("-drive").arg(format!(
        "format=raw,if=ide,snapshot=on,file={}",
        text(disk)?
    ));
    cmd.args(&options.extra);
    Ok(cmd)
}

/// A path as QEMU's option syntax takes it: a comma is doubled.
fn text(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}
