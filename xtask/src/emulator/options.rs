//! What a machine is to be like, whichever emulator it runs in.

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::setup::image_maker::Firmware;

/// The emulators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Emulator {
    /// QEMU's TCG: fast, many processors, SVM; checks little of what a hypervisor does.
    #[default]
    Qemu,
    /// Bochs: SVM with `--cpu ryzen`, VMX with `--cpu corei7_skylake_x`; time counts instructions.
    Bochs,
}

impl Emulator {
    /// Its name on the command line and in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
        }
    }
}

/// How a machine is emulated.
#[derive(Clone, Debug)]
pub struct Options {
    /// In what.
    pub emulator: Emulator,
    /// Number of processors.
    pub cpus: u32,
    /// Memory in bytes; `None` takes the description's.
    pub memory: Option<u64>,
    /// Deterministic: the TSC counts instructions, two runs are the same. In Bochs it always does.
    pub icount: bool,
    /// The emulator's processor; `None` is the usual one, which has SVM with nested paging.
    pub cpu: Option<String>,
    /// Whether log records are shown on standard error as they come.
    pub show_log: bool,
    /// Further arguments for QEMU.
    pub extra: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            emulator: Emulator::Qemu,
            cpus: 1,
            memory: None,
            icount: false,
            cpu: None,
            show_log: false,
            extra: Vec::new(),
        }
    }
}

impl Options {
    /// A machine in Bochs with this processor.
    pub fn bochs(cpu: &str) -> Self {
        Self {
            emulator: Emulator::Bochs,
            cpu: Some(cpu.to_owned()),
            ..Self::default()
        }
    }

    /// Refuses what the emulator cannot do; asked before much time is spent on an image.
    pub fn check(&self, firmware: Firmware) -> Result<()> {
        if self.emulator == Emulator::Qemu {
            return Ok(());
        }
        if firmware == Firmware::Uefi {
            bail!(
                "Bochs has no UEFI firmware\n  remedy: leave --uefi out, or take --emulator qemu"
            );
        }
        if !self.extra.is_empty() {
            bail!(
                "--qemu gives arguments to QEMU, and this machine is Bochs\n  remedy: leave one of the two out"
            );
        }
        super::bochs::check_model(super::bochs::model(self))
    }
}
