//! Guest files from Debian's packages: the cloud kernel, and an initramfs made around busybox.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::apt;
use crate::{build::cpio::Cpio, host};

/// First program of the Linux guest: mounts what a shell needs and keeps one on the console.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
export HOME=/ TERM=vt100 PATH=/bin:/sbin:/usr/bin:/usr/sbin
cd /
while :; do setsid cttyhack sh; done
";

/// Debian's cloud kernel: its `vmlinuz`.
pub fn cloud_kernel() -> Result<PathBuf> {
    let is_real = |name: &str| {
        let version = name.strip_prefix("linux-image-");
        version.is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
    };
    let dir = apt::unpacked("linux-image-cloud-amd64", is_real)?.join("boot");
    let entries = std::fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut files = entries.filter_map(|e| e.ok().map(|e| e.path()));
    files
        .find(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-"))
        })
        .with_context(|| format!("no vmlinuz in {}", dir.display()))
}

/// An initramfs with Debian's static busybox and a shell on the console.
pub fn busybox_initramfs() -> Result<PathBuf> {
    let dir = apt::unpacked("busybox-static", |name| name == "busybox-static")?;
    let bin = ["bin/busybox", "usr/bin/busybox"].map(|b| dir.join(b));
    let busybox = bin
        .iter()
        .find(|p| p.exists())
        .context("no busybox in busybox-static")?;
    let out = dir.join("initramfs.cpio.gz");
    let bytes = initramfs(&host::read(busybox)?)?;
    if std::fs::read(&out).is_ok_and(|old| old == bytes) {
        return Ok(out);
    }
    host::write_whole(Path::new(&out), &bytes)?;
    Ok(out)
}

fn initramfs(busybox: &[u8]) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for dir in [
        "bin", "sbin", "dev", "proc", "sys", "tmp", "etc", "usr", "usr/bin", "usr/sbin",
    ] {
        cpio.dir(dir);
    }
    cpio.char_device("dev/console", 5, 1);
    cpio.file("bin/busybox", 0o755, busybox);
    cpio.file("init", 0o755, INIT.as_bytes());
    // No name and no time in the header: the same busybox gives the same bytes.
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gz.write_all(&cpio.finish())?;
    Ok(gz.finish()?)
}
