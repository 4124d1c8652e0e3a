//! Disks under Debian's unmodified kernel, by its own virtio_blk; their servers may die.

use anyhow::Result;
use system_tests::{Judged, System};

/// Reading and writing, sizes and names, what is refused.
#[test]
fn disks() -> Judged {
    let mut s = System::boot("guests/blk.toml")?;
    s.shell()?;
    let sizes = s.sh("cat /sys/block/vda/size /sys/block/vda/serial /sys/block/vda/ro; cat /sys/block/vdb/size /sys/block/vdb/serial /sys/block/vdb/ro")?;
    s.check(&sizes, "^131072\ndata0\n32768\n01234567891$")?;
    let out = s.sh("dd if=/dev/vda bs=4k count=16 2>/dev/null | sha256sum; dd if=/dev/urandom of=/tmp/r bs=4k count=256; dd if=/tmp/r of=/dev/vda bs=4k seek=100; sync; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=4k skip=100 count=256 | cmp - /tmp/r; dmesg | tail")?;
    println!("{out}");
    Ok(())
}
