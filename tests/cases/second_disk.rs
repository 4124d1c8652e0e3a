//! Disks on the machine's second disk under Debian's unmodified kernel; their driver dies and hangs under a checked load.

use anyhow::Result;
use system_tests::{Judged, System};
use xtask::setup::guests;

use crate::disks::{self, sum};

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

fn deaths(s: &mut System) -> Result<()> {
    disks::load(s, "conv=fsync")?;
    for servers in [&["second-disk"][..], &["second-disk", "linux.blk0"]] {
        s.kill(servers, "linux")?;
        disks::goes_on(s)?;
    }
    s.hang("hang", "second-disk", "linux")?;
    disks::goes_on(s)?;
    disks::judge(s)
}
