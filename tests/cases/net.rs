//! Two VMs on one network, by Debian's own virtio_net; the switch and the device models die under a checked stream.

use anyhow::Result;
use system_tests::{Judged, System};

/// MiB of a checked stream.
const STREAM: usize = 4;
/// How often each server dies while streams run, and then two at once.
const KILLS: usize = 1;

/// From one VM's prompt to the other's.
fn go(s: &mut System, vm: &str) -> Result<()> {
    s.to_manager()?;
    s.attach(vm)
}

/// Streams that have arrived, by their checksums.
fn arrived(s: &mut System) -> Result<usize> {
    let count = s.sh("wc -l </tmp/sums")?;
    Ok(count.trim().parse()?)
}

/// Ping, streams that are checked, deaths of all that carries them.
#[test]
fn two_vms_on_a_network() -> Judged {
    let mut s = System::boot("guests/two-net.toml")?;
    s.shell()?;
    let up = |n| {
        format!(
            "ip addr add 10.0.0.{n}/24 dev eth0; ip link set eth0 up; cat /sys/class/net/eth0/address"
        )
    };
    let one = s.sh(&up(1))?;
    go(&mut s, "two")?;
    let two = s.sh(&up(2))?;
    let both = format!("{one} {two}");
    s.check(&both, r"^02:56:(\S+) 02:56:(\S+)$")?;
    s.check(&format!("{}", one != two), "true")?;
    // Frames of all lengths that a ping can have.
    let pings =
        s.sh("for n in 0 56 1400 9000 40000; do ping -c 2 -s $n 10.0.0.1 | grep received; done")?;
    s.check(
        &pings,
        r"^(?:2 packets transmitted, 2 packets received, 0% packet loss\n?){5}$",
    )?;
    // What the guests leave to be done is agreed on: checksums and segments.
    let features = s.sh("cat /sys/bus/virtio/devices/virtio0/features")?;
    s.check(&features, r"^11.{3}1.11..11..11.{17}0")?;

    go(&mut s, "one")?;
    // One guest's queues are packed, the other's are not to be.
    let packed = s.sh("cut -c 35 /sys/bus/virtio/devices/virtio0/features")?;
    s.check(&packed, "^1$")?;
    let sum = s.sh(&format!(
        "mkdir /tmp/www; dd if=/dev/urandom of=/tmp/www/data bs=1M count={STREAM} 2>/dev/null; httpd -h /tmp/www; sha256sum </tmp/www/data"
    ))?;
    go(&mut s, "two")?;
    s.sh("( (until [ -e /tmp/enough ]; do wget -q -O - http://10.0.0.1/data | sha256sum; done >/tmp/sums 2>&1; touch /tmp/over) & )")?;
    let more = |s: &mut System| -> Result<()> {
        let before = arrived(s)?;
        s.sh(&format!(
            "until [ $(wc -l </tmp/sums) -gt {before} ]; do sleep 1; done"
        ))
        .map(drop)
    };
    more(&mut s)?;
    for _ in 0..KILLS {
        for servers in [
            &["switch"][..],
            &["one.net0"],
            &["two.net0"],
            &["switch", "two.net0"],
        ] {
            s.kill(servers, "two")?;
            more(&mut s)?;
        }
    }
    s.sh("touch /tmp/enough; until [ -e /tmp/over ]; do sleep 1; done")?;
    let sums = s.sh("sort /tmp/sums | uniq")?;
    s.check(&sums, &format!("^{}$", regex::escape(&sum)))?;
    let complaints = s.sh("dmesg -r | grep '^<[0-3]>' | grep -i -E 'virtio|eth0|irq' | cat")?;
    s.check(&format!("[{complaints}]"), r"^\[\]$")?;
    Ok(())
}
