//! Two Linux VMs under one manager: each has its console, its life and its end.

use anyhow::{Context as _, Result};
use system_tests::{Judged, System};
use xtask::build::cpio::Cpio;
use xtask::description::{self, Description};
use xtask::emulator::Options;
use xtask::host;
use xtask::setup::guests;
use xtask::setup::image_maker::Firmware;

/// The two Linux VMs, each with the kernel's module for power buttons in its initramfs: without one the kernel does not
/// even switch their interrupt on.
fn two_linux() -> Result<Description> {
    let modules = guests::cloud_kernel()?.with_file_name("../lib/modules");
    let version = std::fs::read_dir(&modules)?
        .next()
        .context("no modules")??;
    let button = host::read(&version.path().join("kernel/drivers/acpi/button.ko"))?;
    let mut more = Cpio::default();
    more.file("button.ko", 0o644, &button);
    // Linux unpacks one archive behind the other.
    let mut bytes = host::read(&guests::busybox_initramfs()?)?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(more.finish());
    let folder = host::target().join("tests");
    host::make_dir(&folder)?;
    host::write_whole(&folder.join("initramfs"), &bytes)?;

    let text = host::read(&host::root().join("guests/two-linux.toml"))?;
    let text = String::from_utf8(text)?.replace("debian:busybox", "initramfs");
    let mut description = description::parse(&text, &folder.join("two-linux.toml"), None)?;
    description.stem = "two-linux-button".to_owned();
    Ok(description)
}

/// Interrupts that the guest has had from the power button's line.
fn power_button_interrupts(system: &mut System) -> Result<u64> {
    let line = system.sh("grep acpi /proc/interrupts")?;
    let count = line.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    count.with_context(|| format!("no count in `{line}`"))
}

#[test]
fn two_vms() -> Judged {
    let mut s = System::boot_description(&two_linux()?, Firmware::Bios, &Options::default())?;
    // The terminal is the first VM's.
    s.expect_boot(r"\[console of one; Ctrl-\] leads to the manager\]")?;
    s.shell()?;
    s.sh("hostname number-one")?;

    s.to_manager()?;
    let help = s.manager("help")?;
    for command in [
        "help", "vms", "attach", "start", "stop", "kill", "servers", "cpus", "restart", "hang", "log",
        "version",
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

    // A power button is an interrupt, and no more than that to a kernel without a daemon.
    s.sh("insmod /button.ko")?;
    let before = power_button_interrupts(&mut s)?;
    s.to_manager()?;
    let pressed = s.manager("stop two")?;
    s.check(&pressed, "the power button of two has been pressed")?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^\* two +stopping ")?;
    s.attach("two")?;
    let after = power_button_interrupts(&mut s)?;
    s.check(&format!("{after} > {before}: {}", after > before), "true")?;

    // Every server of the system, with its figures.
    s.to_manager()?;
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
    s.check(&log, r"\A(?:~L\d+ (?:[0-9a-f]{2})+\n){5}\z")?;

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
