//! No server gets at what is not its own, and what tries is told about.

use anyhow::Result;
use system_tests::{Judged, System, deterministic};
use xtask::emulator::{Exit, Options};
use xtask::setup::image_maker::Firmware;

/// A server tries, thread by thread, everything that is forbidden to it.
#[test]
fn isolation_probes() -> Judged {
    // Time counted in instructions: shares and limits are then exact whatever else this machine is doing.
    let options = Options {
        icount: true,
        ..Options::default()
    };
    let mut s = System::boot_with("tests/systems/probe.toml", Firmware::Bios, &options)?;
    let exit = s.machine.wait_exit(system_tests::BOOT)?;
    let log = s.machine.log().join("\n");
    s.check_not(&log, r"PROBE fail [^\n]*")?;
    s.check(&log, r"PROBE [1-9]\d* passed, 0 failed")?;
    if exit != Exit::PowerOff {
        return Err(s.failure(&format!("it ended as {exit:?}")).into());
    }
    Ok(())
}

/// Device servers of a guest that do it in the middle of an access: each dies of the right fault, with a record and a
/// backtrace; the guest sees a pause.
#[test]
fn isolation_devices() -> Judged {
    let mut s = System::boot_with("tests/systems/touch.toml", Firmware::Bios, &deterministic())?;
    s.expect_boot(r"EXERCISER 3 passed, 0 failed")?;
    s.expect(r"\[touch has stopped: debug exit with code 0\](?s:.*)vireo> $")?;
    // The log is read beside the terminal, and its backtraces take their time.
    s.log_after(0, r"touch\.vmm: .*ended: DebugExit\(0\)")?;
    let log = s.machine.log().join("\n");
    // #PF, #NM, #GP, each twice.
    for (vector, what) in [
        (14, "kernel memory"),
        (7, "an FPU register"),
        (13, "a port"),
    ] {
        let record = format!(
            r"touch\.testdev0 ends: Fault \{{ vector: {vector:x}, [^\n]*\n(?:root:[^\n]*bt: @touch\.testdev0 [^\n]*\n)    0x[0-9a-f]+ [^\n]*device_testdev[^\n]* at services/devices/testdev/src/main\.rs:\d+\n"
        );
        let count = regex::Regex::new(&record)?.find_iter(&log).count();
        s.check(&format!("{count} deaths of touching {what}"), "^2 ")?;
    }
    last_death(&mut s)?;
    Ok(())
}

/// The last record stays, for the operator.
fn last_death(s: &mut System) -> Result<()> {
    let death = s.manager("servers touch.testdev0")?;
    s.check(
        &death,
        r"^touch\.testdev0 \(server \d+\) died at \d+\.\d+ s: #GP general protection, vector 13, error code 0x0\n",
    )?;
    s.check(&death, r"(?m)^  rip [0-9a-f]{16}  rflags [0-9a-f]{8}$")?;
    s.check(
        &death,
        r"(?m)^    0x[0-9a-f]+ .* at services/devices/testdev/src/main\.rs:\d+$",
    )?;
    s.check(&death, r"(?m)^  pending call: badge 0x[0-9a-f]+, tag ")?;
    s.check(&death, r"(?m)^touch\.testdev0: \[[0-9.]+\] [A-Z]+ ")?;
    Ok(())
}
