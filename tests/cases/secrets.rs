//! Nothing of one vCPU or server is ever in a register of another.

use anyhow::{Context, Result};
use regex::Regex;
use system_tests::{BOOT, Judged, System, deterministic};
use xtask::emulator::Options;
use xtask::setup::image_maker::Firmware;

/// Registers that a guest can plant a word in: all but PAT, whose values are few.
const PLANTED: u64 = 80;

/// The number before `what` in the next line of guest `key`.
fn number(s: &mut System, key: u8, pattern: &str) -> Result<u64> {
    // To its end: half a number is one, too.
    let line = s.expect_boot(&format!("SECRETS key {key}: {pattern}\r"))?;
    let found = Regex::new(pattern)?.captures(&line);
    Ok(found.context("no number")?[1].parse()?)
}

/// Two guests plant values in all their registers and look for each other's, and a server looks in its own.
#[test]
fn secrets_do_not_leak() -> Judged {
    let mut s = System::boot("tests/systems/secrets.toml")?;
    // The search finds what is there: the guest's own words.
    let own = number(&mut s, 65, r"self-test (\d+)")?;
    if own < PLANTED {
        return Err(s
            .failure(&format!("the search finds {own} of the guest's own words"))
            .into());
    }
    while number(&mut s, 65, r"(\d+) rounds, 0 leaks, 0 lost")? < 128 {}
    s.to_manager()?;
    s.machine.send_line("attach b")?;
    while number(&mut s, 66, r"(\d+) rounds, 0 leaks, 0 lost")? < 128 {}
    let serial = s.machine.serial();
    s.check_not(&serial, r"(?:LEAK|LOST) [^\n]*")?;
    let looked = s.machine.expect_log(r"LOOK done", 0, BOOT)?;
    s.check(&looked, r"LOOK done: \d{5,} looks, 0 leaks,")?;
    let log = s.machine.log().join("\n");
    s.check_not(&log, r"LOOK leak[^\n]*")?;
    Ok(())
}

/// vCPUs full of secrets share processors and go from one to the other; servers look in between. Those that are new find nothing.
fn roam(cpus: u32, moves: &str) -> Result<()> {
    roam_on(cpus, moves, deterministic())
}

fn roam_on(cpus: u32, moves: &str, options: Options) -> Result<()> {
    let options = Options { cpus, ..options };
    let mut s = System::boot_with("tests/systems/roam.toml", Firmware::Bios, &options)?;
    let exit = s.machine.wait_exit(BOOT)?;
    let log = s.machine.log().join("\n");
    s.check_not(&log, r"ROAM leak[^\n]*")?;
    let done = Regex::new(r"ROAM done: [^\n]*")?.find(&log);
    let done = done.map_or("", |found| found.as_str());
    println!("{done}");
    s.check(
        done,
        &format!(r"1000 rounds, {moves} moves, 0 leaks, finds: \[true, true, true, true, true\]"),
    )?;
    s.check(&format!("{exit:?}"), "^PowerOff$")
}

#[test]
fn secrets_of_many_on_one_cpu() -> Judged {
    Ok(roam(1, "4")?)
}

#[test]
fn secrets_of_many_on_two_cpus() -> Judged {
    Ok(roam(2, r"[1-9]\d{2,}")?)
}

/// With VMX, where a VMCS, and what belongs to it, has to go along.
#[test]
fn secrets_of_many_on_one_cpu_vmx() -> Judged {
    Ok(roam_on(1, "4", Options::bochs("corei7_skylake_x"))?)
}

#[test]
fn secrets_of_many_on_two_cpus_vmx() -> Judged {
    let options = Options::bochs("corei7_skylake_x");
    Ok(roam_on(2, r"[1-9]\d{2,}", options)?)
}
