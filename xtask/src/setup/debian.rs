//! A Debian system as an operator would install it: its root file system as a disk's image, with its own kernel and initramfs.
//!
//! Made from Debian's packages by `mmdebstrap`, with nothing of ours in it: a name, a password for root, a line in `/etc/fstab` and
//! which modules the initramfs needs are all that its makers left to be said.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::apt;
use crate::host;

/// Packages of the tools: the second makes the file system.
const TOOLS: [&str; 2] = ["mmdebstrap", "e2fsprogs"];
/// The release.
const SUITE: &str = "bookworm";
/// What there is beside the packages that every system has.
const PACKAGES: [&str; 10] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "kmod",
    "zstd",
    "iproute2",
    "iputils-ping",
    "netcat-openbsd",
];
/// What stays outside: nobody reads it there.
const EXCLUDED: [&str; 3] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
];
/// What a person is asked for when a system is installed; `$1` is its root.
const ANSWERS: [&str; 6] = [
    r#"echo vireo >"$1/etc/hostname""#,
    r#"echo "/dev/vda / ext4 errors=remount-ro 0 1" >"$1/etc/fstab""#,
    r#"echo root:vireo | chroot "$1" chpasswd"#,
    // An initramfs for this kind of machine, and not for all (initramfs.conf(5)): it is loaded by firmware, and unpacked.
    r#"echo MODULES=list >"$1/etc/initramfs-tools/conf.d/modules""#,
    r#"printf '%s\n' virtio_pci virtio_blk ext4 >>"$1/etc/initramfs-tools/modules""#,
    r#"chroot "$1" update-initramfs -u"#,
];
/// Size of the disk; some 200 MiB of it are free.
const DISK: &str = "512M";

/// A part of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The disk: an ext4 file system without a partition table.
    Disk,
    /// The kernel.
    Kernel,
    /// The initramfs.
    Initramfs,
}

impl Part {
    const fn file(self) -> &'static str {
        match self {
            Self::Disk => "root.ext4",
            Self::Kernel => "vmlinuz",
            Self::Initramfs => "initrd.img",
        }
    }

    /// Gets it; makes the system first, if it is not there yet.
    pub fn get(self) -> Result<PathBuf> {
        Ok(system()?.join(self.file()))
    }
}

/// Names the system after what it is made by, so that another recipe makes another one.
fn name() -> String {
    let recipe = [&PACKAGES[..], &EXCLUDED, &ANSWERS, &[SUITE, DISK]].concat();
    let hash = host::fingerprint(recipe.join("\n").as_bytes());
    format!("system-{SUITE}-{hash:016x}")
}

/// The folder with the parts.
fn system() -> Result<PathBuf> {
    let base = host::cache()?.join("debian");
    let done = base.join(name());
    if done.is_dir() {
        return Ok(done);
    }
    let _lock = host::lock_cache()?;
    if done.is_dir() {
        return Ok(done);
    }
    host::make_dir(&base)?;
    if !apt::am_root() {
        bail!(
            "a Debian system is installed by root, who alone may own its files\n  remedy: type `cargo xtask setup` once as root, \
             with the same folder for its cache ({})",
            base.display()
        );
    }
    apt::need(&TOOLS)?;
    let work = base.join(format!(".system.{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    host::make_dir(&work)?;
    host::step("installing a Debian system into a disk's image (some two minutes)");
    let root = work.join("root");
    if install(&root).is_err() {
        host::step("that failed; trying once more");
        let _ = fs::remove_dir_all(&root);
        install(&root)?;
    }
    take_boot(&root, &work)?;
    // The first 1.47 of e2fsprogs reads a folder, not yet an archive.
    let mut mke2fs = host::command("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(&root);
    mke2fs.arg(work.join(Part::Disk.file())).arg(DISK);
    host::output(&mut mke2fs)?;
    fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    fs::rename(&work, &done).with_context(|| format!("moving to {}", done.display()))?;
    Ok(done)
}

fn install(root: &Path) -> Result<()> {
    let mut command = host::command("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    for path in EXCLUDED {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    for answer in ANSWERS {
        command.arg(format!("--customize-hook={answer}"));
    }
    host::output(command.arg(SUITE).arg(root)).map(drop)
}

/// Copies kernel and initramfs out of the system.
fn take_boot(root: &Path, to: &Path) -> Result<()> {
    let boot = root.join("boot");
    for part in [Part::Kernel, Part::Initramfs] {
        let entries = fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))?;
        let mut paths = entries.filter_map(|e| e.ok().map(|e| e.path()));
        let is_it = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{}-", part.file()))
        };
        let found = paths
            .find(is_it)
            .with_context(|| format!("no {} in {}", part.file(), boot.display()))?;
        host::write_whole(&to.join(part.file()), &host::read(&found)?)?;
    }
    Ok(())
}
