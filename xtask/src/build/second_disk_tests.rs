use driver_virtio_blk::gpt::{HEADER_AT, Table};

use super::*;

/// What is laid out is what the driver finds, and where; the second table says the same.
#[test]
fn the_driver_reads_it() {
    let dir = std::env::temp_dir().join(format!("vireo-second-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (image, disk) = (dir.join("image"), dir.join("disk.raw"));
    let mut bytes = vec![7; 100_000];
    bytes[70_000..99_000].fill(0);
    fs::write(&image, &bytes).unwrap();
    let partition = |name: &str, size| Partition {
        name: name.into(),
        size,
        image: None,
    };
    let parts = [
        partition("one", 5 << 20),
        partition("two.b", (1 << 20) + 4096),
    ];
    let get = |p: &Partition| Ok((p.name == "two.b").then(|| image.clone()));
    make(&disk, &parts, get).unwrap();
    let all = fs::read(&disk).unwrap();
    let sector = |n: u64| &all[(n * SECTOR) as usize..];
    let capacity = all.len() as u64 / SECTOR;
    let table = Table::parse(&sector(HEADER_AT)[..512], capacity).unwrap();
    let found = table.partitions(sector(table.first)).unwrap();
    let is: Vec<_> = found
        .iter()
        .map(|p| (p.name.as_str(), p.first, p.sectors))
        .collect();
    assert_eq!(is, [("one", 2048, 10240), ("two.b", 12288, 2056)]);
    assert!(sector(12288)[..100_000] == bytes && sector(12288)[100_000] == 0);
    let (first, last) = (sector(2), sector(capacity - 1 - TABLE));
    assert!(first[..TABLE as usize * 512] == last[..TABLE as usize * 512]);
    assert_eq!(&sector(capacity - 1)[..8], b"EFI PART");
    // It is made anew when it has to be.
    let made = fs::metadata(&disk).unwrap().ino();
    make(&disk, &parts, get).unwrap();
    assert_eq!(fs::metadata(&disk).unwrap().ino(), made);
    fs::write(&image, [9; 4096]).unwrap();
    make(&disk, &parts, get).unwrap();
    assert!(fs::read(&disk).unwrap()[12288 * 512..][..4096] == [9; 4096]);
    fs::write(&image, vec![0; 2 << 20]).unwrap();
    let error = make(&disk, &parts, get).unwrap_err().to_string();
    assert!(error.contains("smaller than its image"), "{error}");
    fs::remove_dir_all(&dir).unwrap();
}
