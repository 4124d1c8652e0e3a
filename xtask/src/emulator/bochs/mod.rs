//! Bochs: its configuration, and how its machine ended.
//!
//! Debian's 2.7, headless. Time counts instructions. What is particular here, and why:
//! - The serial port connects to a socket of ours; it is the only kind of port that takes input, too, and loses nothing.
//! - What the machine writes to port 0xe9 comes by standard output, behind the debugger's words.
//! - The display library is `rfb`, the only one without a terminal; it complains of 24-bit modes, which does no harm. The loader finds no
//!   mode that it knows in the VGA BIOS for Bochs' own adapter behind this library: so the adapter is Cirrus, on PCI.
//! - There is no debug-exit port: the code is in root's last log line.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

mod notes;

use notes::Notes;

use super::{
    Options,
    process::{self, Boot, Process},
};
use crate::{host, setup::apt};

/// The processor model that a machine has unless told: SVM with all that Bochs emulates of it.
pub const DEFAULT_MODEL: &str = "ryzen";
/// Models with hardware virtualisation and nested paging that are known to do.
const KNOWN: [&str; 2] = [DEFAULT_MODEL, "corei7_skylake_x"];
/// Emulated instructions in an emulated second; where time counts them (`icount`), as many as in QEMU.
const IPS: [u32; 2] = [50_000_000, 1_000_000_000];
/// Bytes of a cylinder: the disk must consist of whole ones.
const CYLINDER: u64 = 16 * 63 * 512;
/// Bound of Bochs' own start.
const START: Duration = Duration::from_secs(60);

/// Bochs' path, installed if need be.
pub fn program() -> Result<PathBuf> {
    let path = PathBuf::from("/usr/bin/bochs-bin");
    let files = [
        path.as_path(),
        Path::new(BIOS),
        Path::new(VGA_BIOS),
        Path::new(DISPLAY),
    ];
    if !files.iter().all(|file| file.exists()) {
        apt::need(&apt::BOCHS).context("Bochs is not installed")?;
    }
    Ok(path)
}

const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/vgabios/vgabios.cirrus.bin";
const DISPLAY: &str = "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_rfb_gui.so";

/// The processor model of a machine.
pub fn model(options: &Options) -> &str {
    options.cpu.as_deref().unwrap_or(DEFAULT_MODEL)
}

/// Refuses a model that Bochs does not have.
pub fn check_model(model: &str) -> Result<()> {
    if KNOWN.contains(&model) {
        return Ok(());
    }
    let help = host::command(program()?).args(["--help", "cpu"]).output();
    let help = help.context("asking Bochs for its processor models")?;
    known(&String::from_utf8_lossy(&help.stderr), model)
}

/// Looks `model` up in what `--help cpu` says.
fn known(help: &str, model: &str) -> Result<()> {
    let list = help.split("Supported CPU models:").nth(1);
    let words = list.unwrap_or_default().lines().map(str::trim);
    let models: Vec<&str> = words
        .take_while(|line| !line.contains("quit_sim"))
        .filter(|line| !line.is_empty())
        .collect();
    if models.contains(&model) {
        return Ok(());
    }
    bail!(
        "Bochs has no processor model `{model}`\n  remedy: give --cpu {} (the others, without what Vireo needs: {})",
        KNOWN.join(" or --cpu "),
        models.join(" ")
    )
}

/// Boots a machine.
pub fn start(boot: &Boot<'_>) -> Result<Process> {
    let bochs = program()?;
    if boot.second_disk.is_some() {
        bail!(
            "Bochs has no virtio disk, and this system needs a second one\n  remedy: take --emulator qemu, or a system without `on = \"second-disk\"`"
        );
    }
    let disk = boot.dir.join("disk");
    whole_cylinders(boot.disk, &disk)?;
    let listener =
        TcpListener::bind(("127.0.0.1", 0)).context("a socket for the serial port of Bochs")?;
    let port = listener.local_addr()?.port();
    let (rc, debugger, log) = (
        boot.dir.join("bochsrc"),
        boot.dir.join("debugger"),
        boot.dir.join("log.bin"),
    );
    let text = configuration(boot.options, boot.memory, &disk, port)?;
    host::write_whole(&rc, text.as_bytes())?;
    // Debian's has the debugger built in, which waits for a command first: `continue`.
    host::write_whole(&debugger, b"c\n")?;
    let out = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut cmd = process::command(&bochs);
    cmd.arg("-q").arg("-f").arg(&rc).arg("-rc").arg(&debugger);
    cmd.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped());
    let mut child = process::spawn(&mut cmd)?;
    let notes = Notes::read(child.stderr.take().context("Bochs has no log")?);
    let serial = match connection(&listener, &mut child) {
        Ok(serial) => serial,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{error:#}\n{}", notes.text());
        }
    };
    Ok(Process {
        child,
        input: Box::new(serial.try_clone().context("the serial port of Bochs")?),
        output: Box::new(serial),
        log,
        diary: Box::new(notes),
    })
}

