//! Two Linux VMs under one manager: each has its console, its life and its end.

use anyhow::{Context as _, Result};
use system_tests::{Judged, System};

/// How often a VM is killed and started again.
const LIVES: usize = 8;

#[test]
fn two_vms() -> Judged {
    let mut s = System::boot("guests/two-linux.toml")?;
    // The terminal is the first VM's.
    s.expect_boot(r"\[console of one; Ctrl-\] leads to the manager\]")?;
    s.shell()?;
    s.sh("hostname number-one")?;

    s.to_manager()?;
    let help = s.manager("help")?;
    for command in [
        "help", "vms", "attach", "start", "stop", "kill", "servers", "cpus", "restart", "hang",
        "log", "version",
    ] {
        s.check(&help, &format!(r"(?m)^\s+{command}\b"))?;
    }
    let version = s.manager("version")?;
    s.check(&version, r"^Vireo \d+\.\d+")?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^\* one +running +256\.0 MiB +1 +0 +\d+\.\d+ s$")?;
    s.check(&vms, r"(?m)^  two +running +256\.0 MiB +1 +0 +\d+\.\d+ s$")?;
    let unknown = s.manager("attach three")?;
    s.check(&unknown, "there is no VM `three`")?;

    // The second boots unseen.
    s.machine.send_line("attach two")?;
    s.expect(r"\[console of two; ")?;
    s.shell()?;
    s.sh("hostname number-two")?;
    let host = s.sh("hostname")?;
    s.check(&host, "^number-two$")?;

    power_button(&mut s)?;

    // Every server of the system, with its figures.
    let servers = s.manager("servers")?;
    for name in [
        "platform",
        "scheduler",
        "manager",
        "uart0",
        "one.vmm",
        "one.uart0",
        "one.rtc0",
        "two.vmm",
        "two.uart0",
        "two.rtc0",
    ] {
        let name = regex::escape(name);
        let row = format!(r"(?m)^ *\d+  {name} +running +0 +\d[\d.]* [KM]iB +0 +\d+\.\d+ s$");
        s.check(&servers, &row)?;
    }
    let death = s.manager("servers one.uart0")?;
    s.check(&death, "one.uart0 has not died since the start")?;
    let nobody = s.manager("servers three.uart0")?;
    s.check(&nobody, "there is no such VM or server")?;
    let log = s.manager("log 5")?;
    s.check(
        &log,
        r"\A(?:[a-z0-9.]+: \[[0-9.]+\] [A-Z]+ [^\n]+\(\S+\.rs:\d+\)\n){5}\z",
    )?;

    // One ends, by another's word: the other stays at its prompt.
    let killed = s.manager("kill one")?;
    s.check(&killed, "one has been killed")?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^. one +stopped .* -$")?;
    let gone = s.manager("attach one")?;
    s.check(&gone, "one does not run; `start one` starts it")?;
    s.attach("two")?;
    let host = s.sh("hostname")?;
    s.check(&host, "^number-two$")?;

    // It can be had again, as it was at first.
    s.to_manager()?;
    let twice = s.manager("start two")?;
    s.check(&twice, "refused: it runs already")?;
    let started = s.manager("start one")?;
    s.check(&started, "one is being started")?;
    s.machine.send_line("attach one")?;
    s.expect(r"\[console of one; ")?;
    s.shell()?;
    let host = s.sh("hostname")?;
    s.check(&host, r"^\(none\)$")?;

    // A reset is a start anew, and nobody has to attach again.
    s.sh("hostname number-one")?;
    s.machine.send_line("reboot -f")?;
    s.expect(r"\[one starts again: it asked for a reset\]")?;
    s.shell()?;
    let host = s.sh("hostname")?;
    s.check(&host, r"^\(none\)$")?;
    many_lives(&mut s)?;
    s.attach("one")?;

    // A guest that switches itself off leads to the manager; the last one may stay off, as this system has it.
    s.machine.send_line("poweroff -f")?;
    s.expect(r"(?s)\[one has stopped: it powered itself off\].*\[still running: two;.*vireo> $")?;
    s.attach("two")?;
    s.machine.send_line("poweroff -f")?;
    s.expect(
        r"(?s)\[two has stopped: it powered itself off\].*\[no VM is running now\].*vireo> $",
    )?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^. one +stopped (?s:.*)^. two +stopped ")?;
    Ok(())
}

/// The power button has a guest shut down by itself; from its console to the manager's prompt.
fn power_button(s: &mut System) -> Result<()> {
    s.to_manager()?;
    let pressed = s.manager("stop two")?;
    s.check(&pressed, "the power button of two has been pressed")?;
    s.expect(r"\[two has stopped: it powered itself off\]\r\nvireo> $")?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^\* two +stopped .* -$")?;
    let off = s.manager("stop two")?;
    s.check(&off, "refused: it does not run")?;
    // What it said last can still be read.
    let gone = s.manager("attach two")?;
    s.check(
        &gone,
        r"(?s)two does not run; `start two` starts it\nits last output was:\n.*system is going down",
    )?;
    s.manager("start two")?;
    s.machine.send_line("attach two")?;
    s.expect(r"\[console of two; ")?;
    s.shell()?;
    s.sh("hostname number-two")?;
    s.to_manager()
}

/// A VM is killed and started many times: nothing of it stays, and its neighbour notices nothing. From the VM's console
/// to the manager's prompt.
fn many_lives(s: &mut System) -> Result<()> {
    s.to_manager()?;
    let mut free = Vec::new();
    for _ in 0..LIVES {
        let killed = s.manager("kill one")?;
        s.check(&killed, "^one has been killed\n$")?;
        let log = s.log_position();
        let started = s.manager("start one")?;
        s.check(&started, "^one is being started\n$")?;
        // Root says what is left when the VM's last server has been built.
        let line = s.log_after(log, r"root: .* one\.vmm runs: ")?;
        let left = line
            .split_once(" KiB; ")
            .and_then(|(_, rest)| rest.split_once(" are free"));
        free.push(left.context("no figures in root's line")?.0.to_owned());
    }
    free.dedup();
    let once = r"^\d+ KiB of RAM, \d+ slots, \d+ of root's own pages and \d+ Pools$";
    s.check(&free.join(", then "), once)?;
    s.attach("two")?;
    let host = s.sh("hostname")?;
    s.check(&host, "^number-two$")?;
    // The one that was started last comes up.
    s.to_manager()?;
    s.machine.send_line("attach one")?;
    s.expect(r"\[console of one; ")?;
    s.shell()?;
    s.to_manager()
}
