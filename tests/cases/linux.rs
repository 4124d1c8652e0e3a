//! Debian's unmodified kernel to a shell and back, by both kinds of firmware.

use anyhow::{Context, Result, ensure};
use system_tests::{Judged, System, command, fits, turn};
use xtask::description::Description;
use xtask::emulator::{Exit, Options};
use xtask::host;
use xtask::setup::{guests, image_maker::Firmware};

/// As a person without a keyboard would do it: by the command line alone.
#[test]
fn linux_bios_by_command() -> Judged {
    let _turn = turn(1);
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
    linux.check(&boot, r"ACPI: .* VIREO ")?;
    // And what it need not do under a hypervisor that it knows.
    linux.check(&boot, "x2apic enabled")?;
    linux.check(&boot, "Switched APIC routing to physical x2apic")?;
    linux.machine.send_line("poweroff -f")?;
    Ok(linux.ends(Exit::PowerOff)?)
}

/// The ELF inside Debian's bzImage, which has a PVH note (Linux `Documentation/arch/x86/boot.rst`: `payload_offset`;
/// its form is LZ4's old one: a magic number, then blocks of at most 8 MiB, each behind its length, then the length of
/// the whole).
fn vmlinux() -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let image = host::read(&guests::cloud_kernel()?)?;
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("a short bzImage")?;
        Ok(usize::try_from(u32::from_le_bytes(bytes.try_into()?))?)
    };
    let setup_sectors = usize::from(*image.get(0x1f1).context("a short bzImage")?);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let end = start + word(0x24c)? - 4;
    ensure!(
        word(start)? == 0x184c_2102,
        "the kernel is not packed by LZ4"
    );
    let mut out = Vec::new();
    let mut at = start + 4;
    while at < end {
        let len = word(at)?;
        let block = image.get(at + 4..at + 4 + len).context("a short block")?;
        out.extend(lz4_flex::block::decompress(block, BLOCK)?);
        at += 4 + len;
    }
    ensure!(out.len() == word(end)?, "{} bytes unpacked", out.len());
    Ok(out)
}

/// The same kernel as an ELF, started by its PVH entry. By UEFI, for it is large: the BIOS boot is too slow for that, or
/// does not come to an end at all.
#[test]
fn linux_pvh() -> Judged {
    let folder = host::target().join("tests");
    host::make_dir(&folder)?;
    let path = folder.join("vmlinux");
    host::write_whole(&path, &vmlinux()?)?;
    let initrd = guests::busybox_initramfs()?;
    let append = "console=ttyS0 quiet words=that-must-arrive";
    let mut description = Description::of_kernel(&path, Some(&initrd), append, false, None)?;
    description.stem = "linux-pvh".to_owned();
    let mut linux = System::boot_description(&description, Firmware::Uefi, &Options::default())?;
    linux.shell()?;
    let line = linux.sh("cat /proc/cmdline")?;
    linux.check(&line, &format!(r"^{append} tsc_early_khz=\d+$"))?;
    // The command line and the RSDP came by the PVH start information: ACPI works.
    let acpi = linux.sh("ls -1 /sys/firmware/acpi/tables")?;
    linux.check(&acpi, "(?m)^DSDT$")?;
    linux.machine.send_line("poweroff -f")?;
    Ok(linux.ends(Exit::PowerOff)?)
}
