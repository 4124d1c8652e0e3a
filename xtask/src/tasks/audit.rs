//! `audit`: every crate in the shipped image with its licence, and a CycloneDX list of them.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use clap::{ArgMatches, Args};
use serde_json::{Value, json};

use super::Task;
use crate::{
    build::bare,
    host,
    setup::{
        image_maker::{ImageMaker, STAGES, linked_crates},
        toolchain::{TARGET, Toolchain},
    },
};

/// Licences that a shipped crate may have.
const PERMISSIVE: [&str; 13] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "0BSD",
    "ISC",
    "Zlib",
    "Unlicense",
    "CC0-1.0",
    "Unicode-3.0",
    "BSL-1.0",
];

/// List every crate in the shipped image with its licence; fails on a copyleft one.
///
/// Writes target/vireo.cdx.json (CycloneDX 1.5).
#[derive(Debug, Args)]
pub struct Audit;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    version: String,
    licence: String,
    /// What it is part of.
    part: &'static str,
}

impl Task for Audit {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        let tc = Toolchain::get()?;
        let mut crates = BTreeSet::new();
        let roots: Vec<&str> = [bare::KERNEL].into_iter().chain(bare::SERVERS).collect();
        let mut cargo = tc.cargo();
        cargo.current_dir(host::root());
        add(
            &linked_crates(&mut cargo, &roots, TARGET)?,
            "system",
            &mut crates,
        );
        let maker = ImageMaker::get()?;
        for stage in STAGES {
            add(&maker.stage_crates(stage)?, "boot loader", &mut crates);
        }
        library(&Toolchain::debian()?, &mut crates)?;
        let mut bad = 0;
        for c in &crates {
            let verdict = judge(&c.licence);
            let mark = if verdict { "" } else { "  NOT PERMISSIVE" };
            println!(
                "{:<28} {:<12} {:<12} {}{mark}",
                c.name, c.version, c.part, c.licence
            );
            bad += u32::from(!verdict);
        }
        let out = host::target().join("vireo.cdx.json");
        host::write_whole(
            &out,
            serde_json::to_string_pretty(&cyclone_dx(&crates))?.as_bytes(),
        )?;
        println!(
            "{} crates, {bad} not permissive; list: {}",
            crates.len(),
            out.display()
        );
        Ok(u8::from(bad > 0))
    }
}

/// Adds the lines of [`linked_crates`].
fn add(lines: &str, part: &'static str, into: &mut BTreeSet<Crate>) {
    for line in lines.lines() {
        let mut fields = line.split('|').map(str::to_owned);
        let mut next = || fields.next().unwrap_or_default();
        let (name, version, licence) = (next(), next(), next());
        if !name.is_empty() {
            into.insert(Crate {
                name,
                version,
                licence,
                part,
            });
        }
    }
}

/// The standard library's crates that are linked into everything.
fn library(tc: &Toolchain, into: &mut BTreeSet<Crate>) -> Result<()> {
    let source = tc
        .library_source()
        .context("the library's source is not installed")?;
    let version = host::output(tc.rustc().arg("--version"))?;
    let version = version.split_whitespace().nth(1).unwrap_or("?").to_owned();
    for (name, manifest) in [
        ("core", "core/Cargo.toml"),
        ("alloc", "alloc/Cargo.toml"),
        (
            "compiler_builtins",
            "compiler-builtins/compiler-builtins/Cargo.toml",
        ),
    ] {
        let text = String::from_utf8_lossy(&host::read(&source.join(manifest))?).into_owned();
        let table: toml::Table =
            toml::from_str(&text).with_context(|| format!("reading {manifest}"))?;
        let licence = table
            .get("package")
            .and_then(|p| p.get("license"))
            .and_then(|l| l.as_str());
        // The library's own crates inherit nothing; one without the field has the project's licence.
        let licence = licence.unwrap_or("MIT OR Apache-2.0").to_owned();
        into.insert(Crate {
            name: name.to_owned(),
            version: version.clone(),
            licence,
            part: "library",
        });
    }
    Ok(())
}

/// Whether an SPDX expression (or the older `A/B`) can be met with permissive licences alone.
fn judge(licence: &str) -> bool {
    let spaced = licence
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let good = any_of(&words, &mut at);
    good == Some(true) && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize) -> Option<bool> {
    let mut good = all_of(words, at)?;
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        good |= all_of(words, at)?;
    }
    Some(good)
}

fn all_of(words: &[&str], at: &mut usize) -> Option<bool> {
    let mut good = one(words, at)?;
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        good &= one(words, at)?;
    }
    Some(good)
}

fn one(words: &[&str], at: &mut usize) -> Option<bool> {
    let word = *words.get(*at)?;
    *at += 1;
    if word == "(" {
        let good = any_of(words, at)?;
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return closed.then_some(good);
    }
    if words.get(*at) == Some(&"WITH") {
        // An exception only adds permissions.
        *at += 2;
    }
    Some(PERMISSIVE.contains(&word))
}

fn cyclone_dx(crates: &BTreeSet<Crate>) -> Value {
    let component = |c: &Crate| {
        json!({
            "type": "library",
            "bom-ref": format!("{}/{}@{}", c.part, c.name, c.version),
            "name": c.name,
            "version": c.version,
            "purl": format!("pkg:cargo/{}@{}", c.name, c.version),
            "licenses": [{ "expression": c.licence.replace('/', " OR ") }],
            "properties": [{ "name": "vireo:part", "value": c.part }],
        })
    };
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": { "type": "firmware", "name": "vireo", "version": env!("CARGO_PKG_VERSION") } },
        "components": crates.iter().map(component).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-2.0-only OR MIT",
            "MIT AND (Apache-2.0 WITH LLVM-exception OR GPL-3.0)",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert!(judge(good), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND LGPL-2.1",
            "MPL-2.0",
            "",
            "file LICENSE",
            "MIT OR",
            "(MIT",
            "MIT)",
        ] {
            assert!(!judge(bad), "{bad}");
        }
    }

    #[test]
    fn lines_become_crates() {
        let mut found = BTreeSet::new();
        add("a|1.0|MIT\nb|2.0|\na|1.0|MIT\n\n", "system", &mut found);
        let shown: Vec<(&str, bool)> = found
            .iter()
            .map(|c| (c.name.as_str(), judge(&c.licence)))
            .collect();
        assert_eq!(shown, [("a", true), ("b", false)]);
    }
}
