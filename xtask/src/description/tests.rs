use super::*;
use ipc_schema::manifest::{DeviceKind, Home, Idle};

const GOOD: &str = r#"
name = "two"
memory = "1G"
idle = "stay"
[[vm]]
name = "a"
kernel = "debian:cloud-kernel"
initrd = "debian:busybox"
append = "quiet"
[[vm]]
name = "b"
memory = "64M"
kernel = "build:exerciser"
debug_exit = true
autostart = false
[[vm.device]]
kind = "uart"
[[vm.device]]
kind = "uart"
port = 0x2f8
irq = 3
[[vm.device]]
kind = "testdev"
[[server]]
name = "bench"
binary = "bench"
args = "ipc"
"#;

fn path() -> &'static Path {
    Path::new("guests/two.toml")
}

fn mistake(from: &str, to: &str) -> Mistake {
    let text = GOOD.replacen(from, to, 1);
    assert_ne!(text, GOOD, "`{from}` is not in the sample");
    parse(&text, path(), None).unwrap_err()
}

#[test]
fn a_good_description() {
    let d = parse(GOOD, path(), None).unwrap();
    let s = &d.system;
    assert_eq!((s.memory, s.idle), (1 << 30, Idle::Stay));
    assert_eq!(s.vms[0].memory, 256 << 20);
    let names: Vec<&str> = s
        .vms
        .iter()
        .flat_map(|v| v.devices.iter().map(|d| d.name.as_str()))
        .collect();
    assert_eq!(
        names,
        ["a.uart0", "a.rtc0", "b.uart0", "b.uart1", "b.testdev0"]
    );
    assert_eq!(s.vms[1].devices[2].kind, DeviceKind::TestDev);
    assert_eq!(s.vms[1].devices[2].doorbell, Some(0x5010));
    assert_eq!(s.vms[1].cpu.cpu, None);
    assert_eq!((s.vms[1].debug_exit, s.vms[1].autostart), (true, false));
    assert_eq!(s.drivers.len(), 1);
    assert_eq!(s.servers[0].args, "ipc");
    assert_eq!(
        d.files,
        [
            (
                "vm/a/kernel".to_owned(),
                Source::Debian(guests::File::CloudKernel)
            ),
            (
                "vm/a/initrd".to_owned(),
                Source::Debian(guests::File::Busybox)
            ),
            (
                "vm/b/kernel".to_owned(),
                Source::Build("exerciser".to_owned())
            ),
        ]
    );
}

#[test]
fn memory_from_the_command_line_counts() {
    let error = parse(GOOD, path(), Some(256 << 20)).unwrap_err();
    assert!(error.what.contains("256 MiB has 192 MiB"), "{error}");
    assert!(error.remedy.contains("memory = \"320M\""), "{error}");
    assert_eq!(error.at, "guests/two.toml:5");
}

#[test]
fn each_mistake_names_line_and_remedy() {
    let m = mistake("idle =", "idel =");
    assert_eq!(m.at, "guests/two.toml:4");
    assert!(m.what.contains("unknown field `idel`"), "{m}");
    assert_eq!(m.remedy, "did you mean `idle`?");

    let m = mistake("port = 0x2f8", "prot = 0x2f8");
    assert_eq!(
        (m.at.as_str(), m.remedy.as_str()),
        ("guests/two.toml:20", "did you mean `port`?")
    );

    let m = mistake("kernel = \"debian:cloud-kernel\"\n", "");
    assert!(m.what.contains("missing field `kernel`"), "{m}");
    assert!(m.remedy.contains("kernel"), "{m}");

    let m = mistake("debian:cloud-kernel", "vmlinuz-not-there");
    assert_eq!(m.at, "guests/two.toml:7");
    assert!(m.what.contains("no file guests/vmlinuz-not-there"), "{m}");

    let m = mistake("build:exerciser", "build:exercise");
    assert!(m.remedy.contains("exerciser"), "{m}");
    let m = mistake("debian:busybox", "debian:box");
    assert!(m.remedy.contains("debian:busybox"), "{m}");

    let m = mistake("\"64M\"", "\"64 megs\"");
    assert_eq!(m.at, "guests/two.toml:12");
    assert!(m.what.contains("not a size"), "{m}");

    let m = mistake("\"64M\"", "\"900M\"");
    assert_eq!(m.at, "guests/two.toml:10");
    assert!(m.what.contains("has 960 MiB"), "{m}");

    let m = mistake("0x2f8", "0x3f8");
    assert_eq!(m.at, "guests/two.toml:18", "{m}");
    assert!(
        m.what.contains("b.uart0") && m.what.contains("two.toml:16"),
        "{m}"
    );

    let m = mistake("debug_exit = true", "debug_exit = true\ncpu = 8");
    assert_eq!(m.at, "guests/two.toml:15", "{m}");
    assert!(m.what.contains("VM `b` is to run on a processor"), "{m}");
    let m = mistake("debug_exit = true", "tsc_mhz = 0");
    assert!(m.what.contains("tsc_mhz is 0"), "{m}");
    let m = mistake("debug_exit = true", "cpu = -1");
    assert_eq!(m.at, "guests/two.toml:14", "{m}");

    let m = mistake("irq = 3", "irq = 4");
    assert!(m.what.contains("irq"), "{m}");

    let m = mistake("name = \"b\"", "name = \"a\"");
    assert_eq!(m.at, "guests/two.toml:11");
    assert!(
        m.what.contains("name of another, at guests/two.toml:5"),
        "{m}"
    );

    let m = mistake("name = \"b\"", "name = \"a b\"");
    assert!(m.what.contains("cannot be the name"), "{m}");

    let m = mistake("binary = \"bench\"", "binary = \"bnech\"");
    assert_eq!(m.at, "guests/two.toml:26");

    let m = mistake("memory = \"1G\"", "memory = 1G");
    assert_eq!(m.at, "guests/two.toml:3");
}

