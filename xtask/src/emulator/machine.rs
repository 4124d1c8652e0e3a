//! One emulated machine: start it, read and write its serial port, wait for its end.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
    process::Child,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use regex::bytes::Regex;

use super::{
    Emulator, Exit, Options, bochs,
    log::LogDecoder,
    process::{Boot, Diary},
    qemu,
    records::Records,
};
use crate::{
    build::image::{self, Image},
    description::Description,
    host,
    setup::image_maker::Firmware,
};

/// How many lines of serial output and of log an error shows.
const LAST_LINES: usize = 25;

#[derive(Default)]
struct Serial {
    bytes: Vec<u8>,
    /// Where the next `expect` starts to look.
    seen: usize,
    closed: bool,
    last: Option<Instant>,
}

#[derive(Default)]
struct Shared {
    serial: Mutex<Serial>,
    grown: Condvar,
    log: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// A running machine. Dropping it ends it.
pub struct Machine {
    child: Child,
    input: Option<Box<dyn Write + Send>>,
    diary: Box<dyn Diary>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    dir: PathBuf,
    started: Instant,
    exit: Option<Exit>,
}

impl Machine {
    /// Builds the system that a TOML describes (a path relative to the repository) and boots it.
    pub fn from_toml(
        path: impl AsRef<Path>,
        firmware: Firmware,
        options: &Options,
    ) -> Result<Self> {
        let path = host::root().join(path);
        let description = Description::load(&path, options.memory)?;
        Self::start(&image::build(&description, firmware)?, options)
    }

    /// Boots a built system.
    pub fn start(image: &Image, options: &Options) -> Result<Self> {
        Self::start_with(image, options, |_| ())
    }

    /// Boots a built system; `on_serial` gets serial output as it comes.
    pub fn start_with(
        image: &Image,
        options: &Options,
        on_serial: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = host::target()
            .join("runs")
            .join(format!("{}-{number}", std::process::id()));
        remove_left_over_runs();
        host::make_dir(&dir)?;
        let boot = Boot {
            disk: &image.disk,
            second_disk: image.second_disk.as_deref(),
            firmware: image.firmware,
            memory: options.memory.unwrap_or(image.description.system.memory),
            options,
            dir: &dir,
        };
        let process = match options.emulator {
            Emulator::Qemu => qemu::start(&boot)?,
            Emulator::Bochs => bochs::start(&boot)?,
        };
        let shared = Arc::new(Shared::default());
        let decoder = Arc::new(Mutex::new(LogDecoder::new(&image.binaries)));
        let reader = {
            let (shared, decoder) = (Arc::clone(&shared), Arc::clone(&decoder));
            let output = process.output;
            std::thread::spawn(move || read_serial(&shared, &decoder, output, on_serial))
        };
        let logger = {
            let (shared, log) = (Arc::clone(&shared), process.log);
            let show = options.show_log;
            std::thread::spawn(move || read_log(&shared, &log, &decoder, show))
        };
        Ok(Self {
            child: process.child,
            input: Some(process.input),
            diary: process.diary,
            shared,
            threads: vec![reader, logger],
            dir,
            started: Instant::now(),
            exit: None,
        })
    }

    /// Types text, without anything added.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.send_bytes(text.as_bytes())
    }

    /// Types text and Enter.
    pub fn send_line(&mut self, text: &str) -> Result<()> {
        self.send_bytes(format!("{text}\r").as_bytes())
    }

