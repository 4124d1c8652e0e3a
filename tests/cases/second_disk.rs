//! Disks on the machine's second disk under Debian's unmodified kernel; their driver dies and hangs under a checked load.

use anyhow::Result;
use system_tests::{Judged, System};
use xtask::setup::guests;

use crate::disks::sum;

/// The image is there, a load that checks each block goes on through deaths of the driver and of the device model, and a hang.
#[test]
fn second_disk() -> Judged {
    let mut s = System::boot("tests/systems/second-disk.toml")?;
    s.shell()?;
    let said = s.log_after(0, "second-disk: .*its DMA is trusted")?;
    s.check(&said, "WARN")?;
    s.log_after(0, "second-disk: .*takes discards: true")?;
    contents(&mut s)?;
    deaths(&mut s)?;
    s.no_complaints("virtio|vd[ab]|I/O|irq")?;
    Ok(())
}

fn contents(s: &mut System) -> Result<()> {
    let image = guests::busybox_initramfs()?;
    let len = std::fs::metadata(&image)?.len();
    let wanted = sum(&image)?;
    let what = s.sh("for d in vda vdb; do for f in size serial ro queue/discard_granularity; do echo -n $(cat /sys/block/$d/$f) ''; done; echo; done")?;
    s.check(&what, "^131072 data 0 4096 \n32768 install 1 0$")?;
    for disk in ["vda", "vdb"] {
        let is = s.sh(&format!("head -c {len} /dev/{disk} | sha256sum"))?;
        s.check(&is, &format!("^{wanted}  -$"))?;
    }
    // Nobody needs the blocks from 8 MiB on, and the disk is told; what is around them stays.
    let kept = s.sh("a='dd if=/dev/vda bs=1M count=1 iflag=direct'; ($a skip=7; $a skip=10) 2>/dev/null | sha256sum >/tmp/was; blkdiscard -o 8M -l 2M /dev/vda && echo told; ($a skip=7; $a skip=10) 2>/dev/null | sha256sum | cmp - /tmp/was && echo kept; ! blkdiscard /dev/vdb 2>/dev/null && echo refused")?;
    s.check(&kept, "^told\nkept\nrefused$")?;
    // Three sectors over the border of two blocks: what is around them stays. The other disk is not written, even by one who insists.
    let around = s.sh("dd if=/dev/vda bs=4k count=3 of=/tmp/was 2>/dev/null; head -c 1536 /dev/urandom >/tmp/a; for f in /tmp/was /dev/vda; do dd if=/tmp/a of=$f bs=512 seek=7 conv=notrunc,fsync; done 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=4k count=3 2>/dev/null | cmp - /tmp/was && echo same; dd if=/tmp/a of=/dev/vdb count=1 oflag=direct 2>&1 | cat")?;
    s.check(&around, "(?s)^same.*not permitted")
}

/// Has servers killed and sees them run again; from the VM's prompt and back to it.
fn kill(s: &mut System, servers: &[&str]) -> Result<()> {
    s.to_manager()?;
    for server in servers {
        let log = s.restart(server)?;
        s.log_after(log, &format!("{server}: .*after a predecessor: true"))?;
    }
    s.attach("linux")
}

fn deaths(s: &mut System) -> Result<()> {
    // Each piece 16 blocks at one of 40 places; read back at once, and all of them at the end. It is no job of the shell's.
    s.sh(concat!(
        "mkdir /tmp/j; echo 'n=0; until [ -e /tmp/enough ]; do n=$((n + 1)); at=$((5000 + n % 40 * 17)); ",
        "head -c 65536 /dev/urandom >/tmp/w; sha256sum </tmp/w >/tmp/j/$at; ",
        "dd if=/tmp/w of=/dev/vda bs=16k seek=$((at * 4096)) oflag=direct,seek_bytes conv=fsync 2>/dev/null || echo write $n >>/tmp/bad; ",
        "dd if=/dev/vda bs=4k skip=$at count=16 iflag=direct 2>/dev/null | cmp - /tmp/w || echo read $n >>/tmp/bad; ",
        "echo $n >/tmp/n; done; touch /tmp/last' >/tmp/load"
    ))?;
    s.sh("( sh /tmp/load >/dev/null 2>&1 & )")?;
    let go_on = "until [ -e /tmp/n ]; do sleep 0.1; done; n=$(cat /tmp/n); until [ $(cat /tmp/n) -gt $((n + 1)) ]; do sleep 0.1; done; echo on";
    for servers in [&["second-disk"][..], &["second-disk", "linux.blk0"]] {
        kill(s, servers)?;
        let on = s.sh(go_on)?;
        s.check(&on, "(?m)^on$")?;
    }
    s.to_manager()?;
    let log = s.log_position();
    let hung = s.manager("hang second-disk")?;
    s.check(&hung, "second-disk is suspended")?;
    s.log_after(log, "root: .*second-disk ends: Hung")?;
    s.log_after(log, "second-disk: .*after a predecessor: true")?;
    s.attach("linux")?;
    let on = s.sh(go_on)?;
    s.check(&on, "(?m)^on$")?;
    let all = s.sh(concat!(
        "touch /tmp/enough; until [ -e /tmp/last ]; do sleep 0.1; done; cat /tmp/bad 2>/dev/null; cat /tmp/n; echo 3 >/proc/sys/vm/drop_caches; ",
        "for f in /tmp/j/*; do dd if=/dev/vda bs=4k skip=${f##*/} count=16 2>/dev/null | sha256sum | cmp - $f; done; echo checked"
    ))?;
    s.check(&all, "^\\d+\nchecked$")
}
