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
/// Packages of the boot loader that end up in the image: the BIOS stages, and our own UEFI stage.
pub const STAGES: [&str; 5] = [
    "bootloader-x86_64-bios-boot-sector",
    "bootloader-x86_64-bios-stage-2",
    "bootloader-x86_64-bios-stage-3",
    "bootloader-x86_64-bios-stage-4",
    UEFI_STAGE,
];
const UEFI_STAGE: &str = "uefi-stage";
const UEFI_TARGET: &str = "x86_64-unknown-uefi";

/// The sources, by their path below `xtask/mkimage`.
const SOURCES: [(&str, &str); 9] = [
    ("Cargo.toml", include_str!("../../mkimage/Cargo.toml")),
    ("Cargo.lock", include_str!("../../mkimage/Cargo.lock")),
    ("src/main.rs", include_str!("../../mkimage/src/main.rs")),
    ("src/gpt.rs", include_str!("../../mkimage/src/gpt.rs")),
    (
        "uefi/Cargo.toml",
        include_str!("../../mkimage/uefi/Cargo.toml"),
    ),
    (
        "uefi/Cargo.lock",
        include_str!("../../mkimage/uefi/Cargo.lock"),
    ),
    (
        "uefi/src/main.rs",
        include_str!("../../mkimage/uefi/src/main.rs"),
    ),
    (
        "uefi/src/firmware.rs",
        include_str!("../../mkimage/uefi/src/firmware.rs"),
    ),
    (
        "uefi/src/memory.rs",
        include_str!("../../mkimage/uefi/src/memory.rs"),
    ),
];

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
        let tc = Toolchain::debian().context("the boot loader is built with Debian's compiler")?;
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
        if firmware == Firmware::Uefi {
            cmd.arg(self.uefi_stage());
        }
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

    fn uefi_stage(&self) -> PathBuf {
        self.dir.join("uefi-stage.efi")
    }

    /// Everything is there, and made from these very sources.
    fn complete(&self) -> bool {
        let mut sources = SOURCES.iter();
        sources
            .all(|(path, text)| fs::read_to_string(self.dir.join(path)).is_ok_and(|s| s == *text))
            && STAGES.iter().all(|stage| self.crate_list(stage).exists())
            && self.uefi_stage().exists()
            && self.program().exists()
    }

    fn build(&self, tc: &Toolchain) -> Result<()> {
        host::step("building the boot loader and image maker (some minutes, once)");
        let _ = fs::remove_file(self.program());
        for (path, text) in SOURCES {
            let path = self.dir.join(path);
            host::make_dir(path.parent().unwrap_or(&self.dir))?;
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        let uefi = self.dir.join("uefi");
        // The target folder goes by argument: as a variable it would reach the inner
        // `cargo install`, which would wait for this cargo's lock for ever.
        let build = |dir: &Path, args: &[&str]| {
            let attempt = || {
                let mut cmd = bootstrap_cargo(tc, dir);
                cmd.args(["build", "--release", "--locked", "--target-dir", "target"]);
                host::run(cmd.args(args))
            };
            attempt().or_else(|_| {
                host::step("that failed; trying once more");
                attempt()
            })
        };
        build(
            &uefi,
            &[
                "--target",
                UEFI_TARGET,
                "-Zbuild-std=core",
                "-Zbuild-std-features=compiler-builtins-mem",
            ],
        )?;
        build(&self.dir, &[])?;
        self.save_crate_lists(tc)
            .context("recording the boot loader's licences")?;
        let stage = uefi
            .join("target")
            .join(UEFI_TARGET)
            .join("release/uefi-stage.efi");
        fs::copy(&stage, self.uefi_stage())
            .with_context(|| format!("copying {}", stage.display()))?;
        fs::copy(self.dir.join("target/release/mkimage"), self.program())?;
        fs::remove_dir_all(self.dir.join("target"))?;
        fs::remove_dir_all(uefi.join("target"))?;
        Ok(())
    }

    /// The stages' sources lie in the registry now; later they may not. Their licences are for `audit`.
    fn save_crate_lists(&self, tc: &Toolchain) -> Result<()> {
        for stage in STAGES {
            let list = if stage == UEFI_STAGE {
                let mut cargo = bootstrap_cargo(tc, &self.dir.join("uefi"));
                linked_crates(&mut cargo, &[stage], UEFI_TARGET)?
            } else {
                // A copy, because cargo may want to write beside the manifest.
                let copy = self.dir.join("stages").join(stage);
                let _ = fs::remove_dir_all(&copy);
                copy_tree(&registry_source(stage)?, &copy)?;
                // Cut off from the workspace that the folder above is.
                let manifest = copy.join("Cargo.toml");
                let text = fs::read_to_string(&manifest)?;
                if !text.contains("[workspace]") {
                    fs::write(&manifest, format!("{text}\n[workspace]\n"))?;
                }
                linked_crates(
                    &mut bootstrap_cargo(tc, &copy),
                    &[stage],
                    super::toolchain::TARGET,
                )?
            };
            host::write_whole(&self.crate_list(stage), list.as_bytes())?;
        }
        fs::remove_dir_all(self.dir.join("stages"))?;
        Ok(())
    }
}

/// A cargo that lets its compiler take unstable features.
fn bootstrap_cargo(tc: &Toolchain, dir: &Path) -> Command {
    let mut cmd = tc.cargo();
    cmd.current_dir(dir).env("RUSTC_BOOTSTRAP", "1");
    cmd
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
