//! The line editor of the prompt: bytes from a serial terminal in, lines out.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

/// Longest line in bytes; what is typed beyond it is refused with a bell.
pub const MAX_LINE: usize = 128;
/// Lines that the history keeps.
const HISTORY: usize = 16;

const BELL: u8 = 0x07;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;
const CTRL_C: u8 = 0x03;
const CTRL_U: u8 = 0x15;
const ESCAPE: u8 = 0x1b;

/// What a byte led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Nothing to act on.
    Nothing,
    /// A whole line.
    Line(String),
    /// Ctrl-C: the line is given up.
    GivenUp,
}

/// Where in a terminal's escape sequence (ECMA-48 5.4) we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sequence {
    #[default]
    Outside,
    Escape,
    /// After `ESC [` or `ESC O`.
    Control,
}

/// The editor. Lines hold printable ASCII only.
#[derive(Clone, Debug, Default)]
pub struct Editor {
    line: Vec<u8>,
    sequence: Sequence,
    after_return: bool,
    history: VecDeque<Vec<u8>>,
    /// How many lines back in the history the line is; 0: it is new.
    back: usize,
}

impl Editor {
    /// The line as typed so far.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Gives the line up.
    pub fn clear(&mut self) {
        self.line.clear();
        self.sequence = Sequence::Outside;
        self.back = 0;
    }

    /// Takes a byte; appends what the terminal is to show to `echo`.
    pub fn feed(&mut self, byte: u8, echo: &mut Vec<u8>) -> Typed {
        let after_return = core::mem::take(&mut self.after_return);
        match self.sequence {
            Sequence::Escape => {
                self.sequence = if byte == b'[' || byte == b'O' {
                    Sequence::Control
                } else {
                    Sequence::Outside
                };
                return Typed::Nothing;
            }
            Sequence::Control => {
                // Parameter and intermediate bytes go on, a final byte ends it.
                if !(0x20..0x40).contains(&byte) {
                    self.sequence = Sequence::Outside;
                    match byte {
                        b'A' => self.recall(self.back.saturating_add(1), echo),
                        b'B' => self.recall(self.back.saturating_sub(1), echo),
                        _ => {}
                    }
                }
                return Typed::Nothing;
            }
            Sequence::Outside => {}
        }
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => {
                self.after_return = byte == b'\r';
                echo.extend_from_slice(b"\r\n");
                return Typed::Line(self.take_line());
            }
            CTRL_C => {
                self.clear();
                echo.extend_from_slice(b"^C\r\n");
                return Typed::GivenUp;
            }
            CTRL_U => {
                erase(self.line.len(), echo);
                self.line.clear();
            }
            BACKSPACE | DELETE => {
                if self.line.pop().is_some() {
                    erase(1, echo);
                }
            }
            ESCAPE => self.sequence = Sequence::Escape,
            b' '..=b'~' if self.line.len() < MAX_LINE => {
                self.line.push(byte);
                echo.push(byte);
            }
            _ => echo.push(BELL),
        }
        Typed::Nothing
    }

    fn take_line(&mut self) -> String {
        let line = core::mem::take(&mut self.line);
        self.back = 0;
        if !line.iter().all(|&byte| byte == b' ') && self.history.front() != Some(&line) {
            self.history.truncate(HISTORY - 1);
            self.history.push_front(line.clone());
        }
        line.into_iter().map(char::from).collect()
    }

    fn recall(&mut self, back: usize, echo: &mut Vec<u8>) {
        let line = match back.checked_sub(1) {
            None => Vec::new(),
            Some(index) => match self.history.get(index) {
                Some(line) => line.clone(),
                None => return echo.push(BELL),
            },
        };
        erase(self.line.len(), echo);
        echo.extend_from_slice(&line);
        self.line = line;
        self.back = back;
    }
}

fn erase(count: usize, echo: &mut Vec<u8>) {
    for _ in 0..count {
        echo.extend_from_slice(b"\x08 \x08");
    }
}
