//! Several processors: all come up, VMs are spread over them, and what happens on one is heard on the first.
//!
//! With time counted in instructions QEMU emulates the processors by turns on one host thread; one test lets it use a thread
//! for each.

use anyhow::{Context as _, Result};
use system_tests::{Judged, System, deterministic};
use xtask::emulator::Options;
use xtask::setup::image_maker::Firmware;

const COUNT: &str = "tests/systems/smp-count.toml";

fn boot(toml: &str, cpus: u32, options: Options) -> Result<System> {
    let options = Options { cpus, ..options };
    System::boot_with(toml, Firmware::Bios, &options)
}

/// The processor that a VM's row of the table `vms` shows, if it runs.
fn place_of_vm(s: &mut System, vm: &str) -> Result<String> {
    let table = s.manager("vms")?;
    column(&table, vm, r" +running +[\d.]+ [KM]iB +\d+ +(\d+) ").with_context(|| table)
}

/// The processor that a server's row of the table `servers` shows, if it runs.
fn place_of_server(table: &str, server: &str) -> Result<String> {
    let row = r" +running +\d+ +[\d.]+ [KM]iB +(\d+) ";
    column(table, server, row).with_context(|| format!("{server} in this:\n{table}"))
}

fn column(table: &str, name: &str, rest: &str) -> Option<String> {
    let row = format!(r"(?m)^.*\b{}{rest}", regex::escape(name));
    let row = regex::Regex::new(&row).ok()?;
    Some(row.captures(table)?[1].to_owned())
}

/// Every processor is there, and is said to be; nobody else.
fn all_online(s: &mut System, cpus: u32) -> Result<()> {
    for number in 1..cpus {
        let line = format!(r"platform: .*processor {number} online, APIC id {number}\b");
        s.log_after(0, &line)?;
    }
    let table = s.manager("cpus")?;
    for number in 0..cpus {
        let row = format!(r"(?m)^ +{number} +{number} +online +\d+\.\d %  \d+ +\d+ +\d+ cycles$");
        s.check(&table, &row)?;
    }
    let rows = table.lines().filter(|l| l.contains(" cycles")).count();
    s.check(&format!("{rows} processors"), &format!("^{cpus} "))
}

/// The guest of `vm` counts, seen from the manager's prompt and back to it: what was kept is shown first, so that only an echo tells.
fn counts(s: &mut System, vm: &str) -> Result<()> {
    s.machine.send_line(&format!("attach {vm}"))?;
    s.expect(&format!(r"\[console of {vm}; "))?;
    s.machine.send("x")?;
    s.expect(r"(?s)ECHO 0x78 'x'.*COUNT \d+")?;
    s.to_manager()
}

/// All processors come up, and VMs are spread over them by their shares, in the order in which they start: always the same way.
fn spread(cpus: u32, places: [&str; 3]) -> Result<()> {
    spread_on(cpus, places, deterministic())
}

fn spread_on(cpus: u32, places: [&str; 3], options: Options) -> Result<()> {
    let mut s = boot(COUNT, cpus, options)?;
    s.expect_boot(r"COUNT \d+")?;
    s.to_manager()?;
    all_online(&mut s, cpus)?;
    for (vm, place) in ["a", "b", "pinned"].into_iter().zip(places) {
        let found = place_of_vm(&mut s, vm)?;
        s.check(&format!("{vm} is on {found}"), &format!("on {place}$"))?;
        // All of a VM's servers are where it is, the system's own on the first.
        let table = s.manager("servers")?;
        for server in ["vmm", "uart0", "rtc0"] {
            let server = format!("{vm}.{server}");
            let found = place_of_server(&table, &server)?;
            s.check(&format!("{server} is on {found}"), &format!("on {place}$"))?;
        }
        for server in ["platform", "scheduler", "manager", "uart0"] {
            let found = place_of_server(&table, server)?;
            s.check(&format!("{server} is on {found}"), "on 0$")?;
        }
        counts(&mut s, vm)?;
    }
    Ok(())
}

#[test]
fn smp_2_cpus() -> Judged {
    Ok(spread(2, ["0", "1", "1"])?)
}

#[test]
fn smp_2_cpus_bochs_svm() -> Judged {
    Ok(spread_on(2, ["0", "1", "1"], Options::bochs("ryzen"))?)
}

#[test]
fn smp_2_cpus_bochs_vmx() -> Judged {
    let options = Options::bochs("corei7_skylake_x");
    Ok(spread_on(2, ["0", "1", "1"], options)?)
}

#[test]
#[ignore = "between those with 2 and 8: run it by name with --ignored"]
fn smp_4_cpus() -> Judged {
    Ok(spread(4, ["0", "1", "1"])?)
}

#[test]
fn smp_8_cpus() -> Judged {
    Ok(spread(8, ["0", "1", "1"])?)
}

/// On one processor the pin has nowhere to go: the VM runs all the same.
#[test]
fn smp_pin_without_its_processor() -> Judged {
    let mut s = boot(COUNT, 1, deterministic())?;
    s.expect_boot(r"COUNT \d+")?;
    s.to_manager()?;
    s.log_after(0, r"scheduler: .*pinned\.uart0: there is no processor 1")?;
    all_online(&mut s, 1)?;
    let found = place_of_vm(&mut s, "pinned")?;
    s.check(&found, "^0$")?;
    Ok(())
}

