//! What the boot loader told us: Multiboot 1 (3.3, boot information) or PVH
//! (`hvm_start_info`, version 1), made the same.

use core::arch::global_asm;

use crate::acpi::{Memory, Tables};
use crate::cmdline::CommandLine;
use crate::{clock, idt, say, serial};

global_asm!(include_str!("boot.s"), options(att_syntax));

/// A run of RAM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// What the guest knows about its machine.
pub struct BootInfo {
    /// "multiboot" or "pvh".
    pub protocol: &'static str,
    /// The command line.
    pub command_line: CommandLine<'static>,
    /// RAM, as the memory map has it; unused entries have length 0.
    pub ram: [Region; 16],
    /// The ACPI tables, if there are any.
    pub acpi: Option<Tables>,
}

/// Physical memory below 4 GiB, which is mapped to itself.
struct Physical;

impl Memory for Physical {
    fn byte(&self, address: u64) -> u8 {
        if address == 0 || address >= 1 << 32 {
            return 0xff;
        }
        // SAFETY: everything from 1 to 4 GiB is mapped and readable; where a device is instead
        // of RAM, reading it as a table harms no memory.
        unsafe { core::ptr::with_exposed_provenance::<u8>(address as usize).read_volatile() }
    }
}

/// Reads a little-endian number of `bytes` bytes.
fn read(address: u64, bytes: u64) -> u64 {
    (0..bytes).rev().fold(0, |sum, index| {
        sum << 8 | u64::from(Physical.byte(address + index))
    })
}

/// The text ended by a zero byte at `address`, empty if there is none.
fn text(address: u64) -> &'static str {
    if address == 0 {
        return "";
    }
    let length = (0..1024)
        .take_while(|index| Physical.byte(address + index) != 0)
        .count();
    // SAFETY: the loader's text stays where it is: nothing in this guest writes there.
    let bytes = unsafe {
        core::slice::from_raw_parts(core::ptr::with_exposed_provenance(address as usize), length)
    };
    core::str::from_utf8(bytes).unwrap_or("")
}

impl BootInfo {
    /// Adds a run of RAM, if there is a free entry.
    fn add(&mut self, start: u64, length: u64) {
        if let Some(free) = self.ram.iter_mut().find(|region| region.length == 0) {
            *free = Region { start, length };
        }
    }

    /// By the loader's registers: `magic` was EAX, `at` EBX.
    fn read(magic: u32, at: u64) -> Self {
        let mut info = Self {
            protocol: "multiboot",
            command_line: CommandLine(""),
            ram: [Region::default(); 16],
            acpi: None,
        };
        let mut rsdp = None;
        // hvm_start_info's own magic decides: PVH leaves EAX undefined.
        if read(at, 4) == 0x336e_c578 {
            info.protocol = "pvh";
            info.command_line = CommandLine(text(read(at + 24, 8)));
            rsdp = Some(read(at + 32, 8));
            let (map, entries) = (read(at + 40, 8), read(at + 48, 4));
            for entry in (0..entries.min(64)).map(|index| map + index * 24) {
                if read(entry + 16, 4) == 1 {
                    info.add(read(entry, 8), read(entry + 8, 8));
                }
            }
        } else if magic == 0x2bad_b002 {
            let flags = read(at, 4);
            if flags & 1 << 2 != 0 {
                info.command_line = CommandLine(text(read(at + 16, 4)));
            }
            if flags & 1 << 6 != 0 {
                let (length, map) = (read(at + 44, 4), read(at + 48, 4));
                let mut entry = map;
                while entry + 24 <= map + length {
                    if read(entry + 20, 4) == 1 {
                        info.add(read(entry + 4, 8), read(entry + 12, 8));
                    }
                    entry += read(entry, 4).max(20) + 4;
                }
            }
        } else {
            info.protocol = "unknown";
        }
        info.acpi = Tables::read(&Physical, rsdp);
        info
    }

    /// How the ISA interrupt `irq` is wired to the IOAPIC.
    pub fn wiring(&self, irq: u8) -> crate::acpi::Override {
        self.acpi.unwrap_or_default().wiring(irq)
    }
}

unsafe extern "Rust" {
    /// The guest's own program.
    safe fn guest_main(info: &BootInfo) -> !;
}

/// Called by boot.s, once, in 64-bit mode with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn boot_start(magic: u32, info: u64) -> ! {
    serial::init();
    idt::init();
    let info = BootInfo::read(magic, info);
    crate::legacy::mask_all();
    clock::init(info.acpi.map_or(0, |tables| tables.pm_timer));
    guest_main(&info)
}

/// A broken guest says so and ends the machine with 3.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("PANIC {info}");
    crate::cpu::exit(3)
}
