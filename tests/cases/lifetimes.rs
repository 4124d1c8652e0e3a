//! What has been destroyed is gone: every page, every slot; and no operation holds interrupts off for long.

use anyhow::{Context as _, Result};
use regex::Regex;
use system_tests::{Judged, System, deterministic};
use xtask::emulator::Exit;
use xtask::setup::image_maker::Firmware;

/// Instructions that interrupts may be off at most.
const OFF: u64 = 10_000;
/// How often a VM is started and killed.
const LIVES: usize = 20;

/// The numbers in the groups of a pattern, which must fit.
fn numbers(s: &System, text: &str, pattern: &str) -> Result<Vec<u64>> {
    s.check(text, pattern)?;
    let found = Regex::new(pattern)?.captures(text).context("no match")?;
    let numbers = found.iter().skip(1).flatten();
    numbers.map(|n| Ok(n.as_str().parse()?)).collect()
}

/// The longest stretch that a report of the churn server's tells, and the five worst causes, for the reader.
fn interrupts_off(s: &System, log: &str) -> Result<()> {
    for line in log.lines().filter(|line| line.contains("OFF ")) {
        println!("{line}");
    }
    let report = r"CHURN [^\n]*interrupts off for (\d+) at most";
    let longest = numbers(s, log, report)?[0];
    println!("interrupts were off for {longest} instructions at most");
    if longest == 0 || longest >= OFF {
        let why = format!("interrupts were off for {longest} instructions");
        return Err(s.failure(&why));
    }
    Ok(())
}

/// Ten thousand Spaces and ten thousand GuestSpaces, with all that servers and VMs have.
#[test]
fn lifetimes_churn() -> Judged {
    let system = "tests/systems/lifetimes.toml";
    let mut s = System::boot_with(system, Firmware::Bios, &deterministic())?;
    let exit = s.machine.wait_exit(10 * system_tests::BOOT)?;
    let log = s.machine.log().join("\n");
    let report = r"CHURN 10000 spaces, 10000 guests: (\d+) pages free of \d+, before (\d+), 0 left";
    let free = numbers(&s, &log, report)?;
    if free[0] != free[1] {
        return Err(s.failure("the Pool is not as it was").into());
    }
    interrupts_off(&s, &log)?;
    if exit != Exit::PowerOff {
        return Err(s.failure(&format!("it ended as {exit:?}")).into());
    }
    Ok(())
}

/// The same while Linux boots and runs.
#[test]
fn lifetimes_linux() -> Judged {
    let system = "tests/systems/lifetimes-linux.toml";
    let mut s = System::boot_with(system, Firmware::Bios, &deterministic())?;
    s.shell()?;
    let from = s.log_position();
    s.sh("dmesg | tail -3; ls / > /dev/null")?;
    // The second one from now on has seen all of it.
    s.log_after(from, r"CHURN [^\n]* 0 left")?;
    let from = s.log_position();
    s.log_after(from, r"CHURN [^\n]* 0 left")?;
    let log = s.machine.log();
    interrupts_off(&s, &log[from..].join("\n"))?;
    Ok(())
}

/// What root says that it has left: RAM, slots, pages for kernel objects, Pools.
const FREE: &str =
    r"(\d+) KiB of RAM, (\d+) slots, (\d+) of root's own pages and (\d+) Pools are free";

/// The same after each life but the first, which may have taken pages for slots that stay.
fn nothing_stays(s: &System, figures: &[Vec<u64>]) -> Result<()> {
    println!(
        "after the first life {:?}, then {:?}",
        figures[0], figures[1]
    );
    if figures[1..].iter().any(|f| *f != figures[1]) {
        let why = format!("something stays of each life: {figures:?}");
        return Err(s.failure(&why));
    }
    Ok(())
}

/// A VM is started and killed again and again: root and the kernel have what they had after the first time.
#[test]
fn lifetimes_vms() -> Judged {
    let mut s = System::boot("tests/systems/triple-fault.toml")?;
    s.expect_boot(r"COUNT \d+")?;
    s.to_manager()?;
    let mut figures = Vec::new();
    for _ in 0..LIVES {
        let from = s.log_position();
        s.manager("kill counts")?;
        let down = s.log_after(from, r"VM \d+ is down: .* are free")?;
        figures.push(numbers(&s, &down, FREE)?);
        let from = s.log_position();
        s.manager("start counts")?;
        s.log_after(from, r"counts\.vmm runs: ")?;
        s.machine.send_line("attach counts")?;
        s.expect(r"COUNT \d+")?;
        s.to_manager()?;
    }
    Ok(nothing_stays(&s, &figures)?)
}

/// A device server of a VM that goes on is killed and started again again and again.
#[test]
fn lifetimes_servers() -> Judged {
    let mut s = System::boot("tests/systems/triple-fault.toml")?;
    s.expect_boot(r"COUNT \d+")?;
    s.to_manager()?;
    let mut figures = Vec::new();
    for _ in 0..LIVES {
        let from = s.log_position();
        s.manager("restart counts.uart0")?;
        s.log_after(from, r"root: .*counts\.uart0 ends: Killed")?;
        let runs = s.log_after(from, r"root: .*counts\.uart0 runs: .* are free")?;
        figures.push(numbers(&s, &runs, FREE)?);
        s.machine.send_line("attach counts")?;
        s.expect(r"COUNT \d+")?;
        s.to_manager()?;
    }
    Ok(nothing_stays(&s, &figures)?)
}
