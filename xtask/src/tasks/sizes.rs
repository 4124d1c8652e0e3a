//! `sizes`: how much code the kernel is, and how large the image.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{ArgMatches, Args};

use super::Task;
use crate::{
    build::{bare, elf, image},
    description::Description,
    host,
    setup::{
        image_maker::{Firmware, ImageMaker},
        toolchain::Toolchain,
    },
};

/// Report sizes; fails when the kernel or the image is larger than agreed.
#[derive(Debug, Args)]
pub struct Sizes;

impl Task for Sizes {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        let tc = Toolchain::get()?;
        let description = Description::load(&host::root().join("guests/linux.toml"), None)?;
        let packages: Vec<&str> = vec!["device-uart", "device-rtc", "driver-uart"];
        let binaries = bare::system(&tc, &packages)?;
        let source = host::root().join("microkernel/src");
        let all = kernel_lines(&source, false)?;
        let [svm, vmx] =
            ["svm", "vmx"].map(|back_end| kernel_lines(&source.join("virt").join(back_end), false));
        let (svm, vmx) = (svm?, vmx?);
        let text = elf::text_size(&host::read(&binaries.kernel)?)?;
        let mut good = true;
        let mut report = |name: &str, value: u64, unit: &str, limit: u64| {
            good &= value <= limit;
            let mark = if value <= limit { "" } else { "  TOO LARGE" };
            println!("{name:<32} {value:>9} {unit}, at most {limit}{mark}");
        };
        // With many processors and one vendor's virtualisation; the other's is `virt/vmx`, and the text has both. In no image that ships,
        // and not counted: the invariant checker, in its folder the processor that host tests play and the figures of the feature
        // `measure`, and what is on condition of them.
        report("kernel code without virt/vmx", all - vmx, "lines", 8000);
        report("virt/svm and virt/vmx", svm + vmx, "lines", 2500);
        println!("{:<32} {all:>9} lines", "kernel code");
        let unproven = kernel_lines(&source, true)?;
        println!(
            "{:<32} {unproven:>9} lines, in no image",
            "feature `unproven`"
        );
        report("kernel text", text, "bytes", 128 << 10);
        let dir = host::target().join("sizes");
        host::make_dir(&dir)?;
        let archive = dir.join("boot-archive");
        let bytes = image::pack(&tc, &description, &binaries, false)?;
        host::write_whole(&archive, &bytes)?;
        let kernel = bare::stripped(&tc, &binaries.kernel)?;
        let maker = ImageMaker::get()?;
        for firmware in [Firmware::Bios, Firmware::Uefi] {
            let disk = dir.join(format!("image.{}", firmware.name()));
            maker.make(&kernel, &archive, &disk, firmware)?;
            let name = format!("{} image without guests", firmware.name());
            report(&name, fs::metadata(&disk)?.len(), "bytes", 4 << 20);
        }
        println!(
            "{:<32} {:>9} bytes",
            "kernel file, stripped",
            fs::metadata(&kernel)?.len()
        );
        for (package, elf_path) in &binaries.servers {
            let file = bare::stripped(&tc, elf_path)?;
            let code = elf::text_size(&host::read(elf_path)?)?;
            println!(
                "{package:<32} {:>9} bytes, text {code}",
                fs::metadata(&file)?.len()
            );
        }
        Ok(u8::from(!good))
    }
}

/// Code lines of a folder that are, or are not, in a kernel with the feature `unproven` alone.
fn kernel_lines(dir: &Path, unproven: bool) -> Result<u64> {
    let mut total = 0;
    let mut dirs: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry?.path();
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let test =
                stem == "checker" || stem == "tests" || stem == "test" || stem.ends_with("_tests");
            if path.is_dir() && !test {
                dirs.push(path);
            } else if !test
                && path
                    .extension()
                    .is_some_and(|e| e == "rs" || e == "s" || e == "S")
            {
                let text = fs::read_to_string(&path)?;
                let whole = text.lines().any(|line| line == UNPROVEN_FILE);
                total += match (whole, unproven) {
                    (true, true) => code_lines(&text, &OUTSIDE[2..]),
                    (true, false) => 0,
                    (false, true) => code_lines(&text, &OUTSIDE[2..]) - code_lines(&text, &OUTSIDE),
                    (false, false) => code_lines(&text, &OUTSIDE),
                };
            }
        }
    }
    Ok(total)
}

/// What newer processors offer and no emulator shows: in a kernel that is built with the feature alone.
const UNPROVEN: &str = "#[cfg(any(test, feature = \"unproven\"))]";
/// The same of a whole file.
const UNPROVEN_FILE: &str = "#![cfg(any(test, feature = \"unproven\"))]";
/// Conditions that no image that ships meets: what they are on is for tests, the invariant checker, the host, or, the first two,
/// [`UNPROVEN`].
const OUTSIDE: [&str; 8] = [
    UNPROVEN,
    "#[cfg(feature = \"unproven\")]",
    "#[cfg(test)]",
    "#[cfg(any(test, feature = \"checker\"))]",
    "#[cfg(any(test, all(feature = \"checker\", not(target_os = \"none\"))))]",
    "#[cfg(feature = \"checker\")]",
    "#[cfg(feature = \"measure\")]",
    "#[cfg(not(target_os = \"none\"))]",
];

/// Lines that are neither blank nor comment nor of an item on one of these conditions.
fn code_lines(text: &str, outside: &[&str]) -> u64 {
    let mut count = 0;
    let mut in_comment = false;
    let mut test_attribute = false;
    // The indentation of the `mod` line, whose closing brace has the same (rustfmt sees to that).
    let mut test_module: Option<usize> = None;
    for line in text.lines() {
        let code = line.trim();
        let indent = line.len() - line.trim_start().len();
        if let Some(outer) = test_module {
            if indent == outer && code == "}" {
                test_module = None;
            }
            continue;
        }
        if in_comment {
            in_comment = !code.contains("*/");
            continue;
        }
        if code.is_empty() || code.starts_with("//") {
            continue;
        }
        if code.starts_with("/*") {
            in_comment = !code.contains("*/");
            continue;
        }
        if outside.contains(&code) {
            test_attribute = true;
            continue;
        }
        if test_attribute {
            if code.starts_with('#') {
                continue;
            }
            test_attribute = false;
            // A statement of several lines counts but for its first: those are few.
            if code.ends_with('{') {
                test_module = Some(indent);
            }
            continue;
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_code_only() {
        let text = "//! doc\n\nuse x;\n/* a\n b */\nfn f() {\n    // c\n    g(); // d\n}\n\n#[cfg(test)]\n#[path = \"t.rs\"]\nmod t;\n#[cfg(test)]\nmod tests {\n    fn x() {\n    }\n}\nconst A: u8 = 1;\n#[cfg(feature = \"checker\")]\ncheck();\nnext();\n";
        assert_eq!(code_lines(text, &OUTSIDE), 6);
    }
}
