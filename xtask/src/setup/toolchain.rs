//! The bare-metal compiler: rustup's when it has the target, else one made of Debian's packages.
//!
//! Debian's `rustc-web` has no `x86_64-unknown-none` library, but its matching source: a private
//! sysroot in the cache gets `core`, `alloc` and `compiler_builtins` built once, and from then on
//! is a plain stable toolchain.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::apt;
use crate::host;

/// The target of everything that runs on the bare machine.
pub const TARGET: &str = "x86_64-unknown-none";
const HOST: &str = "x86_64-unknown-linux-gnu";
const STD: [&str; 3] = ["core", "alloc", "compiler_builtins"];

/// A compiler for [`TARGET`].
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The private sysroot; `None` for rustup's own toolchain.
    sysroot: Option<PathBuf>,
}

impl Toolchain {
    /// Finds or makes the compiler, in the order: rustup's own, the one made before, a new one.
    pub fn get() -> Result<Self> {
        if has_target(host::command("rustc")) {
            return Ok(Self { sysroot: None });
        }
        Self::debian().with_context(|| {
            format!(
                "there is no compiler for {TARGET} (`rustup target add {TARGET}` gives one, but the boot loader and the \
                 emulator need Debian's packages all the same)"
            )
        })
    }

    /// The toolchain made of Debian's packages, which can also build the boot loader.
    pub fn debian() -> Result<Self> {
        apt::need(&apt::TOOLCHAIN)?;
        let version = apt::plain(&apt::version("rustc-web")?);
        let dir = host::cache()?.join(format!("toolchain-{version}"));
        if !complete(&dir) {
            let _lock = host::lock_cache()?;
            if !complete(&dir) {
                make(&dir).context("making the bare-metal toolchain")?;
            }
        }
        Ok(Self { sysroot: Some(dir) })
    }

    /// A name that changes when the compiler does.
    pub fn id(&self) -> Result<String> {
        match &self.sysroot {
            Some(_) => Ok(apt::plain(&apt::version("rustc-web")?)),
            None => Ok(apt::plain(&host::output(host::command("rustc").arg("-V"))?)),
        }
    }

    /// A cargo command that compiles with this toolchain.
    pub fn cargo(&self) -> Command {
        match &self.sysroot {
            Some(dir) => private_cargo(dir),
            None => host::command("cargo"),
        }
    }

    /// This toolchain's compiler.
    pub fn rustc(&self) -> Command {
        match &self.sysroot {
            Some(dir) => host::command(dir.join("bin/rustc")),
            None => host::command("rustc"),
        }
    }

    /// A clippy command that checks with this toolchain.
    pub fn clippy(&self) -> Command {
        let Some(dir) = &self.sysroot else {
            let mut cmd = host::command("cargo");
            cmd.arg("clippy");
            return cmd;
        };
        // `cargo clippy` would find rustup's proxy first, whose rlibs do not match.
        let mut cmd = host::command("/usr/bin/cargo-clippy");
        cmd.env("PATH", private_path(dir))
            .env("CARGO", dir.join("bin/cargo"))
            .env("RUSTC", dir.join("bin/rustc"))
            .env("SYSROOT", dir)
            .arg("clippy");
        cmd
    }

    /// An LLVM tool, as `objcopy`; `None` when this machine has none.
    pub fn llvm(&self, tool: &str) -> Option<PathBuf> {
        let sysroot = self.sysroot.clone().or_else(|| {
            let out = host::output(host::command("rustc").args(["--print", "sysroot"]));
            out.ok().map(|s| PathBuf::from(s.trim()))
        })?;
        let bin = sysroot.join("lib/rustlib").join(HOST).join("bin");
        let candidates = [
            bin.join(format!("llvm-{tool}")),
            PathBuf::from(format!("/usr/bin/llvm-{tool}-22")),
            PathBuf::from(format!("/usr/bin/llvm-{tool}")),
        ];
        candidates.into_iter().find(|p| p.exists())
    }

    /// The standard library's source folder, if it is here.
    pub fn library_source(&self) -> Option<PathBuf> {
        let sysroot = self.sysroot.clone()?;
        let dir = sysroot.join("lib/rustlib/src/rust/library");
        dir.is_dir().then_some(dir)
    }
}

/// Whether a compiler has the target's library. `rustc` prints a path and exits 0 even when the target is absent, so
/// look into the folder.
fn has_target(mut rustc: Command) -> bool {
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    host::output(&mut rustc).is_ok_and(|dir| has_rlib(Path::new(dir.trim()), "core"))
}

fn has_rlib(dir: &Path, name: &str) -> bool {
    find_rlib(dir, name).is_some()
}

fn find_rlib(dir: &Path, name: &str) -> Option<PathBuf> {
    let prefix = format!("lib{name}-");
    let entries = fs::read_dir(dir).ok()?;
    let mut paths = entries.filter_map(|e| e.ok().map(|e| e.path()));
    paths.find(|p| {
        let file = p.file_name().unwrap_or_default().to_string_lossy();
        file.starts_with(&prefix) && file.ends_with(".rlib")
    })
}

