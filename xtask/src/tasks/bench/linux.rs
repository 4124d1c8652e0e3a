//! What an unmodified Linux pays for its devices, and for being started.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    exits,
    figures::{Row, parse},
    peer::Peer,
};
use crate::{
    build::image,
    description::Description,
    emulator::{Exit, Machine, Options},
    host,
    setup::image_maker::Firmware,
};

/// The systems that measure.
const SYSTEMS: [&str; 3] = [
    "guests/costs-tty.toml",
    "guests/costs-blk.toml",
    "guests/costs-net.toml",
];

/// The rows.
pub const ROWS: [&str; 7] = [
    "blk_read_4k_qd1",
    "blk_read_4k_qd32",
    "net_packet_pingpong",
    "net_packet_burst",
    "console_char",
    "boot_to_init",
    "vm_start",
];

/// What a row may be at most of KVM's, in hundredths; which of KVM's variants counts: the best of them, or the first named.
struct Goal {
    row: &'static str,
    hundredths: u64,
    variants: &'static [&'static str],
}

const fn goal(row: &'static str, hundredths: u64, variants: &'static [&'static str]) -> Goal {
    Goal {
        row,
        hundredths,
        variants,
    }
}

/// The goals; 0: there is none.
const GOALS: [Goal; 6] = [
    goal("blk_read_4k_qd1", 50, &["pc", "iothread"]),
    goal("blk_read_4k_qd32", 50, &["pc", "iothread"]),
    goal("net_packet_pingpong", 0, &["tap", "vhost"]),
    goal("net_packet_burst", 50, &["tap", "vhost"]),
    goal("console_char", 20, &["pc"]),
    goal("boot_to_init", 80, &["pc"]),
];

/// What was measured of ours.
#[derive(Default)]
pub struct Ours {
    /// The rows.
    pub rows: Vec<Row>,
    /// Exits of a thousand operations.
    exits: BTreeMap<String, u64>,
}

/// Boots the systems.
pub fn measure(options: &Options, timeout: u64) -> Result<Ours> {
    let mut ours = Ours::default();
    for system in SYSTEMS {
        run(system, options, Duration::from_secs(timeout), &mut ours)?;
    }
    Ok(ours)
}

fn run(system: &str, options: &Options, timeout: Duration, ours: &mut Ours) -> Result<()> {
    let description = Description::load(&host::root().join(system), None)?;
    let image = image::build(&description, Firmware::Bios)?;
    host::step(format!(
        "measuring {system}, with time counted in instructions"
    ));
    let folder = host::target().join("runs");
    host::make_dir(&folder)?;
    let record = folder.join(format!("exits-{}.txt", std::process::id()));
    let mut options = options.clone();
    options.extra.extend(exits::arguments(&record));
    let mut machine = Machine::start(&image, &options)?;
    let exit = machine.wait_exit(timeout)?;
    let (serial, log) = (machine.serial(), machine.log());
    let ended = serial.contains("COSTS-END") && !serial.contains("COSTS-FAIL");
    if exit != Exit::PowerOff || !ended {
        return Err(machine.failure(&format!("the guest did not measure all: {exit:?}")));
    }
    let exits = exits::between_marks(&record)?;
    fs::remove_file(&record).with_context(|| format!("removing {}", record.display()))?;
    if let Some(lost) = serial.lines().find_map(|line| line.split_once("LOST ")) {
        ensure!(
            lost.1.trim() == "0",
            "{} datagrams were lost",
            lost.1.trim()
        );
    }
    let measured = |line: &&str| parse(line, &options).is_some();
    for line in serial.lines().filter(measured) {
        host::step(line.trim());
    }
    let rows: Vec<Row> = serial.lines().filter_map(|l| parse(l, &options)).collect();
    for (row, count) in rows.iter().zip(exits) {
        let (name, _) = row.figure();
        let count = exits::per_thousand(name, count);
        ours.exits.insert(name.to_owned(), count);
    }
    ours.rows.extend(rows);
    if serial.contains("BENCH console_char") {
        let (start, init) = boot(&log, &serial)?;
        for (name, value) in [("vm_start", start), ("boot_to_init", init)] {
            ours.rows.push(Row::single(name, &options, value));
        }
    }
    Ok(())
}

/// From the order to start a VM: to its first instruction, and to its first process.
fn boot(log: &[String], serial: &str) -> Result<(u64, u64)> {
    let tsc = |mark: &str| {
        let mut lines = log.iter().filter_map(|line| line.split_once(mark));
        let (_, rest) = lines
            .next()
            .with_context(|| format!("no `{mark}` in the log"))?;
        number(rest)
    };
    let begun = tsc(": start at TSC ")?;
    let first = tsc("MiB, TSC ")?;
    let init = serial.split_once("COSTS-INIT ").context("no COSTS-INIT")?;
    // The guest's own counter begins with its first instruction.
    let start = first.saturating_sub(begun);
    Ok((start, start + number(init.1)?))
}

fn number(text: &str) -> Result<u64> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .with_context(|| format!("no number: {text:.20}"))
}

