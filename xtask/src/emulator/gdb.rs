//! A client of the emulator's debug stub (GDB's remote serial protocol), as far as a trace takes: breakpoints,
//! registers, memory, and the emulator's monitor.
//!
//! Register numbers and the layout of `g` are those of GDB's `i386:x86-64` target description.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// What a trace reads at each step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer.
    pub rip: u64,
    /// First argument of a function.
    pub rdi: u64,
}

/// A connection to a stopped machine.
pub struct Gdb {
    stream: UnixStream,
}

impl Gdb {
    /// QEMU's arguments for a stub at `path`, with the machine waiting for it.
    pub fn arguments(path: &Path) -> Vec<String> {
        let path = path.display();
        vec![
            "-chardev".into(),
            format!("socket,id=gdb,path={path},server=on,wait=off"),
            "-gdb".into(),
            "chardev:gdb".into(),
            "-S".into(),
        ]
    }

    /// Connects as soon as the emulator listens.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let deadline = Instant::now() + timeout;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() >= deadline => {
                    return Err(e).context("connecting to the emulator's debug stub");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(600)))?;
        let mut gdb = Self { stream };
        gdb.ask("?")?;
        Ok(gdb)
    }

    /// Sets a breakpoint at a virtual address, of whatever address space.
    pub fn set_breakpoint(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("Z1,{address:x},1"))
    }

    /// Takes it away.
    pub fn clear_breakpoint(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("z1,{address:x},1"))
    }

    /// Runs to the next breakpoint; false if the machine ended first.
    pub fn run(&mut self) -> Result<bool> {
        self.send("c")?;
        // A machine that ends says `W` or `X`, or nothing any more.
        Ok(self.receive().is_ok_and(|reply| reply.starts_with('T')))
    }

    /// Executes one instruction, without interrupts.
    pub fn step(&mut self) -> Result<()> {
        let reply = self.ask("s")?;
        if !reply.starts_with('T') {
            bail!("the debug stub answers a step with `{reply}`");
        }
        Ok(())
    }

    /// Gives the emulator's own monitor a command.
    pub fn monitor(&mut self, command: &str) -> Result<()> {
        let digits: String = command.bytes().map(|b| format!("{b:02x}")).collect();
        self.send(&format!("qRcmd,{digits}"))?;
        loop {
            let reply = self.receive()?;
            match reply.as_str() {
                "OK" => return Ok(()),
                // Text that it prints.
                text if text.starts_with('O') => {}
                other => bail!("the debug stub answers monitor command `{command}` with `{other}`"),
            }
        }
    }

    /// The registers now.
    pub fn registers(&mut self) -> Result<Registers> {
        // rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15, rip: 8 bytes each.
        let bytes = unhex(&self.ask("g")?)?;
        let field = |at: usize, len: usize| -> Result<u64> {
            let bytes = bytes
                .get(at..at + len)
                .context("the debug stub gives too few registers")?;
            Ok(bytes
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)))
        };
        Ok(Registers {
            rdi: field(5 * 8, 8)?,
            rip: field(16 * 8, 8)?,
        })
    }

    /// Has [`Self::memory`] take physical addresses from now on, or virtual ones again.
    pub fn physical_memory(&mut self, physical: bool) -> Result<()> {
        self.expect_ok(&format!("Qqemu.PhyMemMode:{}", u8::from(physical)))
    }

    /// Memory at an address; nothing where nothing is.
    pub fn memory(&mut self, address: u64, len: usize) -> Result<Vec<u8>> {
        unhex(&self.ask(&format!("m{address:x},{len:x}"))?)
    }

    fn expect_ok(&mut self, command: &str) -> Result<()> {
        match self.ask(command)?.as_str() {
            "OK" => Ok(()),
            other => bail!("the debug stub answers `{command}` with `{other}`"),
        }
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.send(command)?;
        self.receive()
    }

    fn send(&mut self, command: &str) -> Result<()> {
        let packet = format!("${command}#{:02x}", checksum(command.as_bytes()));
        self.stream
            .write_all(packet.as_bytes())
            .context("writing to the emulator's debug stub")
    }

    /// The next packet's content; acknowledged.
    fn receive(&mut self) -> Result<String> {
        let mut byte = || -> Result<u8> {
            let mut one = [0];
            self.stream
                .read_exact(&mut one)
                .context("reading from the emulator's debug stub")?;
            Ok(one[0])
        };
        while byte()? != b'$' {}
        let mut text = Vec::new();
        loop {
            match byte()? {
                b'#' => break,
                other => text.push(other),
            }
        }
        let sum = unhex(&String::from_utf8_lossy(&[byte()?, byte()?]))?;
        if sum != [checksum(&text)] {
            bail!("a damaged packet from the emulator's debug stub");
        }
        self.stream.write_all(b"+")?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// The sum of a packet's bytes, modulo 256.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Bytes from hexadecimal digits; an error answer (`E` and a number) is no bytes.
fn unhex(text: &str) -> Result<Vec<u8>> {
    if text.starts_with('E') {
        return Ok(Vec::new());
    }
    let digits = text.as_bytes();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair)?;
            // What the stub can't know it gives as `xx`.
            if pair == "xx" {
                return Ok(0);
            }
            u8::from_str_radix(pair, 16).with_context(|| format!("no hexadecimal digits: {pair}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets() {
        assert_eq!(checksum(b"OK"), 0x9a);
        assert_eq!(unhex("00ffxx10").unwrap(), [0, 0xff, 0, 0x10]);
        assert!(unhex("E14").unwrap().is_empty());
        assert!(unhex("zz").is_err());
    }

    /// A stub of our own at the other end: registers are found where the protocol has them.
    #[test]
    fn registers_come_from_their_places() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stub = std::thread::spawn(move || {
            let mut stub = Gdb { stream: theirs };
            let asked = stub.receive().unwrap();
            let mut bytes = [0u8; 17 * 8 + 4];
            bytes[5 * 8] = 1;
            bytes[16 * 8 + 1] = 2;
            let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            stub.send(&text).unwrap();
            // Open until the other side has acknowledged.
            (asked, stub)
        });
        let found = Gdb { stream: ours }.registers().unwrap();
        assert_eq!(stub.join().unwrap().0, "g");
        let want = Registers { rdi: 1, rip: 0x200 };
        assert_eq!(found, want);
    }
}
