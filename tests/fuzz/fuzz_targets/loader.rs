//! The VMM's loaders: any file is refused or loaded, and what is loaded leaves RAM disk and command line whole.
#![no_main]

extern crate alloc;

use fuzz::{Bytes, target};
use ipc_schema::abi::vm::VcpuState;
use std::cell::OnceCell;
use vmm::loader::{EntryState, Format, Request, detect, load, memory_map};
use vmm::memory::GuestMemory;

#[allow(dead_code, reason = "the loader's own tests need more of them")]
#[path = "../../../services/vmm/src/loader/tests/samples.rs"]
mod samples;

target!(run, seeds);

const RAM: u64 = 8 << 20;
const COMMAND_LINE: &str = "console=ttyS0 quiet";

/// What follows it for Linux.
const RATE: &str = " tsc_early_khz=1000000";

thread_local! {
    /// Loaders only write to it, so that one is enough.
    static MEMORY: OnceCell<GuestMemory> = const { OnceCell::new() };
}

/// The first byte says how long the RAM disk is, the rest is the kernel's file.
fn seeds() -> Vec<Vec<u8>> {
    let mut linux = samples::bzimage();
    linux.truncate(1024 + 256);
    samples::put(&mut linux, 0x1F4, &16u32.to_le_bytes());
    samples::put(&mut linux, 0x260, &0x2000u32.to_le_bytes());
    let text = |at| samples::text(at, at, 0x200, &[0x90; 64]);
    let pvh = samples::elf64(
        0x10_0000,
        &[
            text(0x10_0000),
            samples::note(18, &0x10_0010u64.to_le_bytes()),
        ],
    );
    let mut flat = samples::multiboot_flat();
    flat.truncate(0x400);
    let small = [linux, pvh, flat, samples::multiboot_elf()];
    small
        .into_iter()
        .map(|file| [&[33][..], &file].concat())
        .collect()
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let disk: Vec<u8> = (0..usize::from(bytes.u8()) * 64)
        .map(|i| (i * 31) as u8 ^ 0x5a)
        .collect();
    let kernel = bytes.0;
    MEMORY.with(|memory| {
        let memory = memory.get_or_init(|| GuestMemory::owned(&[(0, RAM)]));
        let request = Request {
            kernel,
            initrd: (!disk.is_empty()).then_some(&disk),
            cmdline: COMMAND_LINE,
            tsc_khz: 1_000_000,
            rsdp: 0xe_0000,
        };
        match (load(memory, &request), detect(kernel)) {
            (Ok(entry), found) => {
                assert_eq!(found, Ok(entry.format));
                whole(memory, &entry, &disk);
                starts(memory, &entry);
            }
            // What is no kernel at all is not loaded, and says so.
            (Err(error), Err(same)) => assert_eq!(error.to_string(), same.to_string()),
            (Err(_), Ok(_)) => {}
        }
    });
}

/// Command line and RAM disk as each protocol tells the guest of them, byte for byte.
fn whole(memory: &GuestMemory, entry: &EntryState, disk: &[u8]) {
    let u32_at = |at: u64| u64::from(memory.read_u32(at).expect("boot information is RAM"));
    let u64_at = |at: u64| memory.read_u64(at).expect("boot information is RAM");
    let (line, image, size) = match entry.format {
        Format::LinuxBzImage => {
            let params = entry.rsi;
            (
                u32_at(params + 0x228),
                u32_at(params + 0x218),
                u32_at(params + 0x21c),
            )
        }
        Format::Pvh => {
            let info = entry.rbx;
            let module = u64_at(info + 16);
            let (image, size) = match u32_at(info + 12) {
                0 => (0, 0),
                _ => (u64_at(module), u64_at(module + 8)),
            };
            (u64_at(info + 24), image, size)
        }
        Format::Multiboot => {
            let info = entry.rbx;
            let (image, size) = match u32_at(info + 20) {
                0 => (0, 0),
                _ => {
                    let module = u32_at(info + 24);
                    (u32_at(module), u32_at(module + 4) - u32_at(module))
                }
            };
            (u32_at(info + 16), image, size)
        }
    };
    let says = |wanted: &str| {
        let mut said = vec![0; wanted.len() + 1];
        memory
            .read(line, &mut said)
            .expect("the command line is RAM");
        said.strip_suffix(b"\0") == Some(wanted.as_bytes())
    };
    // Linux is told its clock's rate, if there is room.
    let told = || entry.format != Format::Multiboot && says(&format!("{COMMAND_LINE}{RATE}"));
    assert!(says(COMMAND_LINE) || told(), "another command line");
    assert_eq!(size, disk.len() as u64);
    let mut read = vec![0; disk.len()];
    memory.read(image, &mut read).expect("the RAM disk is RAM");
    assert!(read == disk, "a RAM disk that something was written over");
    let map = memory_map(memory);
    assert!(map.windows(2).all(|w| w[0].base + w[0].len <= w[1].base));
}

/// The first processor's state is one that can fetch, and long mode's tables are there.
fn starts(memory: &GuestMemory, entry: &EntryState) {
    // SAFETY: `VcpuState` is `repr(C)` and consists of integers only, for which zeroes are values.
    let mut state: Box<VcpuState> = unsafe { Box::new(std::mem::zeroed()) };
    entry.apply(&mut state);
    assert_eq!(
        vmm::emulate::walk::code(memory, &state, entry.rip),
        Ok(entry.rip)
    );
    assert!(state.cr0 & 1 != 0 && state.rflags & 2 != 0);
}