fn rlib_dir(dir: &Path) -> PathBuf {
    dir.join("lib/rustlib").join(TARGET).join("lib")
}

fn complete(dir: &Path) -> bool {
    STD.iter().all(|name| has_rlib(&rlib_dir(dir), name)) && dir.join("bin/cargo").exists()
}

fn private_path(dir: &Path) -> String {
    format!("{}:/usr/bin:/bin", dir.join("bin").display())
}

fn private_cargo(dir: &Path) -> Command {
    let mut cmd = host::command(dir.join("bin/cargo"));
    cmd.env("PATH", private_path(dir));
    cmd
}

fn make(dir: &Path) -> Result<()> {
    host::step("making the bare-metal toolchain (a minute, once)");
    let tools = dir.join("lib/rustlib").join(HOST);
    for sub in [&dir.join("bin"), &tools.join("bin")] {
        host::make_dir(sub)?;
    }
    script(
        &dir.join("bin/rustc"),
        &format!("exec /usr/bin/rustc --sysroot \"{}\" \"$@\"", dir.display()),
    )?;
    script(
        &dir.join("bin/cargo"),
        &format!(
            "RUSTC=\"{}/bin/rustc\" exec /usr/bin/cargo \"$@\"",
            dir.display()
        ),
    )?;
    link(
        Path::new("/usr/lib/rustlib/src"),
        &dir.join("lib/rustlib/src"),
    )?;
    link(
        &Path::new("/usr/lib/rustlib").join(HOST).join("lib"),
        &tools.join("lib"),
    )?;
    link(Path::new("/usr/bin/rust-lld"), &tools.join("bin/rust-lld"))?;
    for tool in ["objcopy", "objdump", "nm", "size"] {
        let from = format!("/usr/bin/llvm-{tool}-22");
        link(Path::new(&from), &tools.join(format!("bin/llvm-{tool}")))?;
    }
    let empty = dir.join("std");
    let _ = fs::remove_dir_all(&empty);
    host::make_dir(&empty.join("src"))?;
    let manifest =
        "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(empty.join("Cargo.toml"), manifest)?;
    fs::write(empty.join("src/lib.rs"), "#![no_std]\n")?;
    let build = || {
        host::run(
            private_cargo(dir)
                .current_dir(&empty)
                .env("RUSTC_BOOTSTRAP", "1")
                .env(
                    "RUSTFLAGS",
                    "-Cembed-bitcode=yes -Zforce-unstable-if-unmarked",
                )
                .args([
                    "build",
                    "--release",
                    "--target",
                    TARGET,
                    "--target-dir",
                    "target",
                ])
                .arg("-Zbuild-std=core,alloc,compiler_builtins")
                .arg("-Zbuild-std-features=compiler-builtins-mem"),
        )
    };
    if build().is_err() {
        host::step("that failed; trying once more");
        build()?;
    }
    let built = empty.join("target").join(TARGET).join("release/deps");
    let lib = rlib_dir(dir);
    host::make_dir(&lib)?;
    for name in STD {
        let rlib = find_rlib(&built, name).with_context(|| format!("no lib{name} was built"))?;
        let to = lib.join(rlib.file_name().unwrap_or_default());
        host::write_whole(&to, &host::read(&rlib)?)?;
    }
    let _ = fs::remove_dir_all(empty.join("target"));
    Ok(())
}

fn script(path: &Path, line: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{line}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn link(to: &Path, at: &Path) -> Result<()> {
    let _ = fs::remove_file(at);
    symlink(to, at).with_context(|| format!("linking {}", at.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compilers that print a folder for the target: only one whose folder holds the library has it.
    #[test]
    fn rustups_compiler_is_taken_when_it_has_the_target() {
        let dir = std::env::temp_dir().join(format!("vireo-toolchain-{}", std::process::id()));
        let libdir = dir.join("lib/rustlib").join(TARGET).join("lib");
        host::make_dir(&dir.join("bin")).unwrap();
        let rustc = dir.join("bin/rustc");
        let print = format!(
            "[ \"$*\" = \"--print target-libdir --target {TARGET}\" ] && echo \"{}\"",
            libdir.display()
        );
        script(&rustc, &print).unwrap();
        let has = || has_target(host::command(&rustc));
        assert!(!has(), "the folder is not there");
        host::make_dir(&libdir).unwrap();
        assert!(!has(), "the folder is empty");
        fs::write(libdir.join("libcore-0123.rmeta"), b"").unwrap();
        fs::write(libdir.join("liballoc-0123.rlib"), b"").unwrap();
        assert!(!has(), "the folder has no library");
        fs::write(libdir.join("libcore-0123.rlib"), b"").unwrap();
        assert!(has());
        script(&rustc, "exit 1").unwrap();
        assert!(!has(), "no compiler");
        fs::remove_dir_all(&dir).unwrap();
    }
}
