//! Disks under Debian's unmodified kernel, by its own virtio_blk; device models and `store` die under a checked load.

use anyhow::{Context, Result, bail};
use system_tests::System;
use xtask::setup::guests;

use crate::virtio::{rebind, scribble_and_lose, scribble_and_mend};

/// How often each server dies while it is in use, and then both at once.
const KILLS: usize = 1;

/// Reading and writing, sizes and names, what is refused, deaths, and a disk whose memory is used up: from the prompt of a guest and back.
pub fn disks(s: &mut System) -> Result<()> {
    identity(s)?;
    contents(s)?;
    by_memory(s)?;
    deaths(s)?;
    s.no_complaints("virtio|vd[ab]|I/O|irq")?;
    full(s)
}

fn identity(s: &mut System) -> Result<()> {
    let what = s.sh(
        "for d in vda vdb; do for f in size serial ro queue/physical_block_size queue/discard_granularity queue/write_zeroes_max_bytes; do echo -n $(cat /sys/block/$d/$f) ''; done; echo; done",
    )?;
    s.check(
        &what,
        "^131072 data 0 4096 4096 16777216 \n32768 0123456789 1 4096 0 0$",
    )?;
    // One queue of two is used: the guest has one processor.
    let vectors = s.sh("grep -c -E 'PCI-MSI.*virtio[12]-req.0' /proc/interrupts")?;
    s.check(&vectors, "^2$")?;
    // The entropy source's and one disk's queues are packed; the other disk's are not to be.
    let packed = s.sh("cut -c 35 /sys/bus/virtio/devices/virtio[012]/features")?;
    s.check(&packed, r"^1\r?\n1\r?\n0$")?;
    // Its registers come first in memory, and its driver takes them there.
    let claimed = s.sh(
        "for d in 1 2; do p=$(basename $(readlink -f /sys/bus/virtio/devices/virtio$d/..)); for f in ioports iomem; do grep -A 1 \"$p\" /proc/$f | grep -c virtio-pci-modern; done; done",
    )?;
    s.check(&claimed, "^1\n0\n0\n1$")
}

/// A disk whose registers are driven in memory is read while its server dies.
fn by_memory(s: &mut System) -> Result<()> {
    s.sh("sha256sum /dev/vdb >/tmp/v1; echo 3 >/proc/sys/vm/drop_caches")?;
    s.sh("( (sha256sum /dev/vdb >/tmp/v2; touch /tmp/v) & )")?;
    s.kill(&["linux.blk1"], "linux")?;
    let same =
        s.sh("until [ -e /tmp/v ]; do sleep 0.1; done; cmp /tmp/v1 /tmp/v2 && wc -c </tmp/v2")?;
    s.check(&same, r"^[1-9]\d*$")
}

/// What the host's own program says of a part of a file.
pub fn sum(path: &std::path::Path) -> Result<String> {
    let output = std::process::Command::new("sha256sum")
        .arg(path)
        .output()
        .context("running sha256sum")?;
    let text = String::from_utf8(output.stdout)?;
    match text.split_whitespace().next() {
        Some(sum) if output.status.success() => Ok(sum.to_owned()),
        _ => bail!("sha256sum says: {text}"),
    }
}

fn contents(s: &mut System) -> Result<()> {
    let image = guests::busybox_initramfs()?;
    let len = std::fs::metadata(&image)?.len();
    let (wanted, after) = (sum(&image)?, len.div_ceil(4096));
    // The image is there, and after it are zeroes.
    for disk in ["vda", "vdb"] {
        let is = s.sh(&format!(
            "head -c {len} /dev/{disk} | sha256sum; dd if=/dev/{disk} bs=4k skip={after} count=64 2>/dev/null | tr -d '\\0' | wc -c"
        ))?;
        s.check(&is, &format!("^{wanted}  -\n0$"))?;
    }
    // Parts of blocks, over a border and over the image's end; what is around them stays.
    let (at, end) = (len / 512 - 1, len / 512 + 40);
    let is = s.sh(&format!(
        "head -c 6000 /dev/urandom >/tmp/a; cp /dev/vda /tmp/disk; for f in /tmp/disk /dev/vda; do dd if=/tmp/a of=$f bs=512 seek={at} conv=notrunc; done 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; head -c $(({end} * 512)) /tmp/disk | sha256sum >/tmp/s; head -c $(({end} * 512)) /dev/vda | sha256sum | cmp - /tmp/s && echo same; rm /tmp/disk"
    ))?;
    s.check(&is, "^same$")?;
    // The read-only disk is not written, even by one who insists.
    let refused = s.sh("dd if=/tmp/a of=/dev/vdb count=1 oflag=direct 2>&1 | cat; head -c 512 /dev/vdb | cmp - /tmp/a | wc -l")?;
    s.check(&refused, r"(?ms)not permitted.*^1$")?;
    // What is discarded reads as zeroes, and the rest stays.
    let zeroes = s.sh("dd if=/tmp/a of=/dev/vda bs=4k seek=9000 count=1 2>/dev/null; sync; blkdiscard -o $((9000 * 4096)) -l 4096 /dev/vda; dd if=/dev/vda bs=4k skip=9000 count=1 iflag=direct 2>/dev/null >/tmp/z; wc -c </tmp/z; tr -d '\\0' </tmp/z | wc -c")?;
    s.check(&zeroes, "^4096\n0$")
}

