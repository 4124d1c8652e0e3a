//! What the whole-system tests drive their machines with.
//!
//! Job: boot a system in an emulator, type at its terminal, read what it says and judge it. Place: on top of
//! [`xtask::emulator`], beside the cases in `cases/`, whose own systems are in `systems/`. Trust: everything that a
//! machine says is data.
//!
//! No test depends on the speed of the machine it runs on: each step waits for what it expects, up to a bound that is
//! far above what it takes ([`BOOT`], [`STEP`]). An error shows the last lines of serial output and log.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use regex::Regex;
use xtask::build::image::{self, Image};
use xtask::description::Description;
use xtask::emulator::{Emulator, Exit, Machine, Options};
use xtask::host;
use xtask::setup::image_maker::Firmware;

pub mod command;
pub mod stream;

/// Bound of a boot to a guest's first words (usually 10 to 60 s).
pub const BOOT: Duration = Duration::from_secs(300);
/// Bound of everything else (usually below a second).
pub const STEP: Duration = Duration::from_secs(120);
/// Seconds of the machine's in which root must have noticed a server that hangs: it takes two, and on a busy host some more.
const NOTICED: f64 = 20.0;
/// The guest's prompt, at the end of what came; its shell may ask where the cursor is.
pub const SHELL: &str = r"/ # (?:\x1b\[6n)?$";
/// The manager's prompt.
pub const PROMPT: &str = r"vireo> $";
/// The key that leads to the manager and back.
pub const ESCAPE: &str = "\x1d";

/// Why a test failed: shown as text, without the test harness's own backtrace.
pub struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

/// What a test gives.
pub type Judged = Result<(), Failure>;

/// A machine whose time counts instructions: what a guest measures is the same on every host, however busy.
pub fn deterministic() -> Options {
    Options {
        icount: true,
        ..Options::default()
    }
}

/// The same with eight nanoseconds an instruction: for guests that wait for much time to pass, which is emulated instruction by
/// instruction.
pub fn steady() -> Options {
    let extra = [
        "-icount",
        "shift=3,sleep=off",
        "-rtc",
        "base=2024-01-01,clock=vm",
    ];
    Options {
        extra: extra.map(String::from).into(),
        ..Options::default()
    }
}

/// When a line was logged, in seconds since boot.
fn seconds(line: &str) -> anyhow::Result<f64> {
    let at = Regex::new(r"\[(\d+\.\d+)\]")?.captures(line);
    Ok(at.context("a log line without a time")?[1].parse()?)
}

/// Processors of the host, and of them those that no emulator takes up.
static HOST: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, NonZero::get));
static IDLE: LazyLock<Mutex<usize>> = LazyLock::new(|| Mutex::new(*HOST));
static LEFT: Condvar = Condvar::new();
/// Builds take turns.
static BUILD: Mutex<()> = Mutex::new(());

/// Processors of the host, for as long as this lives.
pub struct Turn {
    processors: usize,
    began: Instant,
}

impl Drop for Turn {
    /// Says what it cost: a suite that has to stay short is watched test by test.
    fn drop(&mut self) {
        *idle() += self.processors;
        LEFT.notify_all();
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test");
        let (seconds, processors) = (self.began.elapsed().as_secs(), self.processors);
        // Not by a macro: those are heard of failures only.
        let _ = writeln!(
            std::io::stderr(),
            "{test}: {seconds} s on {processors} of the host's processors"
        );
    }
}

fn idle() -> MutexGuard<'static, usize> {
    // A test that failed leaves nothing behind that matters to the next.
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until so many processors of the host are free, or all of them, if it has fewer: however many threads run tests, each emulator
/// has its own.
pub fn turn(processors: usize) -> Turn {
    let wanted = processors.clamp(1, *HOST);
    let mut idle = LEFT
        .wait_while(idle(), |idle| *idle < wanted)
        .unwrap_or_else(PoisonError::into_inner);
    *idle -= wanted;
    let began = Instant::now();
    Turn {
        processors: wanted,
        began,
    }
}

/// How many processors of the host an emulator takes: Bochs, and QEMU when it counts instructions, play their own in turn.
fn processors(options: &Options) -> usize {
    let counts = options.icount || options.extra.iter().any(|word| word == "-icount");
    if counts || options.emulator == Emulator::Bochs {
        1
    } else {
        options.cpus as usize
    }
}

/// The machine that a test asks for; with `VIREO_BOCHS=corei7_skylake_x` in the environment, as far as that can be, the same in Bochs:
/// whatever is tested can be tried on the second machine.
fn elsewhere(options: &Options) -> Options {
    let Ok(model) = std::env::var("VIREO_BOCHS") else {
        return options.clone();
    };
    Options {
        cpus: options.cpus,
        memory: options.memory,
        icount: options.icount,
        ..Options::bochs(&model)
    }
}

/// A disk image of a machine's own: another test may build the same system anew meanwhile.
struct Disk(PathBuf);

