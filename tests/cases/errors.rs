//! What a person sees whose machine or whose file is wrong: what it is, and what to change.

use anyhow::Result;
use system_tests::{BOOT, Judged, System, command, fits};
use xtask::emulator::Options;
use xtask::host;
use xtask::setup::image_maker::Firmware;

/// Boots on a processor that lacks something; the kernel says so and stops.
fn refused(cpu: &str, message: &str) -> Result<()> {
    let options = Options {
        cpu: Some(cpu.to_owned()),
        ..Options::default()
    };
    let mut system = System::boot_with("guests/exerciser.toml", Firmware::Bios, &options)?;
    system.machine.expect(message, BOOT)?;
    // It stays there for the person to read, on the framebuffer too.
    let ended = system.machine.try_exit()?;
    anyhow::ensure!(ended.is_none(), "it ended as {ended:?}");
    Ok(())
}

/// Firmware that has switched SVM off (VM_CR.SVMDIS) cannot be had in QEMU; the kernel's check for it stands between
/// these two.
#[test]
fn processor_without_svm() -> Judged {
    Ok(refused(
        "max,-svm",
        r"no hardware virtualisation \(SVM\).*switch .*on in the firmware setup",
    )?)
}

#[test]
fn processor_without_nested_paging() -> Judged {
    Ok(refused(
        "max,+svm,-npt",
        r"no nested paging \(NPT\).*use a newer one",
    )?)
}

/// A locked IA32_FEATURE_CONTROL cannot be had in an emulator (microkernel, `tests::vmx`).
#[test]
fn processor_of_intel_without_vmx() -> Judged {
    Ok(refused(
        "Skylake-Client",
        r"no hardware virtualisation \(VMX\).*VT-x.*on in the firmware setup",
    )?)
}

#[test]
fn processor_of_intel_too_old() -> Judged {
    let options = Options::bochs("corei7_sandy_bridge_2600k");
    let mut system = System::boot_with("guests/exerciser.toml", Firmware::Bios, &options)?;
    system
        .machine
        .expect(r"no FSGSBASE.*use a newer one", BOOT)?;
    Ok(())
}

/// Writes a wrong description and has it run; what the command says must fit.
fn mistake(name: &str, text: &str, message: &str) -> Result<()> {
    let folder = host::target().join("tests");
    host::make_dir(&folder)?;
    let path = folder.join(format!("{name}.toml"));
    host::write_whole(&path, text.as_bytes())?;
    let said = command::xtask(&["run", &path.to_string_lossy()])?;
    said.code(1)?;
    fits(&said.err, message)
}

#[test]
fn wrong_descriptions() -> Judged {
    const VM: &str = "[[vm]]\nname = \"a\"\nkernel = \"build:exerciser\"\n";
    mistake(
        "unknown-key",
        &format!("name = \"x\"\n{VM}memroy = \"64M\"\n"),
        r"unknown-key\.toml:5: unknown field `memroy`(?s:.)*remedy: did you mean `memory`\?",
    )?;
    mistake(
        "missing-file",
        "name = \"x\"\n[[vm]]\nname = \"a\"\nkernel = \"no-such-file\"\n",
        r"missing-file\.toml:4: there is no file .*no-such-file\n\s*remedy: give a path",
    )?;
    mistake(
        "too-large",
        &format!("name = \"x\"\nmemory = \"512M\"\n{VM}memory = \"600M\"\n"),
        r"too-large\.toml:3: .*VM `a` needs 600 MiB.*512 MiB has \d+ MiB(?s:.)*remedy: .*memory = \x22\d+M\x22",
    )?;
    mistake(
        "one-port",
        &format!(
            "name = \"x\"\n{VM}[[vm.device]]\nkind = \"uart\"\n[[vm.device]]\nkind = \"uart\"\nirq = 3\n"
        ),
        r"one-port\.toml:7: .*`a\.uart1` uses a port that .*`a\.uart0` has, at .*one-port\.toml:5\n\s*remedy: .*`port`",
    )?;
    host::write_whole(&host::target().join("tests/no-kernel"), b"a text")?;
    mistake(
        "no-kernel",
        "name = \"x\"\n[[vm]]\nname = \"a\"\nkernel = \"no-kernel\"\n",
        r"no-kernel\.toml:4: .*no-kernel is neither a Linux bzImage.*\n\s*remedy: give a kernel's file",
    )?;
    Ok(())
}

/// What the command line alone gets wrong.
#[test]
fn wrong_command_lines() -> Judged {
    for (arguments, message) in [
        (
            &["run", "no-such.toml"][..],
            r"cannot read the system description no-such\.toml: .*\n\s*remedy: give the path of a TOML",
        ),
        (
            &["run", "--kernel", "/no-such"],
            r"--kernel: there is no file /no-such\n\s*remedy: ",
        ),
        (
            &["run", "--kernel", "Cargo.toml", "--initrd", "/no-such"],
            r"--initrd: there is no file /no-such\n\s*remedy: ",
        ),
        (
            &["run", "--memory", "100M"],
            r"linux\.toml:\d+: VM `linux` needs 256 MiB, but a machine with 100 MiB has \d+ MiB for VMs\n\s*remedy: ",
        ),
        (
            &["image", "guests/linux.toml", "-o", "/no-such/x"],
            r"there is no folder /no-such\n\s*remedy: ",
        ),
    ] {
        let said = command::xtask(arguments)?;
        said.code(1)?;
        fits(&said.err, message)?;
    }
    Ok(())
}
