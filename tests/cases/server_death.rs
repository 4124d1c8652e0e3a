//! Servers that die or hang under a running Linux: the guest sees a pause, never an error.

use anyhow::Result;
use system_tests::{BOOT, ESCAPE, Judged, System, deterministic, stream};
use xtask::setup::image_maker::Firmware;

use crate::virtio::scribble_and_lose;

/// Lines of the stream.
const LINES: u32 = 1500;
/// How often its device is killed meanwhile.
const KILLS: usize = 4;

/// Has a server killed and sees it run again; from a VM's prompt and back to it.
fn restart(s: &mut System, server: &str, vm: &str) -> Result<()> {
    s.to_manager()?;
    s.restart(server)?;
    s.attach(vm)
}

/// What the kernel of the guest says that is no mere information.
fn complaints(s: &mut System) -> Result<String> {
    s.sh("dmesg -r | grep '^<[0-4]>' | cat")
}

#[test]
fn server_death() -> Judged {
    let mut s = System::boot("guests/linux.toml")?;
    s.shell()?;
    let before = complaints(&mut s)?;

    restart(&mut s, "linux.uart0", "linux")?;
    let sum = s.sh("echo $((6 * 7))")?;
    s.check(&sum, "^42$")?;
    s.to_manager()?;
    let death = s.manager("servers linux.uart0")?;
    s.check(
        &death,
        r"^linux\.uart0 \(server \d+\) died at \d+\.\d+ s: killed\n  rip [0-9a-f]{16} (?s:.*)\n    0x[0-9a-f]+ .* at services/\S+\.rs:\d+\n",
    )?;
    let table = s.manager("servers")?;
    s.check(&table, r"(?m)^ *\d+  linux\.uart0 +running +1 ")?;
    s.attach("linux")?;

    stream_through_deaths(&mut s)?;

    // The clock is asked before and after; it goes on, by its state page.
    clock(&mut s)?;
    restart(&mut s, "linux.rtc0", "linux")?;
    clock(&mut s)?;

    // They scribble over their memory and a slot of the state page, which they may write again before they die of it: the other one has
    // what the guest has set.
    for server in ["linux.rtc0", "linux.uart0"] {
        let log = s.scribble(server, false, "linux")?;
        s.succeeds(server, log)?;
        clock(&mut s)?;
    }
    // Nothing is left of what the clock was set to; it is the machine's then.
    scribble_and_lose(&mut s, "linux.rtc0", "linux")?;
    clock(&mut s)?;

    // Not the devices alone: whoever can die under a guest does.
    for server in ["scheduler", "platform"] {
        restart(&mut s, server, "linux")?;
    }
    // The terminal's own driver: what is typed while it is away may be lost, but not the terminal.
    restart(&mut s, "uart0", "linux")?;

    hang(&mut s)?;

    let after = complaints(&mut s)?;
    s.check(
        &format!("{}\nbefore:\n{before}\nafter:\n{after}", before == after),
        "^true",
    )?;
    Ok(())
}

/// The guest asks its clock for the date.
fn clock(s: &mut System) -> Result<()> {
    let says = s.sh("cat /proc/driver/rtc; hwclock -r -u")?;
    s.check(&says, r"(?m)^rtc_date\s*: 20\d\d-\d\d-\d\d$")
}

/// Kills the UART model while it prints; every line must come, whole.
fn stream_through_deaths(s: &mut System) -> Result<()> {
    let log = s.log_position();
    let from = s.machine.serial().len();
    s.machine.send_line(&format!(
        "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo \"line $i of a stream that must not break\"; done; echo the en''d"
    ))?;
    for kill in 1..=KILLS {
        s.expect(&format!("line {} ", kill * LINES as usize / (KILLS + 2)))?;
        let visit = format!("{ESCAPE}restart linux.uart0\r{ESCAPE}");
        s.machine.send(&visit)?;
        s.expect(r"has been killed and is started again")?;
    }
    s.expect("the end\r\n/ # ")?;
    let all = s.machine.serial();
    let text = stream::of_guest(all.get(from..).unwrap_or_default(), "linux");
    let text = text.map_err(|e| s.failure(&e.to_string()))?;
    let start = text.find("line 1 ").unwrap_or_default();
    let end = text.rfind("the end").unwrap_or(text.len());
    let sent: String = (1..=LINES)
        .map(|i| format!("line {i} of a stream that must not break\r\n"))
        .collect();
    let came = text.get(start..end).unwrap_or_default();
    stream::compare(&sent, came).map_err(|e| s.failure(&e.to_string()))?;
    let deaths = s.machine.log();
    let deaths = deaths.iter().skip(log);
    let deaths = deaths.filter(|l| l.contains("linux.uart0 ends: Killed"));
    let deaths = deaths.count();
    s.check(&format!("{deaths} deaths"), &format!("^{KILLS} "))
}

