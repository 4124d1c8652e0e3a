//! Events that no program causes: NMIs and machine checks at any moment, sent by the emulator's monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use regex::Regex;
use system_tests::{BOOT, Judged, SHELL, STEP, System, deterministic};
use xtask::emulator::Options;
use xtask::host;
use xtask::setup::image_maker::Firmware;

/// The emulator's monitor, by QMP.
struct Monitor {
    answers: BufReader<UnixStream>,
}

impl Monitor {
    /// Boots a system with a monitor.
    fn boot(toml: &str, name: &str) -> Result<(System, Self)> {
        let folder = host::target().join("tests");
        host::make_dir(&folder)?;
        let socket = folder.join(name);
        // One of an earlier run.
        let _ = std::fs::remove_file(&socket);
        let path = socket.to_str().context("the path is not UTF-8")?;
        let options = Options {
            extra: vec!["-qmp".to_owned(), format!("unix:{path},server=on,wait=off")],
            ..Options::default()
        };
        let system = System::boot_with(toml, Firmware::Bios, &options)?;
        let end = Instant::now() + STEP;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > end => return Err(e).context("no monitor"),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        stream.set_read_timeout(Some(STEP))?;
        let mut monitor = Self {
            answers: BufReader::new(stream),
        };
        monitor.execute(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok((system, monitor))
    }

    fn execute(&mut self, command: &str) -> Result<String> {
        self.answers
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            let length = self.answers.read_line(&mut line)?;
            anyhow::ensure!(length > 0, "the monitor is gone after {command}");
            anyhow::ensure!(!line.starts_with(r#"{"error""#), "{command}: {line}");
            // Greeting and events are passed over.
            if line.starts_with(r#"{"return""#) {
                return Ok(line);
            }
        }
    }

    /// A command as a person types it.
    fn command(&mut self, line: &str) -> Result<String> {
        self.execute(&format!(
            r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"{line}"}}}}"#
        ))
    }

    /// Stops the machine at a moment at which its registers fit `pattern`.
    fn stop_at(&mut self, pattern: &str) -> Result<()> {
        let pattern = Regex::new(pattern)?;
        let end = Instant::now() + STEP;
        loop {
            self.command("stop")?;
            let registers = self.command("info registers")?;
            if pattern.is_match(&registers) {
                return Ok(());
            }
            self.command("cont")?;
            anyhow::ensure!(Instant::now() < end, "never at {pattern}: {registers}");
            std::thread::sleep(Duration::from_millis(7));
        }
    }

    /// A machine check in bank 4 with this status, restartable; the machine goes on.
    fn machine_check(&mut self, status: u64) -> Result<()> {
        let said = self.command(&format!("mce 0 4 {status:#x} 5 0x12345000 0"))?;
        anyhow::ensure!(said.contains(r#""return": """#), "{said}");
        self.command("cont").map(drop)
    }
}

/// A valid, uncorrected error with an address (MCi_STATUS), not enabled: nothing that needs an answer.
const NOT_ENABLED: u64 = 1 << 63 | 1 << 61 | 1 << 58 | 0x134;
/// The same, enabled: data was used that is wrong.
const ENABLED: u64 = NOT_ENABLED | 1 << 60;
/// Registers of the halted kernel: a guest's kernel is not at the kernel's addresses.
const IDLE: &str = r"RIP=ffffffff80[0-9a-f]{6} .*CPL=0 .*HLT=1.*CS =0008 ";
/// Registers of the kernel, halted or with interrupts off (RFLAGS bit 9). Else it may be between CLGI and VMRUN, where a machine check
/// waits for the guest (APM vol. 2, 15.17): that one is the guest's.
const KERNEL: &str = concat!(
    r"RIP=ffffffff80[0-9a-f]{6} RFL=[0-9a-f]{5}",
    r"(?:[014589cd][0-9a-f]{2} .*CPL=0 .*|[0-9a-f]{3} .*CPL=0 .*HLT=1.*)CS =0008 "
);
/// STI as the monitor shows it: what follows CLGI.
const STI: &str = "0xfb";
/// Registers of a server: Linux has other selectors.
const SERVER: &str = r"RIP=0000000000[0-9a-f]{6} .*CPL=3 .*CS =0023 ";

/// How many NMIs there are.
const NMIS: u32 = 200;

/// NMIs at many moments of a guest that computes, prints and waits: each is counted, and all is as without. One is sent when the one
/// before has been logged, since the emulator, as a processor, makes one of two that come at once.
#[test]
fn hardening_nmi() -> Judged {
    let (mut s, mut monitor) = Monitor::boot("guests/linux.toml", "nmi.qmp")?;
    s.shell()?;
    // What it computes does not depend on time.
    s.machine.send_line(
        "f() { i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo $i; dd if=/dev/zero bs=64k count=4 2>/dev/null | md5sum; done | md5sum; }; a=$(f)",
    )?;
    s.expect(SHELL)?;
    let log = s.log_position();
    s.machine.send_line(
        "{ n=0; until [ -e /tmp/enough ]; do n=$((n+1)); b=$(f); echo round $n; [ \"$a\" = \"$b\" ] || break; done; echo the en''d $n ${a%% *} ${b%% *}; } &",
    )?;
    s.expect("round 1\r\n")?;
    for i in 1..=NMIS {
        monitor.execute(r#"{"execute":"inject-nmi"}"#)?;
        s.log_after(log, &format!("NMI on processor 0: {i} so far"))?;
        std::thread::sleep(Duration::from_micros(u64::from(i) * 37 % 5_000));
    }
    s.machine
        .send_line("touch /tmp/enough; wait; echo do''ne")?;
    let end = s.expect_boot(r"the end [1-9]\d* [0-9a-f]{32} [0-9a-f]{32}\r\n")?;
    let hashes: Vec<&str> = end.split_whitespace().skip(3).collect();
    s.check(&format!("{}", hashes[..1] == hashes[1..]), "true")?;
    s.expect(r"(?s)done\r\n.*/ # ")?;
    let all = s.machine.log().split_off(log).join("\n");
    let counted = Regex::new(r"NMI on processor 0: (\d+) so far")?;
    let last = counted.captures_iter(&all).last();
    let last: u32 = last.context("none is logged")?[1].parse()?;
    s.check(&format!("{last} NMIs"), &format!("^{NMIS} "))?;
    let complaints = s.sh("dmesg | grep -i nmi | grep -v -i 'perf\\|watchdog\\|LINT' | cat")?;
    s.check(&complaints, "^$")?;
    Ok(())
}

/// A guest that the processor refuses to enter: that is an exit, nothing of the host's comes into the state page, and the host's
/// control registers, segments, tables and MSRs are as before; so they are after entries with each register invalid in turn.
#[test]
fn hardening_entries() -> Judged {
    let toml = "tests/systems/entries.toml";
    let mut s = System::boot_with(toml, Firmware::Bios, &deterministic())?;
    let exit = s.machine.wait_exit(BOOT)?;
    let log = s.machine.log().join("\n");
    s.check_not(&log, r"ERROR [^\n]*")?;
    s.check(&log, r"ENTRIES 6 refused by the processor, 0 failures")?;
    s.check(&format!("{exit:?}"), "^PowerOff$")?;
    Ok(())
}

/// Machine checks: one that asks for nothing, one in a server, which dies of it, and one in the kernel, which says so.
#[test]
fn hardening_machine_check() -> Judged {
    // The machine stays when its VM is down: the server may be that one's VMM.
    let toml = "tests/systems/linux-stays.toml";
    let (mut s, mut monitor) = Monitor::boot(toml, "machine-check.qmp")?;
    s.shell()?;
    let log = s.log_position();
    monitor.stop_at(IDLE)?;
    monitor.machine_check(NOT_ENABLED)?;
    s.log_after(
        log,
        r"kernel: .*machine check on processor 0: bank 4, status 0xa400000000000134, address 0x12345000, misc 0x0; a thread harmed: false",
    )?;
    let sum = s.sh("echo $((6 * 7))")?;
    s.check(&sum, "^42$")?;

    let log = s.log_position();
    s.machine
        .send_line("while :; do echo a line that keeps servers busy; done")?;
    s.expect("servers busy\r\n")?;
    monitor.stop_at(SERVER)?;
    monitor.machine_check(ENABLED)?;
    s.log_after(log, r"kernel: .*machine check .*a thread harmed: true")?;
    let death = s.log_after(log, r"root: .* ends: Fault \{ vector: 12, ")?;
    eprintln!("{death}");
    // All others go on: the manager answers.
    s.to_manager()?;
    let vms = s.manager("vms")?;
    s.check(&vms, r"(?m)^. linux ")?;

    monitor.stop_at(KERNEL)?;
    while monitor.command("x/1xb $pc")?.contains(STI) {
        monitor.command("cont")?;
        monitor.stop_at(KERNEL)?;
    }
    monitor.machine_check(ENABLED)?;
    s.machine.expect(
        r"\nVireo: machine check on processor 0: bank 4, status 0xb400000000000134, address 0x12345000, [^\n]*cannot go on\.",
        STEP,
    )?;
    Ok(())
}
