//! Time: nobody gets more of it than his share, and all of it is somebody's.

use anyhow::{Context, Result};
use regex::Regex;
use system_tests::{BOOT, Judged, System, deterministic};
use xtask::emulator::{Exit, Options};
use xtask::setup::image_maker::Firmware;

/// How far from its share a thread may be, in ten-thousandths of it.
const SHARE: i64 = 100;
/// The part of a processor's time that may be nobody's, in ten-thousandths.
const UNATTRIBUTED: u64 = 100;
/// The part that may be missing, because not all is read at the same moment, in ten-thousandths.
const MISSING: u64 = 20;

/// The numbers in the groups of a pattern, for each place where it fits.
fn all_numbers(text: &str, pattern: &str) -> Result<Vec<Vec<i64>>> {
    let each = Regex::new(pattern)?;
    let found = each.captures_iter(text).map(|c| {
        let numbers = c.iter().skip(1).flatten();
        numbers.map(|n| Ok(n.as_str().parse()?)).collect()
    });
    found.collect()
}

/// Boots a system whose gauge does its work and switches it off; gives its lines of the log.
fn gauged(toml: &str, cpus: u32) -> Result<(System, String)> {
    let options = Options {
        cpus,
        ..deterministic()
    };
    let mut s = System::boot_with(toml, Firmware::Bios, &options)?;
    let exit = s.machine.wait_exit(2 * BOOT)?;
    let log = s.machine.log().join("\n");
    for line in log.lines() {
        if line.contains("SHARE") || line.contains("ACCOUNT") {
            println!("{line}");
        }
    }
    if exit != Exit::PowerOff {
        return Err(s.failure(&format!("it ended as {exit:?}")));
    }
    Ok((s, log))
}

/// Threads that burn their Budgets, at user level, in the kernel, in servers and in guests, alone and beside a competitor of lower
/// priority: each gets its share to within 1 %.
#[test]
fn time_shares() -> Judged {
    let (s, log) = gauged("tests/systems/shares.toml", 1)?;
    let line = r"SHARE [^\n:]*: (\d+) of (\d+) cycles in (\d+) periods, off by (-?\d+) in 10000";
    let shares = all_numbers(&log, line)?;
    s.check(&format!("{} shares", shares.len()), "^17 ")?;
    if let Some(wrong) = shares.iter().find(|n| n[3].abs() > SHARE) {
        return Err(s.failure(&format!("not within 1 %: {wrong:?}")).into());
    }
    // Who waits behind them has the rest: 80 % of 50 ms, but for what servers and the called one take.
    for got in all_numbers(&log, r"SHARE the other got (\d+) cycles")? {
        s.check(&format!("{}", got[0] > 37_000_000), "true")?;
    }
    // They did what they were to do.
    s.check(
        &log,
        r"SHARES done: [1-9]\d{3,} answers, [1-9]\d* calls, strange exits: 0, rung: true",
    )?;
    Ok(())
}

/// All of the time of all processors is some Budget's, or idle; less than 1 % is nobody's. While Linux boots, and with servers calling
/// each other on each processor, too.
fn accounts(cpus: u32) -> Result<()> {
    let (s, log) = gauged("tests/systems/accounts.toml", cpus)?;
    let line = r"ACCOUNT [^\n:]*, processor (\d+): (\d+) cycles, Budgets (\d+), idle (\d+), the kernel's own (\d+)";
    let windows = all_numbers(&log, line)?;
    s.check(
        &format!("{} windows", windows.len()),
        &format!("^{} ", 8 * cpus),
    )?;
    let unsigned = |n: i64| u64::try_from(n).context("below 0");
    for w in &windows {
        let [_, time, budgets, idle, own] = w[..] else {
            return Err(s.failure("a line is incomplete"));
        };
        let (time, budgets, idle, own) = (
            unsigned(time)?,
            unsigned(budgets)?,
            unsigned(idle)?,
            unsigned(own)?,
        );
        let missing = time.abs_diff(budgets + idle + own);
        let nobodys = time.saturating_sub(budgets + idle);
        if missing * 10_000 > time * MISSING || nobodys * 10_000 > time * UNATTRIBUTED {
            return Err(s.failure(&format!(
                "{nobodys} of {time} nobody's, {missing} missing: {w:?}"
            )));
        }
        // It was a busy time, or it was not: both are in there.
        println!(
            "{}.{:02} % nobody's, {missing} cycles missing",
            nobodys * 100 / time,
            nobodys * 10_000 / time % 100
        );
    }
    s.check(&log, r"ACCOUNTS done: [1-9]\d{3,} calls")?;
    // The VM is at its limit while it boots: the scheduler hears of that.
    s.check(
        &log,
        r"scheduler: [^\n]*linux\.vmm: used up its budget in [1-9]\d* periods so far",
    )
}

#[test]
fn time_accounts_1_cpu() -> Judged {
    Ok(accounts(1)?)
}

#[test]
fn time_accounts_2_cpus() -> Judged {
    Ok(accounts(2)?)
}
