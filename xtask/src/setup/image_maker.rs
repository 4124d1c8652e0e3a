//! The image maker `mkimage`: built once from `xtask/mkimage`, kept in the cache by version.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::toolchain::Toolchain;
use crate::host;

/// Version of the `bootloader` crate; later ones need a newer nightly.
pub const BOOTLOADER: &str = "0.11.15";
/// Packages that end up in the boot image beside ours.
pub const STAGES: [&str; 5] = [
    "bootloader-x86_64-bios-boot-sector",
    "bootloader-x86_64-bios-stage-2",
    "bootloader-x86_64-bios-stage-3",
    "bootloader-x86_64-bios-stage-4",
    "bootloader-x86_64-uefi",
];

const MANIFEST: &str = include_str!("../../mkimage/Cargo.toml");
const LOCK: &str = include_str!("../../mkimage/Cargo.lock");
const SOURCE: &str = include_str!("../../mkimage/src/main.rs");

/// Which firmware an image boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Firmware {
    /// Legacy BIOS, from the master boot record.
    Bios,
    /// UEFI, from a GPT's system partition.
    Uefi,
}

impl Firmware {
    /// `bios` or `uefi`: file extension and argument.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// The built program.
pub struct ImageMaker {
    dir: PathBuf,
}

impl ImageMaker {
    /// Finds or builds it.
    pub fn get() -> Result<Self> {
        let tc = Toolchain::debian()?;
        let dir = host::cache()?.join(format!("mkimage-{BOOTLOADER}-{}", tc.id()?));
        let maker = Self { dir };
        if !maker.complete() {
            let _lock = host::lock_cache()?;
            if !maker.complete() {
                maker.build(&tc).context("building the boot-image maker")?;
            }
        }
        Ok(maker)
    }

    /// Makes one disk image.
    pub fn make(
        &self,
        kernel: &Path,
        archive: &Path,
        out: &Path,
        firmware: Firmware,
    ) -> Result<()> {
        let tmp = host::temporary(out);
        let mut cmd = host::command(self.program());
        cmd.args([kernel, archive, &tmp]).arg(firmware.name());
        // The UEFI image has a random disk identifier; nothing else in it varies.
        host::output(&mut cmd)?;
        fs::rename(&tmp, out).with_context(|| format!("writing {}", out.display()))
    }

    /// The crates that a stage of the boot loader is linked from, as [`linked_crates`] gives them.
    pub fn stage_crates(&self, stage: &str) -> Result<String> {
        let path = self.crate_list(stage);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    fn crate_list(&self, stage: &str) -> PathBuf {
        self.dir.join(format!("{stage}.crates"))
    }

    fn program(&self) -> PathBuf {
        self.dir.join("mkimage")
    }

    fn complete(&self) -> bool {
        let same = fs::read_to_string(self.dir.join("src/main.rs")).is_ok_and(|s| s == SOURCE);
        let lists = STAGES.iter().all(|stage| self.crate_list(stage).exists());
        same && lists
            && self.program().exists()
            && fs::read_to_string(self.dir.join("Cargo.toml")).is_ok_and(|s| s == MANIFEST)
    }

    fn build(&self, tc: &Toolchain) -> Result<()> {
        host::step("building the boot loader and image maker (some minutes, once)");
        host::make_dir(&self.dir.join("src"))?;
        let _ = fs::remove_file(self.program());
        fs::write(self.dir.join("Cargo.toml"), MANIFEST)?;
        fs::write(self.dir.join("Cargo.lock"), LOCK)?;
        fs::write(self.dir.join("src/main.rs"), SOURCE)?;
        let build = || {
            // The target folder goes by argument: as a variable it would reach the inner
            // `cargo install`, which would wait for this cargo's lock for ever.
            host::run(
                tc.cargo()
                    .current_dir(&self.dir)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .args(["build", "--release", "--locked", "--target-dir", "target"]),
            )
        };
        if build().is_err() {
            host::step("that failed; trying once more");
            build()?;
        }
        self.save_crate_lists(tc)
            .context("recording the boot loader's licences")?;
        fs::copy(self.dir.join("target/release/mkimage"), self.program())?;
        fs::remove_dir_all(self.dir.join("target"))?;
        Ok(())
    }

    /// The stages' sources lie in the registry now; later they may not. Their licences are for `audit`.
    fn save_crate_lists(&self, tc: &Toolchain) -> Result<()> {
        for stage in STAGES {
            let source = registry_source(stage)?;
            // A copy, because cargo may want to write beside the manifest.
            let copy = self.dir.join("stages").join(stage);
            let _ = fs::remove_dir_all(&copy);
            copy_tree(&source, &copy)?;
            // Cut off from the workspace that the folder above is.
            let manifest = copy.join("Cargo.toml");
            let text = fs::read_to_string(&manifest)?;
            if !text.contains("[workspace]") {
                fs::write(&manifest, format!("{text}\n[workspace]\n"))?;
            }
            let target = match stage.ends_with("uefi") {
                true => "x86_64-unknown-uefi",
                false => super::toolchain::TARGET,
            };
            let mut cargo = tc.cargo();
            cargo.current_dir(&copy).env("RUSTC_BOOTSTRAP", "1");
            let text = linked_crates(&mut cargo, &[stage], target)?;
            host::write_whole(&self.crate_list(stage), text.as_bytes())?;
        }
        fs::remove_dir_all(self.dir.join("stages"))?;
        Ok(())
    }
}

/// The crates that `packages` are linked from, one a line: name, version, licence, separated by `|`.
/// Procedural macros and build scripts run in the compiler and are left out.
pub fn linked_crates(cargo: &mut Command, packages: &[&str], target: &str) -> Result<String> {
    cargo.args([
        "tree",
        "--prefix=none",
        "--no-dedupe",
        "--edges=normal,no-proc-macro",
    ]);
    cargo.args(["--format={p}|{l}", "--target", target]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    let text = host::output(cargo)?;
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let (package, licence) = line.split_once('|').unwrap_or((line, ""));
        let mut words = package.split_whitespace();
        let (name, version) = (words.next().unwrap_or("?"), words.next().unwrap_or("?"));
        lines.push(format!(
            "{name}|{}|{licence}",
            version.trim_start_matches('v')
        ));
    }
    lines.sort();
    lines.dedup();
    Ok(format!("{}\n", lines.join("\n")))
}

fn registry_source(package: &str) -> Result<PathBuf> {
    let cargo = match std::env::var_os("CARGO_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    let registries = cargo.join("registry/src");
    let entries =
        fs::read_dir(&registries).with_context(|| format!("reading {}", registries.display()))?;
    let mut dirs = entries.filter_map(|e| {
        e.ok()
            .map(|e| e.path().join(format!("{package}-{BOOTLOADER}")))
    });
    dirs.find(|d| d.is_dir())
        .with_context(|| format!("the source of {package} {BOOTLOADER} is not in cargo's registry"))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    host::make_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
