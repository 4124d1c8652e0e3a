//! The TOML as written: serde types that refuse unknown keys and remember where each value stands.

use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::Mistake;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    pub name: Spanned<String>,
    pub memory: Option<Spanned<String>>,
    pub idle: Option<Idle>,
    #[serde(default)]
    pub checker: bool,
    #[serde(default)]
    pub measure: bool,
    #[serde(default)]
    pub unproven: bool,
    #[serde(default)]
    pub vm: Vec<Spanned<Vm>>,
    pub driver: Option<Vec<Spanned<Driver>>>,
    #[serde(default)]
    pub server: Vec<Spanned<Server>>,
    #[serde(default)]
    pub disk: Vec<Spanned<Disk>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub name: Spanned<String>,
    pub size: Option<Spanned<String>>,
    pub image: Option<Spanned<String>>,
    pub memory: Option<Spanned<String>>,
    #[serde(default)]
    pub read_only: bool,
    pub serial: Option<Spanned<String>>,
    pub on: Option<Home>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Home {
    #[serde(rename = "memory")]
    Memory,
    #[serde(rename = "second-disk")]
    SecondDisk,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    PowerOff,
    Stay,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    pub name: Spanned<String>,
    pub memory: Option<Spanned<String>>,
    pub vcpus: Option<Spanned<u32>>,
    pub autostart: Option<bool>,
    pub kernel: Spanned<String>,
    pub initrd: Option<Spanned<String>>,
    pub append: Option<String>,
    pub shares: Option<u32>,
    pub reservation: Option<u32>,
    pub limit: Option<u32>,
    pub cpu: Option<Spanned<u32>>,
    pub debug_exit: Option<bool>,
    pub tsc_mhz: Option<Spanned<u32>>,
    pub device: Option<Vec<Spanned<Device>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    Uart,
    Rtc,
    TestDev,
    #[serde(rename = "virtio-rng")]
    VirtioRng,
    #[serde(rename = "virtio-blk")]
    VirtioBlk,
    #[serde(rename = "virtio-net")]
    VirtioNet,
    #[serde(rename = "virtio-console")]
    VirtioConsole,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub kind: DeviceKind,
    pub port: Option<u16>,
    pub irq: Option<u8>,
    pub doorbell: Option<u16>,
    pub slot: Option<Spanned<u8>>,
    pub disk: Option<Spanned<String>>,
    pub queues: Option<Spanned<u16>>,
    pub packed: Option<Spanned<bool>>,
    pub network: Option<Spanned<String>>,
    pub mac: Option<Spanned<String>>,
    pub limit: Option<Spanned<String>>,
    pub ports: Option<Spanned<Vec<String>>>,
    pub rows_first: Option<Spanned<bool>>,
    pub registers: Option<Spanned<Registers>>,
}

/// Where a PCI function shows its registers first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registers {
    Ports,
    Memory,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    Uart,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Driver {
    pub kind: DriverKind,
    pub port: Option<u16>,
    pub irq: Option<u8>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub name: Spanned<String>,
    pub binary: Spanned<String>,
    pub args: Option<String>,
}

/// Reads the text; syntax errors, wrong types and unknown keys become a [`Mistake`].
pub fn read(text: &str, path: &Path) -> Result<System, Mistake> {
    toml::from_str(text).map_err(|error| {
        let message = error
            .message()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        let at = error.span().map_or(0, |span| span.start);
        Mistake {
            at: place(text, path, at),
            remedy: remedy(&message),
            what: message,
        }
    })
}

/// File and line of a byte offset.
pub fn place(text: &str, path: &Path, offset: usize) -> String {
    let before = text.as_bytes().iter().take(offset);
    let line = before.filter(|b| **b == b'\n').count() + 1;
    format!("{}:{line}", path.display())
}

/// What to do about one of serde's messages.
fn remedy(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((wrong, known)) if message.starts_with("unknown") && !known.is_empty() => {
            let nearest = known.iter().min_by_key(|k| distance(wrong, k));
            let near = nearest.filter(|k| distance(wrong, k) <= 2);
            near.map_or_else(
                || format!("use one of: {}", known.join(", ")),
                |k| format!("did you mean `{k}`?"),
            )
        }
        Some((field, _)) if message.starts_with("missing field") => {
            format!("add a line `{field} = ...`")
        }
        _ => "correct this line; guests/linux.toml is a working example".to_owned(),
    }
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut last = i + 1;
        let mut next = vec![last];
        for (y, pair) in b.bytes().zip(row.windows(2)) {
            let (diagonal, above) = (pair[0], pair[1]);
            last = (diagonal + usize::from(x != y))
                .min(above + 1)
                .min(last + 1);
            next.push(last);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
