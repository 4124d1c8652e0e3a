//! `run`: builds a system and boots it, on this terminal or unattended.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::{ArgMatches, Args};

use super::Task;
use crate::{
    build::image,
    description::{Description, parse_size},
    emulator::{
        Emulator, Exit, Machine, Options,
        script::{Step, play, unescape},
        terminal,
    },
    host,
    setup::image_maker::Firmware,
};

/// Boot a system in an emulator.
///
/// Interactive on this terminal, unless --send or --expect is given: then the steps are carried out
/// in the order of the command line, and the exit code is 0 when all was seen. A guest's debug-exit
/// code becomes the command's own; 121 to 123 mean that Vireo itself gave up, 124 that the machine
/// triple-faulted, 125 that the emulator failed. The decoded log is in target/vireo.log.
#[derive(Debug, Args)]
pub struct Run {
    /// The system to boot [default: guests/linux.toml]
    #[arg(conflicts_with = "kernel")]
    system: Option<PathBuf>,
    /// Boot by UEFI
    #[arg(long, conflicts_with = "bios")]
    uefi: bool,
    /// Boot by BIOS (the default)
    #[arg(long)]
    bios: bool,
    /// Processors of the machine
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory of the machine, as 2G [default: the system's]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Boot one VM with this kernel image instead of a system
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Command line for --kernel
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        default_value = "console=ttyS0",
        allow_hyphen_values = true
    )]
    append: String,
    /// Give the --kernel guest the debug-exit port 0xf4
    #[arg(long, requires = "kernel")]
    debug_exit: bool,
    /// Type TEXT and Enter; \r \n \t \e \\ \xNN are known, \c at the end leaves Enter out
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    send: Vec<String>,
    /// Wait until the serial output after the last match fits
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    expect: Vec<String>,
    /// Seconds that all --send and --expect together may take
    #[arg(long, value_name = "S", default_value_t = 600)]
    timeout: u64,
    /// Deterministic: time counts instructions
    #[arg(long)]
    icount: bool,
    /// Show the log as it comes
    #[arg(long)]
    log: bool,
    /// The emulator to boot in
    #[arg(long, value_enum, default_value = "qemu", value_name = "NAME")]
    emulator: Emulator,
    /// The emulator's processor, as max,-svm in QEMU, and ryzen or corei7_skylake_x in Bochs
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// A further argument for QEMU
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu: Vec<String>,
}

impl Task for Run {
    fn run(self, matches: &ArgMatches) -> Result<u8> {
        let steps = self.steps(matches)?;
        let firmware = if self.uefi {
            Firmware::Uefi
        } else {
            Firmware::Bios
        };
        let options = Options {
            emulator: self.emulator,
            cpus: self.cpus,
            memory: self.memory,
            icount: self.icount,
            cpu: self.cpu.clone(),
            show_log: self.log,
            extra: self.qemu.clone(),
        };
        options.check(firmware)?;
        let image = image::build(&self.description()?, firmware)?;
        let exit = if steps.is_empty() {
            let (exit, remarks) = terminal::interact(&image, &options)?;
            // What an emulator says of a machine that just powers off is of no interest.
            if exit.is_some_and(|exit| exit.code() >= 120)
                && let Some(remarks) = remarks
            {
                eprintln!("{remarks}");
            }
            exit
        } else {
            self.unattended(&image, &options, &steps)?
        };
        match exit {
            Some(Exit::TripleFault) => host::step("the machine triple-faulted"),
            Some(Exit::Failure(value)) => host::step(format!(
                "Vireo gave up (value {value}); see target/vireo.log"
            )),
            Some(Exit::Emulator) => host::step("the emulator failed"),
            Some(Exit::PowerOff | Exit::Guest(_)) | None => {}
        }
        Ok(exit.map_or(0, Exit::code))
    }
}

impl Run {
    fn description(&self) -> Result<Description> {
        match (&self.kernel, &self.system) {
            (Some(kernel), _) => {
                let initrd = self.initrd.as_deref();
                Description::of_kernel(kernel, initrd, &self.append, self.debug_exit, self.memory)
            }
            (None, Some(system)) => Description::load(system, self.memory),
            (None, None) => Description::load(&host::root().join("guests/linux.toml"), self.memory),
        }
    }

    /// The steps in the order of the command line.
    fn steps(&self, matches: &ArgMatches) -> Result<Vec<Step>> {
        let indices = |name| matches.indices_of(name).into_iter().flatten();
        let mut steps: Vec<(usize, Step)> = Vec::new();
        for (at, text) in indices("send").zip(&self.send) {
            steps.push((at, Step::Send(unescape(text)?)));
        }
        for (at, pattern) in indices("expect").zip(&self.expect) {
            regex::bytes::Regex::new(pattern).with_context(|| format!("--expect '{pattern}'"))?;
            steps.push((at, Step::Expect(pattern.clone())));
        }
        steps.sort_by_key(|(at, _)| *at);
        Ok(steps.into_iter().map(|(_, step)| step).collect())
    }

    fn unattended(
        &self,
        image: &image::Image,
        options: &Options,
        steps: &[Step],
    ) -> Result<Option<Exit>> {
        host::step("booting");
        let echo = |bytes: &[u8]| {
            use std::io::Write as _;
            let mut out = std::io::stdout();
            let _ = out.write_all(bytes).and_then(|()| out.flush());
        };
        let mut machine = Machine::start_with(image, options, echo)?;
        let timeout = Duration::from_secs(self.timeout);
        let result = play(&mut machine, steps, timeout);
        println!();
        match result {
            Ok(exit) => {
                host::step("all was seen");
                Ok(exit)
            }
            // A guest that ended with a code of its own says more than a pattern not seen.
            Err(error) => match machine.try_exit()? {
                Some(exit) if exit.code() != 0 => {
                    eprintln!("error: {error:#}");
                    Ok(Some(exit))
                }
                _ => Err(error),
            },
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "write a number with K, M or G, as 2G".to_owned())
}
