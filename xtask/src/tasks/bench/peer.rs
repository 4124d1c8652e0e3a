//! QEMU/KVM doing the same for the same guests, in the same emulator: Linux with KVM boots where our kernel would, by the same
//! flags, and starts QEMU with the kernel, the initramfs and the program of our own runs (`guests/costs`).
//!
//! All of it is from Debian's packages. It takes some ten minutes, so what was measured is kept under `target/peer`, by the name of
//! what was run.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{exits, figures};
use crate::{
    build::{bare, cpio::Cpio},
    emulator::{Options, process, qemu},
    host,
    setup::{apt, guests, toolchain::Toolchain},
};

/// What the machine's first process does.
const INIT: &str = include_str!("peer/init.sh");
/// What switches a guest's tap device on.
const TAP_UP: &str = "#!/bin/busybox sh
ip link set $1 up
brctl addif br0 $1
";
/// Modules of the machine, each behind those that it needs.
const MODULES: [&str; 11] = [
    "virt/lib/irqbypass.ko",
    "arch/x86/kvm/kvm.ko",
    "arch/x86/kvm/kvm-amd.ko",
    "net/llc/llc.ko",
    "net/802/stp.ko",
    "net/bridge/bridge.ko",
    "drivers/net/tun.ko",
    "drivers/net/tap.ko",
    "drivers/vhost/vhost_iotlb.ko",
    "drivers/vhost/vhost.ko",
    "drivers/vhost/vhost_net.ko",
];
/// QEMU's own files.
const FIRMWARE: [&str; 5] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/efi-virtio.rom",
    "/usr/lib/ipxe/qemu/efi-virtio.rom",
];
/// What is measured, a boot each: nothing that one leaves behind is in another's way.
const BOOTS: [&str; 3] = ["vhost", "tap", "rest"];
/// The machine's memory.
const MEMORY: &str = "2560M";

/// What was measured, by row and by what of KVM's did it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Peer {
    /// Row, then variant: instructions an operation.
    pub rows: BTreeMap<String, BTreeMap<String, u64>>,
    /// Exits of a thousand operations.
    pub exits: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Measures KVM, or tells what was measured.
pub fn kvm() -> Result<Peer> {
    qemu::program()?;
    let initramfs = initramfs()?;
    let dir = host::target().join("peer");
    host::make_dir(&dir)?;
    let kept = dir.join(format!("kvm-{:016x}.json", host::fingerprint(&initramfs)));
    if let Ok(bytes) = fs::read(&kept) {
        host::step(format!("KVM was measured: {}", kept.display()));
        return serde_json::from_slice(&bytes).context("what is kept of the peer");
    }
    let initrd = dir.join("initramfs.cpio");
    host::write_whole(&initrd, &initramfs)?;
    host::step("measuring KVM in the same emulator (some ten minutes)");
    let mut peer = Peer::default();
    for what in BOOTS {
        let (output, trace) = (dir.join(format!("{what}.txt")), dir.join("exits.txt"));
        boot(what, &initrd, &output, &trace)?;
        let text = fs::read(&output).context("the peer's output")?;
        let text = String::from_utf8_lossy(&text);
        read(&mut peer, &text, exits::between_marks(&trace)?)?;
        fs::remove_file(&trace)?;
    }
    fs::remove_file(&initrd)?;
    host::write_whole(&kept, &serde_json::to_vec_pretty(&peer)?)?;
    Ok(peer)
}

/// Runs the machine to its end.
fn boot(what: &str, initrd: &Path, output: &Path, trace: &Path) -> Result<()> {
    let mut cmd = process::command(&qemu::program()?);
    cmd.args(["-M", "q35", "-accel", "tcg", "-nodefaults", "-no-reboot"]);
    cmd.args(["-display", "none", "-m", MEMORY, "-smp", "1"]);
    qemu::deterministic(&mut cmd, &Options::default());
    cmd.args(["-serial", "stdio", "-kernel"]);
    cmd.arg(guests::cloud_kernel()?).arg("-initrd").arg(initrd);
    cmd.arg("-append");
    cmd.arg(format!("console=ttyS0 quiet panic=-1 what={what}"));
    exits::record(&mut cmd, trace);
    cmd.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = process::spawn(&mut cmd)?;
    let mut kept = File::create(output).context("the peer's output")?;
    let pipe = child.stdout.take().context("QEMU has no output")?;
    for line in BufReader::new(pipe).split(b'\n') {
        let line = line.context("reading what QEMU says")?;
        kept.write_all(&line)?;
        kept.write_all(b"\n")?;
        let line = String::from_utf8_lossy(&line);
        if line.contains("BENCH") || line.contains("COSTS") || line.contains("PEER") {
            host::step(format!("KVM: {}", line.trim()));
        }
    }
    let status = child.wait().context("waiting for QEMU")?;
    ensure!(status.success(), "the peer's machine ended with {status}");
    Ok(())
}

