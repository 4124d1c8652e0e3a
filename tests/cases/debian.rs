//! Two Debian systems as their makers install them: systemd, a network between them, disks on the machine's second disk.

use std::time::Duration;

use anyhow::Result;
use system_tests::{Judged, System};
use xtask::emulator::{Exit, Options};
use xtask::setup::image_maker::Firmware;

/// Bound of all of a Debian system's start.
const START: Duration = Duration::from_secs(1500);
/// Bound of what takes both of them long: the stream, an end in order.
const LONG: Duration = Duration::from_secs(900);
/// MiB of the stream.
const STREAM: usize = 64;

/// Logs in on the console, whose shell is then one that does not draw; waits for the end of the system's start.
fn log_in(s: &mut System) -> Result<()> {
    s.machine.expect("vireo login: $", START)?;
    s.machine.send_line("root")?;
    s.machine.expect("Password: $", LONG)?;
    s.machine.send_line("vireo")?;
    s.machine.expect("root@vireo:[^\\r\\n]*# $", LONG)?;
    // What is typed is echoed: the prompt appears whole in the output alone.
    s.machine.send_line("exec env PS1='/ ''# ' TERM=dumb sh")?;
    s.machine.expect(r"/ # $", LONG)?;
    s.machine
        .send_line("systemctl is-system-running --wait; echo st''ate $?")?;
    let state = s.machine.expect(r"(?s)[a-z]+\r\nstate \d+\r\n", START)?;
    s.check(&state, "^running\r\nstate 0\r\n$")?;
    s.machine.expect(r"/ # $", LONG).map(drop)
}

/// Has the shell do something that takes long, and waits for its end.
fn long(s: &mut System, command: &str) -> Result<()> {
    s.machine.send_line(&format!("{command}; echo do''ne $?"))?;
    let end = s.machine.expect(r"done \d+\r\n", LONG)?;
    s.check(&end, "^done 0\r\n$")?;
    s.machine.expect(r"/ # $", LONG).map(drop)
}

fn go(s: &mut System, vm: &str) -> Result<()> {
    s.to_manager()?;
    s.attach(vm)
}

/// From the console of a VM that has a login prompt by now.
fn up(s: &mut System, n: usize) -> Result<()> {
    s.sh(&format!(
        "d=$(ls /sys/class/net | grep -v lo); ip addr add 10.0.0.{n}/24 dev $d; ip link set $d up"
    ))
    .map(drop)
}

/// systemd to a login prompt, twice; ping, a checked stream, a death of the disks' driver, an end in order.
#[test]
#[ignore = "two whole systems start in a nested emulator: five minutes and more; run it by name"]
fn two_debians() -> Judged {
    let options = Options {
        cpus: 2,
        ..Options::default()
    };
    let mut s = System::boot_with("guests/debian.toml", Firmware::Bios, &options)?;
    log_in(&mut s)?;
    up(&mut s, 1)?;
    s.to_manager()?;
    s.machine.send_line("attach two")?;
    // Its prompt may have been shown before.
    s.expect(r"\[console of two; ")?;
    s.machine.send_line("")?;
    log_in(&mut s)?;
    up(&mut s, 2)?;
    let root = s.sh("findmnt -n -o SOURCE,FSTYPE,OPTIONS /")?;
    s.check(&root, "^/dev/vda +ext4 +rw")?;
    let pings = s.sh("ping -q -c 3 10.0.0.1 | grep received")?;
    s.check(&pings, "3 packets transmitted, 3 received, 0% packet loss")?;

    // From disk to disk.
    s.sh("((nc -l 5000 >/root/got; touch /root/end) &)")?;
    go(&mut s, "one")?;
    long(
        &mut s,
        &format!("head -c {STREAM}M /dev/urandom >/root/data; sync"),
    )?;
    long(&mut s, "nc -N 10.0.0.2 5000 </root/data")?;
    long(&mut s, "sha256sum </root/data >/root/sum")?;
    let sent = s.sh("cat /root/sum; wc -c </root/data")?;
    go(&mut s, "two")?;
    long(&mut s, "until [ -e /root/end ]; do sleep 1; done; sync")?;
    s.sh("echo 3 >/proc/sys/vm/drop_caches")?;
    // Read from the disk, whose driver dies meanwhile.
    s.sh("( (sha256sum </root/got >/root/sum.new; mv /root/sum.new /root/sum) & )")?;
    s.to_manager()?;
    let log = s.restart("second-disk")?;
    s.log_after(log, "second-disk: .*after a predecessor: true")?;
    s.attach("two")?;
    long(&mut s, "until [ -e /root/sum ]; do sleep 1; done")?;
    let got = s.sh("cat /root/sum; wc -c </root/got")?;
    s.check(&got, &format!("^{}$", regex::escape(&sent)))?;
    s.check(&got, &format!("\n{}$", STREAM << 20))?;

    let complaints =
        s.sh("dmesg -r | grep '^<[0-3]>' | grep -i -E 'virtio|vda|I/O|irq|EXT4' | cat; systemctl --failed --no-legend | cat")?;
    s.check(&format!("[{complaints}]"), r"^\[\]$")?;
    let log = s.log_position();
    s.machine.send_line("poweroff")?;
    s.machine.expect_log("root: .*VM 1 is down", log, LONG)?;
    go(&mut s, "one")?;
    s.machine.send_line("poweroff")?;
    s.machine.expect_log("root: .*VM 0 is down", log, LONG)?;
    s.ends(Exit::PowerOff)?;
    Ok(())
}
