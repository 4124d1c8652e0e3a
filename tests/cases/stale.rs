//! Nothing stale: memory, routes and interrupts of guests change between two runs and beside one, and their address space identifiers
//! come to an end. The gauge judges (`services/gauge/src/bare/stale.rs`).
//!
//! What the machines show: QEMU and Bochs drop all translations at each entry and exit, and no more; neither looks at clean bits. So a
//! page that is taken away beside a running guest, a route, an interrupt or a window left behind are seen here; identifiers and flushes
//! between runs by the host's tests, whose processor forgets nothing that it is not told to (`microkernel/src/checker/tlb.rs`).

use std::time::Duration;

use anyhow::Result;
use system_tests::{Judged, System};
use xtask::description::Description;
use xtask::emulator::Options;
use xtask::host;
use xtask::setup::image_maker::Firmware;

/// Bound (usually half a minute).
const BOUND: Duration = Duration::from_secs(300);

/// 16 identifiers.
#[test]
fn stale_qemu() -> Judged {
    stale(&Options::default(), 500)
}

/// 32,768 identifiers; they end while pages are remapped.
#[test]
fn stale_bochs_svm() -> Judged {
    stale(&Options::bochs("ryzen"), 32_000)
}

/// 65,536 identifiers.
#[test]
fn stale_bochs_vmx() -> Judged {
    stale(&Options::bochs("corei7_skylake_x"), 66_000)
}

fn stale(options: &Options, rounds: u32) -> Judged {
    let options = Options {
        cpus: 2,
        ..options.clone()
    };
    let mut description = Description::load(&host::root().join("tests/systems/stale.toml"), None)?;
    description.stem.push('-');
    description
        .stem
        .push_str(options.cpu.as_deref().unwrap_or("qemu"));
    for server in &mut description.system.servers {
        server.args = format!("stale={rounds} poweroff");
    }
    let mut s = System::boot_description(&description, Firmware::Bios, &options)?;
    let exit = s.machine.wait_exit(BOUND)?;
    judge(&s, rounds)?;
    s.check(&format!("{exit:?}"), "^PowerOff$")?;
    Ok(())
}

/// Nothing was wrong, and there were more takers than identifiers.
fn judge(s: &System, rounds: u32) -> Result<()> {
    let log = s.machine.log().join("\n");
    s.check_not(&log, r"ERROR [^\n]*")?;
    let done =
        format!(r"STALE done: {rounds} rounds, more than \d+ identifiers, 2 processors, 0 wrong");
    s.check(&log, &done)
}
