//! PCI functions of a guest that uses no messages: pins, which are level-triggered and shared; and BARs that move while other functions
//! work.

use anyhow::Result;
use system_tests::{Judged, System};
use xtask::description::Description;
use xtask::host;
use xtask::setup::image_maker::Firmware;

/// By the IOAPIC.
#[test]
fn intx() -> Judged {
    let mut s = System::boot("tests/systems/intx.toml")?;
    s.shell()?;
    // Slots 1 and 5 are wired to the second line of the IOAPIC's upper four.
    pins(&mut s, r"IO-APIC +17-fasteoi +virtio\d, virtio\d")?;
    bars(&mut s)?;
    quiet(&mut s)?;
    messages(&mut s)?;
    power_off(&mut s)
}

/// By the 8259 pair.
#[test]
#[ignore = "a second boot of the same guest: run by name"]
fn intx_by_the_8259s() -> Judged {
    let toml = host::root().join("tests/systems/intx.toml");
    let mut description = Description::load(&toml, None)?;
    description.stem = "intx-8259".into();
    for vm in &mut description.system.vms {
        vm.append += " noapic";
    }
    let mut s = System::boot_description(&description, Firmware::Bios, &Default::default())?;
    s.shell()?;
    pins(&mut s, r"XT-PIC +virtio\d, virtio\d")?;
    quiet(&mut s)?;
    power_off(&mut s)
}

/// Both functions interrupt by the one line, which is quiet when nothing is asked of them.
fn pins(s: &mut System, line: &str) -> Result<()> {
    let count = "grep virtio /proc/interrupts";
    let before = s.sh(count)?;
    s.check(&before, &format!(r"^ *\d+: +\d+ +{line}$"))?;
    let number = |text: &str| -> Result<u64> {
        let number = text.split_whitespace().nth(1).unwrap_or_default();
        Ok(number.parse()?)
    };
    let read = s.sh("dd if=/dev/hwrng bs=256 count=8 2>/dev/null | wc -c; dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | wc -c")?;
    s.check(&read, "^2048\n1048576$")?;
    let after = s.sh(count)?;
    // An interrupt for each buffer or request, and hardly one that nobody asked for.
    let more = number(&after)?.wrapping_sub(number(&before)?);
    s.check(
        &format!("{more} interrupts: {}", (16..200).contains(&more)),
        "true$",
    )?;
    // Its server dies with the line high or low: either way the guest goes on.
    s.to_manager()?;
    let log = s.restart("linux.blk0")?;
    s.log_after(log, r"linux\.blk0: .*goes on after a predecessor: true")?;
    s.attach("linux")?;
    let read = s.sh("dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | wc -c")?;
    s.check(&read, "^1048576$")
}

/// The entropy source is taken from its driver, its I/O BAR moved, and found where it is, again and again, while the disk is read all the
/// time: the guest sizes and assigns BARs meanwhile.
fn bars(s: &mut System) -> Result<()> {
    s.sh(concat!(
        "( (until [ -e /tmp/enough ]; do echo 3 >/proc/sys/vm/drop_caches; ",
        "dd if=/dev/vda bs=64k count=4 iflag=direct 2>/dev/null | sha256sum; done >/tmp/sums; touch /tmp/over) & )"
    ))?;
    let mut places = Vec::new();
    // 0xD000 and 0xE800.
    for bar in [r"\001\320\000\000", r"\001\350\000\000"] {
        let moved = s.sh(&format!(
            concat!(
                "f=/sys/bus/pci/devices/0000:00:01.0; echo 0000:00:01.0 >/sys/bus/pci/drivers/virtio-pci/unbind; ",
                "printf '{}' | dd of=$f/config bs=1 seek=16 conv=notrunc 2>/dev/null; ",
                "echo 1 >$f/remove; echo 1 >/sys/bus/pci/rescan; ",
                "n=$(wc -l </tmp/sums); until [ $(wc -l </tmp/sums) -gt $((n + 2)) ]; do sleep 0.1; done; ",
                "head -n 1 $f/resource; dd if=/dev/hwrng bs=256 count=8 2>/dev/null | wc -c"
            ),
            bar
        ))?;
        s.check(
            &moved,
            r"(?s)^0x0+[0-9a-f]{4} 0x0+[0-9a-f]{4} 0x0+40101\n2048$",
        )?;
        places.push(moved);
    }
    s.check(
        &format!(
            "{places:?}: {}",
            places.iter().any(|p| !p.contains("c000 "))
        ),
        "true$",
    )?;
    let sums = s.sh("touch /tmp/enough; until [ -e /tmp/over ]; do sleep 0.1; done; sort /tmp/sums | uniq -c | wc -l; head -n 1 /tmp/sums; dd if=/dev/vda bs=64k count=4 2>/dev/null | sha256sum")?;
    s.check(&sums, "^1\n([0-9a-f]{64})  -\n[0-9a-f]{64}  -$")?;
    let lines: Vec<&str> = sums.lines().collect();
    s.check(
        &format!("{}", lines.get(1).is_some() && lines.get(1) == lines.get(2)),
        "true",
    )
}

