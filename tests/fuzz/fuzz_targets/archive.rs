//! The boot archive: any bytes to the reader; and what the writer makes must come back as it was.
#![no_main]

use fuzz::{Bytes, target};
use ipc_schema::archive::{Index, PAGE, index_len, write};

target!(run, seeds);

fn seeds() -> Vec<Vec<u8>> {
    let long = vec![7; 5000];
    let real = write(&[
        ("manifest", b"abc"),
        ("bin/root", &long),
        ("vm/a/kernel", &long),
        ("empty", b""),
    ]);
    let mut seeds: Vec<Vec<u8>> = real.into_iter().collect();
    let mut header = b"VIREOARC\x01\0\0\0\x02\0\0\0".to_vec();
    header.extend_from_slice(&8192u64.to_le_bytes());
    for (name, at, len) in [(b'a', 4096u64, 9u64), (b'b', 4096, 4096)] {
        let mut entry = vec![0; 48];
        entry[0] = name;
        entry.extend_from_slice(&at.to_le_bytes());
        entry.extend_from_slice(&len.to_le_bytes());
        header.extend_from_slice(&entry);
    }
    seeds.push(header);
    seeds
}

fn run(data: &[u8]) {
    read(data);
    round_trip(Bytes(data));
}

/// The reader believes nothing: what it hands out lies inside, on pages, and apart.
fn read(data: &[u8]) {
    let len = data.len() as u64;
    let Ok(needed) = index_len(data) else {
        assert!(Index::parse(data, len).is_err());
        return;
    };
    for available in [len, u64::MAX] {
        let Ok(index) = Index::parse(data, available) else {
            continue;
        };
        assert!(needed <= data.len() && index.total() <= available);
        assert!(index.total().is_multiple_of(PAGE));
        let all: Vec<_> = index.entries().collect();
        for (i, a) in all.iter().enumerate() {
            assert!(a.offset.is_multiple_of(PAGE) && a.offset >= needed as u64);
            assert!(a.offset + a.len <= index.total());
            assert!(!a.name.is_empty() && a.name.bytes().all(|b| b.is_ascii_graphic()));
            assert_eq!(index.find(a.name), Some(*a));
            let inside = a.offset + a.len <= len;
            assert_eq!(
                a.data(data).map(|d| d.len() as u64),
                inside.then_some(a.len)
            );
            for b in &all[..i] {
                let apart = a.offset >= b.offset + b.len || b.offset >= a.offset + a.len;
                assert!(apart || (a.offset, a.len) == (b.offset, b.len));
                assert_ne!(a.name, b.name);
            }
        }
    }
}

/// What is written reads back, under the same names, byte for byte.
fn round_trip(mut bytes: Bytes<'_>) {
    let mut files: Vec<(String, &[u8])> = Vec::new();
    while !bytes.is_empty() && files.len() < 8 {
        let len = bytes.below(60);
        let name = String::from_utf8_lossy(bytes.take(len)).into_owned();
        let len = bytes.below(600);
        files.push((name, bytes.take(len)));
    }
    let named: Vec<_> = files.iter().map(|(n, d)| (n.as_str(), *d)).collect();
    let Ok(archive) = write(&named) else {
        return;
    };
    let index = Index::parse(&archive, archive.len() as u64).expect("our own archive");
    assert_eq!(index.total(), archive.len() as u64);
    assert_eq!(index.entries().count(), named.len());
    for (name, data) in named {
        let entry = index.find(name).expect("a file that was written");
        assert_eq!(entry.data(&archive), Some(data));
    }
}
