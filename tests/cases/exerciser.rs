//! Our own test guest: every exit kind, the loaders, and the ways a guest can end.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use system_tests::{Judged, System, command, deterministic, fits, steady, turn};
use xtask::build::bare;
use xtask::description::Description;
use xtask::emulator::Exit;
use xtask::host;
use xtask::setup::{image_maker::Firmware, toolchain::Toolchain};

/// All of its cases.
#[test]
fn exerciser_passes() -> Judged {
    let mut s = System::boot_with("guests/exerciser.toml", Firmware::Bios, &steady())?;
    s.expect_boot("EXERCISER starts: pvh, Vireo,")?;
    let result = s.expect_boot(r"EXERCISER \d+ passed, \d+ failed")?;
    s.check(&result, r"EXERCISER (?:[5-9]\d|\d{3,}) passed, 0 failed")?;
    s.ends(Exit::PowerOff)?;
    // On Vireo nothing is left out but what the processor lacks.
    let serial = s.machine.serial();
    s.check_not(&serial, r"SKIP testdev[^\n]*")?;
    // One that asks root for ever what it is refused is ended for that.
    s.log_after(
        0,
        r"root: .*exerciser\.testdev0 asks root in vain, over and over",
    )?;
    Ok(())
}

/// A guest's own end by triple fault is its own alone.
#[test]
fn exerciser_triple_fault() -> Judged {
    let mut s = System::boot("tests/systems/triple-fault.toml")?;
    s.expect_boot(r"COUNT \d+")?;
    let log = s.log_position();
    s.to_manager()?;
    s.manager("start falls")?;
    s.machine.send_line("attach falls")?;
    s.expect(r"(?s)TRIPLE\r?\n.*\[falls has stopped: triple fault; its registers are in the log\].*vireo> $")?;
    s.log_after(log, r"falls\.vmm: .*triple fault")?;
    s.log_after(log, r"falls\.vmm: .*rip [0-9a-fx]+")?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^. counts +running ")?;
    s.check(&vms, r"(?m)^. falls +failed ")?;
    s.machine.send_line("attach counts")?;
    s.expect(r"\[console of counts; ")?;
    // What was kept is shown first: two echoes show that it answers.
    s.machine.send("xy")?;
    s.expect(r"(?s)ECHO 0x78 'x'.*ECHO 0x79 'y'.*COUNT \d+")?;
    Ok(())
}

/// A guest's debug-exit code becomes the command's own; the kernel may come from the command line.
#[test]
fn exerciser_code_by_command() -> Judged {
    let _turn = turn(1);
    let kernel = whole()?;
    let kernel = kernel.to_string_lossy();
    // Nothing is typed last: after an `--expect` the machine would be stopped, after this it ends by itself.
    let said = command::xtask(&[
        "run",
        "--kernel",
        &kernel,
        "--debug-exit",
        "--append",
        "mode=nonsense",
        "--expect",
        "no mode nonsense",
        "--send",
        r"\c",
        "--timeout",
        "300",
    ])?;
    said.code(2)?;
    Ok(())
}

/// The exerciser as it is built, without debug information.
fn whole() -> Result<PathBuf> {
    let tc = Toolchain::get()?;
    bare::stripped(&tc, &bare::guest(&tc, "exerciser")?)
}

/// A copy of the exerciser in which `from` is overwritten by `to`, wherever it stands.
fn without(name: &str, from: &[u8], to: &[u8]) -> Result<PathBuf> {
    let mut bytes = host::read(&whole()?)?;
    let mut found = 0;
    let mut at = 0;
    while let Some(window) = bytes.get_mut(at..at + from.len()) {
        if window == from {
            window.copy_from_slice(to);
            found += 1;
        }
        at += 1;
    }
    ensure!(found == 1, "{name}: {found} places to change");
    let folder = host::target().join("tests");
    host::make_dir(&folder)?;
    let path = folder.join(name);
    host::write_whole(&path, &bytes)?;
    Ok(path)
}

/// Boots a copy that only one loader takes.
fn boots(kernel: PathBuf, protocol: &str) -> Result<()> {
    let append = "only=cpuid*,testdev-none,shadow* words=that-must-arrive";
    let mut description = Description::of_kernel(&kernel, None, append, true, None)?;
    description.stem = format!("loader-{protocol}");
    let mut s = System::boot_description(&description, Firmware::Bios, &deterministic())?;
    let start = s.expect_boot(r"EXERCISER starts: [^\n]*\n")?;
    s.check(
        &start,
        // Behind it, what a Linux that is started so is told.
        &format!(r#"starts: {protocol}, Vireo, .*words=that-must-arrive(?: tsc_early_khz=\d+)?""#),
    )?;
    s.expect(r"EXERCISER [1-9]\d* passed, 0 failed")?;
    s.ends(Exit::PowerOff)
}

/// With the Multiboot header's magic destroyed, the PVH note is left.
#[test]
fn loader_pvh() -> Judged {
    let magic = 0x1bad_b002u32.to_le_bytes();
    // Magic and flags: the magic alone stands in the entry code, too.
    let flags = 0x0001_0003u32.to_le_bytes();
    let header = [magic, flags].concat();
    boots(without("exerciser-pvh", &header, &[0; 8])?, "pvh")?;
    Ok(())
}

/// With the PVH note's owner renamed, the Multiboot header is left.
#[test]
fn loader_multiboot() -> Judged {
    let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
    let other = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Nex\0";
    boots(without("exerciser-multiboot", note, other)?, "multiboot")?;
    Ok(())
}

/// With neither, the VMM says what it looked for.
#[test]
fn loader_of_nothing() -> Judged {
    let folder = host::target().join("tests");
    host::make_dir(&folder)?;
    let path = folder.join("no-kernel");
    host::write_whole(&path, &[0x5a; 4096])?;
    // What has no mark of a kernel at all is refused before it is packed; what only looks like one, by the VMM.
    if Description::of_kernel(&path, None, "", true, None).is_ok() {
        return Err(anyhow!("a file of nothing is taken for a kernel").into());
    }
    let mut file = vec![0x5a; 4096];
    file[..4].copy_from_slice(b"\x7fELF");
    host::write_whole(&path, &file)?;
    let description = Description::of_kernel(&path, None, "", true, None)?;
    let mut s = System::boot_description(&description, Firmware::Bios, &deterministic())?;
    let log = s.machine.expect_log(
        r"vm\.vmm: .*(?i:format|neither|kernel)",
        0,
        system_tests::BOOT,
    )?;
    fits(&log, "(?i)ELF|PVH|Multiboot|bzImage").context("the log line")?;
    Ok(())
}
