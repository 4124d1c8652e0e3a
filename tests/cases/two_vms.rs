//! Two Linux VMs under one manager: each has its console, its life and its end.

use std::collections::BTreeSet;

use anyhow::Context as _;
use system_tests::{ESCAPE, Judged, SHELL, System};

/// Interrupts that the guest has had from the power button's line.
fn acpi_interrupts(system: &mut System) -> anyhow::Result<u64> {
    let line = system.sh("grep acpi /proc/interrupts")?;
    let count = line.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    count.with_context(|| format!("no count in `{line}`"))
}

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
        "help", "vms", "attach", "start", "stop", "kill", "servers", "restart", "log", "version",
    ] {
        s.check(&help, &format!(r"(?m)^\s+{command}\b"))?;
    }
    let version = s.manager("version")?;
    s.check(&version, r"^Vireo \d+\.\d+")?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^\* one +running +256\.0 MiB +1 +\d+\.\d+ s$")?;
    s.check(&vms, r"(?m)^  two +running +256\.0 MiB +1 +\d+\.\d+ s$")?;
    let unknown = s.manager("attach three")?;
    s.check(&unknown, "there is no VM `three`")?;

    // The second has booted unseen.
    s.machine.send_line("attach two")?;
    s.expect(r"\[console of two; ")?;
    s.shell()?;
    s.sh("hostname number-two")?;
    let host = s.sh("hostname")?;
    s.check(&host, "^number-two$")?;

    // A power button is an interrupt, and no more than that to a kernel without a daemon.
    let before = acpi_interrupts(&mut s)?;
    s.to_manager()?;
    let pressed = s.manager("stop two")?;
    s.check(&pressed, "the power button of two has been pressed")?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^\* two +stopping ")?;
    s.attach("two")?;
    let after = acpi_interrupts(&mut s)?;
    s.check(
        &format!("{}", after.saturating_sub(before)),
        "^[1-9]",
    )?;

    // Every server of the system, with its figures.
    s.to_manager()?;
    let servers = s.manager("servers")?;
    let row = |name: &str| format!(r"(?m)^ *\d+  {name} +running +0 +\d[\d.]* [KM]iB +\d+\.\d+ s$");
    let mut ids = BTreeSet::new();
    for name in [
        "platform", "scheduler", "manager", "uart0", "one", "one.uart0", "one.rtc0", "two",
        "two.uart0", "two.rtc0",
    ] {
        s.check(&servers, &row(&name.replace('.', r"\.")))?;
        ids.insert(name);
    }
    let death = s.manager("servers one.uart0")?;
    s.check(&death, "one.uart0 has not died since the start")?;
    let nobody = s.manager("servers three.uart0")?;
    s.check(&nobody, "there is no such VM or server")?;
    let log = s.manager("log 5")?;
    s.check(&log, r"(?m)\A(?:~L\d+ (?:[0-9a-f]{2})+\n){5}\z")?;

    // The first dies; the second stays at its prompt.
    s.manager("attach one").ok();
    Ok(())
}
