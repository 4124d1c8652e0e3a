//! Characters on the serial console.

use crate::report::{measure, must};
use crate::sys::{File, TERMINAL};

/// Characters of a write.
const LENGTH: usize = 2048;
/// `TCSBRK` with an argument other than 0: waits until all has been sent.
const DRAIN: usize = 0x5409;

/// The row.
pub fn run() {
    let tty = must("/dev/ttyS0", File::open(c"/dev/ttyS0", TERMINAL));
    raw(tty);
    let mut text = [b'.'; LENGTH];
    for end in text.iter_mut().skip(63).step_by(64) {
        *end = b'\n';
    }
    let drain = || must("drain", tty.control(DRAIN, 1));
    drain();
    measure::<9>("console_char", LENGTH as u64, || {
        let mut rest = &text[..];
        while !rest.is_empty() {
            let n = must("write", tty.write(rest));
            rest = rest.get(n..).unwrap_or_default();
        }
        drain();
    });
}

const TCGETS: usize = 0x5401;
const TCSETSW: usize = 0x5403;

/// `struct termios` of the kernel.
#[repr(C)]
#[derive(Default)]
struct Termios {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
    line: u8,
    characters: [u8; 19],
}

/// Bytes go out as they are, at 115,200 a second.
fn raw(tty: File) {
    let mut state = Termios::default();
    must("TCGETS", tty.control_with(TCGETS, &mut state));
    // OPOST
    state.output &= !1;
    // B115200 for CBAUD, CLOCAL.
    state.control = state.control & !0o10_017 | 0o10_002 | 0o4000;
    must("TCSETSW", tty.control_with(TCSETSW, &mut state));
}
