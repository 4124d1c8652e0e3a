//! `bench --trace ROWS`: one sample of each row, instruction by instruction: where they are, and what costs more than an
//! instruction ([`report`]).
//!
//! The machine runs to `bench_trace`, which the measuring code calls before and after a sample in the middle (see
//! `guests/bench` and `services/bench`); between the two the emulator translates instruction by instruction and logs each
//! with the processor's registers. What is counted begins behind the first RDTSC of
//! the measuring code (of a device server for an interrupt) and ends at its last: as the row's own figure, but for the
//! empty loop's few instructions.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSegment, ObjectSymbol};

use crate::{
    build::{
        bare::{self, KERNEL},
        image::{self, Image},
    },
    description::Description,
    emulator::{Machine, Options, gdb::Gdb},
    host,
    setup::image_maker::Firmware,
};

mod report;

use report::Report;

/// The function that brackets a sample.
const MARK: &str = "bench_trace";
/// Lowest address of the kernel.
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;
/// Bytes of code by which a server is known; a packet of the debug stub's holds no more than twice as many.
const SAMPLE: usize = 1024;
/// Rows that begin in a server.
const BEGINS_IN: [(&str, &str); 1] = [("irq_to_guest", "device-testdev")];

/// FNV-1a, by which the measuring code names its rows to a debugger.
pub const fn name_hash(name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut i = 0;
    while i < name.len() {
        hash = (hash ^ name.as_bytes()[i] as u64).wrapping_mul(0x100_0000_01b3);
        i += 1;
    }
    hash
}

/// The code of one binary.
struct Code {
    name: String,
    path: PathBuf,
    /// Address and bytes of each part.
    parts: Vec<(u64, Vec<u8>)>,
    mark: Option<u64>,
}

impl Code {
    fn load(name: &str, path: &Path) -> Result<Self> {
        let bytes = host::read(path)?;
        let file =
            object::File::parse(&*bytes).with_context(|| format!("reading {}", path.display()))?;
        let parts = file
            .segments()
            .filter_map(|s| Some((s.address(), s.data().ok()?.to_vec())))
            .collect();
        let mark = file
            .symbols()
            .find(|s| s.name() == Ok(MARK))
            .map(|s| s.address());
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
            parts,
            mark,
        })
    }

    /// Whether it runs inside a VM.
    fn nested(&self) -> bool {
        self.name.starts_with("guest")
    }

    /// Up to `len` bytes at `address`; none if it has nothing there.
    fn at(&self, address: u64, len: usize) -> &[u8] {
        let part = self.parts.iter().find_map(|(from, bytes)| {
            let offset = usize::try_from(address.checked_sub(*from)?).ok()?;
            bytes.get(offset..)
        });
        let bytes = part.unwrap_or_default();
        bytes.get(..len.min(bytes.len())).unwrap_or_default()
    }
}

/// An instruction that was executed.
struct Executed {
    /// Index of its binary; `None` for the stub page.
    code: Option<usize>,
    address: u64,
    kind: Option<&'static str>,
}

/// Instructions that cost more than one, by encoding: what they are called in the table.
fn kind(bytes: &[u8]) -> Option<&'static str> {
    let mut rest = bytes;
    let mut locked = false;
    while let [prefix, tail @ ..] = rest {
        match prefix {
            0xf0 => locked = true,
            0x66 | 0x67 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 => {}
            0x40..=0x4f => {}
            _ => break,
        }
        rest = tail;
    }
    Some(match rest {
        _ if locked => "locked",
        // An exchange with memory locks by itself.
        [0x86 | 0x87, modrm, ..] if modrm >> 6 != 3 => "locked",
        [0x0f, 0x01, 0xd8, ..] => "vmrun",
        [0x0f, 0x01, 0xda, ..] => "vmload",
        [0x0f, 0x01, 0xdb, ..] => "vmsave",
        [0x0f, 0x01, 0xdc, ..] => "stgi",
        [0x0f, 0x01, 0xdd, ..] => "clgi",
        [0x0f, 0x01, 0xf8, ..] => "swapgs",
        [0x0f, 0x01, 0xf9, ..] | [0x0f, 0x31, ..] => "rdtsc",
        [0x0f, 0x01, modrm, ..] if modrm >> 6 != 3 && modrm >> 3 & 7 == 7 => "invlpg",
        [0x0f, 0x05, ..] => "syscall",
        [0x0f, 0x07, ..] => "sysret",
        [0x0f, 0x30, ..] => "wrmsr",
        [0x0f, 0x32, ..] => "rdmsr",
        [0x0f, 0xa2, ..] => "cpuid",
        [0x0f, 0x22, modrm, ..] if modrm >> 3 & 7 == 3 => "mov cr3",
        [0x0f, 0x22, ..] => "mov cr",
        [0x0f, 0x21 | 0x23, ..] => "mov dr",
        [0x0f, 0x06, ..] => "clts",
        [0xcf, ..] => "iret",
        [0xf4, ..] => "hlt",
        [0xe4..=0xe7 | 0xec..=0xef, ..] => "in/out",
        _ => return None,
    })
}

