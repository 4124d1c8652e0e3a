//! Deaths without end: what `virtio` and `two_vms_on_a_network` do once to each server, at random moments, as often as `cargo xtask test
//! --soak` says. The moments are of the seed in `VIREO_SEED`, which is said at the start; time counts instructions, so that nothing depends on
//! how fast the host is.

use std::slice;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use system_tests::{Judged, System, deterministic};
use xtask::setup::image_maker::Firmware;

use crate::{disks, net, virtio};

/// How often each server is killed, when nothing else is said.
const KILLS: usize = 100;
/// For so many kills of a server one hang, and one death of two at once; and one of a server that scribbles over its memory before.
const TO_A_HANG: usize = 5;
const TO_A_SCRIBBLE: usize = 10;

/// What happens to servers.
#[derive(Clone, Copy, Debug)]
enum Death<'a> {
    Kill(&'a [&'a str]),
    Hang(&'a str, &'static str),
    /// With one slot of what it leaves to a successor.
    Scribble(&'a str),
}

/// Random numbers (xorshift64, by G. Marsaglia).
struct Dice(u64);

impl Dice {
    /// Of the seed that the environment names, or of the time.
    fn new() -> Result<Self> {
        let seed = match std::env::var("VIREO_SEED") {
            Ok(seed) => seed.parse().context("VIREO_SEED")?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        println!("seed {seed}");
        Ok(Self(seed.max(1)))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or_default() % end.max(1)
    }
}

fn kills() -> Result<usize> {
    match std::env::var("VIREO_SOAK") {
        Ok(kills) => kills.parse().context("VIREO_SOAK"),
        Err(_) => Ok(KILLS),
    }
}

/// All deaths, in an order of the dice's.
fn deaths<'a>(
    dice: &mut Dice,
    each: &'a [&'a str],
    both: &[&'a [&'a str]],
) -> Result<Vec<Death<'a>>> {
    let kills = kills()?;
    let hangs = kills.div_ceil(TO_A_HANG);
    let mut all = Vec::new();
    for server in each {
        all.extend((0..kills).map(|_| Death::Kill(slice::from_ref(server))));
        all.extend((0..hangs).map(|n| Death::Hang(server, ["hang", "spin"][n % 2])));
        all.extend((0..kills.div_ceil(TO_A_SCRIBBLE)).map(|_| Death::Scribble(server)));
    }
    all.extend((0..hangs).map(|n| Death::Kill(both[n % both.len()])));
    for last in (1..all.len()).rev() {
        let with = dice.below(last + 1);
        all.swap(last, with);
    }
    Ok(all)
}

/// One death after the other, each at a random moment; the load must go on after each.
fn die(
    s: &mut System,
    dice: &mut Dice,
    vm: &str,
    all: &[Death<'_>],
    mut goes_on: impl FnMut(&mut System) -> Result<()>,
) -> Result<()> {
    for (n, death) in all.iter().enumerate() {
        s.sh(&format!("sleep 0.{:03}", dice.below(200)))?;
        let done = match death {
            Death::Kill(servers) => s.kill(servers, vm),
            Death::Hang(server, how) => s.hang(how, server, vm),
            Death::Scribble(server) => s.scribble(server, false, vm).map(drop),
        };
        done.and_then(|()| goes_on(s))
            .with_context(|| format!("death {n} of {}: {death:?}", all.len()))?;
    }
    Ok(())
}

/// The longest of the load's rounds, of which each has left the time since boot in a file; in seconds.
fn longest(s: &mut System, file: &str) -> Result<f64> {
    let longest = s.sh(&format!(
        "awk 'NR>1&&$1-p>m{{m=$1-p}}{{p=$1}}END{{print m, NR}}' {file}"
    ))?;
    let (seconds, rounds) = longest.split_once(' ').context("no times")?;
    println!("longest round {seconds} s of {rounds}");
    Ok(seconds.parse()?)
}

/// Disks, entropy and consoles: a writer that checks every block, and a reader of random numbers.
#[test]
#[ignore = "an hour: cargo xtask test --soak"]
fn soak_disks() -> Judged {
    let mut dice = Dice::new()?;
    let mut s = System::boot_with("guests/virtio.toml", Firmware::Bios, &deterministic())?;
    s.shell()?;
    disks::load(&mut s, "")?;
    virtio::begin_to_read(&mut s)?;
    let each = ["linux.blk0", "store", "linux.rng0", "linux.console0"];
    let both: [&[&str]; 3] = [
        &["store", "linux.blk0"],
        &["linux.blk0", "linux.rng0"],
        &["linux.console0", "store"],
    ];
    let all = deaths(&mut dice, &each, &both)?;
    die(&mut s, &mut dice, "linux", &all, |s| {
        disks::goes_on(s)?;
        virtio::reads_on(s)
    })?;
    disks::judge(&mut s)?;
    virtio::judge_reads(&mut s)?;
    s.no_complaints("virtio|vd[ab]|I/O|rng|hvc|irq")?;
    println!("{} deaths under a writer and a reader", all.len());
    longest(&mut s, "/tmp/t")?;
    longest(&mut s, "/tmp/rt")?;
    // Without what a predecessor knew.
    for (server, device, driver) in [
        ("linux.rng0", "virtio0", "virtio_rng"),
        ("linux.blk0", "virtio1", "virtio_blk"),
    ] {
        virtio::scribble_and_lose(&mut s, server, "linux")?;
        virtio::rebind(&mut s, device, driver)?;
    }
    s.sh("rm -r /tmp/full /tmp/last /tmp/enough /tmp/over /tmp/j /tmp/sizes")?;
    disks::load(&mut s, "")?;
    virtio::begin_to_read(&mut s)?;
    disks::goes_on(&mut s)?;
    virtio::reads_on(&mut s)?;
    disks::judge(&mut s)?;
    virtio::judge_reads(&mut s)?;
    Ok(())
}

/// Network cards and their switch: streams whose bytes are summed.
#[test]
#[ignore = "an hour: cargo xtask test --soak"]
fn soak_net() -> Judged {
    let mut dice = Dice::new()?;
    let mut s = System::boot_with("guests/two-net.toml", Firmware::Bios, &deterministic())?;
    s.shell()?;
    s.sh("ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up")?;
    let sum = net::serve(&mut s)?;
    net::go(&mut s, "two")?;
    s.sh("ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up; ethtool -L eth0 combined 2")?;
    net::stream(&mut s)?;
    net::more(&mut s)?;
    let each = ["switch", "one.net0", "two.net0"];
    let both: [&[&str]; 3] = [
        &["switch", "two.net0"],
        &["one.net0", "two.net0"],
        &["one.net0", "switch"],
    ];
    let all = deaths(&mut dice, &each, &both)?;
    die(&mut s, &mut dice, "two", &all, net::more)?;
    net::judge(&mut s, &sum)?;
    println!("{} deaths under streams", all.len());
    longest(&mut s, "/tmp/t")?;
    // Without what a predecessor knew.
    virtio::scribble_and_lose(&mut s, "two.net0", "two")?;
    virtio::rebind(&mut s, "virtio0", "virtio_net")?;
    s.sh("rm /tmp/enough /tmp/over; ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up")?;
    net::stream(&mut s)?;
    net::more(&mut s)?;
    net::judge(&mut s, &sum)?;
    Ok(())
}
