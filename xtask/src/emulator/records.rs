//! Records on the serial line: what the manager's `log` and `servers NAME` print for machines becomes text for people.
//!
//! A server's log holds no text, and its backtrace only addresses: the words are in the ELF files, which are here and
//! not in the machine. The manager prints a record as a line of its own that begins with the control character RS:
//! `L<source> <hex of one defmt frame>` or `B<source> <address> ...`. Everything else passes through untouched, at
//! once: a guest's output is never held back, but for a line that looks like a record.

use std::mem;

/// The control character that begins a record (ECMA-48, 8.2.10: RS, information separator two).
const RS: u8 = 0x1e;
/// Longest record in bytes: the manager's messages are shorter.
const MAX_RECORD: usize = 16 << 10;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A log record.
    Log {
        /// Whose.
        source: u8,
        /// One defmt frame.
        frame: Vec<u8>,
    },
    /// A backtrace.
    Backtrace {
        /// Whose.
        source: u8,
        /// The place itself, then return addresses.
        addresses: Vec<u64>,
    },
}

/// Finds records in a stream of bytes, however it is cut.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// A record's beginning, RS included; empty outside of one.
    held: Vec<u8>,
}

impl Records {
    /// Takes the next bytes; gives what to show of them. `decode` turns a record into lines.
    pub fn feed(&mut self, bytes: &[u8], mut decode: impl FnMut(Record) -> Vec<String>) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if byte == RS {
                shown.append(&mut self.held);
                self.held.push(RS);
            } else if self.held.is_empty() {
                shown.push(byte);
            } else {
                self.held.push(byte);
                if byte == b'\n' {
                    let held = mem::take(&mut self.held);
                    match parse(&held) {
                        Some(record) => {
                            for line in decode(record) {
                                shown.extend_from_slice(line.as_bytes());
                                shown.extend_from_slice(b"\r\n");
                            }
                        }
                        None => shown.extend(held),
                    }
                } else if !may_be_record(&self.held) {
                    shown.append(&mut self.held);
                }
            }
        }
        shown
    }

    /// What was held back, when nothing more will come.
    pub fn rest(&mut self) -> Vec<u8> {
        mem::take(&mut self.held)
    }
}

/// Whether more bytes can make a record of these.
fn may_be_record(held: &[u8]) -> bool {
    let good = match held {
        [RS] => true,
        [RS, b'L' | b'B', rest @ ..] => rest
            .last()
            .is_none_or(|b| b.is_ascii_hexdigit() || matches!(b, b' ' | b'x' | b'\r')),
        _ => false,
    };
    good && held.len() <= MAX_RECORD
}

/// Reads a whole line.
fn parse(line: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(line.get(1..)?).ok()?.trim_end();
    let kind = text.get(..1)?;
    let mut words = text.get(1..)?.split(' ');
    let source = words.next()?.parse().ok()?;
    match kind {
        "L" => {
            let digits = words.next().unwrap_or_default();
            let byte = |i| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok();
            let frame: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
            let frame = frame.filter(|_| words.next().is_none())?;
            Some(Record::Log { source, frame })
        }
        "B" => {
            let address = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
            let addresses: Option<Vec<u64>> = words.map(address).collect();
            Some(Record::Backtrace {
                source,
                addresses: addresses?,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of these pieces, with the records as Rust would print them.
    fn shown(pieces: &[&str]) -> String {
        let mut records = Records::default();
        let mut all = Vec::new();
        for piece in pieces {
            all.extend(records.feed(piece.as_bytes(), |r| vec![format!("{r:?}")]));
        }
        all.extend(records.rest());
        String::from_utf8(all).unwrap()
    }

    const TEXT: &str = "vireo> log\r\n\x1eL3 00ff\r\n\x1eB7 0x40 0xfffff\r\n\x1eL0 \r\nvireo> ";
    const READ: &str = "vireo> log\r\nLog { source: 3, frame: [0, 255] }\r\nBacktrace { source: 7, addresses: [64, 1048575] }\r\nLog { source: 0, frame: [] }\r\nvireo> ";

    #[test]
    fn records_become_text_however_they_are_cut() {
        assert_eq!(shown(&[TEXT]), READ);
        for at in 0..TEXT.len() {
            let (a, b) = TEXT.split_at(at);
            assert_eq!(shown(&[a, b]), READ, "cut at {at}");
        }
    }

    #[test]
    fn what_is_no_record_passes_through() {
        for text in [
            "\x1e",
            "\x1e\n",
            "\x1eL",
            "\x1eL3 0\r\n",
            "\x1eL300 00\r\n",
            "\x1eL3 00 00\r\n",
            "\x1eB3 40\r\n",
            "\x1eLogin: \r\n",
            "\x1e\x1e\x1e",
            "L3 00ff\r\n~B",
        ] {
            assert_eq!(shown(&[text]), text, "{text:?}");
        }
        let long = format!("\x1eL3 {}", "0".repeat(2 * MAX_RECORD));
        assert_eq!(shown(&[&long]), long);
    }

    #[test]
    fn nothing_else_is_held_back() {
        let mut records = Records::default();
        let none = |_| Vec::new();
        assert_eq!(records.feed(b"login: ", none), b"login: ");
        assert_eq!(records.feed(b"a\x1e", none), b"a");
        assert_eq!(
            records.feed(b"x", none),
            b"\x1ex",
            "as soon as it is no record"
        );
    }
}
