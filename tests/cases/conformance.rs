//! The kernel keeps its word: each operation of each object, right and wrong.

use regex::Regex;
use system_tests::{BOOT, Judged, System, deterministic};
use xtask::emulator::Exit;
use xtask::setup::image_maker::Firmware;

/// What the suite must come to at least.
const CASES: usize = 400;

/// A server tries every operation of the kernel as `ipc-schema`'s table says it answers, and then what the table cannot say.
/// Every case is counted; one that the kernel does not come back from shows as the last one announced.
#[test]
fn conformance() -> Judged {
    // Time counted in instructions: deadlines and budgets are exact whatever else this machine is doing.
    let path = "tests/systems/conformance.toml";
    let mut s = System::boot_with(path, Firmware::Bios, &deterministic())?;
    let exit = s.machine.wait_exit(BOOT)?;
    let log = s.machine.log().join("\n");
    s.check_not(&log, r"FAIL [^\n]*")?;
    let end = Regex::new(r"CONFORMANCE (\d+) passed, 0 failed")?;
    let passed = end.captures(&log).and_then(|c| c[1].parse::<usize>().ok());
    let announced = Regex::new(r" CASE ")?.find_iter(&log).count();
    match passed {
        Some(n) if n >= CASES && n == announced => {}
        other => {
            let why = format!("{other:?} cases passed of {announced}, at least {CASES} must");
            return Err(s.failure(&why).into());
        }
    }
    if exit != Exit::PowerOff {
        return Err(s.failure(&format!("it ended as {exit:?}")).into());
    }
    Ok(())
}
