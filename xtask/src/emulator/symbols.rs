//! From code addresses to function, file and line.

use std::{collections::BTreeMap, path::Path};

use crate::build::bare::Binaries;

/// What an address of code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An instruction's.
    At,
    /// A return address: it points behind the call; the call is what is asked for.
    Return,
}

/// Debug information of the kernel and all servers, loaded when first asked for.
pub struct Symbols {
    binaries: Binaries,
    loaded: BTreeMap<String, Option<addr2line::Loader>>,
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
        let path = self.path(package).map(Path::to_owned);
        let loader = self
            .loaded
            .entry(package.to_owned())
            .or_insert_with(|| path.and_then(|p| addr2line::Loader::new(p).ok()));
        let Some(loader) = loader else {
            return vec![format!("{address:#x} in {package}")];
        };
        let code = match place {
            Place::At => address,
            Place::Return => address.saturating_sub(1),
        };
        let mut frames = Vec::new();
        if let Ok(mut iter) = loader.find_frames(code) {
            while let Ok(Some(frame)) = iter.next() {
                let name = frame.function.as_ref().and_then(|f| f.demangle().ok());
                let name = name.map_or_else(|| "?".to_owned(), |n| n.into_owned());
                let at = frame
                    .location
                    .and_then(|l| Some(format!("{}:{}", short(l.file?), l.line?)));
                frames.push(format!(
                    "{address:#x} {name} at {}",
                    at.as_deref().unwrap_or("?")
                ));
            }
        }
        if frames.is_empty() {
            let name = loader.find_symbol(code).unwrap_or("?");
            frames.push(format!("{address:#x} {name}"));
        }
        frames
    }

    fn path(&self, package: &str) -> Option<&Path> {
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