    /// Types bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.touch();
        let Some(input) = &mut self.input else {
            bail!("the machine's input is closed");
        };
        let sent = input.write_all(bytes).and_then(|()| input.flush());
        sent.map_err(|e| self.failure(&format!("the machine takes no input: {e}")))
    }

    /// Waits until serial output after the last match fits the regular expression `pattern`; gives
    /// what matched. An error shows the last lines of serial output and log.
    pub fn expect(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        let regex = Regex::new(pattern).with_context(|| format!("bad pattern `{pattern}`"))?;
        let deadline = Instant::now() + timeout;
        let shared = Arc::clone(&self.shared);
        let mut serial = lock(&shared.serial);
        loop {
            let fresh = serial.bytes.get(serial.seen..).unwrap_or_default();
            if let Some(found) = regex.find(fresh) {
                let text = String::from_utf8_lossy(found.as_bytes()).into_owned();
                serial.seen += found.end();
                return Ok(text);
            }
            let closed = serial.closed;
            let left = deadline.saturating_duration_since(Instant::now());
            if closed || left.is_zero() {
                drop(serial);
                let why = match (closed, self.wait_exit(Duration::from_secs(5))) {
                    (true, Ok(exit)) => {
                        format!("the machine ended ({exit:?}) before `{pattern}` was seen")
                    }
                    _ => format!("`{pattern}` was not seen in {timeout:.0?}"),
                };
                return Err(self.failure(&why));
            }
            let wait = shared.grown.wait_timeout(serial, left);
            serial = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the machine's end.
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<Exit> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(exit) = self.try_exit()? {
                return Ok(exit);
            }
            if Instant::now() >= deadline {
                return Err(self.failure(&format!("the machine did not end in {timeout:.0?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How the machine ended, if it has.
    pub fn try_exit(&mut self) -> Result<Option<Exit>> {
        if self.exit.is_none()
            && let Some(status) = self.child.try_wait().context("waiting for the emulator")?
        {
            // The last log lines count, too.
            self.join();
            self.exit = Some(self.diary.exit(status.code(), &self.log()));
        }
        Ok(self.exit)
    }

    /// Ends the machine at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
    }

    /// All serial output so far.
    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&lock(&self.shared.serial).bytes).into_owned()
    }

    /// All decoded log lines so far.
    pub fn log(&self) -> Vec<String> {
        lock(&self.shared.log).clone()
    }

    /// Waits until a log line after line number `from` fits `pattern`; gives the line.
    pub fn expect_log(&mut self, pattern: &str, from: usize, timeout: Duration) -> Result<String> {
        let regex =
            regex::Regex::new(pattern).with_context(|| format!("bad pattern `{pattern}`"))?;
        let deadline = Instant::now() + timeout;
        loop {
            let ended = self.try_exit()?.is_some();
            if let Some(line) = self.log().iter().skip(from).find(|l| regex.is_match(l)) {
                return Ok(line.clone());
            }
            if ended || Instant::now() >= deadline {
                return Err(self.failure(&format!("no log line fits `{pattern}`")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How long nothing has come from the serial port and nothing was typed.
    pub fn silence(&self) -> Duration {
        let last = lock(&self.shared.serial).last;
        last.unwrap_or(self.started).elapsed()
    }

    /// A sender for the machine's input, for interactive use; `send` does not work afterwards.
    pub fn take_input(&mut self) -> Option<Box<dyn Write + Send>> {
        self.input.take()
    }

    /// An error with the last lines of serial output and log.
    pub fn failure(&self, why: &str) -> anyhow::Error {
        let mut text = format!("{why}\n--- last serial output\n");
        for line in last(self.serial().lines()) {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.push_str("--- last log lines (all: target/vireo.log)\n");
        for line in last(self.log().iter().map(String::as_str)) {
            text.push_str(line);
            text.push('\n');
        }
        if let Some(remarks) = self.remarks() {
            text.push_str(&format!("--- {remarks}\n"));
        }
        anyhow::anyhow!(text)
    }

    fn touch(&self) {
        lock(&self.shared.serial).last = Some(Instant::now());
    }

    /// What the emulator itself complained of.
    pub fn remarks(&self) -> Option<String> {
        self.diary.remarks()
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        let lines = self.log().join("\n");
        let _ = host::write_whole(
            &host::target().join("vireo.log"),
            format!("{lines}\n").as_bytes(),
        );
        if !self.diary.keep() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Removes the folders of runs that are over for an hour, kept after a triple fault or a kill.
fn remove_left_over_runs() {
    let runs = fs::read_dir(host::target().join("runs"));
    for dir in runs
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok().map(|e| e.path()))
    {
        let name = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let pid = name.split('-').next().unwrap_or_default();
        let hour_old = fs::metadata(&dir)
            .and_then(|m| m.modified())
            .is_ok_and(|t| t.elapsed().is_ok_and(|age| age.as_secs() > 3600));
        if hour_old && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

/// Reads the serial line to its end; records of the manager's become text.
fn read_serial(
    shared: &Shared,
    decoder: &Mutex<LogDecoder>,
    mut out: Box<dyn Read + Send>,
    mut on_serial: impl FnMut(&[u8]),
) {
    let mut records = Records::default();
    let mut take = |bytes: &[u8]| {
        on_serial(bytes);
        let mut serial = lock(&shared.serial);
        serial.bytes.extend_from_slice(bytes);
        serial.last = Some(Instant::now());
        drop(serial);
        shared.grown.notify_all();
    };
    let mut buffer = [0; 4096];
    loop {
        let count = match out.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        take(&records.feed(bytes, |record| lock(decoder).from_console(record)));
    }
    take(&records.rest());
    lock(&shared.serial).closed = true;
    shared.grown.notify_all();
}

fn read_log(shared: &Shared, path: &Path, decoder: &Mutex<LogDecoder>, show: bool) {
    let Ok(mut file) = File::open(path) else {
        return;
    };
    let mut bytes = Vec::new();
    loop {
        // Read once more after the stop was asked for, so that the last records are not lost.
        let stop = shared.stop.load(Ordering::Relaxed);
        bytes.clear();
        let _ = file.read_to_end(&mut bytes);
        let lines = lock(decoder).feed(&bytes);
        if show {
            for line in &lines {
                eprint!("{line}\r\n");
            }
        }
        lock(&shared.log).extend(lines);
        if stop {
            return;
        }
        std::thread::sleep(Duration::from_millis(40));
    }
}

fn last<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let all: Vec<&str> = lines.collect();
    let skip = all.len().saturating_sub(LAST_LINES);
    all.into_iter().skip(skip).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A reader thread that panicked leaves plain data behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
