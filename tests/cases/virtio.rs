//! Virtio devices under Debian's unmodified kernel, by its own drivers.

use anyhow::Result;
use system_tests::{Judged, System};

use crate::consoles::consoles;
use crate::disks::disks;

/// How often a device's server dies while its device is in use.
const KILLS: usize = 2;

/// Interrupts of the entropy source's queue by MSI-X so far.
fn interrupts(s: &mut System) -> Result<u64> {
    let line = s.sh("grep virtio0-input /proc/interrupts")?;
    s.check(&line, r"^ *\d+: +\d+ +PCI-MSI \d+-edge +virtio0-input$")?;
    let count = line.split_whitespace().nth(1).unwrap_or_default();
    Ok(count.parse()?)
}

/// All kinds of virtio devices in one VM.
#[test]
fn virtio() -> Judged {
    let mut s = System::boot("guests/virtio.toml")?;
    s.shell()?;
    consoles(&mut s)?;
    entropy(&mut s)?;
    disks(&mut s)?;
    memory(&mut s, "linux")?;
    s.machine.send_line("poweroff -f")?;
    s.expect(r"linux has stopped")?;
    Ok(())
}

/// A VM must take less beside its guest's memory, in KiB; what is shown is rounded down.
const LIMIT: u64 = 2048;

/// What a VM takes beside its guest's memory: listed by kind, and little; from its prompt and back to it.
pub fn memory(s: &mut System, vm: &str) -> Result<()> {
    s.to_manager()?;
    let table = s.manager("servers")?;
    s.check(
        &table,
        r"(?m)^ ID  NAME +\(CODE\) +DATA +STACK +HEAP +OBJECTS +\(FREE\) +OTHER +TOTAL$",
    )?;
    let row = regex::Regex::new(&format!(r"(?m)^ VM  {vm} ((?: +[\d.]+ [KM]iB){{8}})\r?$"))?;
    let row = row.captures(&table).map(|row| row[1].to_owned());
    let row = row.ok_or_else(|| s.failure("no row of the VM"))?;
    let words: Vec<&str> = row.split_whitespace().collect();
    let kib = |pair: &[&str]| -> Result<u64> {
        let number: f64 = pair[0].parse()?;
        Ok((number * if pair[1] == "MiB" { 1024.0 } else { 1.0 }) as u64)
    };
    let kib: Vec<u64> = words.chunks(2).map(kib).collect::<Result<_>>()?;
    // Code and free are not in the sum; a MiB is shown to a tenth.
    let sum: u64 = [1, 2, 3, 4, 6].iter().map(|&kind| kib[kind]).sum();
    let all = kib[7];
    println!("{all} KiB beside the memory of {vm}'s guest");
    let fits =
        all > 0 && all < LIMIT && sum.abs_diff(all) < 400 && kib[1..5].iter().all(|&k| k > 0);
    s.check(&format!("{row}: {fits}"), "true$")?;
    s.attach(vm)
}

