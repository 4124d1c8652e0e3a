//! Disks of a description: what is taken, what is refused.

use super::*;

const DISKS: &str = r#"
[[disk]]
name = "data"
size = "64M"
memory = "16M"
[[disk]]
name = "install"
image = "debian:busybox"
size = "32M"
read_only = true
serial = "0123"
[[vm]]
name = "c"
memory = "64M"
kernel = "build:exerciser"
[[vm.device]]
kind = "virtio-blk"
disk = "install"
queues = 4
[[vm.device]]
kind = "virtio-blk"
disk = "data"
[[vm.device]]
kind = "virtio-blk"
disk = "install"
packed = false
"#;

#[test]
fn disks() {
    let text = format!("{GOOD}{DISKS}");
    let d = parse(&text, path(), None).unwrap();
    let disks = &d.system.disks;
    assert_eq!((disks[0].size, disks[0].memory), (64 << 20, 16 << 20));
    assert_eq!(
        (disks[0].image.as_deref(), &*disks[0].serial),
        (None, "data")
    );
    assert_eq!((disks[1].memory, &*disks[1].serial), (0, "0123"));
    assert!(d.files.contains(&(
        "disk/install".into(),
        Source::Debian(crate::setup::guests::File::Busybox)
    )));
    let kinds: Vec<DeviceKind> = d.system.vms[2].devices.iter().map(|d| d.kind).collect();
    let blk = |slot, disk, queues, packed| DeviceKind::VirtioBlk {
        slot,
        disk,
        queues,
        packed,
    };
    let all = [blk(1, 1, 4, true), blk(2, 0, 1, true), blk(3, 1, 1, false)];
    assert_eq!(kinds, all);
    // All of a disk can be written when nothing else is said.
    let whole = parse(&text.replacen("memory = \"16M\"\n", "", 1), path(), None).unwrap();
    assert_eq!(whole.system.disks[0].memory, 64 << 20);
}

#[test]
fn each_mistake_about_disks() {
    let text = format!("{GOOD}{DISKS}");
    let wrong = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "`{from}` is not in the sample");
        let m = parse(&changed, path(), None).unwrap_err();
        (m.at.clone(), m.what.clone(), m.remedy)
    };
    let (at, what, remedy) = wrong("disk = \"data\"", "disk = \"date\"");
    assert_eq!(
        (&*at, &*remedy),
        ("guests/two.toml:49", "use one of: data, install")
    );
    assert_eq!(what, "there is no disk `date`");
    let (at, what, _) = wrong("disk = \"data\"\n", "");
    assert_eq!(
        (&*at, &*what),
        ("guests/two.toml:47", "this device has no `disk`")
    );
    let (_, _, remedy) = wrong(&DISKS[..DISKS.find("[[vm]]").unwrap()], "");
    assert!(remedy.starts_with("describe one: [[disk]]"), "{remedy}");
    let (at, what, remedy) = wrong("disk = \"install\"", "disk = \"data\"");
    assert_eq!(at, "guests/two.toml:47");
    assert!(
        what.contains("`c.blk1` has the disk that device `c.blk0` has, at guests/two.toml:43"),
        "{what}"
    );
    assert!(remedy.contains("read_only = true"), "{remedy}");
    let (at, what, _) = wrong(
        "image = \"debian:busybox\"\nsize",
        "image = \"none.img\"\nsize",
    );
    assert_eq!(at, "guests/two.toml:35");
    assert!(what.contains("no file guests/none.img"), "{what}");
    let (at, what, _) = wrong("size = \"32M\"\n", "");
    assert_eq!(at, "guests/two.toml:33");
    assert!(what.contains("has no `size`"), "{what}");
    let (_, what, _) = wrong("size = \"64M\"\n", "");
    assert!(what.contains("disk `data`: its size"), "{what}");
    let (_, what, _) = wrong("size = \"64M\"", "size = \"1000\"");
    assert!(what.contains("multiples of 4K"), "{what}");
    let (_, what, _) = wrong("memory = \"16M\"", "memory = \"128M\"");
    assert!(what.contains("no larger than the size"), "{what}");
    let (_, what, _) = wrong("read_only = true", "read_only = true\nmemory = \"4K\"");
    assert!(what.contains("nothing is written"), "{what}");
    let (_, what, _) = wrong("serial = \"0123\"", "serial = \"012345678901234567890\"");
    assert!(what.contains("at most 20"), "{what}");
    let twice = "memory = \"16M\"\n[[disk]]\nname = \"data\"\nsize = \"4K\"";
    let (_, what, _) = wrong("memory = \"16M\"", twice);
    assert!(what.contains("has the name of another"), "{what}");
    let (_, what, _) = wrong("queues = 4", "queues = 33");
    assert!(what.contains("1 to 32 queues"), "{what}");
    let (_, what, remedy) = wrong("port = 0x2f8", "packed = true");
    assert!(
        what.contains("virtio-blk, virtio-net and virtio-console"),
        "{what}"
    );
    assert_eq!(remedy, "leave `packed` out");
    let (_, what, remedy) = wrong("port = 0x2f8", "registers = \"memory\"");
    assert!(what.contains("`registers` is of PCI functions"), "{what}");
    assert_eq!(remedy, "leave `registers` out");
    let (_, what, _) = wrong("packed = false", "registers = \"rom\"");
    assert!(what.contains("ports"), "{what}");
    let (_, what, remedy) = wrong("port = 0x2f8", "queues = 3");
    assert_eq!(remedy, "leave them out", "{what}");
    let (_, what, _) = wrong(
        "memory = \"16M\"",
        "memory = \"64M\"\n[[disk]]\nname = \"big\"\nsize = \"900M\"",
    );
    assert!(what.contains("disk `big` needs"), "{what}");
}

