//! Disks in the manifest: bytes, faults.

use super::*;

#[test]
fn golden_bytes_of_disks() {
    let kind = DeviceKind::VirtioBlk {
        slot: 5,
        disk: 1,
        queues: 2,
        packed: true,
    };
    let blk = device("a.blk0", kind, 0, 0);
    let want = b"\x06a.blk0\x04\x05\x01\x02\x01\x15bin/device-virtio-blk\x00\x00\x00\x00\x00";
    assert_eq!(postcard::to_allocvec(&blk).unwrap(), want);
    let mut disk = disk("d", 4096);
    disk.image = Some(disk_file("d"));
    let want = b"\x01d\x80\x80\x80\x20\x01\x06disk/d\x80\x20\x01d\x00";
    assert_eq!(postcard::to_allocvec(&disk).unwrap(), want);
    disk.home = Home::SecondDisk { read_only: true };
    disk.serial = String::new();
    assert!(
        postcard::to_allocvec(&disk)
            .unwrap()
            .ends_with(b"\x00\x01\x01")
    );
}

#[test]
fn disks() {
    let blk = |i: usize, disk, queues| {
        let slot = i as u8 + 1;
        device(
            &format!("a.blk{i}"),
            DeviceKind::VirtioBlk {
                slot,
                disk,
                queues,
                packed: true,
            },
            0,
            0,
        )
    };
    let with = |disks: &[Disk], devices: &[(u32, u16)]| {
        let mut s = system();
        s.disks = disks.to_vec();
        let devices = devices.iter().enumerate();
        s.vms[0]
            .devices
            .extend(devices.map(|(i, &(disk, queues))| blk(i, disk, queues)));
        s.check().map_err(|e| (e.place, e.fault))
    };
    let (writable, read_only) = (disk("w", 1 << 20), disk("r", 0));
    let both = [writable.clone(), read_only.clone()];
    assert_eq!(with(&both, &[(0, 1), (1, MAX_QUEUES), (1, 1)]), Ok(()));
    let dev = |d| Place::Device(0, d);
    assert_eq!(with(&both, &[(2, 1)]), Err((dev(2), Fault::UnknownDisk)));
    assert_eq!(
        with(&both, &[(0, 1), (1, 1), (0, 1)]),
        Err((dev(4), Fault::DiskTaken(dev(2))))
    );
    assert_eq!(with(&both, &[(0, 0)]), Err((dev(2), Fault::BadQueues)));
    assert_eq!(
        with(&both, &[(0, MAX_QUEUES + 1)]),
        Err((dev(2), Fault::BadQueues))
    );
    let twice = [read_only.clone(), read_only.clone()];
    let d1 = Place::Disk(1);
    assert_eq!(
        with(&twice, &[]),
        Err((d1, Fault::DuplicateName(Place::Disk(0))))
    );
    let bad = |change: &dyn Fn(&mut Disk)| {
        let mut disk = disk("w", 1 << 20);
        change(&mut disk);
        match with(&[read_only.clone(), disk], &[]) {
            Err((place, fault)) if place == d1 => Some(fault),
            _ => None,
        }
    };
    let second = |d: &mut Disk, read_only| d.home = Home::SecondDisk { read_only };
    assert_eq!(
        bad(&|d| second(d, false)),
        Some(Fault::BadDiskSize),
        "memory"
    );
    let image = |d: &mut Disk| {
        second(d, false);
        (d.memory, d.image) = (0, Some(disk_file("w")));
    };
    assert_eq!(bad(&image), Some(Fault::BadDiskSize));
    let mut there = disk("s", 0);
    second(&mut there, false);
    let taken = Err((dev(3), Fault::DiskTaken(dev(2))));
    assert_eq!(with(&[there.clone()], &[(0, 1), (0, 1)]), taken);
    second(&mut there, true);
    assert_eq!(with(&[there], &[(0, 1), (0, 1)]), Ok(()));
    assert_eq!(bad(&|d| d.name = "a/b".into()), Some(Fault::BadName));
    assert_eq!(bad(&|d| d.serial = "x".repeat(21)), Some(Fault::BadSerial));
    assert_eq!(bad(&|d| d.serial = "a b".into()), Some(Fault::BadSerial));
    assert_eq!(bad(&|d| d.size = 0), Some(Fault::BadDiskSize));
    assert_eq!(bad(&|d| d.size = 4097), Some(Fault::BadDiskSize));
    assert_eq!(
        bad(&|d| d.size = (MAX_BLOCKS + 1) * BLOCK),
        Some(Fault::BadDiskSize)
    );
    assert_eq!(bad(&|d| d.memory = 512), Some(Fault::BadDiskSize));
    assert_eq!(
        bad(&|d| d.memory = d.size + BLOCK),
        Some(Fault::BadDiskSize)
    );
    assert!(matches!(
        bad(&|d| (d.size, d.memory) = (2 << 30, 1 << 30)),
        Some(Fault::MemoryDoesNotFit { .. })
    ));
}
