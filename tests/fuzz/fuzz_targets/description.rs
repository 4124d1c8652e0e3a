//! The description of a system in TOML: any text gives a checked system, or a mistake that names a line of it.
#![no_main]

use fuzz::target;
use std::path::Path;
use xtask::description::{parse, parse_size};

target!(run, seeds);

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "name = \"a\"\nmemory = \"512M\"\nidle = \"stay\"\n[[vm]]\nname = \"x\"\nmemory = \"64M\"\nkernel = \"build:exerciser\"\nappend = \"q\"\ndebug-exit = true\n[[vm.device]]\nkind = \"uart\"\n[[vm.device]]\nkind = \"testdev\"\nport = 0x5000\nirq = 11\ndoorbell = 0x5004\n",
        "name = \"b\"\n[[driver]]\nkind = \"uart\"\nport = 0x3f8\nirq = 4\n[[server]]\nname = \"bench\"\nbinary = \"bench\"\nargs = \"x\"\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    for folder in ["guests", "tests/systems"] {
        let files = std::fs::read_dir(xtask::host::root().join(folder))
            .into_iter()
            .flatten()
            .flatten();
        let mut paths: Vec<_> = files
            .map(|f| f.path())
            .filter(|p| p.extension().is_some_and(|e| e == "toml"))
            .collect();
        paths.sort();
        seeds.extend(paths.iter().filter_map(|p| std::fs::read(p).ok()));
    }
    seeds
}

fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // A path that does not exist: what the file names is looked for beside it.
    let path = Path::new("/nonexistent/fuzz.toml");
    match parse(text, path, None) {
        Ok(description) => {
            assert_eq!(
                description.system.check(),
                Ok(()),
                "a system that root would refuse"
            );
            let bytes = description.system.encode().expect("a manifest");
            let read = ipc_schema::manifest::System::decode(&bytes);
            assert_eq!(read.as_ref(), Ok(&description.system));
        }
        Err(mistake) => {
            let line = mistake
                .at
                .strip_prefix("/nonexistent/fuzz.toml:")
                .expect("the file's name");
            let line: usize = line.parse().expect("a line's number");
            assert!(
                (1..=text.lines().count() + 1).contains(&line),
                "line {line}"
            );
            assert!(!mistake.what.is_empty() && !mistake.remedy.is_empty());
        }
    }
    if let Some(size) = parse_size(text) {
        assert_eq!(parse_size(&size.to_string()), Some(size));
    }
}