/// Traces `rows`, each in that one of the `systems` which measures it; gives their tables.
pub fn trace(rows: &[&str], systems: &[&str]) -> Result<String> {
    let mut report = Report::default();
    for system in systems {
        let wanted: Vec<&str> = rows
            .iter()
            .copied()
            .filter(|row| !report.has(row) && may_measure(system, row))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let description = Description::load(&host::root().join(system), None)?;
        let image = image::build(&description, Firmware::Bios)?;
        Tracer::run(&image, &wanted, &mut report)?;
    }
    if let Some(missing) = rows.iter().find(|row| !report.has(row)) {
        bail!("no system of the bench measures a row named `{missing}`");
    }
    report.text(rows)
}

/// Whether a system measures a row, by its name: what involves a guest is `bench.toml`'s.
fn may_measure(system: &str, row: &str) -> bool {
    let guest = ["exit_", "irq_", "guest_"];
    system.ends_with("bench.toml") == guest.iter().any(|p| row.starts_with(p))
}

struct Tracer {
    codes: Vec<Code>,
    /// Which binary runs under which root of page tables.
    spaces: BTreeMap<u64, usize>,
    executed: Vec<Executed>,
    /// The binary that measures.
    measuring: usize,
}

impl Tracer {
    /// Boots the system and traces those of the `rows` that it measures.
    fn run(image: &Image, rows: &[&str], report: &mut Report) -> Result<()> {
        let mut codes = vec![Code::load(KERNEL, &image.binaries.kernel)?];
        for (name, path) in &image.binaries.servers {
            codes.push(Code::load(name, path)?);
        }
        if !image.description.system.vms.is_empty() {
            let guest = "guest-bench";
            codes.push(Code::load(guest, &bare::guest_path(guest))?);
        }
        let measuring = codes.iter().rposition(|code| code.mark.is_some());
        let measuring = measuring.with_context(|| format!("no binary has `{MARK}`"))?;
        let mark = codes
            .get(measuring)
            .and_then(|code| code.mark)
            .context("no mark")?;
        let mut tracer = Self {
            codes,
            spaces: BTreeMap::new(),
            executed: Vec::new(),
            measuring,
        };
        let socket = host::target().join(format!("gdb.{}", std::process::id()));
        let options = Options {
            icount: true,
            extra: Gdb::arguments(&socket),
            ..Options::default()
        };
        host::step(format!("tracing {}", rows.join(", ")));
        let mut machine = Machine::start(image, &options)?;
        let mut gdb = Gdb::connect(&socket, Duration::from_secs(20))?;
        let _ = std::fs::remove_file(&socket);
        gdb.set_breakpoint(mark)?;
        let mut left = rows.to_vec();
        while !left.is_empty() && gdb.run()? {
            let found = gdb.registers()?;
            if found.rip != mark {
                continue;
            }
            gdb.clear_breakpoint(mark)?;
            gdb.step()?;
            gdb.set_breakpoint(mark)?;
            if let Some(i) = left.iter().position(|row| found.rdi == name_hash(row)) {
                let row = left.swap_remove(i);
                tracer.sample(&mut gdb)?;
                report.add(row, &tracer, image)?;
            }
        }
        machine.kill();
        Ok(())
    }

    /// Runs through a sample, to the next mark, and takes what was executed.
    fn sample(&mut self, gdb: &mut Gdb) -> Result<()> {
        let log = host::target().join(format!("trace.{}.log", std::process::id()));
        gdb.monitor("singlestep on")?;
        gdb.monitor(&format!("logfile {}", log.display()))?;
        gdb.monitor("log exec,cpu,nochain")?;
        if !gdb.run()? {
            bail!("the machine ended in the middle of the sample");
        }
        gdb.monitor("log none")?;
        gdb.monitor("singlestep off")?;
        gdb.physical_memory(true)?;
        let text = File::open(&log).with_context(|| format!("reading {}", log.display()))?;
        self.executed.clear();
        self.read(gdb, BufReader::new(text))?;
        gdb.physical_memory(false)?;
        std::fs::remove_file(&log).with_context(|| format!("removing {}", log.display()))
    }

    /// Takes what the emulator logged.
    fn read(&mut self, gdb: &mut Gdb, log: impl BufRead) -> Result<()> {
        let mut guest = self.code(Some(self.measuring)).is_some_and(Code::nested);
        // An instruction's address comes first, its registers after it.
        let mut address = None;
        for line in log.lines() {
            let line = line.context("reading the emulator's log")?;
            if line.starts_with("Stopped execution") {
                // It was not executed after all: an interrupt came first.
                self.executed.pop();
            } else if let Some(rest) = line.strip_prefix("Trace ") {
                address = rest.split('/').nth(1).and_then(hex);
            } else if let Some((_, rest)) = line.split_once("CR3=")
                && let (Some(root), Some(at)) = (rest.get(..16).and_then(hex), address.take())
            {
                if at >= KERNEL_HALF {
                    guest = false;
                    self.executed(Some(0), at);
                } else {
                    let code = self.who(gdb, root, at, guest)?;
                    self.executed(code, at);
                }
                if self
                    .executed
                    .last()
                    .is_some_and(|e| e.kind == Some("vmrun"))
                {
                    guest = true;
                }
            }
        }
        Ok(())
    }