/// What Bochs is told.
fn configuration(options: &Options, memory: u64, disk: &Path, port: u16) -> Result<String> {
    let (model, cpus) = (model(options), options.cpus);
    let ips = IPS[usize::from(options.icount)];
    let megabytes = memory.div_ceil(1 << 20);
    // More it does not take of the host: what is touched goes to a file then.
    let taken = megabytes.min(2048);
    let disk = disk.to_str().context("the run's folder is not UTF-8")?;
    // Nothing there can quote.
    if disk.contains(['"', ',', '\n']) {
        bail!(
            "Bochs cannot open {disk}: move the repository to a folder without comma and quote in its name"
        );
    }
    let lines = [
        "config_interface: textconfig".to_owned(),
        "display_library: rfb, options=\"timeout=0\"".to_owned(),
        format!(
            "cpu: model={model}, count={cpus}, ips={ips}, reset_on_triple_fault=0, ignore_bad_msrs=1"
        ),
        format!("memory: guest={megabytes}, host={taken}"),
        format!("romimage: file={BIOS}"),
        format!("vgaromimage: file={VGA_BIOS}"),
        "vga: extension=cirrus, realtime=0".to_owned(),
        "pci: enabled=1, chipset=i440fx, slot1=cirrus".to_owned(),
        "plugin_ctrl: speaker=0".to_owned(),
        format!("ata0-master: type=disk, mode=flat, path=\"{disk}\""),
        "boot: disk".to_owned(),
        format!("com1: enabled=1, mode=socket-client, dev=127.0.0.1:{port}"),
        "port_e9_hack: enabled=1".to_owned(),
        "clock: sync=none, time0=946681200".to_owned(),
        "panic: action=fatal, rfb=report".to_owned(),
        "error: action=report".to_owned(),
        "info: action=report".to_owned(),
        "debug: action=ignore".to_owned(),
        "log: -".to_owned(),
    ];
    Ok(lines.join("\n") + "\n")
}

/// A copy of the disk image that the machine may write to.
fn whole_cylinders(image: &Path, to: &Path) -> Result<()> {
    fs::copy(image, to).with_context(|| format!("copying {}", image.display()))?;
    let file = File::options().write(true).open(to)?;
    let len = file.metadata()?.len().next_multiple_of(CYLINDER);
    file.set_len(len)?;
    // A hole at the very end is no sector to some.
    file.write_all_at(&[0], len - 1)?;
    Ok(())
}

/// Waits until Bochs has connected its serial port.
fn connection(listener: &TcpListener, child: &mut Child) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + START;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(e).context("the serial port of Bochs");
            }
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("Bochs ended at once: {status}");
        }
        if Instant::now() >= deadline {
            bail!("Bochs did not start in {START:.0?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models() {
        let help = "00000000000i[      ] x\nSupported CPU models:\n\nbx_generic\nryzen\n\n00000000000i[SIM   ] quit_sim called with exit code 0\n====\n";
        known(help, "ryzen").unwrap();
        let error = known(help, "z80").unwrap_err().to_string();
        assert!(error.starts_with("Bochs has no processor model `z80`\n  remedy: give --cpu ryzen or --cpu corei7_skylake_x (the others"), "{error}");
        assert!(error.ends_with(": bx_generic ryzen)"), "{error}");
    }

    #[test]
    fn what_bochs_is_told() {
        let options = Options {
            cpus: 2,
            ..Options::bochs("corei7_skylake_x")
        };
        let text = configuration(&options, (512 << 20) - 1, Path::new("/a b/disk"), 4711).unwrap();
        for line in [
            "cpu: model=corei7_skylake_x, count=2, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1",
            "memory: guest=512, host=512",
            "ata0-master: type=disk, mode=flat, path=\"/a b/disk\"",
            "com1: enabled=1, mode=socket-client, dev=127.0.0.1:4711",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}");
        }
        assert!(configuration(&options, 1, Path::new("/a,b"), 1).is_err());
    }

    #[test]
    fn disks() {
        let dir = std::env::temp_dir().join(format!("vireo-bochs-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (image, disk) = (dir.join("image"), dir.join("disk"));
        fs::write(&image, [7; 1000]).unwrap();
        whole_cylinders(&image, &disk).unwrap();
        let bytes = fs::read(&disk).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(bytes.len() as u64, CYLINDER);
        assert!(bytes[..1000].iter().all(|&b| b == 7) && bytes[1000..].iter().all(|&b| b == 0));
    }
}