/// Ours beside the other's, as a person reads it.
pub fn beside(ours: &Ours, peer: &Peer) -> String {
    let mut text = format!(
        "{:<22} {:>13} {:>13} {:<10} {:>6} {:>11} {:>11} {:>10}\n",
        "operation", "Vireo", "QEMU/KVM", "variant", "ratio", "goal", "exits here", "exits KVM"
    );
    for row in &ours.rows {
        let (name, mine) = row.figure();
        let goal = GOALS.iter().find(|goal| goal.row == name);
        let none = BTreeMap::new();
        let theirs = peer.rows.get(name).unwrap_or(&none);
        let variants = goal.map_or(&[][..], |goal| goal.variants);
        let best = variants.iter().filter_map(|v| theirs.get(*v)).min();
        let thousandth = |count: Option<&u64>| {
            count.map_or_else(String::new, |n| format!("{}.{:03}", n / 1000, n % 1000))
        };
        for variant in variants {
            let Some(&other) = theirs.get(*variant) else {
                continue;
            };
            let ratio = mine as f64 / other as f64;
            // The best of them is what is to be compared with.
            let limit = goal.filter(|g| g.hundredths > 0 && Some(&other) == best);
            let limit = limit.map_or_else(String::new, |g| {
                let missed = mine * 100 > other * g.hundredths;
                let judged = if missed { "MISSED" } else { "met" };
                format!("0.{:02} {judged}", g.hundredths)
            });
            let their_exits = peer.exits.get(name).and_then(|e| e.get(*variant));
            text.push_str(&format!(
                "{name:<22} {mine:>13} {other:>13} {variant:<10} {ratio:>6.3} {limit:>11} {:>11} {:>10}\n",
                thousandth(ours.exits.get(name)),
                thousandth(their_exits)
            ));
        }
        if variants.is_empty() {
            text.push_str(&format!("{name:<22} {mine:>13}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_and_boot() {
        let log = [
            "root: [0.1] INFO VM linux: start at TSC 1000  (x.rs:1)",
            "linux.vmm: [0.2] INFO linux.vmm: starts with 256 MiB, TSC 5000  (y.rs:1)",
        ]
        .map(str::to_owned);
        assert_eq!(boot(&log, "x\r\nCOSTS-INIT 70\r\n").unwrap(), (4000, 4070));
        assert!(boot(&log[..1], "COSTS-INIT 70").is_err());
        assert!(boot(&log, "COSTS-INIT x").is_err());
    }

    #[test]
    fn a_missed_goal_is_marked() {
        let options = Options::default();
        let ours = Ours {
            rows: vec![Row::single("net_packet_burst", &options, 40)],
            exits: [("net_packet_burst".to_owned(), 96)].into(),
        };
        let variants = [("tap".to_owned(), 100), ("vhost".to_owned(), 70)];
        let mut peer = Peer::default();
        peer.rows.insert("net_packet_burst".into(), variants.into());
        let text = beside(&ours, &peer);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].contains("tap") && !lines[1].contains("0.50"),
            "{text}"
        );
        assert!(
            lines[2].contains("0.50 MISSED") && lines[2].contains("0.096"),
            "{text}"
        );
    }
}
