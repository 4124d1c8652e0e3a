//! Consoles of a description: what is taken, what is refused.

use super::*;

const CONSOLES: &str = r#"
[[vm]]
name = "c"
memory = "64M"
kernel = "build:exerciser"
[[vm.device]]
kind = "virtio-console"
packed = false
[[vm.device]]
kind = "virtio-console"
ports = ["hvc1", "data"]
rows_first = true
"#;

#[test]
fn consoles() {
    let d = parse(&format!("{GOOD}{CONSOLES}"), path(), None).unwrap();
    let devices = d.system.vms[2].devices.iter();
    let consoles: Vec<(&str, u8, [bool; 2], Vec<&str>)> = devices
        .map(|d| match &d.kind {
            DeviceKind::VirtioConsole {
                slot,
                rows_first,
                ports,
                packed,
            } => {
                let names = ports.names().iter().map(|n| n.as_str()).collect();
                (d.name.as_str(), *slot, [*rows_first, *packed], names)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        consoles,
        [
            ("c.console0", 1, [false, false], vec!["hvc0"]),
            ("c.console1", 2, [true, true], vec!["hvc1", "data"]),
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
        assert_eq!(at, "guests/two.toml:38");
        assert_eq!(what, format!("`{bad}` cannot be the name of a port"));
        assert!(remedy.contains("at most 15"), "{remedy}");
    }
    let nine: Vec<String> = (0..9).map(|i| format!("\"p{i}\"")).collect();
    for bad in ["\"x\", \"x\"", "", &nine.join(", ")] {
        let (at, what, remedy) = wrong("\"hvc1\", \"data\"", bad);
        assert_eq!(at, "guests/two.toml:38");
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
