//! The second machine: Bochs, which does what QEMU leaves out (instruction lengths, checks of a VM entry) and leaves out other things.

use std::time::Duration;

use anyhow::Result;
use system_tests::{BOOT, Judged, System, command, fits};
use xtask::description::Description;
use xtask::emulator::{Exit, Options};
use xtask::host;
use xtask::setup::image_maker::Firmware;

/// Bound of the exerciser (usually half a minute).
const EXERCISER: Duration = Duration::from_secs(900);
/// Bound of a boot of Linux (usually two minutes).
const LINUX: Duration = Duration::from_secs(1800);

/// The exerciser on a processor with SVM.
#[test]
fn bochs_exerciser() -> Judged {
    let toml = host::root().join("guests/exerciser.toml");
    let mut description = Description::load(&toml, None)?;
    description.stem = "exerciser-bochs".to_owned();
    for vm in &mut description.system.vms {
        vm.append = "vireo emulator=bochs".to_owned();
    }
    let options = Options::bochs("ryzen");
    let mut s = System::boot_description(&description, Firmware::Bios, &options)?;
    let result = s
        .machine
        .expect(r"EXERCISER \d+ passed, \d+ failed", EXERCISER)?;
    s.check(
        &result,
        r"EXERCISER (?:1[2-9]\d|[2-9]\d\d) passed, 0 failed",
    )?;
    s.ends(Exit::PowerOff)?;
    Ok(())
}

/// On a processor with VMX the kernel says what is missing.
#[test]
fn bochs_intel() -> Judged {
    let options = Options::bochs("corei7_skylake_x");
    let mut s = System::boot_with("guests/exerciser.toml", Firmware::Bios, &options)?;
    s.machine.expect(
        r"Vireo: this processor has no AMD SVM, .*no Intel VMX",
        BOOT,
    )?;
    Ok(())
}

/// What cannot be had has a message.
#[test]
fn bochs_command_lines() -> Judged {
    let refused = |arguments: &[&str], message: &str| -> Result<()> {
        let said = command::xtask(&[&["run", "--emulator", "bochs"], arguments].concat())?;
        said.code(1)?;
        fits(&said.err, message)
    };
    refused(
        &["--cpu", "z80"],
        r"no processor model `z80`\n\s*remedy: give --cpu ryzen or --cpu corei7_skylake_x",
    )?;
    refused(&["--uefi"], r"no UEFI firmware\n\s*remedy: ")?;
    refused(&["--qemu", "x"], r"gives arguments to QEMU.*\n\s*remedy: ")?;
    Ok(())
}

/// Unmodified Linux to a shell.
#[test]
#[ignore = "takes minutes: run it by name with --ignored"]
fn bochs_linux() -> Judged {
    let options = Options::bochs("ryzen");
    let mut s = System::boot_with("guests/linux.toml", Firmware::Bios, &options)?;
    s.machine.expect(system_tests::SHELL, LINUX)?;
    let model = s.sh("grep -m 1 'model name' /proc/cpuinfo")?;
    s.check(&model, "Ryzen")?;
    s.machine.send_line("poweroff -f")?;
    s.ends(Exit::PowerOff)?;
    Ok(())
}
