//! Decodes the machine's log.
//!
//! A record is {length of the payload: `u16` little-endian, source: `u8`, payload}. The payload is
//! one raw defmt frame of the source's binary. Source 0 is the kernel; root announces others by a
//! record of source 0xff: {id: `u8`, `package@instance` in ASCII}. A line of text that starts with
//! `bt:` is a backtrace: an optional `@instance` (else the source itself is meant), then hexadecimal
//! return addresses; it is followed by their functions, files and lines.

use std::{collections::BTreeMap, fs};

use defmt_decoder::{DecodeError, Locations, Table};

use super::{
    records::Record,
    symbols::{Place, Symbols, short},
};
use crate::build::bare::{Binaries, KERNEL};

const ANNOUNCE: u8 = 0xff;

struct Decoder {
    table: Table,
    locations: Locations,
}

struct SourceName {
    package: String,
    instance: String,
}

/// Turns the bytes of port 0xe9 into lines.
pub struct LogDecoder {
    pending: Vec<u8>,
    begun: bool,
    binaries: Binaries,
    symbols: Symbols,
    sources: BTreeMap<u8, SourceName>,
    decoders: BTreeMap<String, Option<Decoder>>,
}

impl LogDecoder {
    /// A decoder for a built system.
    pub fn new(binaries: &Binaries) -> Self {
        let kernel = SourceName {
            package: KERNEL.to_owned(),
            instance: "kernel".to_owned(),
        };
        Self {
            pending: Vec::new(),
            begun: false,
            binaries: binaries.clone(),
            symbols: Symbols::new(binaries.clone()),
            sources: BTreeMap::from([(0, kernel)]),
            decoders: BTreeMap::new(),
        }
    }