/// Shared locks that the second processor has taken so far.
fn locks(s: &mut System) -> Result<u64> {
    let table = s.manager("cpus")?;
    let row = regex::Regex::new(r"(?m)^ +1 +1 +online .*%  (\d+) ")?;
    let found = row.captures(&table).context("no row of processor 1")?;
    Ok(found[1].parse()?)
}

/// Guests on the second processor poll a device, get its interrupts and those of their timers, and are talked to from the first:
/// no shared lock is taken there, neither for exits nor for IPC.
fn no_shared_lock(s: &mut System) -> Result<()> {
    // What the servers there have to say at their start is said.
    counts(s, "pinned")?;
    let before = locks(s)?;
    for vm in ["b", "pinned", "b"] {
        counts(s, vm)?;
    }
    let after = locks(s)?;
    s.check(&format!("{} locks", after - before), "^0 ")
}

/// What can happen to a VM on the second processor, while that on the first counts on.
fn life_elsewhere(options: Options) -> Result<()> {
    let mut s = boot(COUNT, 2, options)?;
    s.expect_boot(r"COUNT \d+")?;
    s.to_manager()?;
    counts(&mut s, "b")?;
    no_shared_lock(&mut s)?;

    // Its device dies there and comes back there; a device that hangs is found by its VMM, which tells root from there.
    s.restart("b.uart0")?;
    let table = s.manager("servers")?;
    let found = place_of_server(&table, "b.uart0")?;
    s.check(&found, "^1$")?;
    s.check(&table, r"(?m)^ *\d+  b\.uart0 +running +1 ")?;
    counts(&mut s, "b")?;
    let log = s.log_position();
    s.manager("hang b.uart0")?;
    s.log_after(log, r"b\.vmm: .*device 0 did not answer")?;
    s.log_after(log, r"root: .*b\.uart0 ends: Hung")?;
    counts(&mut s, "b")?;

    // The scheduler that comes anew finds everybody where they are.
    s.restart("scheduler")?;
    let place = place_of_vm(&mut s, "b")?;
    s.check(&place, "^1$")?;
    // So does a new platform server find the processors started.
    s.restart("platform")?;
    all_online(&mut s, 2)?;

    // Its end is its own.
    s.manager("kill b")?;
    let table = s.manager("vms")?;
    s.check(&table, r"(?m)^. b +stopped .* - +-$")?;
    counts(&mut s, "a")?;
    counts(&mut s, "pinned")?;
    // It is placed anew, and reports to the manager from there.
    let log = s.log_position();
    s.manager("start b")?;
    s.log_after(log, r"b\.vmm: .*starts with")?;
    let place = place_of_vm(&mut s, "b")?;
    s.check(&place, "^1$")?;
    // What is typed before the guest has set up its UART is lost.
    s.machine.send_line("attach b")?;
    s.expect(r"(?s)EXERCISER starts.*COUNT \d+")?;
    s.to_manager()?;
    counts(&mut s, "b")?;
    s.manager("kill pinned")?;
    s.manager("kill a")?;
    counts(&mut s, "b")?;
    Ok(())
}

#[test]
fn smp_life_elsewhere() -> Judged {
    Ok(life_elsewhere(deterministic())?)
}

/// The same with the processors really at the same time: without counting QEMU's TCG has a host thread for each by itself.
#[test]
#[ignore = "needs two processors of the host for itself: run it by name with --ignored"]
fn smp_life_elsewhere_at_once() -> Judged {
    Ok(life_elsewhere(Options::default())?)
}

/// Servers on the second processor fault in the middle of an access: root, on the first, hears of it, records registers and
/// backtrace, and starts them again there; the guest sees a pause and ends as it should, which its VMM tells the manager.
#[test]
fn smp_faults_elsewhere() -> Judged {
    let mut s = boot("tests/systems/smp-touch.toml", 2, deterministic())?;
    s.expect_boot(r"COUNT \d+")?;
    s.to_manager()?;
    let log = s.log_position();
    s.manager("start touch")?;
    s.machine.send_line("attach touch")?;
    s.expect(r"EXERCISER 3 passed, 0 failed")?;
    s.expect(r"\[touch has stopped: debug exit with code 0\](?s:.*)vireo> $")?;
    s.log_after(log, r"scheduler: .*touch\.testdev0: processor 1, ")?;
    s.log_after(log, r"touch\.vmm: .*ended: DebugExit\(0\)")?;
    let text = s.machine.log().join("\n");
    // #PF, #NM, #GP, each twice.
    for vector in ["e", "7", "d"] {
        let record = format!(
            r"touch\.testdev0 ends: Fault \{{ vector: {vector}, [^\n]* at rip 0x4[0-9a-f]+, [^\n]*\n(?:root:[^\n]*bt: @touch\.testdev0 [^\n]*\n)    0x[0-9a-f]+ [^\n]*device_testdev"
        );
        let count = regex::Regex::new(&record)?.find_iter(&text).count();
        s.check(&format!("{count} deaths by vector {vector}"), "^2 ")?;
    }
    let death = s.manager("servers touch.testdev0")?;
    s.check(
        &death,
        r"^touch\.testdev0 \(server \d+\) died at \d+\.\d+ s: #GP general protection, vector 13, error code 0x0\n  rip 0000000000[0-9a-f]{6}  rflags",
    )?;
    s.check(&death, r"(?m)^  pending call: badge 0x[0-9a-f]+, tag ")?;
    counts(&mut s, "counts")?;
    Ok(())
}
