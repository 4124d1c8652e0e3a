//! Debian's unmodified kernel to a shell and back, by both kinds of firmware.

use system_tests::{Judged, System, command, fits, turn};
use xtask::emulator::{Exit, Options};
use xtask::setup::image_maker::Firmware;

/// As a person without a keyboard would do it: by the command line alone.
#[test]
fn linux_bios_by_command() -> Judged {
    let _turn = turn();
    let said = command::xtask(&[
        "run",
        "--expect",
        "/ #",
        "--send",
        "uname -a",
        "--expect",
        r"Linux \S+ \S+-cloud-amd64 ",
        "--send",
        "poweroff -f",
        "--timeout",
        "600",
    ])?;
    said.code(0)?;
    Ok(fits(&said.err, "all was seen")?)
}

/// Boots by UEFI; looks around inside.
#[test]
fn linux_uefi() -> Judged {
    let mut linux = System::boot_with("guests/linux.toml", Firmware::Uefi, &Options::default())?;
    linux.shell()?;
    let uname = linux.sh("uname -a")?;
    linux.check(&uname, r"^Linux .*-cloud-amd64 .* x86_64")?;
    // It knows what it runs on.
    let boot = linux.sh("dmesg")?;
    linux.check(&boot, r"(?i)hypervisor detected|DMI: .*Vireo|Vireo")?;
    linux.machine.send_line("poweroff -f")?;
    Ok(linux.ends(Exit::PowerOff)?)
}