/// The entropy source: found, driven by MSI-X, read, and read on while its server dies.
fn entropy(s: &mut System) -> Result<()> {
    let name = s.sh("cat /sys/class/misc/hw_random/rng_current")?;
    s.check(&name, r"^virtio_rng\.0$")?;
    // Where the driver found it: registers in I/O space, the table of vectors in memory.
    let resources = s.sh("head -2 /sys/bus/pci/devices/0000:00:01.0/resource")?;
    s.check(
        &resources,
        r"(?s)^0x0+c000 0x0+c0ff 0x0+40101\r?\n0x0*c0000000 0x0*c0000fff 0x0+40200$",
    )?;
    let read = "dd if=/dev/hwrng bs=256 count=8 2>&1 >/tmp/a | tail -1; wc -c </tmp/a";
    let before = interrupts(s)?;
    let one = s.sh(read)?;
    s.check(&one, r"(?m)^2048$")?;
    let after = interrupts(s)?;
    s.check(&format!("{before} {after} {}", after > before), "true$")?;
    // Random: it does not pack, and no two are the same.
    let packed = s.sh("gzip -c /tmp/a | wc -c; cp /tmp/a /tmp/b")?;
    s.check(&packed, r"^(?:20[4-9]\d|21\d\d)$")?;

    // Reading goes on while its server dies under it.
    begin_to_read(s)?;
    for _ in 0..KILLS {
        s.kill(&["linux.rng0"], "linux")?;
        reads_on(s)?;
    }
    // It hangs where no access of the guest's would tell: whoever waits for a doorbell's work waits for root to notice.
    for how in ["hang", "spin"] {
        s.hang(how, "linux.rng0", "linux")?;
        reads_on(s)?;
    }
    judge_reads(s)?;
    let again = s.sh(&format!("{read}; cmp /tmp/a /tmp/b | wc -l"))?;
    s.check(&again, r"(?s)2048\r?\n1$")?;

    // Its server scribbles over its memory while it is read from, and over what it leaves to a successor, too: a slot of that is enough.
    scribble_and_mend(s, "linux.rng0", "linux")?;
    let one = s.sh(read)?;
    s.check(&one, r"(?m)^2048$")?;
    scribble_and_lose(s, "linux.rng0", "linux")?;
    rebind(s, "virtio0", "virtio_rng")?;
    let one = s.sh(read)?;
    s.check(&one, r"(?m)^2048$")?;
    s.no_complaints("virtio|pci|rng|irq")
}

/// A device's server scribbles over its memory and one slot of its state page; its successor has all of it by the other.
pub fn scribble_and_mend(s: &mut System, server: &str, vm: &str) -> Result<()> {
    let log = s.scribble(server, false, vm)?;
    let said = format!(
        r"{}: .*slot \d of its state page is damaged.*mended",
        regex::escape(server)
    );
    s.log_after(log, &said).map(drop)
}

/// The same with both slots: its successor knows nothing of what the driver has set.
pub fn scribble_and_lose(s: &mut System, server: &str, vm: &str) -> Result<()> {
    let log = s.scribble(server, true, vm)?;
    let said = format!(
        r"{}: .*both slots of its state page are damaged",
        regex::escape(server)
    );
    s.log_after(log, &said).map(drop)
}

/// A device that has lost what its driver set says so, and is as ever once its driver has begun anew. Linux's drivers do not do that by
/// themselves.
pub fn rebind(s: &mut System, device: &str, driver: &str) -> Result<()> {
    let lost = s.sh(&format!("cat /sys/bus/virtio/devices/{device}/status"))?;
    s.check(&lost, "^0x00000040$")?;
    let told = s.sh(&format!("grep {device}-config /proc/interrupts"))?;
    s.check(&told, r"^ *\d+: +[1-9]")?;
    s.sh(&format!(
        "cd /sys/bus/virtio/drivers/{driver}; echo {device} >unbind; echo {device} >bind; cd /; cat /sys/bus/virtio/devices/{device}/status"
    ))
    .and_then(|status| s.check(&status, "^0x0000000f$"))
}

/// Begins to read random numbers again and again. No job of the shell's, of which it would tell at a prompt.
pub fn begin_to_read(s: &mut System) -> Result<()> {
    s.sh("( (until [ -e /tmp/enough ]; do dd if=/dev/hwrng bs=256 count=4 2>/dev/null | wc -c; cat /proc/uptime >>/tmp/rt; done >/tmp/sizes; touch /tmp/over) & )").map(drop)
}

/// More has been read since.
pub fn reads_on(s: &mut System) -> Result<()> {
    let reads = s.sh("n=$(wc -l </tmp/sizes); until [ $(wc -l </tmp/sizes) -gt $((n + 1)) ]; do sleep 0.1; done; echo on")?;
    s.check(&reads, "(?m)^on$")
}

/// Ends the reading; all that was asked for has come.
pub fn judge_reads(s: &mut System) -> Result<()> {
    let sizes = s.sh(
        "touch /tmp/enough; until [ -e /tmp/over ]; do sleep 0.1; done; sort /tmp/sizes | uniq",
    )?;
    s.check(&sizes, "^1024$")
}
