//! For the host under KVM: when programs begin, and when they say something.

use core::ffi::CStr;

use crate::report::say;
use crate::sys::{self, File};

/// `exec PROGRAM ARGS...` or `stamp`.
///
/// # Safety
///
/// Both must be lists of strings that end with a null pointer.
pub unsafe fn run(args: *const *const u8, env: *const *const u8) -> ! {
    // SAFETY: the kernel gives a program's name at least; a list has its end.
    let verb = unsafe { *args.wrapping_add(1) };
    let verb = if verb.is_null() {
        c""
    } else {
        // SAFETY: a string.
        unsafe { CStr::from_ptr(verb.cast()) }
    };
    match verb.to_bytes() {
        b"stamp" => stamp(),
        b"exec" => {
            let rest = args.wrapping_add(2);
            // On standard error: the program's output may be a pipe.
            let _ = File(2).write(b"");
            start_line();
            // SAFETY: the caller's lists.
            let error = unsafe { sys::execute(*rest, rest, env) };
            say(format_args!("COSTS-FAIL exec: error {error}"));
            sys::exit(1)
        }
        _ => {
            say(format_args!("usage: exec PROGRAM ARGS... | stamp"));
            sys::exit(2)
        }
    }
}

/// Says when the program begins: into the pipe that goes to `stamp`, like the program's own output.
fn start_line() {
    say(format_args!("COSTS-START {}", sys::tsc()));
}

/// Passes lines on behind the TSC of their first bytes.
fn stamp() -> ! {
    let mut bytes = [0; 4096];
    let mut fresh = true;
    loop {
        let n = match File(0).read(&mut bytes) {
            Ok(0) | Err(_) => sys::exit(0),
            Ok(n) => n,
        };
        let now = sys::tsc();
        for line in bytes[..n].split_inclusive(|&b| b == b'\n') {
            if fresh {
                say_stamp(now);
            }
            let mut rest = line;
            while let Ok(n) = File(1).write(rest)
                && n < rest.len()
            {
                rest = &rest[n..];
            }
            fresh = line.ends_with(b"\n");
        }
    }
}

fn say_stamp(now: u64) {
    let mut text = *b"@00000000000000000000 ";
    let mut left = now;
    for digit in text[1..21].iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    let _ = File(1).write(&text);
}
