//! The kernel's pure part: system calls out of bytes, judged by census and model (`microkernel/src/tests`).
#![no_main]

use fuzz::target;

target!(run);

fn run(data: &[u8]) {
    microkernel::tests::driver::drive(data);
}
