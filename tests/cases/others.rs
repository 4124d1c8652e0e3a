//! Guests that are not Linux: a kernel of another kind, and a test of the memory that a guest is given.

use std::time::Duration;

use anyhow::Result;
use system_tests::{Judged, System};

/// Bound of a pass of Memtest86+: four minutes of the guest's time, most of them waiting.
const PASS: Duration = Duration::from_secs(1800);

/// GNU Mach starts by Multiboot in 32-bit mode, finds its memory, and reads the clock; then it asks for the servers that a
/// boot loader would have given it.
#[test]
fn gnumach() -> Judged {
    let mut mach = System::boot("guests/gnumach.toml")?;
    mach.expect_boot(r"GNU Mach \d\S+")?;
    mach.expect(r"biosmem: 0+100000:0+8000000, available")?;
    mach.expect(r"RTC time is 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d")?;
    Ok(mach.expect("No bootstrap code loaded").map(|_| ())?)
}

/// What Memtest86+ shows: a bar with the number of the test, and how many errors there were.
fn memtest(until: &str, bound: Duration) -> Result<()> {
    let mut memtest = System::boot("guests/memtest.toml")?;
    memtest.expect_boot(r"Memtest86")?;
    memtest.expect(r"Pass:  0        Errors: \D{0,20}0")?;
    memtest.machine.expect(until, bound)?;
    let serial = memtest.machine.serial();
    memtest.check_not(&serial, r"Errors: \D{0,20}[1-9]|Status: Failed")
}

/// It finds the machine and goes from test to test.
#[test]
fn memtest_begins() -> Judged {
    Ok(memtest(r"\[Moving inversions", Duration::from_secs(300))?)
}

/// One pass over all of 64 MiB.
#[test]
#[ignore = "four minutes, most of which the guest waits: run it by name with --ignored"]
fn memtest_pass() -> Judged {
    Ok(memtest(
        r"Status: Pass .*Pass:  1        Errors: \D{0,20}0",
        PASS,
    )?)
}
