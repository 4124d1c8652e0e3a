//! What Bochs says about its machine: a line each, `00123456789e[CPU0  ] text`; the letter is the level (`p` panic, `e` error,
//! `i` information).
//!
//! It reports many VM exits as errors: those are dropped. What is left names, for one, the check that a VM entry failed.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use crate::emulator::{Exit, process::Diary};

/// Lines that are kept.
const KEPT: usize = 60;

/// Bochs' notes, as they come.
pub struct Notes {
    kept: Arc<Mutex<Kept>>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<String>,
    /// The panic that ended it.
    panic: Option<String>,
}

impl Kept {
    fn take(&mut self, line: &str) {
        let Some((level, text)) = parse(line) else {
            return;
        };
        let panic = text.strip_prefix(PANIC).filter(|_| level == 'p');
        match panic {
            // The display library's word for "I cannot show this".
            Some(_) if line.contains("[RFB ") => return,
            Some(panic) => self.panic = Some(panic.trim().to_owned()),
            // The registers follow a panic as information.
            None if level == 'i' && self.panic.is_none() => return,
            None if level == 'e' && is_exit(text) => return,
            None => {}
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_owned());
    }
}

const PANIC: &str = ">>PANIC<< ";

/// Level and text of a line.
fn parse(line: &str) -> Option<(char, &str)> {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let level = rest.chars().next().filter(|_| rest.len() < line.len())?;
    let (_, text) = rest.get(1..)?.strip_prefix('[')?.split_once("] ")?;
    matches!(level, 'p' | 'e' | 'i').then_some((level, text))
}

/// Whether an error is one of the many words for a VM exit.
fn is_exit(text: &str) -> bool {
    text.starts_with("SVM VMEXIT") || text.starts_with("VMEXIT")
}

impl Notes {
    /// Reads Bochs' log to its end, in a thread.
    pub fn read(log: impl Read + Send + 'static) -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let shared = Arc::clone(&kept);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(log).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line);
                lock(&shared).take(&line);
            }
        });
        Self {
            kept,
            reader: Mutex::new(Some(reader)),
        }
    }

    /// The lines that were kept.
    pub fn text(&self) -> String {
        let lines = &lock(&self.kept).lines;
        lines
            .iter()
            .fold(String::new(), |text, line| text + line + "\n")
    }

    /// How a machine ended, by Bochs' last panic and root's last words.
    fn classify(panic: Option<&str>, log: &[String]) -> Exit {
        match panic {
            Some(panic) if panic.contains("soft power off") => {
                // There is no port for the code.
                let code = log.iter().rev().find_map(|line| {
                    let (_, code) = line.split_once("power off, code ")?;
                    code.split_whitespace().next()?.parse().ok()
                });
                code.filter(|&code| code != 0)
                    .map_or(Exit::PowerOff, Exit::Guest)
            }
            Some(panic) if panic.starts_with("exception(): 3rd") => Exit::TripleFault,
            _ => Exit::Emulator,
        }
    }
}

impl Diary for Notes {
    fn exit(&self, _: Option<i32>, log: &[String]) -> Exit {
        // It ends after a panic, and may even crash while it does: its exit status tells nothing. The panic may still be on its way.
        if let Some(reader) = lock(&self.reader).take() {
            let _ = reader.join();
        }
        Self::classify(lock(&self.kept).panic.as_deref(), log)
    }
    fn remarks(&self) -> Option<String> {
        let text = self.text();
        (!text.is_empty()).then(|| format!("Bochs says\n{}", text.trim_end()))
    }
    fn keep(&self) -> bool {
        false
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A reader that panicked leaves plain data behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
00311093650p[RFB   ] >>PANIC<< 24 bpp graphics mode not supported yet
00320274211i[SER   ] com1: FIFO enabled
00328321625e[CPU0  ] SVM VMEXIT: event vector 0x01 type 3 error code=0x0000
00329022491e[CPU0  ] SVM VMEXIT: I/O port 0x03f8
00329022500e[CPU0  ] VMEXIT: NMI window exiting
00731000000e[CPU0  ] VMRUN: Guest CR4 reserved bits set
00731000001e[CPU0  ] VMENTRY FAIL: VMCS guest invalid CR0
ALSA lib conf.c:5703:(snd_config_expand) Evaluate error: No such file or directory
00731551491p[ACPI  ] >>PANIC<< ACPI control: soft power off
00731551491i[CPU0  ] CPU is in long mode (active)
free(): invalid pointer
";

    #[test]
    fn what_matters_is_kept() {
        let notes = Notes::read(LOG.as_bytes());
        let code = |code: u32| {
            [format!(
                "root: [1] INFO power off, code {code}  (services/root/src/x.rs:3)"
            )]
        };
        assert_eq!(notes.exit(None, &code(0)), Exit::PowerOff);
        assert_eq!(notes.exit(None, &code(5)), Exit::Guest(5));
        assert_eq!(notes.exit(None, &[]), Exit::PowerOff);
        let lines = [5, 6, 8, 9].map(|i| LOG.lines().nth(i).unwrap());
        assert_eq!(notes.text(), lines.join("\n") + "\n");
        assert!(
            notes
                .remarks()
                .unwrap()
                .starts_with("Bochs says\n00731000000e")
        );
    }

    #[test]
    fn ends() {
        let triple = "exception(): 3rd (13) exception with no resolution";
        assert_eq!(Notes::classify(Some(triple), &[]), Exit::TripleFault);
        assert_eq!(Notes::classify(Some("no disk"), &[]), Exit::Emulator);
        assert_eq!(Notes::classify(None, &[]), Exit::Emulator);
    }

    #[test]
    fn only_the_last_lines() {
        let lines: Vec<String> = (0..100).map(|i| format!("{i:011}e[CPU0  ] x")).collect();
        let notes = Notes::read(std::io::Cursor::new(lines.join("\n")));
        let _ = notes.exit(None, &[]);
        assert_eq!(notes.text(), lines[100 - KEPT..].join("\n") + "\n");
    }
}
