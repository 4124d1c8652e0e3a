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

#[path = "disks_tests.rs"]
mod of_disks;

#[path = "nets_tests.rs"]
mod of_nets;

#[path = "consoles_tests.rs"]
mod of_consoles;
