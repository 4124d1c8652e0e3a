//! From code addresses to function, file and line.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::build::bare::Binaries;

/// What an address of code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An instruction's.
    At,
    /// A return address: it points behind the call; the call is what is asked for.
    Return,
}

/// A function at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its name; `?` or empty if nothing tells.
    pub function: String,
    /// Its source file, empty if nothing tells.
    pub file: String,
    /// The line there.
    pub line: Option<u32>,
    /// From debug information; else from the symbol table.
    known: bool,
}

/// Debug information of the kernel and all servers, loaded when first asked for.
pub struct Symbols {
    binaries: Binaries,
    loaded: BTreeMap<PathBuf, Option<addr2line::Loader>>,
}

impl Symbols {
    /// Symbols of a built system.
    pub fn new(binaries: Binaries) -> Self {
        Self {
            binaries,
            loaded: BTreeMap::new(),
        }
    }

    /// Whether there is a binary of that package.
    pub fn knows(&self, package: &str) -> bool {
        self.path(package).is_some()
    }

    /// One line for each frame at an address, inlined functions first.
    pub fn resolve(&mut self, package: &str, address: u64, place: Place) -> Vec<String> {
        let Some(path) = self.path(package).map(Path::to_owned) else {
            return vec![format!("{address:#x} in {package}")];
        };
        let frames = self.frames_of(&path, address, place);
        let lines = frames.iter().map(|frame| match &frame.line {
            Some(line) => format!("{address:#x} {} at {}:{line}", frame.function, frame.file),
            None if frame.known => format!("{address:#x} {} at ?", frame.function),
            None => format!("{address:#x} {}", frame.function),
        });
        lines.collect()
    }

    /// The frames at an address of a binary, inlined functions first; at least one.
    pub fn frames_of(&mut self, path: &Path, address: u64, place: Place) -> Vec<Frame> {
        let loader = self
            .loaded
            .entry(path.to_owned())
            .or_insert_with(|| addr2line::Loader::new(path).ok());
        let code = match place {
            Place::At => address,
            Place::Return => address.saturating_sub(1),
        };
        let mut frames = Vec::new();
        let Some(loader) = loader else {
            return vec![Frame::default()];
        };
        if let Ok(mut iter) = loader.find_frames(code) {
            while let Ok(Some(frame)) = iter.next() {
                let name = frame.function.as_ref().and_then(|f| f.demangle().ok());
                let location = frame.location;
                frames.push(Frame {
                    function: name.map_or_else(|| "?".to_owned(), |n| n.into_owned()),
                    file: location
                        .as_ref()
                        .and_then(|l| l.file)
                        .map(short)
                        .unwrap_or_default(),
                    line: location.and_then(|l| l.line),
                    known: true,
                });
            }
        }
        if frames.is_empty() {
            frames.push(Frame {
                function: loader.find_symbol(code).unwrap_or("?").to_owned(),
                ..Frame::default()
            });
        }
        frames
    }

    /// The file of a package's binary.
    pub fn path(&self, package: &str) -> Option<&Path> {
        if package == crate::build::bare::KERNEL {
            return Some(&self.binaries.kernel);
        }
        self.binaries.servers.get(package).map(|p| p.as_path())
    }
}

/// A source path relative to the repository, or to the crate's name in the registry.
pub fn short(path: &str) -> String {
    let root = crate::host::root().to_string_lossy();
    if let Some(rest) = path.strip_prefix(&*root) {
        return rest.trim_start_matches('/').to_owned();
    }
    match path.split_once("/registry/src/") {
        Some((_, rest)) => rest.split_once('/').map_or(rest, |(_, r)| r).to_owned(),
        None => path.to_owned(),
    }
}