/// Begins to write, by `dd` with these flags, and checks each piece that is written.
pub fn load(s: &mut System, flags: &str) -> Result<()> {
    // Each piece 16 blocks at one of 40 places, no two of which touch; the sums of all are kept. It is no job of the shell's.
    s.sh(&format!(concat!(
        "mkdir /tmp/j; echo 'n=0; until [ -e /tmp/full ]; do n=$((n + 1)); at=$((5000 + n % 40 * 17)); ",
        "head -c 65536 /dev/urandom >/tmp/w; sha256sum </tmp/w >/tmp/j/$at; ",
        "dd if=/tmp/w of=/dev/vda bs=16k seek=$((at * 4096)) oflag=direct,seek_bytes {} 2>/dev/null || echo write $n >>/tmp/bad; ",
        "dd if=/dev/vda bs=4k skip=$at count=16 iflag=direct 2>/dev/null | cmp - /tmp/w || echo read $n >>/tmp/bad; ",
        "echo $n >/tmp/n; cat /proc/uptime >>/tmp/t; done; touch /tmp/last' >/tmp/load"
    ), flags))?;
    s.sh("( sh /tmp/load >/dev/null 2>&1 & )").map(drop)
}

/// More has been written since: one piece, at least, was begun after the call.
pub fn goes_on(s: &mut System) -> Result<()> {
    let on = s.sh("until [ -e /tmp/n ]; do sleep 0.1; done; n=$(cat /tmp/n); until [ $(cat /tmp/n) -gt $((n + 1)) ]; do sleep 0.1; done; echo on")?;
    s.check(&on, "(?m)^on$")
}

/// Ends the writing; all that was written is there.
pub fn judge(s: &mut System) -> Result<()> {
    let all = s.sh(concat!(
        "touch /tmp/full; until [ -e /tmp/last ]; do sleep 0.1; done; cat /tmp/bad 2>/dev/null; cat /tmp/n; echo 3 >/proc/sys/vm/drop_caches; ",
        "for f in /tmp/j/*; do dd if=/dev/vda bs=4k skip=${f##*/} count=16 2>/dev/null | sha256sum | cmp - $f; done; echo checked"
    ))?;
    s.check(&all, "^\\d+\nchecked$")
}

/// A writer that checks each piece that it writes, and at the end all of them again, while the servers die under it.
fn deaths(s: &mut System) -> Result<()> {
    load(s, "")?;
    for servers in [&["linux.blk0"][..], &["store"], &["store", "linux.blk0"]] {
        for _ in 0..KILLS {
            s.kill(servers, "linux")?;
            goes_on(s)?;
        }
    }
    s.hang("hang", "store", "linux")?;
    goes_on(s)?;
    // What is under way is done again, by one slot of the state page; and the maps speak for themselves.
    scribble_and_mend(s, "linux.blk0", "linux")?;
    let log = s.scribble("store", false, "linux")?;
    s.log_after(log, "store: .*disk data: .*taken over: true")?;
    goes_on(s)?;
    judge(s)?;
    // Without either slot the driver must begin anew; the disk is what it was.
    let sum = "head -c 65536 /dev/vda | sha256sum; sha256sum </tmp/w; dd if=/dev/vda bs=4k skip=$(ls -t /tmp/j | head -1) count=16 iflag=direct 2>/dev/null | sha256sum";
    let before = s.sh(sum)?;
    scribble_and_lose(s, "linux.blk0", "linux")?;
    rebind(s, "virtio1", "virtio_blk")?;
    let after = s.sh(sum)?;
    s.check(&format!("{before} {after} {}", before == after), "true$")
}

/// More is written than there is memory for: an error for the guest and a word for the operator; the rest of the disk is well.
fn full(s: &mut System) -> Result<()> {
    let log = s.log_position();
    let refused =
        s.sh("dd if=/dev/zero of=/dev/vda bs=64k seek=200 count=160 oflag=direct 2>&1 | cat")?;
    s.check(&refused, "(?m)I/O error|Input/output error|No space")?;
    s.log_after(
        log,
        "store: .*disk data: all 8192 KiB of its memory are used",
    )?;
    let again = s.sh("blkdiscard -o $((200 * 65536)) -l $((160 * 65536)) /dev/vda; dd if=/tmp/w of=/dev/vda bs=64k seek=300 oflag=direct 2>/dev/null; dd if=/dev/vda bs=64k skip=300 count=1 iflag=direct 2>/dev/null | cmp - /tmp/w && echo well")?;
    s.check(&again, "(?m)^well$")
}
