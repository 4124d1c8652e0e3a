//! Debian packages: installed system-wide (tools) or unpacked into the cache (guests).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::host;

/// Packages of the bare-metal compiler.
pub const TOOLCHAIN: [&str; 6] = [
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "rust-web-llvm",
    "rust-web-clippy",
    "lld-22",
];
/// Packages of the emulator and its UEFI firmware.
pub const EMULATOR: [&str; 2] = ["qemu-system-x86", "ovmf"];
/// Packages of the second emulator; `bochs-term` is there because it wants some display library of its own packaging.
pub const BOCHS: [&str; 4] = ["bochs", "bochs-term", "bochsbios", "vgabios"];

/// Makes sure that all of `packages` are installed.
pub fn need(packages: &[&str]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    if !have_apt() || !am_root() {
        return Err(anyhow!(by_hand(packages)));
    }
    if !missing.iter().all(|package| has_candidate(package)) {
        update()?;
    }
    host::step(format!(
        "installing {} (a minute or two)",
        missing.join(" ")
    ));
    let first = install(&missing);
    if first.is_err() {
        host::step("that failed; trying once more with fresh package lists");
        update()?;
        install(&missing).with_context(|| by_hand(packages))?;
    }
    Ok(())
}

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages.iter().copied().filter(|p| !installed(p)).collect()
}

/// What a person must do where we cannot, for `wanted` and what every command needs: all of it at once, so that nobody is sent back
/// twice.
pub fn by_hand(wanted: &[&str]) -> String {
    let mut all: Vec<&str> = TOOLCHAIN.into_iter().chain(EMULATOR).collect();
    all.extend(
        wanted
            .iter()
            .filter(|w| !TOOLCHAIN.contains(w) && !EMULATOR.contains(w)),
    );
    instructions(&missing(&all), have_apt())
}

fn instructions(missing: &[&str], apt: bool) -> String {
    let list = missing.join(" ");
    if apt {
        format!(
            "these Debian packages are missing: {list}\n  remedy: as root, type: \
             apt-get update && apt-get install -y --no-install-recommends {list}"
        )
    } else {
        format!(
            "this machine has no apt-get, and these Debian packages are needed: {list}\n  remedy: use a Debian 12 \
             machine or container, and there, as root: apt-get update && apt-get install -y --no-install-recommends {list}"
        )
    }
}

fn install(packages: &[&str]) -> Result<()> {
    host::run(
        apt_get()
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(packages),
    )
}

/// Downloads a package and unpacks it into the cache; gives the folder it is unpacked in.
///
/// `package` may be a metapackage: `wanted` then tells which of its dependencies is meant. What was
/// found the first time is kept until the cache is removed, so that runs repeat.
pub fn unpacked(package: &str, wanted: fn(&str) -> bool) -> Result<PathBuf> {
    let base = host::cache()?.join("debian");
    host::make_dir(&base)?;
    let resolved = base.join(format!("{package}.resolved"));
    if let Ok(name) = fs::read_to_string(&resolved) {
        let dir = base.join(name.trim());
        if dir.is_dir() {
            return Ok(dir);
        }
    }
    let _lock = host::lock_cache()?;
    if !have_apt() {
        bail!(
            "`{package}` comes from Debian's packages, and this machine has no apt-get\n  remedy: use a Debian 12 \
             machine or container; or give your own files: run --kernel FILE --initrd FILE"
        );
    }
    let real = match resolve(package, wanted) {
        Ok(real) => real,
        Err(_) => {
            update()?;
            resolve(package, wanted)?
        }
    };
    host::step(format!("downloading {real} from Debian"));
    let work = base.join(format!(".download.{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    host::make_dir(&work)?;
    let download = || host::run(apt_get().args(["download", &real]).current_dir(&work));
    if download().is_err() {
        host::step("that failed; trying once more with fresh package lists");
        update()?;
        download()?;
    }
    let deb = fs::read_dir(&work)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .with_context(|| format!("`apt-get download {real}` left no package file"))?;
    let name = deb.file_stem().unwrap_or_default().to_string_lossy();
    let name = plain(&name);
    let tree = work.join("tree");
    host::run(host::command("dpkg-deb").arg("-x").args([&deb, &tree]))?;
    let dir = base.join(&name);
    let _ = fs::remove_dir_all(&dir);
    fs::rename(&tree, &dir).with_context(|| format!("moving to {}", dir.display()))?;
    let _ = fs::remove_dir_all(&work);
    host::write_whole(&resolved, name.as_bytes())?;
    Ok(dir)
}

/// The package itself, or the dependency of it that is `wanted`.
fn resolve(package: &str, wanted: fn(&str) -> bool) -> Result<String> {
    if wanted(package) {
        if has_candidate(package) {
            return Ok(package.to_owned());
        }
        bail!("Debian's package lists do not know `{package}`");
    }
    let depends = host::output(host::command("apt-cache").args(["depends", package]))?;
    let found = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| wanted(name));
    found
        .map(str::to_owned)
        .with_context(|| format!("`{package}` depends on nothing of the kind that is wanted"))
}

/// Whether the package lists, which a new machine may not have at all, know where to get a package.
fn has_candidate(package: &str) -> bool {
    let policy = host::output(host::command("apt-cache").args(["policy", package]));
    policy.is_ok_and(|text| text.contains("Candidate:") && !text.contains("Candidate: (none)"))
}

/// The installed version of a package.
pub fn version(package: &str) -> Result<String> {
    host::output(host::command("dpkg-query").args(["-W", "-f=${Version}", package]))
}

/// A version or package name with nothing in it that a path or a shell could trip over.
pub fn plain(text: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.chars()
        .map(|c| if keep(c) { c } else { '_' })
        .collect()
}

/// Whether this is a machine with apt.
pub fn have_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

fn installed(package: &str) -> bool {
    let mut query = host::command("dpkg-query");
    query.args(["-W", "-f=${db:Status-Status}", package]);
    host::output(&mut query).is_ok_and(|status| status == "installed")
}

fn update() -> Result<()> {
    if !am_root() {
        bail!(
            "Debian's package lists must be fetched first\n  remedy: as root, type: apt-get update"
        );
    }
    host::step("fetching Debian's package lists");
    host::run(apt_get().args(["update", "-q"]))
}

/// Whether the person is root.
pub fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn apt_get() -> std::process::Command {
    let mut cmd = host::command("/usr/bin/apt-get");
    cmd.env("DEBIAN_FRONTEND", "noninteractive");
    cmd.args([
        "-o",
        "DPkg::Lock::Timeout=300",
        "-o",
        "APT::Sandbox::User=root",
    ]);
    cmd
}

#[cfg(test)]
mod tests {
    use super::{instructions, plain};

    #[test]
    fn one_message_has_the_whole_command() {
        let text = instructions(&["rustc-web", "ovmf"], true);
        assert_eq!(
            text,
            "these Debian packages are missing: rustc-web ovmf\n  remedy: as root, type: apt-get update && apt-get \
             install -y --no-install-recommends rustc-web ovmf"
        );
        let text = instructions(&["ovmf"], false);
        assert!(text.contains("no apt-get") && text.ends_with("recommends ovmf"));
    }

    #[test]
    fn versions_become_path_safe() {
        assert_eq!(plain("1.96.0+dfsg1-1~deb12u2"), "1.96.0_dfsg1-1_deb12u2");
        assert_eq!(plain("../a b"), ".._a_b");
    }
}
