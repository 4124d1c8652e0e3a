//! Interactive use: the person's terminal is the machine's serial terminal.
//!
//! The terminal is in raw mode, so that Ctrl-C and Ctrl-] reach the machine. Ctrl-A x ends the
//! machine, Ctrl-A Ctrl-A (or Ctrl-A a) sends one Ctrl-A.

use std::{
    io::{IsTerminal, Read, Write, stdin, stdout},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::{Exit, Machine, Options};
use crate::build::image::Image;

const CTRL_A: u8 = 1;

/// Puts the terminal back as it was.
struct RawMode(Option<Termios>);

impl RawMode {
    fn enter() -> Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(stdin()).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)
            .context("setting the terminal to raw mode")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
            println!();
        }
    }
}

/// Boots an image on this terminal; ends with the machine, or with Ctrl-A x (`None`). Gives what the emulator itself said, too.
pub fn interact(image: &Image, options: &Options) -> Result<(Option<Exit>, Option<String>)> {
    if stdin().is_terminal() {
        eprintln!("vireo: booting; Ctrl-] is Vireo's console, Ctrl-A x ends the machine");
    }
    let show = |bytes: &[u8]| {
        let mut out = stdout();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    };
    let mut machine = Machine::start_with(image, options, show)?;
    let _raw = RawMode::enter()?;
    let quit = forward_input(machine.take_input().context("the machine has no input")?);
    loop {
        if let Some(exit) = machine.try_exit()? {
            return Ok((Some(exit), machine.remarks()));
        }
        if quit.recv_timeout(Duration::from_millis(50)).is_ok() {
            return Ok((None, None));
        }
        // A closed channel returns at once: there is no more input, but the machine goes on.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Passes input on from a thread of its own; says when the person wants to quit.
fn forward_input(mut to: Box<dyn Write + Send>) -> Receiver<()> {
    let (quit, receiver) = channel();
    std::thread::spawn(move || {
        let mut escape = Escape::default();
        let mut buffer = [0; 256];
        while let Ok(count) = stdin().read(&mut buffer) {
            let bytes = buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            let (out, end) = escape.filter(bytes);
            if to.write_all(&out).and_then(|()| to.flush()).is_err() {
                break;
            }
            if end {
                let _ = quit.send(());
                return;
            }
        }
    });
    receiver
}

#[derive(Default)]
struct Escape {
    armed: bool,
}

impl Escape {
    /// The bytes to pass on, and whether the machine is to end.
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        for &byte in bytes {
            match (std::mem::take(&mut self.armed), byte) {
                (false, CTRL_A) => self.armed = true,
                (true, b'x' | b'X') => return (out, true),
                (true, CTRL_A | b'a') => out.push(CTRL_A),
                (_, other) => out.push(other),
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences() {
        let mut e = Escape::default();
        assert_eq!(e.filter(b"ab\x1d"), (b"ab\x1d".to_vec(), false));
        assert_eq!(e.filter(b"\x01"), (vec![], false));
        assert_eq!(e.filter(b"a\x01\x01"), (b"\x01\x01".to_vec(), false));
        assert_eq!(e.filter(b"q\x01x"), (b"q".to_vec(), true));
    }
}
