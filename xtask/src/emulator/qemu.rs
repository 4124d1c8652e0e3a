//! QEMU: its command line, and how its machine ended.
//!
//! Always QEMU's TCG with emulated SVM; `/dev/kvm` is never touched, for its back end on build
//! machines cannot run real guests. The machine's serial port is the child's standard input and
//! output. Port 0xe9 (isa-debugcon) takes log records, port 0xf4 (isa-debug-exit) the exit code.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::{
    Exit, Options,
    process::{self, Boot, Diary, Process},
};
use crate::setup::{apt, image_maker::Firmware};

/// First value that the platform server writes to the debug-exit port for a guest's code 0; lower
/// values are the machine's own failures.
const GUEST_CODE_BASE: u32 = 0x10;

/// QEMU's path, installed if need be.
pub fn program() -> Result<PathBuf> {
    let path = PathBuf::from("/usr/bin/qemu-system-x86_64");
    let uefi = Path::new("/usr/share/ovmf/OVMF.fd");
    if !path.exists() || !uefi.exists() {
        apt::need(&apt::EMULATOR)?;
    }
    Ok(path)
}

/// Boots a machine.
pub fn start(boot: &Boot<'_>) -> Result<Process> {
    let (log, trace) = (boot.dir.join("log.bin"), boot.dir.join("qemu.log"));
    fs::write(&log, b"")?;
    let mut cmd = command(boot, &log, &trace)?;
    cmd.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = process::spawn(&mut cmd)?;
    Ok(Process {
        input: Box::new(child.stdin.take().context("QEMU has no input")?),
        output: Box::new(child.stdout.take().context("QEMU has no output")?),
        child,
        log,
        diary: Box::new(Trace(trace)),
    })
}

/// QEMU's own notes on resets.
struct Trace(PathBuf);

impl Trace {
    fn triple_fault(&self) -> bool {
        fs::read_to_string(&self.0).is_ok_and(|text| text.contains("Triple fault"))
    }
}

impl Diary for Trace {
    fn exit(&self, status: Option<i32>, _: &[String]) -> Exit {
        classify(status, self.triple_fault())
    }
    fn remarks(&self) -> Option<String> {
        let path = self.0.display();
        self.triple_fault()
            .then(|| format!("the machine triple-faulted; registers: {path}"))
    }
    fn keep(&self) -> bool {
        self.triple_fault()
    }
}

/// From QEMU's exit status: 0 is a power-off, isa-debug-exit gives `value << 1 | 1`.
fn classify(status: Option<i32>, triple_fault: bool) -> Exit {
    let value = match status.and_then(|s| u32::try_from(s).ok()) {
        _ if triple_fault => return Exit::TripleFault,
        Some(0) => return Exit::PowerOff,
        Some(status) if status & 1 == 1 => status >> 1,
        _ => return Exit::Emulator,
    };
    match value {
        // QEMU itself ends with 1 when it cannot run.
        0 => Exit::Emulator,
        1..GUEST_CODE_BASE => Exit::Failure(value as u8),
        _ => Exit::Guest((value - GUEST_CODE_BASE) as u8),
    }
}

/// The command; log records go to `log`, QEMU's own notes on resets to `trace`.
fn command(boot: &Boot<'_>, log: &Path, trace: &Path) -> Result<Command> {
    let Boot {
        disk,
        second_disk,
        firmware,
        memory,
        options,
        ..
    } = *boot;
    let qemu = program()?;
    let mut cmd = process::command(&qemu);
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
    if options.icount {
        deterministic(&mut cmd, options);
    } else {
        cmd.args(["-cpu", processor(options)]);
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
    if let Some(second) = second_disk {
        // What is written goes to a file of this run's own.
        let file = text(second)?;
        cmd.arg("-drive").arg(format!(
            "format=raw,if=none,id=second,snapshot=on,file={file}"
        ));
        cmd.args(["-device", "virtio-blk-pci,drive=second,disable-legacy=on"]);
    }
    cmd.args(&options.extra);
    Ok(cmd)
}

fn processor(options: &Options) -> &str {
    options.cpu.as_deref().unwrap_or("max,+svm,+npt")
}

/// A processor and clocks with which time counts instructions, and two runs are the same.
pub fn deterministic(cmd: &mut Command, options: &Options) {
    let cpu = format!("{},-rdrand,-rdseed", processor(options));
    cmd.args(["-cpu", &cpu, "-seed", "1"]);
    cmd.args(["-icount", "shift=0,sleep=off"]);
    cmd.args(["-rtc", "base=2024-01-01,clock=vm"]);
}

/// A path as QEMU's option syntax takes it: a comma is doubled.
fn text(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status() {
        assert_eq!(classify(Some(0), false), Exit::PowerOff);
        assert_eq!(classify(Some(0), true), Exit::TripleFault);
        assert_eq!(classify(Some(0x21), false), Exit::Guest(0));
        assert_eq!(classify(Some(0x21 + 2 * 42), false), Exit::Guest(42));
        assert_eq!(classify(Some(3), false), Exit::Failure(1));
        assert_eq!(classify(Some(1), false), Exit::Emulator);
        assert_eq!(classify(None, false), Exit::Emulator);
        assert_eq!(Exit::Guest(42).code(), 42);
    }
}