/// The entropy source by MSI, which Linux does not use of it: set up behind its back, its pin silenced, with the vector that Linux takes for
/// its line, which is tried out. The disk, on the same line, does nothing meanwhile.
fn messages(s: &mut System) -> Result<()> {
    let at = s.sh(concat!(
        r#"f=/sys/bus/pci/devices/0000:00:01.0/config; b() { hexdump -s $1 -n 1 -e '1/1 "%u"' $f; }; "#,
        r#"w() { printf "\\$(printf %03o $2)" | dd of=$f bs=1 seek=$1 conv=notrunc 2>/dev/null; }; "#,
        "at=$(b 52); until [ ${at:-0} = 0 ] || [ $(b $at) = 5 ]; do at=$(b $((at + 1))); done; echo $at"
    ))?;
    s.check(&at, r"^[1-9]\d*$")?;
    // Interrupt Disable; address, data, enable: nobody listens to vector 0xE0.
    let nobody = s.sh(concat!(
        "w 5 4; w $((at + 6)) 224; w $((at + 7)) 254; w $((at + 12)) 224; w $((at + 2)) 1; ",
        "( (dd if=/dev/hwrng bs=256 count=64 of=/tmp/r 2>/dev/null; touch /tmp/all) & ); sleep 0.5; wc -c </tmp/r"
    ))?;
    s.check(&nobody, r"(?m)^0$")?;
    // What waits is sent whenever MSI is switched on.
    let found = s.sh(concat!(
        "v=32; until [ -s /tmp/r ] || [ $v = 223 ]; do v=$((v + 1)); w $((at + 2)) 0; w $((at + 12)) $v; w $((at + 2)) 1; sleep 0.1; done; ",
        "before=$(awk '/virtio/ {print $2}' /proc/interrupts); until [ -e /tmp/all ]; do sleep 0.1; done; wc -c </tmp/r"
    ))?;
    s.check(&found, r"(?m)^16384$")?;
    let more = s.sh("dd if=/dev/hwrng bs=256 count=64 2>/dev/null | wc -c; after=$(awk '/virtio/ {print $2}' /proc/interrupts); [ $((after - before)) -ge 64 ] && echo by messages")?;
    s.check(&more, "^16384\nby messages$")?;
    // And by its pin again.
    let pin =
        s.sh("w $((at + 2)) 0; w 5 0; dd if=/dev/hwrng bs=256 count=64 2>/dev/null | wc -c")?;
    s.check(&pin, "^16384$")
}

/// The guest has nothing to complain of.
fn quiet(s: &mut System) -> Result<()> {
    s.no_complaints("virtio|pci|irq|I/O|nobody")
}

fn power_off(s: &mut System) -> Judged {
    s.machine.send_line("poweroff -f")?;
    s.expect(r"linux has stopped")?;
    Ok(())
}
