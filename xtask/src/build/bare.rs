//! Compiles what runs on the bare machine: kernel, servers, our own guests.
//!
//! Each of the three has a target folder of its own, so that their flags do not thrash one another.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::elf;
use crate::{
    host,
    setup::toolchain::{TARGET, Toolchain},
};

/// The kernel's package.
pub const KERNEL: &str = "microkernel";
/// The server that the kernel itself starts; the kernel carries it in flat form.
pub const ROOT: &str = "root";
/// Servers that every system has.
pub const CORE: [&str; 5] = [ROOT, "platform", "scheduler", "manager", "vmm"];
/// All servers.
pub const SERVERS: [&str; 21] = [
    ROOT,
    "platform",
    "scheduler",
    "manager",
    "vmm",
    "bench",
    "churn",
    "gauge",
    "hostile",
    "conformance",
    "device-uart",
    "device-rtc",
    "device-testdev",
    "device-virtio-rng",
    "device-virtio-blk",
    "device-virtio-net",
    "device-virtio-console",
    "store",
    "switch",
    "driver-uart",
    "driver-virtio-blk",
];
/// Our own guests.
pub const GUESTS: [&str; 5] = [
    "exerciser",
    "guest-bench",
    "guest-costs",
    "guest-hostile",
    "guest-secrets",
];

/// The flags of each kind, in one place; linker scripts come from the crates' own `build.rs`.
///
/// The kernel's frequent paths say by `#[inline]` what is to be part of them; what has no such mark is copied into its callers only
/// while it is small: the text of all that is rare becomes a twentieth smaller.
const KERNEL_FLAGS: &str = "-Crelocation-model=static -Ccode-model=kernel -Crelro-level=off -Cforce-frame-pointers=no \
     -Cllvm-args=-inline-threshold=100";
const SERVER_FLAGS: &str = "-Crelocation-model=static -Crelro-level=off -Cforce-frame-pointers=yes";
const GUEST_FLAGS: &str = "-Crelocation-model=static -Crelro-level=off -Cforce-frame-pointers=yes";

/// What was compiled, with all its debug information.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The kernel.
    pub kernel: PathBuf,
    /// Servers by package.
    pub servers: BTreeMap<String, PathBuf>,
}

/// The folder that a kind of package is built in.
fn folder(kind: &str) -> PathBuf {
    host::target().join("bare").join(kind)
}

fn artifact(kind: &str, package: &str) -> PathBuf {
    folder(kind).join(TARGET).join("release").join(package)
}

fn cargo_build(
    tc: &Toolchain,
    kind: &str,
    flags: &str,
    packages: &[&str],
    features: &[&str],
    env: &[(&str, &Path)],
) -> Result<()> {
    let mut cmd = tc.cargo();
    cmd.current_dir(host::root())
        .env("RUSTFLAGS", flags)
        .env("DEFMT_LOG", "trace")
        .envs(env.iter().map(|(k, v)| (k, v)))
        .args(["build", "--release", "--target", TARGET])
        .arg("--target-dir")
        .arg(folder(kind));
    // The first time takes minutes: it shows how far it is.
    let built = packages.iter().all(|p| artifact(kind, p).exists());
    if built && std::env::var_os("VIREO_VERBOSE").is_none() {
        cmd.arg("--quiet");
    }
    for package in packages {
        cmd.args(["--package", package]);
    }
    cmd.args(features);
    host::run(&mut cmd)
}

/// Where one of our own guests is, once it is compiled.
pub fn guest_path(package: &str) -> PathBuf {
    artifact("guests", package)
}

/// Compiles the kernel with root inside, and the named servers.
pub fn system(tc: &Toolchain, packages: &[&str]) -> Result<Binaries> {
    let mut wanted: Vec<&str> = CORE.to_vec();
    wanted.extend(packages);
    wanted.sort_unstable();
    wanted.dedup();
    if let Some(stranger) = wanted.iter().find(|p| !SERVERS.contains(p)) {
        bail!(
            "`{stranger}` is no server of this workspace; there are: {}",
            SERVERS.join(", ")
        );
    }
    host::step("compiling the servers");
    cargo_build(tc, "servers", SERVER_FLAGS, &wanted, &[], &[])?;
    let servers: BTreeMap<String, PathBuf> = wanted
        .iter()
        .map(|p| ((*p).to_owned(), artifact("servers", p)))
        .collect();
    let flat = flat_root(&artifact("servers", ROOT))?;
    host::step("compiling the kernel");
    cargo_build(
        tc,
        "kernel",
        KERNEL_FLAGS,
        &[KERNEL],
        &[],
        &[("VIREO_ROOT_FLAT", &flat)],
    )?;
    Ok(Binaries {
        kernel: artifact("kernel", KERNEL),
        servers,
    })
}

/// Compiles the kernel with a feature for tests (`checker`, `measure`), once root is there in flat form ([`system`]).
pub fn kernel_with(tc: &Toolchain, feature: &str) -> Result<PathBuf> {
    host::step(format!("compiling the kernel with its {feature}"));
    // A folder of its own, so that the shipped kernel is never this one.
    let folder = format!("kernel-{feature}");
    cargo_build(
        tc,
        &folder,
        KERNEL_FLAGS,
        &[KERNEL],
        &["--features", feature],
        &[("VIREO_ROOT_FLAT", &flat_root_path())],
    )?;
    Ok(artifact(&folder, KERNEL))
}

/// Compiles one of our own guests.
pub fn guest(tc: &Toolchain, package: &str) -> Result<PathBuf> {
    if !GUESTS.contains(&package) {
        bail!(
            "`{package}` is no guest of this workspace; there are: {}",
            GUESTS.join(", ")
        );
    }
    host::step(format!("compiling the guest {package}"));
    cargo_build(tc, "guests", GUEST_FLAGS, &[package], &[], &[])?;
    Ok(artifact("guests", package))
}

/// Root in flat form; rewritten only when it differs, so that the kernel is not relinked for nothing.
fn flat_root(root: &Path) -> Result<PathBuf> {
    let out = flat_root_path();
    let flat = elf::flatten(&host::read(root)?).context("flattening root")?;
    if !fs::read(&out).is_ok_and(|old| old == flat) {
        host::write_whole(&out, &flat)?;
    }
    Ok(out)
}

/// Where the flat form of root is, once the servers are compiled.
pub fn flat_root_path() -> PathBuf {
    folder("servers").join("root.flat")
}

/// A copy of an ELF without symbols and debug information, beside it.
pub fn stripped(tc: &Toolchain, elf: &Path) -> Result<PathBuf> {
    let Some(objcopy) = tc.llvm("objcopy") else {
        host::step("no llvm-objcopy on this machine: images will be large");
        return Ok(elf.to_owned());
    };
    let out = elf.with_extension("stripped");
    let tmp = host::temporary(&out);
    host::output(host::command(objcopy).arg("--strip-all").args([elf, &tmp]))?;
    fs::rename(&tmp, &out).with_context(|| format!("writing {}", out.display()))?;
    Ok(out)
}