/// On the second disk: no image in the archive, no memory for what is written.
#[test]
fn disks_on_the_second_disk() {
    let on = |from: &str, to: &str| {
        let text = format!("{GOOD}{DISKS}").replacen(from, to, 1);
        parse(&text, path(), None)
    };
    let d = on("read_only = true", "read_only = true\non = \"second-disk\"").unwrap();
    let disk = &d.system.disks[1];
    assert_eq!(disk.home, Home::SecondDisk { read_only: true });
    assert_eq!((disk.size, disk.memory, &disk.image), (32 << 20, 0, &None));
    assert!(d.files.iter().all(|(name, _)| name != "disk/install"));
    let image = Some(Source::Debian(crate::setup::guests::File::Busybox));
    let (name, size) = ("install".into(), 32 << 20);
    assert_eq!(d.second_disk, [Partition { name, size, image }]);
    let d = on("memory = \"16M\"", "on = \"second-disk\"").unwrap();
    assert!(d.system.disks[0].writable() && d.second_disk[0].image.is_none());
    let d = on("memory = \"16M\"", "on = \"memory\"").unwrap();
    assert!(d.second_disk.is_empty());
    let m = on("memory = \"16M\"", "memory = \"16M\"\non = \"second-disk\"").unwrap_err();
    assert!(m.what.contains("takes what is written"), "{}", m.what);
    assert_eq!(
        (&*m.at, &*m.remedy),
        ("guests/two.toml:32", "leave `memory` out, or `on`")
    );
    let m = on("size = \"64M\"\nmemory = \"16M\"", "on = \"second-disk\"").unwrap_err();
    assert!(
        m.what.contains("has no `size` and no `image`"),
        "{}",
        m.what
    );
    let m = on("memory = \"16M\"", "on = \"seconddisk\"").unwrap_err();
    assert!(m.remedy.contains("second-disk"), "{} {}", m.what, m.remedy);
    let m = on(
        "size = \"64M\"\nmemory = \"16M\"",
        "on = \"second-disk\"\nsize = \"1000\"",
    )
    .unwrap_err();
    assert!(m.what.contains("multiples of 4K"), "{}", m.what);
}