    fn code(&self, number: Option<usize>) -> Option<&Code> {
        self.codes.get(number?)
    }

    fn executed(&mut self, code: Option<usize>, address: u64) {
        // The stub page is a SYSCALL and a RET.
        let kind = match self.code(code) {
            None if address & 0xfff == 0 => Some("syscall"),
            None => None,
            Some(code) => kind(code.at(address, 15)),
        };
        self.executed.push(Executed {
            code,
            address,
            kind,
        });
    }

    /// Which binary's code this is, by what is in memory there.
    fn who(&mut self, gdb: &mut Gdb, root: u64, at: u64, guest: bool) -> Result<Option<usize>> {
        if guest {
            return Ok(self.codes.iter().position(Code::nested));
        }
        if let Some(&number) = self.spaces.get(&root) {
            let has = self
                .code(Some(number))
                .is_some_and(|c| !c.at(at, 1).is_empty());
            return Ok(has.then_some(number));
        }
        let from = at & !(SAMPLE as u64 - 1);
        let there = user_memory(gdb, root, from)?;
        let fits = |code: &Code| {
            let ours = code.at(from, SAMPLE);
            !code.nested() && !ours.is_empty() && there.starts_with(ours)
        };
        let mut found = (1..self.codes.len()).filter(|&i| self.code(Some(i)).is_some_and(fits));
        let number = found.next();
        if let Some(number) = number {
            if found.next().is_some() {
                bail!("two servers have the same code at {at:#x}");
            }
            self.spaces.insert(root, number);
        }
        Ok(number)
    }

    /// What lies between the first and the last look at the clock.
    fn timed(&self, row: &str) -> Result<&[Executed]> {
        let begins = BEGINS_IN.iter().find(|(name, _)| *name == row);
        let begin_code = match begins {
            Some((_, name)) => self.codes.iter().position(|code| code.name == *name),
            None => Some(self.measuring),
        };
        let clock = |e: &Executed, code: Option<usize>| e.kind == Some("rdtsc") && e.code == code;
        let first = self.executed.iter().position(|e| clock(e, begin_code));
        let mut ends = self.executed.iter();
        let last = match (begins, first) {
            // The handler's first look is the end, the device's the beginning.
            (Some(_), Some(first)) => ends
                .skip(first)
                .position(|e| clock(e, Some(self.measuring)))
                .map(|n| n + first),
            _ => ends.rposition(|e| clock(e, Some(self.measuring))),
        };
        match (first, last) {
            (Some(first), Some(last)) if first < last => {
                Ok(self.executed.get(first + 1..last).unwrap_or_default())
            }
            _ => bail!("the sample's clock was not seen"),
        }
    }
}

/// [`SAMPLE`] bytes at a virtual address under these page tables (Intel SDM vol. 3, 4.5); the stub reads physical memory.
fn user_memory(gdb: &mut Gdb, root: u64, address: u64) -> Result<Vec<u8>> {
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    let mut table = root & FRAME;
    for shift in [39, 30, 21, 12] {
        let entry = gdb.memory(table + (address >> shift & 0x1ff) * 8, 8)?;
        let entry = entry
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
        if entry & 1 == 0 {
            return Ok(Vec::new());
        }
        let large = shift == 21 && entry & 0x80 != 0;
        table = entry & FRAME;
        if large {
            table = (table & !0x1f_ffff) + (address & 0x1f_f000);
            break;
        }
    }
    gdb.memory(table + (address & 0xfff), SAMPLE)
}

/// A number as the emulator writes it.
fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_more() {
        assert_eq!(kind(&[0x0f, 0x22, 0xd8]), Some("mov cr3"));
        assert_eq!(kind(&[0x0f, 0x22, 0xc0]), Some("mov cr"));
        assert_eq!(kind(&[0x48, 0x0f, 0x07]), Some("sysret"));
        assert_eq!(kind(&[0xf0, 0x48, 0xff, 0x07]), Some("locked"));
        assert_eq!(kind(&[0x48, 0x87, 0x07]), Some("locked"));
        assert_eq!(kind(&[0x48, 0x87, 0xc7]), None);
        assert_eq!(kind(&[0x0f, 0x01, 0x3f]), Some("invlpg"));
        assert_eq!(kind(&[0x0f, 0x01, 0xf8]), Some("swapgs"));
        assert_eq!(kind(&[0x90]), None);
    }

    #[test]
    fn hash_of_a_name() {
        // The published test vectors of FNV-1a, 64 bits.
        assert_eq!(name_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(name_hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(name_hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
