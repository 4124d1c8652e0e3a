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

/// Processor models with SVM and with VMX.
const SVM: &str = "ryzen";
const VMX: &str = "corei7_skylake_x";
/// What the VMM logs when the processor has the guest's local APIC (APICv), with a guest in x2APIC mode.
const APIC_IN_HARDWARE: &str = "the guest's local APIC is in hardware";

/// Boots the system of a TOML, changed, under a name of its own.
fn boot(model: &str, toml: &str, change: impl FnOnce(&mut Description)) -> Result<System> {
    let mut description = Description::load(&host::root().join(toml), None)?;
    description.stem.push('-');
    description.stem.push_str(model);
    change(&mut description);
    System::boot_description(&description, Firmware::Bios, &Options::bochs(model))
}

/// The exerciser with SVM.
#[test]
fn bochs_exerciser_svm() -> Judged {
    exerciser(SVM)
}

/// The TSC's rate of the guest there.
const TSC_MHZ: u32 = 60;

/// The exerciser with VMX.
#[test]
fn bochs_exerciser_vmx() -> Judged {
    exerciser(VMX)
}

fn exerciser(model: &str) -> Judged {
    let mut s = boot(model, "guests/exerciser.toml", |description| {
        if model == VMX {
            // Enough for a page of 1 GiB in the guest's memory.
            description.system.memory = 9 << 28;
        }
        for vm in &mut description.system.vms {
            if model == VMX {
                vm.memory = 1 << 30;
                // Another than the machine's: all cases with timers and clocks run on the processor's TSC multiplier.
                vm.tsc_mhz = TSC_MHZ;
            }
            vm.append = "vireo emulator=bochs".to_owned();
        }
    })?;
    let result = s
        .machine
        .expect(r"EXERCISER \d+ passed, \d+ failed", EXERCISER)?;
    s.check(
        &result,
        r"EXERCISER (?:1[2-9]\d|[2-9]\d\d) passed, 0 failed",
    )?;
    s.ends(Exit::PowerOff)?;
    if model == VMX {
        let log = s.machine.log().join("\n");
        s.check(&log, APIC_IN_HARDWARE)?;
        // As the guest has measured it by the PM timer.
        let serial = s.machine.serial();
        let told = serial
            .split(", tsc ")
            .nth(1)
            .and_then(|t| t.split(' ').next());
        let khz: u64 = told.and_then(|t| t.parse().ok()).unwrap_or(0);
        let wanted = u64::from(TSC_MHZ) * 1000;
        s.check(
            &format!("{khz} {}", khz.abs_diff(wanted) < wanted / 50),
            "true$",
        )?;
    }
    // What fails there without Vireo, too (`cpuid`).
    let serial = s.machine.serial();
    let skipped = serial.matches("SKIP ").count();
    let known = serial.matches("SKIP cpuid-page-remapped: ").count();
    s.check(&format!("{skipped} {known}"), "^1 1$")?;
    Ok(())
}

/// As `hardening_entries`, where a VMCB is checked: memory types, CS.L with CS.D, events that do not exist. 22 entries are refused;
/// QEMU 7.2 refuses 19, for other reasons in part.
#[test]
fn bochs_entries_svm() -> Judged {
    entries(
        SVM,
        r"INFO INVALID (?:[2-9]\d|\d{3,}) refused of (?:\d{3,}),",
    )
}

/// The same where a VMCS is checked, field by field: 83 entries are refused.
#[test]
fn bochs_entries_vmx() -> Judged {
    entries(
        VMX,
        r"INFO INVALID (?:[89]\d|\d{3,}) refused of (?:\d{3,}),",
    )
}

fn entries(model: &str, invalid: &str) -> Judged {
    let mut s = boot(model, "tests/systems/entries.toml", |description| {
        for server in &mut description.system.servers {
            server.args = "entries emulator=bochs poweroff".to_owned();
        }
    })?;
    let exit = s.machine.wait_exit(BOOT)?;
    let log = s.machine.log().join("\n");
    s.check_not(&log, r"ERROR [^\n]*")?;
    s.check(&log, r"ENTRIES 6 refused by the processor, 0 failures")?;
    s.check(&log, invalid)?;
    s.check(&format!("{exit:?}"), "^PowerOff$")?;
    // Had one failed, the message would say what the processor did not like of it.
    let message = s.failure("").to_string();
    s.check(
        &message,
        r"(?m)^\d+e\[CPU0 *\] (?:VMRUN|VMENTRY FAIL|VMFAIL): ",
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
fn bochs_linux_svm() -> Judged {
    linux(SVM, "Ryzen")
}

/// The same with VMX.
#[test]
#[ignore = "takes minutes: run it by name with --ignored"]
fn bochs_linux_vmx() -> Judged {
    linux(VMX, "Skylake|Xeon|i7|i9")
}

fn linux(model: &str, name: &str) -> Judged {
    let options = Options::bochs(model);
    let mut s = System::boot_with("guests/linux.toml", Firmware::Bios, &options)?;
    s.machine.expect(system_tests::SHELL, LINUX)?;
    let said = s.sh("grep -m 1 'model name' /proc/cpuinfo")?;
    s.check(&said, name)?;
    if model == VMX {
        let boot = s.sh("dmesg | grep APIC")?;
        s.check(&boot, "Switched APIC routing to physical x2apic")?;
    }
    s.machine.send_line("poweroff -f")?;
    s.ends(Exit::PowerOff)?;
    if model == VMX {
        let log = s.machine.log().join("\n");
        s.check(&log, APIC_IN_HARDWARE)?;
    }
    Ok(())
}