/// All that the machine needs, uncompressed: it does not unpack it instruction by instruction.
fn initramfs() -> Result<Vec<u8>> {
    let tc = Toolchain::get()?;
    let program = bare::stripped(&tc, &bare::guest(&tc, "guest-costs")?)?;
    let mut cpio = Cpio::default();
    for dir in [
        "bin", "dev", "proc", "sys", "tmp", "lib64", "lib", "modules", "share", "guest",
    ] {
        cpio.dir(dir);
    }
    cpio.char_device("dev/console", 5, 1);
    cpio.file("init", 0o755, INIT.as_bytes());
    cpio.file("tap-up", 0o755, TAP_UP.as_bytes());
    let (_, busybox) = guests::busybox()?;
    cpio.file("bin/busybox", 0o755, &busybox);
    cpio.file("bin/costs", 0o755, &host::read(&program)?);
    let qemu = qemu::program()?;
    cpio.file("bin/qemu", 0o755, &host::read(&qemu)?);
    for library in libraries(&qemu)? {
        let name = library.file_name().unwrap_or_default().to_string_lossy();
        let folder = if name.starts_with("ld-linux") {
            "lib64"
        } else {
            "lib"
        };
        cpio.file(&format!("{folder}/{name}"), 0o755, &host::read(&library)?);
    }
    for file in FIRMWARE.map(PathBuf::from).iter().filter(|f| f.is_file()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        cpio.file(&format!("share/{name}"), 0o644, &host::read(file)?);
    }
    let (tree, _) = guests::module_tree()?;
    for (i, module) in MODULES.iter().enumerate() {
        let bytes = host::read(&tree.join(module))?;
        cpio.file(&format!("modules/{i:02}.ko"), 0o644, &bytes);
    }
    let files = [
        ("kernel", guests::File::CloudKernel),
        ("costs.gz", guests::File::Costs),
        ("virtio.gz", guests::File::CostsVirtio),
    ];
    for (name, file) in files {
        cpio.file(&format!("guest/{name}"), 0o644, &host::read(&file.get()?)?);
    }
    Ok(cpio.finish())
}

/// What a program's dynamic linker loads, itself included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    apt::need(&apt::EMULATOR)?;
    let text = host::output(host::command("ldd").arg(program))?;
    let paths = text.lines().filter_map(|line| {
        let words = line.split_whitespace();
        words
            .filter(|w| w.starts_with('/'))
            .map(PathBuf::from)
            .next()
    });
    Ok(paths.collect())
}

/// Reads what the machine said; `exits` of each measurement, in their order.
fn read(peer: &mut Peer, text: &str, exits: Vec<u64>) -> Result<()> {
    let (mut variant, mut start) = (String::new(), 0_u64);
    let mut exits = exits.into_iter();
    for line in text.lines().map(str::trim_end) {
        let (stamp, said) = match line.strip_prefix('@').and_then(|l| l.split_once(' ')) {
            Some((stamp, said)) => (stamp.parse::<u64>().ok(), said),
            None => (None, line),
        };
        ensure!(!said.contains("COSTS-FAIL"), "the peer's guest: {said}");
        if let Some(name) = said.strip_prefix("PEER ") {
            name.clone_into(&mut variant);
        } else if let Some(tsc) = said.strip_prefix("COSTS-START ") {
            start = tsc.trim().parse().context("when a guest was started")?;
        } else if let (true, Some(stamp)) = (said.starts_with("COSTS-INIT "), stamp) {
            let row = peer.rows.entry("boot_to_init".into()).or_default();
            row.insert(variant.clone(), stamp - start);
        } else if let Some(row) = figures::parse(said, &Options::default()) {
            let (name, median) = row.figure();
            let rows = peer.rows.entry(name.into()).or_default();
            rows.insert(variant.clone(), median);
            if let Some(count) = exits.next() {
                let rows = peer.exits.entry(name.into()).or_default();
                rows.insert(variant.clone(), exits::per_thousand(name, count));
            }
        }
    }
    ensure!(
        text.contains("PEER-END"),
        "the peer's machine did not come to its end"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_says() {
        let text = "noise\nPEER pc\n@0100 COSTS-START 40\n@0190 COSTS-INIT 7\r\nPEER tap\nBENCH net_packet_burst instructions 1 2 3\nPEER-END\n";
        let mut peer = Peer::default();
        read(&mut peer, text, vec![1280]).unwrap();
        assert_eq!(peer.rows["boot_to_init"]["pc"], 150);
        assert_eq!(peer.rows["net_packet_burst"]["tap"], 2);
        assert_eq!(peer.exits["net_packet_burst"]["tap"], 1000);
        assert!(read(&mut peer, "PEER pc\n", vec![]).is_err());
        assert!(read(&mut peer, "COSTS-FAIL x\nPEER-END\n", vec![]).is_err());
    }
}
