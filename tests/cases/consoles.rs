//! A virtio console under Debian's unmodified kernel, by its own virtio_console: a shell on hvc0, the window's size, a second port, and
//! deaths of its model while bytes are under way.

use anyhow::Result;
use system_tests::{ESCAPE, System, stream};

/// The channels of the console's two ports.
const HVC: &str = "linux.hvc0";
const DATA: &str = "linux.data";
const SERVER: &str = "linux.console0";
/// Lines that come out of hvc0 while its model dies.
const LINES: usize = 300;

/// From the prompt of a guest on its serial port and back.
pub fn consoles(s: &mut System) -> Result<()> {
    let names = s.sh("cat /sys/class/virtio-ports/*/name")?;
    s.check(&names, "^hvc0\ndata$")?;
    // Its driver takes packed virtqueues (virtio 1.2, 6), as are offered.
    let packed = s.sh("cut -c 35 /sys/bus/virtio/drivers/virtio_console/virtio*/features")?;
    s.check(&packed, "^1$")?;
    // No job of the shell's. Its controlling terminal is the console, as any getty has it.
    s.sh("( setsid getty -n -l /bin/sh 0 hvc0 & )")?;
    s.to_manager()?;
    s.attach(HVC)?;
    let tty = s.sh("tty; echo $((6 * 7))")?;
    s.check(&tty, "^/dev/hvc0\n42$")?;
    size(s, 132, 43)?;
    second_port(s)?;
    output_through_a_death(s)?;
    size(s, 80, 25)?;
    s.to_manager()?;
    s.attach("linux")?;
    s.no_complaints("virtio|hvc|irq")
}

/// What the operator says of his window is what the guest has, on hvc0's prompt.
fn size(s: &mut System, columns: u16, rows: u16) -> Result<()> {
    s.to_manager()?;
    let answer = s.manager(&format!("resize {HVC} {columns}x{rows}"))?;
    s.check(&answer, &format!("is told that it has {columns} columns"))?;
    s.attach(HVC)?;
    let is = s.sh("stty size")?;
    s.check(&is, &format!("^{rows} {columns}$"))
}

/// A port that is no console: text comes out of it and goes into it, both while its model is dead.
fn second_port(s: &mut System) -> Result<()> {
    s.sh("port=/dev/$(grep -l data /sys/class/virtio-ports/*/name | cut -d/ -f5); ( (exec 3<>$port; echo from the second port >&3; head -n 2 <&3 >/tmp/got; touch /tmp/all) & )")?;
    s.to_manager()?;
    s.machine.send_line(&format!("attach {DATA}"))?;
    s.expect(
        r"\[console of linux\.data; Ctrl-\] leads to the manager\]\r\nfrom the second port\n",
    )?;
    s.machine.send("to the second\n")?;
    let log = s.log_position();
    s.machine.send(&format!("{ESCAPE}hang {SERVER}\r"))?;
    s.expect("is suspended")?;
    s.machine.send(&format!("attach {DATA}\rline two\n"))?;
    s.expect(r"leads to the manager\]\r\n")?;
    s.machine.send(&format!("{ESCAPE}restart {SERVER}\r"))?;
    s.expect("has been killed and is started again")?;
    s.log_after(log, r"linux\.console0: .*goes on after a predecessor: true")?;
    s.attach(HVC)?;
    let got = s.sh("until [ -e /tmp/all ]; do sleep 0.1; done; cat /tmp/got")?;
    s.check(&got, "^to the second\nline two$")
}

/// The model dies while hvc0 is printing: every line comes, once.
fn output_through_a_death(s: &mut System) -> Result<()> {
    let from = s.machine.serial().len();
    s.machine.send_line(&format!(
        "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i must not break; done; echo the en''d"
    ))?;
    s.expect(&format!("line {} ", LINES / 4))?;
    let log = s.log_position();
    s.machine
        .send(&format!("{ESCAPE}restart {SERVER}\r{ESCAPE}"))?;
    s.expect("has been killed and is started again")?;
    s.log_after(log, r"linux\.console0: .*goes on after a predecessor: true")?;
    s.expect("the end\r\n/ # ")?;
    let all = s.machine.serial();
    let text = stream::of_guest(all.get(from..).unwrap_or_default(), HVC);
    let text = text.map_err(|e| s.failure(&e.to_string()))?;
    let start = text.find("line 1 ").unwrap_or_default();
    let end = text.rfind("the end").unwrap_or(text.len());
    let sent: String = (1..=LINES)
        .map(|i| format!("line {i} must not break\r\n"))
        .collect();
    let came = text.get(start..end).unwrap_or_default();
    stream::compare(&sent, came).map_err(|e| s.failure(&e.to_string()))
}