impl Disk {
    fn of(image: &mut Image) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("disk.{}-{number}", std::process::id());
        let own = image.disk.with_file_name(name);
        fs::hard_link(&image.disk, &own).with_context(|| format!("making {}", own.display()))?;
        image.disk = own.clone();
        Ok(Self(own))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A booted system.
pub struct System {
    /// The machine it runs on.
    pub machine: Machine,
    /// Makes the marks around a command's output differ from any earlier ones.
    commands: u32,
    _disk: Disk,
    _turn: Turn,
}

impl System {
    /// Boots the system of a TOML (a path relative to the repository) by BIOS.
    pub fn boot(toml: &str) -> Result<Self> {
        Self::boot_with(toml, Firmware::Bios, &Options::default())
    }

    /// Boots the system of a TOML as told.
    pub fn boot_with(toml: &str, firmware: Firmware, options: &Options) -> Result<Self> {
        let description = Description::load(&host::root().join(toml), options.memory)?;
        Self::boot_description(&description, firmware, options)
    }

    /// Boots a description.
    pub fn boot_description(
        description: &Description,
        firmware: Firmware,
        options: &Options,
    ) -> Result<Self> {
        let options = &elsewhere(options);
        let turn = turn(processors(options));
        let _build = BUILD.lock().unwrap_or_else(PoisonError::into_inner);
        let mut image = image::build(description, firmware)?;
        let disk = Disk::of(&mut image)?;
        Ok(Self {
            machine: Machine::start(&image, options)?,
            commands: 0,
            _disk: disk,
            _turn: turn,
        })
    }

    /// Waits up to [`STEP`] until the output after the last match fits; gives what matched.
    pub fn expect(&mut self, pattern: &str) -> Result<String> {
        self.expect_within(pattern, STEP)
    }

    /// Waits for what a guest says first.
    pub fn expect_boot(&mut self, pattern: &str) -> Result<String> {
        self.expect_within(pattern, BOOT)
    }

    /// Waits for a guest's first prompt.
    pub fn shell(&mut self) -> Result<()> {
        self.expect_boot(SHELL).map(drop)
    }

    /// Waits, but not when Vireo itself has stopped.
    fn expect_within(&mut self, pattern: &str, bound: Duration) -> Result<String> {
        let either = format!(r"(?:{pattern})|\nVireo: [^\n]*cannot go on[^\n]*\n");
        let found = self.machine.expect(&either, bound)?;
        if found.starts_with("\nVireo: ") {
            return Err(self.failure(&format!("Vireo stopped before `{pattern}` was seen")));
        }
        Ok(found)
    }

    /// Has the shell run a command; gives its output, with plain line ends. An exit code other than 0 is an error.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        self.commands += 1;
        let number = self.commands;
        // What is typed is echoed: the marks appear whole in the output alone.
        self.machine.send_line(&format!(
            "echo beg''in-{number}; {command}; echo e''nd-{number} $?"
        ))?;
        let all = self.expect(&format!(
            r"(?s)begin-{number}\r\n.*end-{number} \d+\r\n/ # "
        ))?;
        let parts = Regex::new(r"(?s)^begin-\d+\r\n(.*)end-\d+ (\d+)\r\n")?.captures(&all);
        let parts = parts.context("no marks in the output")?;
        let output = parts[1].replace("\r\n", "\n").trim_end().to_owned();
        if &parts[2] != "0" {
            return Err(self.failure(&format!("`{command}` ended with {}:\n{output}", &parts[2])));
        }
        Ok(output)
    }

    /// From a VM's console to the manager's prompt.
    pub fn to_manager(&mut self) -> Result<()> {
        self.machine.send(ESCAPE)?;
        self.expect(PROMPT).map(drop)
    }

    /// Has the manager carry out a command; gives what it says up to the next prompt.
    pub fn manager(&mut self, command: &str) -> Result<String> {
        self.machine.send_line(command)?;
        // The echo ends the line before the answer.
        self.expect(&format!(r"{}\r\n", regex::escape(command)))?;
        let answer = self.expect(r"(?s)^.*?vireo> ")?;
        let answer = answer.strip_suffix("vireo> ").unwrap_or(&answer);
        Ok(answer.replace("\r\n", "\n"))
    }

    /// At the manager's prompt: has a server killed and sees it run again. Gives the log's position from before.
    pub fn restart(&mut self, server: &str) -> Result<usize> {
        let log = self.log_position();
        self.manager(&format!("restart {server}"))?;
        let name = regex::escape(server);
        self.log_after(log, &format!("root: .*{name} ends: Killed"))?;
        self.log_after(log, &format!("root: .*{name} runs"))?;
        Ok(log)
    }

    /// Has servers killed and sees them run again, with what their predecessors left; from a VM's prompt and back to `vm`'s.
    pub fn kill(&mut self, servers: &[&str], vm: &str) -> Result<()> {
        self.to_manager()?;
        for server in servers {
            let log = self.restart(server)?;
            self.succeeds(server, log)?;
        }
        self.attach(vm)
    }

