//! What `--send` and `--expect` say: the steps of an unattended run.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Exit, Machine};

/// Silence after the last sent text that counts as its end.
const QUIET: Duration = Duration::from_secs(20);

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Types these bytes.
    Send(Vec<u8>),
    /// Waits until the serial output matches this regular expression.
    Expect(String),
}

/// The bytes that `--send TEXT` types: `\r`, `\n`, `\t`, `\e`, `\\` and `\xNN` mean what they do in C;
/// a carriage return is added, unless the text ends in `\c` (which is dropped).
pub fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut chars = text.chars();
    let mut enter = true;
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.extend(c.encode_utf8(&mut [0; 4]).bytes());
            continue;
        }
        match chars.next() {
            Some('r') => out.push(b'\r'),
            Some('n') => out.push(b'\n'),
            Some('t') => out.push(b'\t'),
            Some('e') => out.push(0x1b),
            Some('\\') => out.push(b'\\'),
            Some('x') => {
                let hex: String = chars.by_ref().take(2).collect();
                match u8::from_str_radix(&hex, 16) {
                    Ok(byte) if hex.len() == 2 => out.push(byte),
                    _ => bail!("`\\x{hex}` in `{text}`: write two hexadecimal digits"),
                }
            }
            Some('c') if chars.as_str().is_empty() => enter = false,
            other => bail!(
                "`\\{}` in `{text}` is not known; known are \\r \\n \\t \\e \\\\ \\xNN, and \\c at the end",
                other.map(String::from).unwrap_or_default()
            ),
        }
    }
    if enter {
        out.push(b'\r');
    }
    Ok(out)
}

/// Carries the steps out within `timeout` altogether.
///
/// After a last `Expect` the machine is stopped; after a last `Send` it must end by itself or fall
/// silent. Gives how it ended, `None` if it was still running.
pub fn play(machine: &mut Machine, steps: &[Step], timeout: Duration) -> Result<Option<Exit>> {
    let deadline = Instant::now() + timeout;
    for step in steps {
        match step {
            Step::Send(bytes) => machine.send_bytes(bytes)?,
            Step::Expect(pattern) => {
                let left = deadline.saturating_duration_since(Instant::now());
                machine.expect(pattern, left)?;
            }
        }
    }
    if !matches!(steps.last(), Some(Step::Send(_))) {
        return machine.try_exit();
    }
    loop {
        if let Some(exit) = machine.try_exit()? {
            return Ok(Some(exit));
        }
        if machine.silence() >= QUIET {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            bail!("after the last --send the machine neither ended nor fell silent");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(unescape("uname -a").unwrap(), b"uname -a\r");
        assert_eq!(unescape(r"\x1d\c").unwrap(), b"\x1d");
        assert_eq!(unescape(r"a\\b\n\t\e\c").unwrap(), b"a\\b\n\t\x1b");
        assert!(unescape(r"\q").is_err());
        assert!(unescape(r"\x1").is_err());
        assert!(unescape(r"\c more").is_err());
        assert!(unescape("\\").is_err());
    }
}