/// Most instructions from the order to start a VM to its first one.
const START: u64 = 5_000_000;

/// A VM that was just started, with time counted in instructions, began soon.
fn starts_soon(s: &mut System, vm: &str) -> Result<()> {
    let begun = s.log_after(0, &format!(r"VM {vm}: start at TSC \d+"))?;
    let first = s.log_after(0, &format!(r"{vm}\.vmm: starts with .* MiB, TSC \d+"))?;
    let tsc = |text: &str| -> Result<u64> {
        let rest = text.split("TSC ").nth(1).unwrap_or_default();
        Ok(rest.split(' ').next().unwrap_or_default().parse()?)
    };
    let took = tsc(&first)? - tsc(&begun)?;
    s.check(&format!("{took} {}", took < START), "true$")
}

/// How often the UART model dies in the middle of a burst; the system's description has the same number.
const DEATHS: usize = 120;

/// The UART model dies at moments of a guest's bursts that nobody at a terminal could hit, each a little later than the one before, with
/// time counted in instructions: each byte comes, once.
#[test]
fn server_death_at_any_moment() -> Judged {
    let system = "tests/systems/deaths.toml";
    let mut s = System::boot_with(system, Firmware::Bios, &deterministic())?;
    s.machine.expect_log("REAP begins", 0, BOOT)?;
    s.manager("start bursts")?;
    starts_soon(&mut s, "bursts")?;
    s.machine.send_line("attach bursts")?;
    s.expect_boot("000000========\r\n")?;
    s.machine.expect_log(r"REAP done", 0, BOOT)?;
    let deaths = s.machine.log();
    let deaths = deaths
        .iter()
        .filter(|l| l.contains("bursts.uart0 ends: Killed"));
    let deaths = deaths.count();
    s.check(&format!("{deaths} deaths"), &format!("^{DEATHS} "))?;
    // What has been sent by now, and some more.
    s.expect(r"(?s)(?:========\r\n.*){20}$")?;
    let all = s.machine.serial();
    let lines = all.matches("========\r\n").count();
    let text = all.get(all.find("000000=").unwrap_or_default()..);
    let text = text.unwrap_or_default();
    let sent: String = (0..lines).map(|i| format!("{i:06}========\r\n")).collect();
    let came = text.get(..sent.len().min(text.len())).unwrap_or_default();
    stream::compare(&sent, came).map_err(|e| s.failure(&e.to_string()))?;
    println!("{lines} lines, {deaths} deaths");
    Ok(())
}

/// A UART model that hangs: the VMM and all others answer, and the guest goes on by itself.
fn hang(s: &mut System) -> Result<()> {
    s.machine
        .send_line("until [ -e /tmp/enough ]; do echo ti''ck; sleep 1; done &")?;
    s.expect("tick\r\n")?;
    let log = s.log_position();
    s.to_manager()?;
    let hung = s.manager("hang linux.uart0")?;
    s.check(&hung, r"linux\.uart0 is suspended")?;
    // Root asks and hears nothing, or before that the guest's next word meets nobody and the VMM says so: whichever comes first.
    s.log_after(log, r"root: .*linux\.uart0 ends: Hung")?;
    s.log_after(log, r"linux\.uart0: .*goes on after a predecessor: true")?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^\* linux +running ")?;
    let death = s.manager("servers linux.uart0")?;
    s.check(&death, "did not answer in time")?;
    s.machine.send(ESCAPE)?;
    s.expect(r"\[console of linux; ")?;
    s.expect(r"(?s)tick\r\n.*tick\r\n")?;
    s.machine
        .send_line("touch /tmp/enough; wait; echo qui''et")?;
    s.expect(r"(?s)quiet\r\n.*/ # ")?;
    let sum = s.sh("echo $((6 * 7))")?;
    s.check(&sum, "^42$")
}
