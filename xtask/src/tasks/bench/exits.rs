//! How many VM exits an operation takes: QEMU's own log says each.
//!
//! The program in the guest (`guests/costs`) executes CPUID many times in a row before and after what it measures.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

/// So many CPUIDs at one place at least, with nothing between them, are a mark.
const MARK: u32 = 40;
/// So many the program executes (`guests/costs/src/report.rs`): an interrupt among them leaves a mark still, and only one. Firmware that looks
/// for hypervisors executes more in a row.
const EXECUTED: u32 = 2 * MARK - 1;
/// VMEXIT_CPUID (AMD64 Architecture Programmer's Manual 24593, appendix C).
const CPUID: &str = "00000072";

/// Has QEMU record exits, and none of the rest that the same switch records: no code is at that address.
pub fn record(cmd: &mut Command, to: &Path) {
    cmd.args(arguments(to));
}

/// The same, as arguments.
pub fn arguments(to: &Path) -> [String; 6] {
    let to = to.to_string_lossy().into_owned();
    ["-d", "in_asm", "-dfilter", "0x1+0x1", "-D", &to].map(str::to_owned)
}

/// Operations of a measurement, the batch that counts for nothing included.
fn operations(row: &str) -> u64 {
    let (batches, each) = match row {
        "blk_read_4k_qd1" => (10, 64),
        "blk_read_4k_qd32" => (10, 256),
        "net_packet_pingpong" | "net_packet_burst" => (10, 128),
        _ => (10, 2048),
    };
    batches * each
}

/// Exits of a thousand operations.
pub fn per_thousand(row: &str, exits: u64) -> u64 {
    exits * 1000 / operations(row)
}

/// Exits between the marks of each measurement.
pub fn between_marks(log: &Path) -> Result<Vec<u64>> {
    let file = File::open(log).with_context(|| format!("reading {}", log.display()))?;
    let mut count = Count::default();
    for line in BufReader::new(file).split(b'\n') {
        count.line(&String::from_utf8_lossy(&line?));
    }
    count.row_ends();
    Ok(count.found)
}

#[derive(Default)]
struct Count {
    found: Vec<u64>,
    /// Exits since the first mark of a pair.
    since: Option<u64>,
    /// The place of the last CPUID, and how often in a row.
    row: (String, u32),
}

impl Count {
    /// `vmexit(code, info 1, info 2, rip)!`
    fn line(&mut self, line: &str) {
        let Some(words) = line
            .strip_prefix("vmexit(")
            .and_then(|l| l.strip_suffix(")!"))
        else {
            return;
        };
        let words: Vec<&str> = words.split(", ").collect();
        let [code, .., rip] = words.as_slice() else {
            return;
        };
        // Linux itself executes rows of them when it changes its code; a program's addresses are low ones.
        let marks = *code == CPUID && rip.starts_with("00000000");
        if !marks || self.row.0 != *rip {
            self.row_ends();
            self.row = ((*rip).to_owned(), 0);
        }
        if let Some(since) = &mut self.since {
            *since += 1;
        }
        self.row.1 += u32::from(marks);
    }

    fn row_ends(&mut self) {
        if !(MARK..=EXECUTED).contains(&self.row.1) {
            return;
        }
        self.since = match self.since.take() {
            None => Some(0),
            Some(since) => {
                self.found.push(since.saturating_sub(EXECUTED.into()));
                None
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_rows_of_cpuid() {
        let mut count = Count::default();
        let cpuid = "vmexit(00000072, 0000000000000000, 0000000000000000, 0000000000201234)!";
        let other = "vmexit(0000007b, 00000000c0000041, 0000000000000000, 0000000000201234)!";
        let mark = |count: &mut Count| (0..EXECUTED).for_each(|_| count.line(cpuid));
        (0..MARK - 1).for_each(|_| count.line(cpuid));
        count.line(other);
        let kernel = "vmexit(00000072, 0000000000000000, 0000000000000000, ffffffff81201234)!";
        let firmware = "vmexit(00000072, 0000000000000000, 0000000000000000, 00000000000f1234)!";
        (0..256).for_each(|_| count.line(firmware));
        (0..EXECUTED).for_each(|_| count.line(kernel));
        for _ in 0..2 {
            mark(&mut count);
            for line in [other, cpuid, "vmrun! 1", other] {
                count.line(line);
            }
            mark(&mut count);
            count.line(other);
        }
        assert_eq!(count.found, [3, 3]);
        assert_eq!(per_thousand("blk_read_4k_qd32", 256), 100);
    }
}
