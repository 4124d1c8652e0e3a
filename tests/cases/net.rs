//! Two VMs on one network, by Debian's own virtio_net; the switch and the device models die under a checked stream.

use anyhow::Result;
use system_tests::{Judged, System};

use crate::virtio::{memory, scribble_and_mend};

/// MiB of a checked stream.
const STREAM: usize = 4;
/// How often each server dies while streams run, and then two at once.
const KILLS: usize = 1;

/// From one VM's prompt to the other's.
pub fn go(s: &mut System, vm: &str) -> Result<()> {
    s.to_manager()?;
    s.attach(vm)
}

/// Streams that have arrived, by their checksums.
fn arrived(s: &mut System) -> Result<usize> {
    let count = s.sh("wc -l </tmp/sums")?;
    Ok(count.trim().parse()?)
}

/// By which pairs of queues frames have gone, by the driver's own count: received by 0 and 1, sent by 0 and 1.
fn by_pair(s: &mut System) -> Result<[u64; 4]> {
    let counts = s.sh(
        "ethtool -S eth0 | sed -n 's/^ *\\(.x\\)_queue_\\([01]\\)_packets: /\\1\\2 /p' | sort",
    )?;
    let mut lines = counts.lines();
    let mut all = [0; 4];
    for (to, name) in all.iter_mut().zip(["rx0", "rx1", "tx0", "tx1"]) {
        let line = lines.next().unwrap_or_default();
        let count = line.trim().strip_prefix(name).map(str::trim);
        *to = count.unwrap_or_default().parse()?;
    }
    Ok(all)
}

/// Many short conversations, which a driver spreads over its pairs: each is asked and answered by the same one.
fn by_both_pairs(s: &mut System) -> Result<()> {
    let before = by_pair(s)?;
    let small =
        s.sh("for n in $(seq 24); do wget -q -O - http://10.0.0.1/small; done | uniq -c")?;
    s.check(&small, r"^ *24 small$")?;
    let after = by_pair(s)?;
    for (before, after) in before.iter().zip(after) {
        s.check(&format!("{}", after > before + 4), "true")?;
    }
    Ok(())
}

/// Serves what is streamed; gives its checksum.
pub fn serve(s: &mut System) -> Result<String> {
    s.sh(&format!(
        "mkdir /tmp/www; dd if=/dev/urandom of=/tmp/www/data bs=1M count={STREAM} 2>/dev/null; echo small >/tmp/www/small; httpd -h /tmp/www; sha256sum </tmp/www/data"
    ))
}

/// One stream after the other.
pub fn stream(s: &mut System) -> Result<()> {
    s.sh("( (until [ -e /tmp/enough ]; do wget -q -O - http://10.0.0.1/data | sha256sum; cat /proc/uptime >>/tmp/t; done >/tmp/sums 2>&1; touch /tmp/over) & )").map(drop)
}

/// Another of them has arrived.
pub fn more(s: &mut System) -> Result<()> {
    let before = arrived(s)?;
    s.sh(&format!(
        "until [ $(wc -l </tmp/sums) -gt {before} ]; do sleep 0.1; done"
    ))
    .map(drop)
}

/// Ends them; all have arrived whole.
pub fn judge(s: &mut System, sum: &str) -> Result<()> {
    s.sh("touch /tmp/enough; until [ -e /tmp/over ]; do sleep 0.1; done")?;
    let sums = s.sh("sort /tmp/sums | uniq")?;
    s.check(&sums, &format!("^{}$", regex::escape(sum)))?;
    s.no_complaints("virtio|eth0|irq")
}

/// A guest that starts beside another, which takes the processor from it at any moment, knows the rate of its clock all the same: it is
/// told, and measures nothing.
fn clock(s: &mut System) -> Result<()> {
    let takes = s.sh("k=$(sed 's/.*tsc_early_khz=//' /proc/cmdline); dmesg | grep -c \"tsc: Detected $((k / 1000)).$(printf %03d $((k % 1000))) MHz processor\"")?;
    s.check(&takes, "^1$")
}

/// Ping, both pairs of a card's queues, streams that are checked, deaths of all that carries them.
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
    clock(&mut s)?;
    go(&mut s, "two")?;
    let two = s.sh(&up(2))?;
    clock(&mut s)?;
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
    s.check(&features, r"^11.{3}1.11..11..1111...11.{10}0")?;
    // A guest of one processor uses one pair of queues until it is told otherwise.
    let pairs = "ls /sys/class/net/eth0/queues | xargs";
    let queues = s.sh(pairs)?;
    s.check(&queues, "^rx-0 tx-0$")?;
    s.sh("ethtool -L eth0 combined 2")?;
    let queues = s.sh(pairs)?;
    s.check(&queues, "^rx-0 rx-1 tx-0 tx-1$")?;
    memory(&mut s, "two")?;
    // Another address, while the card is up: what goes to the one before is not for it any more.
    let other = s.sh("echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_notify; ip link set eth0 address 02:56:00:00:00:99; ping -c 2 10.0.0.1 | grep received")?;
    s.check(&other, "2 packets received")?;

    go(&mut s, "one")?;
    // One guest's queues are packed, the other's are not to be.
    let packed = s.sh("cut -c 35 /sys/bus/virtio/devices/virtio0/features")?;
    s.check(&packed, "^1$")?;
    let sum = serve(&mut s)?;
    go(&mut s, "two")?;
    by_both_pairs(&mut s)?;
    stream(&mut s)?;
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
    // Above everything that runs here: all stands still until root ends it.
    s.hang("spin", "switch", "two")?;
    more(&mut s)?;
    // One that scribbles over its memory harms neither the switch nor the other VM, and nothing of what comes after.
    scribble_and_mend(&mut s, "two.net0", "two")?;
    more(&mut s)?;
    // The successor of its model goes on with both.
    by_both_pairs(&mut s)?;
    judge(&mut s, &sum)?;
    Ok(())
}