    /// Takes the next bytes, gives the lines that are complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.pending.extend_from_slice(bytes);
        if !self.begun {
            // An emulator's own words before the first record (Bochs); the upper half of its length is the first byte that is 0.
            let Some(zero) = self.pending.iter().position(|&b| b == 0) else {
                return Vec::new();
            };
            self.pending.drain(..zero.saturating_sub(1));
            self.begun = true;
        }
        let mut lines = Vec::new();
        let mut used = 0;
        while let Some(&[low, high, source]) = self.pending.get(used..used + 3) {
            let len = usize::from(u16::from_le_bytes([low, high]));
            let Some(payload) = self.pending.get(used + 3..used + 3 + len) else {
                break;
            };
            let payload = payload.to_vec();
            used += 3 + len;
            self.record(source, &payload, &mut lines);
        }
        self.pending.drain(..used);
        printable(lines)
    }

    /// A record that came by the serial line, as lines.
    pub fn from_console(&mut self, record: Record) -> Vec<String> {
        let mut lines = Vec::new();
        match record {
            Record::Log { source, frame } => self.record(source, &frame, &mut lines),
            Record::Backtrace { source, addresses } => {
                let package = self.sources.get(&source).map(|s| s.package.clone());
                self.resolve(&package.unwrap_or_default(), &addresses, &mut lines);
            }
        }
        printable(lines)
    }

    fn record(&mut self, source: u8, payload: &[u8], lines: &mut Vec<String>) {
        if source == ANNOUNCE {
            self.announce(payload, lines);
            return;
        }
        let (package, instance) = match self.sources.get(&source) {
            Some(name) => (name.package.clone(), name.instance.clone()),
            None => (String::new(), format!("source {source}")),
        };
        let (message, rest) = match self.decode(&package, payload) {
            Ok(decoded) => decoded,
            Err(why) => (format!("{why}: {payload:02x?}"), String::new()),
        };
        for (i, line) in message.lines().enumerate() {
            let tail = if i == 0 { rest.as_str() } else { "" };
            lines.push(format!("{instance}: {line}{tail}"));
            // The time in brackets and the level stand before the text.
            let text =
                line.split_once("] ").map_or(
                    line,
                    |(time, rest)| {
                        if time.starts_with('[') { rest } else { line }
                    },
                );
            let text = text
                .split_once(' ')
                .map_or(text, |(_, text)| text)
                .trim_start();
            if let Some(addresses) = text.strip_prefix("bt:") {
                self.backtrace(&package, addresses, lines);
            }
        }
    }

    fn announce(&mut self, payload: &[u8], lines: &mut Vec<String>) {
        let Some((&id, name)) = payload.split_first() else {
            return;
        };
        let name = String::from_utf8_lossy(name);
        let (package, instance) = name.split_once('@').unwrap_or((&name, &name));
        lines.push(format!("root: source {id} is {instance} ({package})"));
        let (package, instance) = (package.to_owned(), instance.to_owned());
        self.sources.insert(id, SourceName { package, instance });
    }

    /// Level and text of a frame, and where in the source it was logged.
    fn decode(&mut self, package: &str, payload: &[u8]) -> Result<(String, String), String> {
        let binaries = &self.binaries;
        let decoder = self.decoders.entry(package.to_owned()).or_insert_with(|| {
            let path = match package {
                KERNEL => Some(&binaries.kernel),
                _ => binaries.servers.get(package),
            };
            let elf = fs::read(path?).ok()?;
            let table = Table::parse(&elf).ok()??;
            let locations = table.get_locations(&elf).unwrap_or_default();
            Some(Decoder { table, locations })
        });
        let Some(decoder) = decoder else {
            return Err("no defmt table for this record".to_owned());
        };
        let (frame, _) = decoder.table.decode(payload).map_err(|error| match error {
            DecodeError::UnexpectedEof => "record cut short".to_owned(),
            DecodeError::Malformed => "malformed record".to_owned(),
        })?;
        let level = frame.level().map_or("print", |l| l.as_str()).to_uppercase();
        let time = frame
            .display_timestamp()
            .map(|t| format!("[{t}] "))
            .unwrap_or_default();
        let at = decoder.locations.get(&frame.index());
        let at = at.map(|l| format!("  ({}:{})", short(&l.file.to_string_lossy()), l.line));
        Ok((
            format!("{time}{level} {}", frame.display_message()),
            at.unwrap_or_default(),
        ))
    }

    /// The addresses of a `bt:` line.
    fn backtrace(&mut self, package: &str, text: &str, lines: &mut Vec<String>) {
        let mut package = package.to_owned();
        let mut addresses = Vec::new();
        for word in text.split_whitespace() {
            let name = word.strip_prefix('@').unwrap_or(word);
            if let Some(known) = self.package_of(name) {
                package = known;
                continue;
            }
            let digits = word.trim_start_matches("0x").trim_end_matches(',');
            addresses.extend(u64::from_str_radix(digits, 16));
        }
        self.resolve(&package, &addresses, lines);
    }

    /// Functions, files and lines: the first address is where it happened, the others are return addresses.
    fn resolve(&mut self, package: &str, addresses: &[u64], lines: &mut Vec<String>) {
        for (i, address) in addresses.iter().enumerate() {
            let place = if i == 0 { Place::At } else { Place::Return };
            let frames = self.symbols.resolve(package, *address, place);
            lines.extend(frames.into_iter().map(|f| format!("    {f}")));
        }
    }

    fn package_of(&self, name: &str) -> Option<String> {
        let named = self.sources.values().find(|s| s.instance == name);
        let named = named.map(|s| s.package.clone());
        named.or_else(|| self.symbols.knows(name).then(|| name.to_owned()))
    }
}

/// What a server says of itself may be anything: on the terminal, control characters are shown and not obeyed.
fn printable(mut lines: Vec<String>) -> Vec<String> {
    for line in &mut lines {
        if line.contains(char::is_control) {
            let shown = line.chars().map(|c| match c {
                '\t' => c.to_string(),
                c if c.is_control() => c.escape_default().to_string(),
                c => c.to_string(),
            });
            *line = shown.collect();
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn decoder() -> LogDecoder {
        LogDecoder::new(&Binaries {
            kernel: PathBuf::from("/nonexistent"),
            servers: BTreeMap::new(),
        })
    }

    #[test]
    fn records_survive_any_split() {
        let bytes = b"\x0c\x00\xff\x03vmm@linuxab\x02\x00\x03hi";
        let whole = decoder().feed(bytes);
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0], "root: source 3 is linuxab (vmm)");
        assert!(whole[1].starts_with("linuxab: no defmt table"), "{whole:?}");
        let mut one_by_one = decoder();
        let split: Vec<String> = bytes.iter().flat_map(|b| one_by_one.feed(&[*b])).collect();
        assert_eq!(split, whole);
    }

    #[test]
    fn nobody_writes_to_the_terminal_but_text() {
        let lines = decoder().feed(b"\x08\x00\xff\x03\x1b[2J@\nx");
        assert_eq!(lines, ["root: source 3 is \\nx (\\u{1b}[2J)"]);
    }

    #[test]
    fn empty_and_truncated_records() {
        assert!(decoder().feed(b"\x00\x00\xff").is_empty());
        assert!(decoder().feed(b"\xff\xff\x00abc").is_empty());
    }
}
