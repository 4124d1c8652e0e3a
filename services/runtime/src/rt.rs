//! From the first instruction to `main`.

use alloc::boxed::Box;

use crate::abi::layout::slot;
use crate::abi::{BootInfo, layout};
use crate::ipc::Endpoint;
use crate::start::{HEADER, StartInfo};
use crate::{elf_note::AbiNote, forward, heap, heart, time};

/// The note that root looks for.
#[used]
#[unsafe(link_section = ".note.vireo")]
static NOTE: AbiNote = AbiNote::current();

/// Ends this server with an invalid-opcode fault, which its supervisor sees.
pub fn abort() -> ! {
    // SAFETY: UD2 raises #UD and does not come back.
    unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}

/// Reads the start page, makes the heap, and enters `main`.
///
/// # Safety
///
/// To be called once, by `_start`, with the argument that the supervisor gave: the address of the start page.
pub unsafe fn server(page: u64, main: fn(&'static StartInfo) -> !) -> ! {
    let page = core::ptr::with_exposed_provenance::<u8>(page as usize);
    // SAFETY: root mapped the start page, read-only and page-aligned, and it says its own length; the heap that it
    // speaks of is mapped at `layout::HEAP` for this server alone.
    let body = unsafe {
        let len = page.cast::<u32>().read() as usize;
        let heap_bytes = page.cast::<u32>().add(1).read() as usize;
        heap::init(
            core::ptr::with_exposed_provenance_mut(layout::HEAP as usize),
            heap_bytes,
        );
        core::slice::from_raw_parts(page.add(HEADER), len)
    };
    match StartInfo::decode(body) {
        Ok(start) => {
            time::set_frequency(start.tsc_hz);
            if let Err(status) = forward::start(start.forwarder_slots(), Endpoint(slot::ENDPOINT)) {
                panic!("forwarders: {status:?}");
            }
            // Only those who are asked have one.
            if let Ok(page) = start.state_page("state") {
                heart::answer_in(page);
            }
            main(Box::leak(Box::new(start)))
        }
        Err(error) => panic!("{error}"),
    }
}

/// Enters root's `main`. Root has no start page but [`BootInfo`], and its heap is a part of its image.
///
/// # Safety
///
/// To be called once, by `_start`, with the argument that the kernel gave; `heap` is nobody else's.
pub unsafe fn root(boot_info: u64, heap: *mut [u8], main: fn(&'static BootInfo) -> !) -> ! {
    // SAFETY: the kernel mapped the page for as long as root lives and does not change it; the caller vouches for the
    // heap.
    let boot_info = unsafe {
        heap::init(heap.cast(), heap.len());
        &*core::ptr::with_exposed_provenance::<BootInfo>(boot_info as usize)
    };
    time::set_frequency(boot_info.tsc_hz);
    main(boot_info)
}

/// How far behind a server's entry a circle is, for tests of its end: where root has it run in. Not one jump to itself, which an emulator
/// that counts instructions looks at one by one: a second of them took it minutes.
pub const CIRCLE: u64 = 9;

/// Makes `$main: fn(&'static StartInfo) -> !` the server's entry.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// First instruction: rdi is the start page, rsp the top of the stack. The outermost frame has rbp = 0.
        // SAFETY: the only `_start` of the program; the linker script's entry.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        extern "C" fn _start() -> ! {
            core::arch::naked_asm!(
                "2:", "xor ebp, ebp", "call {enter}", "ud2",
                // `CIRCLE`
                ".if . - 2b != 9", ".error \"the circle is elsewhere\"", ".endif",
                "3: .fill 120, 1, 0x90", "jmp 3b",
                enter = sym __enter,
            )
        }

        extern "C" fn __enter(page: u64) -> ! {
            // SAFETY: called once, by `_start`, with the supervisor's argument.
            unsafe { $crate::rt::server(page, $main) }
        }
    };
}

/// Makes `$main: fn(&'static BootInfo) -> !` root's entry, with a heap of `$heap` bytes in `.bss`.
#[macro_export]
macro_rules! entry_root {
    ($main:path, heap: $heap:expr) => {
        /// First instruction: rdi is the `BootInfo`, rsp the top of the stack. The outermost frame has rbp = 0.
        // SAFETY: the only `_start` of the program; the linker script's entry.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        extern "C" fn _start() -> ! {
            core::arch::naked_asm!("xor ebp, ebp", "call {enter}", "ud2", enter = sym __enter)
        }

        extern "C" fn __enter(boot_info: u64) -> ! {
            static mut HEAP: [u8; $heap] = [0; $heap];
            // SAFETY: called once, by `_start`, with the kernel's argument; `HEAP` is named nowhere else.
            unsafe { $crate::rt::root(boot_info, &raw mut HEAP, $main) }
        }
    };
}