#[test]
fn pci_functions_and_their_slots() {
    let text = format!(
        "{GOOD}[[vm]]\nname = \"c\"\nmemory = \"64M\"\nkernel = \"build:exerciser\"\n{}{}{}{}",
        "[[vm.device]]\nkind = \"virtio-rng\"\n",
        "[[vm.device]]\nkind = \"uart\"\n",
        "[[vm.device]]\nkind = \"virtio-rng\"\nslot = 1\n",
        "[[vm.device]]\nkind = \"virtio-rng\"\n",
    );
    let d = parse(&text, path(), None).unwrap();
    let devices = &d.system.vms[2].devices;
    let of = |name: &str| devices.iter().find(|d| d.name == name).unwrap();
    for (name, slot) in [("c.rng0", 2), ("c.rng1", 1), ("c.rng2", 3)] {
        assert_eq!(of(name).kind, DeviceKind::VirtioRng { slot });
        assert_eq!((of(name).ports.count, of(name).doorbell), (0, None));
    }
    let wrong = |from: &str, to: &str| {
        let text = text.replacen(from, to, 1);
        parse(&text, path(), None).unwrap_err()
    };
    let m = wrong(
        "slot = 1\n",
        "slot = 1\n[[vm.device]]\nkind = \"virtio-rng\"\nslot = 1\n",
    );
    assert!(
        m.what
            .contains("`c.rng2` is in the slot that device `c.rng1` has"),
        "{m}"
    );
    assert_eq!(m.at, "guests/two.toml:39", "{m}");
    let m = wrong("slot = 1\n", "slot = 32\n");
    assert!(m.what.contains("must be 1 to 31"), "{m}");
    let m = wrong("slot = 1\n", "slot = 1\nirq = 5\n");
    assert!(m.what.contains("no `port`, `irq` or `doorbell`"), "{m}");
    let m = wrong("port = 0x2f8", "slot = 3");
    assert_eq!(
        (m.at.as_str(), m.remedy.as_str()),
        ("guests/two.toml:20", "leave `slot` out")
    );
}

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
    assert!(what.contains("virtio-blk and virtio-net"), "{what}");
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

#[test]
fn two_drivers_on_one_port() {
    let text = format!("{GOOD}[[driver]]\nkind = \"uart\"\n[[driver]]\nkind = \"uart\"\n");
    let m = parse(&text, path(), None).unwrap_err();
    assert!(
        m.what
            .contains("driver `uart1` uses a port that driver `uart0` has"),
        "{m}"
    );
}

#[test]
fn sizes() {
    assert_eq!(parse_size("256M"), Some(256 << 20));
    assert_eq!(parse_size("4096"), Some(4096));
    assert_eq!(parse_size("1g"), Some(1 << 30));
    for bad in ["", "M", "-1M", "1.5G", "1T", "99999999999G"] {
        assert_eq!(parse_size(bad), None, "{bad}");
    }
}

const NETS: &str = r#"
[[vm]]
name = "c"
memory = "64M"
kernel = "build:exerciser"
[[vm.device]]
kind = "virtio-net"
queues = 2
[[vm.device]]
kind = "virtio-net"
network = "dmz"
mac = "02:00:00:00:00:0a"
limit = "10M"
[[vm]]
name = "d"
memory = "64M"
kernel = "build:exerciser"
[[vm.device]]
kind = "virtio-net"
network = "dmz"
"#;