    /// Has a server hang, as the manager's command `how` does it, and waits until root has noticed and started it again; from a VM's
    /// prompt and back to `vm`'s.
    pub fn hang(&mut self, how: &str, server: &str, vm: &str) -> Result<()> {
        self.to_manager()?;
        let log = self.log_position();
        let hung = self.manager(&format!("{how} {server}"))?;
        self.check(&hung, r"is suspended|runs in a circle")?;
        let name = regex::escape(server);
        let began = self.log_after(log, &format!("root: .*{name} is stopped"))?;
        let ended = self.log_after(log, &format!("root: .*{name} ends: Hung"))?;
        let took = seconds(&ended)? - seconds(&began)?;
        println!("{server}: {how} for {took:.3} s");
        if took > NOTICED {
            return Err(self.failure(&format!("{server} hung for {took} s")));
        }
        self.succeeds(server, log)?;
        self.attach(vm)
    }

    /// Has a server scribble over its memory, with `all` of its state page or one slot of that, and go on: it ends of that, or is killed
    /// when it has not within a second; then it runs again. From a VM's prompt and back to `vm`'s; gives the log's position from before.
    pub fn scribble(&mut self, server: &str, all: bool, vm: &str) -> Result<usize> {
        self.to_manager()?;
        let log = self.log_position();
        let all = if all { " all" } else { "" };
        let done = self.manager(&format!("scribble {server}{all}"))?;
        self.check(&done, "has scribbled over its memory")?;
        self.attach(vm)?;
        let ends = Regex::new(&format!("root: .*{} ends: ", regex::escape(server)))?;
        let ended = |s: &Self| s.machine.log().iter().skip(log).any(|l| ends.is_match(l));
        for _ in 0..5 {
            if !ended(self) {
                self.sh("sleep 0.2")?;
            }
        }
        if !ended(self) {
            self.to_manager()?;
            self.restart(server)?;
            self.attach(vm)?;
        }
        let end = self.log_after(log, ends.as_str())?;
        println!("{end}");
        self.log_after(log, &format!("root: .*{} runs", regex::escape(server)))?;
        Ok(log)
    }

    /// An error unless the guest's kernel has said nothing of errors, or worse, about what fits `about` (of grep, without regard to case).
    pub fn no_complaints(&mut self, about: &str) -> Result<()> {
        let complaints = self.sh(&format!(
            "dmesg -r | grep '^<[0-3]>' | grep -i -E '{about}' | cat"
        ))?;
        self.check(&format!("[{complaints}]"), r"^\[\]$")
    }

    /// Waits for the first words of a successor.
    pub fn succeeds(&mut self, server: &str, log: usize) -> Result<()> {
        let again = match server {
            "store" => "store: .*disk data: .*taken over: true".to_owned(),
            "switch" => r"switch: .*\d+ ports".to_owned(),
            "second-disk" => "second-disk: .*runs after a predecessor: true".to_owned(),
            model => format!(
                "{}: .*goes on after a predecessor: true",
                regex::escape(model)
            ),
        };
        self.log_after(log, &again).map(drop)
    }

    /// From the manager's prompt to the console of a VM at its shell's prompt.
    pub fn attach(&mut self, vm: &str) -> Result<()> {
        self.machine.send_line(&format!("attach {vm}"))?;
        self.expect(&format!(r"\[console of {vm}; "))?;
        // It may have shown its prompt before.
        self.machine.send_line("")?;
        self.expect(SHELL).map(drop)
    }

    /// Waits for the end of the machine, which must be this one.
    pub fn ends(&mut self, expected: Exit) -> Result<()> {
        let exit = self.machine.wait_exit(STEP)?;
        if exit != expected {
            return Err(self.failure(&format!("the machine ended as {exit:?}, not {expected:?}")));
        }
        Ok(())
    }

    /// Number of log lines so far: where [`System::log_after`] is to begin.
    pub fn log_position(&self) -> usize {
        self.machine.log().len()
    }

    /// Waits up to [`STEP`] until a log line from position `from` on fits; gives it.
    pub fn log_after(&mut self, from: usize, pattern: &str) -> Result<String> {
        self.machine.expect_log(pattern, from, STEP)
    }

    /// An error with the last lines of serial output and log.
    pub fn failure(&self, why: &str) -> anyhow::Error {
        self.machine.failure(why)
    }

    /// An error with the last lines of output and log, unless `text` fits `pattern`.
    pub fn check(&self, text: &str, pattern: &str) -> Result<()> {
        if Regex::new(pattern)?.is_match(text) {
            return Ok(());
        }
        Err(self.failure(&format!("`{pattern}` does not fit this:\n{text}")))
    }

    /// An error with the last lines of output and log, if `text` fits `pattern`.
    pub fn check_not(&self, text: &str, pattern: &str) -> Result<()> {
        match Regex::new(pattern)?.find(text) {
            None => Ok(()),
            Some(found) => Err(self.failure(&format!("`{}` in this:\n{text}", found.as_str()))),
        }
    }
}

/// An error unless `text` fits `pattern`, for text that no machine said.
pub fn fits(text: &str, pattern: &str) -> Result<()> {
    if !Regex::new(pattern)?.is_match(text) {
        bail!("`{pattern}` does not fit this:\n{text}");
    }
    Ok(())
}
