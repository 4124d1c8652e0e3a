//! Guest files from Debian's packages: the cloud kernel, an initramfs made around busybox, and kernels that are not Linux.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::apt;
use super::debian::Part;
use super::toolchain::Toolchain;
use crate::{
    build::{bare, cpio::Cpio},
    host,
};

/// What busybox's init does: a shell on the console, started anew when it ends. `poweroff` and `reboot` ask init, which
/// ends everything in order.
const INITTAB: &str = "::sysinit:/etc/rc
::respawn:/bin/cttyhack /bin/sh
";

/// What init runs first. A kernel of another version has no use for the modules, and does without a power button.
const RC: &str = "#!/bin/busybox sh
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /lib/modules/$(uname -r)/*.ko; do
    [ -f $module ] && insmod $module
done
if cat /sys/bus/pci/devices/*/vendor | grep -q 0x1af4; then
    for module in /lib/modules/$(uname -r)/virtio/*.ko; do
        [ -f $module ] && insmod $module
    done
fi
[ -e /dev/input/event0 ] && acpid -l /dev/null -p /tmp/acpid.pid
";

/// What busybox's acpid runs when the power button is pressed.
const POWER_BUTTON: &str = "#!/bin/sh
exec poweroff
";

/// Modules of Debian's kernel that it takes to hear its power button: the button's driver, without which the kernel does
/// not even switch its interrupt on, and the devices that programs read it from.
const MODULES: [&str; 2] = ["drivers/acpi/button.ko", "drivers/input/evdev.ko"];

/// Modules that drive virtio devices on PCI, each behind those that it needs: for guests that have such.
const VIRTIO_MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/char/hw_random/virtio-rng.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/char/virtio_console.ko",
];

/// Debian's `ethtool` and what it is linked with: package, and file in it.
const ETHTOOL: [(&str, &str); 5] = [
    ("ethtool", "sbin/ethtool"),
    ("libmnl0", "usr/lib/x86_64-linux-gnu/libmnl.so.0"),
    ("libc6", "lib/x86_64-linux-gnu/libc.so.6"),
    ("libc6", "lib/x86_64-linux-gnu/libm.so.6"),
    ("libc6", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
];

/// A file that a TOML may name, as `debian:NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The cloud kernel.
    CloudKernel,
    /// The initramfs around busybox.
    Busybox,
    /// The same with `ethtool`.
    BusyboxEthtool,
    /// The initramfs around `guests/costs`, for what needs no module.
    Costs,
    /// The same with the modules of virtio disks and networks.
    CostsVirtio,
    /// Memtest86+, a bzImage.
    Memtest,
    /// GNU Mach, a Multiboot kernel.
    Gnumach,
    /// A part of an installed system.
    System(Part),
}

impl File {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 10] = [
        ("cloud-kernel", Self::CloudKernel),
        ("busybox", Self::Busybox),
        ("busybox-ethtool", Self::BusyboxEthtool),
        ("costs", Self::Costs),
        ("costs-virtio", Self::CostsVirtio),
        ("memtest86+", Self::Memtest),
        ("gnumach", Self::Gnumach),
        ("system-disk", Self::System(Part::Disk)),
        ("system-kernel", Self::System(Part::Kernel)),
        ("system-initramfs", Self::System(Part::Initramfs)),
    ];

    /// The file of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(n, _)| *n == name).map(|(_, file)| file)
    }

    /// Gets it, if it is not there yet; answers where it is.
    pub fn get(self) -> Result<PathBuf> {
        match self {
            Self::CloudKernel => cloud_kernel(),
            Self::Busybox => busybox_initramfs(),
            Self::BusyboxEthtool => ethtool_initramfs(),
            Self::Costs => costs_initramfs(&[], "costs.cpio.gz"),
            Self::CostsVirtio => costs_initramfs(&VIRTIO_MODULES, "costs-virtio.cpio.gz"),
            Self::Memtest => memtest(),
            Self::Gnumach => gnumach(),
            Self::System(part) => part.get(),
        }
    }
}

/// Memtest86+ for 64-bit processors.
fn memtest() -> Result<PathBuf> {
    let dir = apt::unpacked("memtest86+", |name| name == "memtest86+")?;
    let file = dir.join("boot/memtest86+x64.bin");
    ensure!(file.is_file(), "no {} in memtest86+", file.display());
    Ok(file)
}

/// GNU Mach, unpacked as a boot loader would have done it.
fn gnumach() -> Result<PathBuf> {
    const PACKAGE: &str = "gnumach-image-1.8-486";
    let boot = apt::unpacked(PACKAGE, |name| name == PACKAGE)?.join("boot");
    let out = boot.join("gnumach");
    if !out.exists() {
        let packed = host::read(&boot.join("gnumach-1.8-486.gz"))?;
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes)?;
        host::write_whole(&out, &bytes)?;
    }
    Ok(out)
}

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

/// Debian's static busybox, and the folder that it was unpacked into.
pub fn busybox() -> Result<(PathBuf, Vec<u8>)> {
    let dir = apt::unpacked("busybox-static", |name| name == "busybox-static")?;
    let bin = ["bin/busybox", "usr/bin/busybox"].map(|b| dir.join(b));
    let busybox = bin
        .iter()
        .find(|p| p.exists())
        .context("no busybox in busybox-static")?;
    let bytes = host::read(busybox)?;
    Ok((dir, bytes))
}

/// An initramfs with Debian's static busybox: a shell on the console, and an ear for the power button.
pub fn busybox_initramfs() -> Result<PathBuf> {
    kept_initramfs("initramfs.cpio.gz", &modules()?)
}

/// The same with `ethtool`, which says how many of a network card's queues are in use.
fn ethtool_initramfs() -> Result<PathBuf> {
    let mut files = modules()?;
    for (package, path) in ETHTOOL {
        let dir = apt::unpacked(package, |name| ETHTOOL.iter().any(|(p, _)| *p == name))?;
        let bytes = host::read(&dir.join(path))?;
        let path = match path.rsplit_once('/') {
            // Where programs look for it.
            Some((_, name)) if name.starts_with("ld-linux") => format!("lib64/{name}"),
            _ => path.trim_start_matches("usr/").to_owned(),
        };
        files.push((path, bytes));
    }
    kept_initramfs("initramfs-ethtool.cpio.gz", &files)
}

/// An initramfs with busybox and these files, kept beside it.
fn kept_initramfs(name: &str, files: &[(String, Vec<u8>)]) -> Result<PathBuf> {
    let (dir, busybox) = busybox()?;
    let out = dir.join(name);
    let bytes = initramfs(&busybox, files)?;
    if std::fs::read(&out).is_ok_and(|old| old == bytes) {
        return Ok(out);
    }
    host::write_whole(Path::new(&out), &bytes)?;
    Ok(out)
}

/// An initramfs whose init is `guests/costs`, with these modules.
fn costs_initramfs(modules: &[&str], name: &str) -> Result<PathBuf> {
    let tc = Toolchain::get()?;
    let program = bare::stripped(&tc, &bare::guest(&tc, "guest-costs")?)?;
    let mut cpio = Cpio::default();
    for dir in ["dev", "modules"] {
        cpio.dir(dir);
    }
    cpio.char_device("dev/console", 5, 1);
    cpio.file("init", 0o755, &host::read(&program)?);
    let (tree, _) = module_tree()?;
    for (i, path) in modules.iter().enumerate() {
        let bytes = host::read(&tree.join(path))?;
        cpio.file(&format!("modules/{i:02}.ko"), 0o644, &bytes);
    }
    let bytes = packed(cpio)?;
    let out = program.with_file_name(name);
    if !std::fs::read(&out).is_ok_and(|old| old == bytes) {
        host::write_whole(&out, &bytes)?;
    }
    Ok(out)
}

/// Where the cloud kernel's modules are, and its version.
pub fn module_tree() -> Result<(PathBuf, String)> {
    let kernel = cloud_kernel()?;
    let name = kernel.file_name().unwrap_or_default().to_string_lossy();
    let version = name.strip_prefix("vmlinuz-").unwrap_or_default().to_owned();
    let tree = kernel.with_file_name("../lib/modules").join(&version);
    Ok((tree.join("kernel"), version))
}

/// [`MODULES`] and [`VIRTIO_MODULES`] of the cloud kernel, by their paths in the initramfs.
fn modules() -> Result<Vec<(String, Vec<u8>)>> {
    let (tree, version) = module_tree()?;
    let load = |path: &str, prefix: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        let bytes = host::read(&tree.join(path))?;
        Ok((format!("lib/modules/{version}/{prefix}{file}"), bytes))
    };
    // The shell sorts names: a number says the order.
    let virtio = VIRTIO_MODULES.into_iter().enumerate();
    let virtio = virtio.map(|(i, path)| load(path, &format!("virtio/{i:02}-")));
    let plain = MODULES.into_iter().map(|path| load(path, ""));
    plain.chain(virtio).collect()
}

fn initramfs(busybox: &[u8], files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for dir in [
        "bin",
        "sbin",
        "dev",
        "proc",
        "sys",
        "tmp",
        "etc",
        "etc/acpi",
        "etc/acpi/PWRF",
        "lib",
        "lib/modules",
        "usr",
        "usr/bin",
        "usr/sbin",
    ] {
        cpio.dir(dir);
    }
    cpio.char_device("dev/console", 5, 1);
    cpio.file("bin/busybox", 0o755, busybox);
    cpio.link("init", "bin/busybox");
    cpio.file("etc/inittab", 0o644, INITTAB.as_bytes());
    cpio.file("etc/rc", 0o755, RC.as_bytes());
    // The name that acpid gives the event (ACPI 6.5, 5.6.6: notification 0x80 of a fixed power button).
    cpio.file("etc/acpi/PWRF/00000080", 0o755, POWER_BUTTON.as_bytes());
    for (path, bytes) in files {
        if let Some((folder, _)) = path.rsplit_once('/') {
            cpio.dir(folder);
        }
        // Programs and what they are linked with; a module is data.
        let mode = if bytes.starts_with(b"\x7fELF") && !path.ends_with(".ko") {
            0o755
        } else {
            0o644
        };
        cpio.file(path, mode, bytes);
    }
    packed(cpio)
}

/// Compressed; no name and no time in the header: the same files give the same bytes.
fn packed(cpio: Cpio) -> Result<Vec<u8>> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gz.write_all(&cpio.finish())?;
    Ok(gz.finish()?)
}