#[test]
fn networks() {
    let d = parse(&format!("{GOOD}{NETS}"), path(), None).unwrap();
    let cards: Vec<(u8, u32, [u8; 6], u64, u16)> = d.system.vms[2..]
        .iter()
        .flat_map(|vm| &vm.devices)
        .map(|d| match d.kind {
            DeviceKind::VirtioNet {
                slot,
                network,
                mac,
                rate,
                packed: true,
                pairs,
            } => (slot, network, mac, rate, pairs),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((cards[0].0, cards[0].1, cards[0].3), (1, 0, 0));
    assert_eq!(cards[0].4, 2);
    assert_eq!(cards[1], (2, 1, [2, 0, 0, 0, 0, 10], 10 << 20, 1));
    assert_eq!((cards[2].0, cards[2].1, cards[2].4), (1, 1, 1));
    // Addresses that are made up are somebody's own, and the same each time.
    assert!(cards[0].2[..2] == [2, 0x56] && cards[0].2 != cards[2].2);
    let again = parse(&format!("{GOOD}{NETS}"), path(), None).unwrap();
    assert_eq!(again.system, d.system);
}

#[test]
fn each_mistake_about_networks() {
    let text = format!("{GOOD}{NETS}");
    let wrong = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "`{from}` is not in the sample");
        let m = parse(&changed, path(), None).unwrap_err();
        (m.at.clone(), m.what.clone(), m.remedy)
    };
    for bad in ["2:0:0:0:0:a", "02:00:00:00:00", "02:00:00:00:00:0g", ""] {
        let (at, what, remedy) = wrong("02:00:00:00:00:0a", bad);
        assert_eq!(at, "guests/two.toml:39");
        assert_eq!(what, format!("`{bad}` is no Ethernet address"));
        assert!(remedy.contains("02:00:00:00:00:01"), "{remedy}");
    }
    let (at, what, remedy) = wrong("02:00:00:00:00:0a", "03:00:00:00:00:0a");
    assert!(
        what.contains("`c.net1`") && what.contains("group"),
        "{at} {what}"
    );
    assert!(remedy.contains("even"), "{remedy}");
    let (at, what, remedy) = wrong("limit = \"10M\"", "limit = \"0M\"");
    assert_eq!(
        (&*at, &*remedy),
        ("guests/two.toml:40", "leave `limit` out for none")
    );
    assert!(what.contains("0 bytes"), "{what}");
    let (_, what, _) = wrong("queues = 2", "queues = 16");
    assert!(what.contains("1 to 15 pairs"), "{what}");
    let (_, what, _) = wrong(
        "kind = \"virtio-net\"\nnetwork",
        "kind = \"virtio-rng\"\nnetwork",
    );
    assert!(what.contains("are of virtio-net"), "{what}");
    let text = format!("{text}mac = \"02:00:00:00:00:0a\"\n");
    let m = parse(&text, path(), None).unwrap_err();
    assert!(
        m.what.contains("`d.net0`") && m.what.contains("`c.net1`"),
        "{m}"
    );
}

const CONSOLES: &str = r#"
[[vm]]
name = "c"
memory = "64M"
kernel = "build:exerciser"
[[vm.device]]
kind = "virtio-console"
[[vm.device]]
kind = "virtio-console"
ports = ["hvc1", "data"]
rows_first = true
"#;

#[test]
fn consoles() {
    let d = parse(&format!("{GOOD}{CONSOLES}"), path(), None).unwrap();
    let devices = d.system.vms[2].devices.iter();
    let consoles: Vec<(&str, u8, bool, Vec<&str>)> = devices
        .map(|d| match &d.kind {
            DeviceKind::VirtioConsole {
                slot,
                rows_first,
                ports,
            } => {
                let names = ports.names().iter().map(|n| n.as_str()).collect();
                (d.name.as_str(), *slot, *rows_first, names)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        consoles,
        [
            ("c.console0", 1, false, vec!["hvc0"]),
            ("c.console1", 2, true, vec!["hvc1", "data"]),
        ]
    );
}

#[test]
fn each_mistake_about_consoles() {
    let text = format!("{GOOD}{CONSOLES}");
    let wrong = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "`{from}` is not in the sample");
        let m = parse(&changed, path(), None).unwrap_err();
        (m.at.clone(), m.what.clone(), m.remedy)
    };
    for bad in ["hvc.1", "", "a-port-with-too-long-a-name"] {
        let (at, what, remedy) = wrong("\"hvc1\"", &format!("\"{bad}\""));
        assert_eq!(at, "guests/two.toml:37");
        assert_eq!(what, format!("`{bad}` cannot be the name of a port"));
        assert!(remedy.contains("at most 15"), "{remedy}");
    }
    let nine: Vec<String> = (0..9).map(|i| format!("\"p{i}\"")).collect();
    for bad in ["\"x\", \"x\"", "", &nine.join(", ")] {
        let (at, what, remedy) = wrong("\"hvc1\", \"data\"", bad);
        assert_eq!(at, "guests/two.toml:37");
        assert!(what.contains("1 to 8 ports of different names"), "{what}");
        assert!(remedy.contains("ports = [\"hvc0\", \"data\"]"), "{remedy}");
    }
    let (_, what, _) = wrong("\"virtio-console\"\nports", "\"virtio-rng\"\nports");
    assert!(what.contains("are of virtio-console"), "{what}");
    let (at, what, remedy) = wrong("\"hvc1\"", "\"hvc0\"");
    assert!(
        what.contains("VM `c`") && what.contains("a port of the same name"),
        "{at} {what}"
    );
    assert!(remedy.contains("ports ="), "{remedy}");
}
