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
            let grants = start.forwarder_slots();
            for index in 0..grants.count {
                if let Err(status) = forward::start(grants, index, Endpoint(slot::ENDPOINT)) {
                    panic!("forwarders: {status:?}");
                }
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

/// How far behind a server's entry it is told to scribble ([`scribble`]).
pub const SCRIBBLE: u64 = 131;

/// The general registers of [`ipc_schema::abi::ThreadRegs`] that [`scribble`] takes from the stack, in this order.
pub const SCRIBBLED: [usize; 15] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Where root has a server go mad, for tests of what harm that does: it writes noise over memory, with its own rights, and goes on where
/// it was. What to write over is on the stack, pairs of an address and a number of words, the last of which is 0; then the registers
/// [`SCRIBBLED`], flags, and where to go on. rax: the noise's seed, not 0 (xorshift64, by G. Marsaglia).
///
/// # Safety
///
/// All of the server's invariants are void after it. Nothing but root comes here, which knows that the server is to end.
#[cfg(target_os = "none")]
#[doc(hidden)]
#[unsafe(naked)]
pub unsafe extern "C" fn scribble() -> ! {
    core::arch::naked_asm!(
        "2: pop rdi",
        "pop rcx",
        "test rcx, rcx",
        "jz 4f",
        "3: mov rdx, rax",
        "shl rdx, 13",
        "xor rax, rdx",
        "mov rdx, rax",
        "shr rdx, 7",
        "xor rax, rdx",
        "mov rdx, rax",
        "shl rdx, 17",
        "xor rax, rdx",
        "mov [rdi], rax",
        "add rdi, 8",
        "dec rcx",
        "jnz 3b",
        "jmp 2b",
        "4: pop rax",
        "pop rcx",
        "pop rdx",
        "pop rbx",
        "pop rbp",
        "pop rsi",
        "pop rdi",
        "pop r8",
        "pop r9",
        "pop r10",
        "pop r11",
        "pop r12",
        "pop r13",
        "pop r14",
        "pop r15",
        "popfq",
        "ret",
    )
}

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
                // `CIRCLE`: nothing 120 times and a jump back, as bytes, since an instruction that the assembler may make longer has
                // no place yet.
                ".if . - 2b != 9", ".error \"the circle is elsewhere\"", ".endif",
                ".fill 120, 1, 0x90", ".byte 0xeb, 0x86",
                // `SCRIBBLE`
                ".if . - 2b != 131", ".error \"the scribbler is elsewhere\"", ".endif",
                "jmp {scribble}",
                enter = sym __enter,
                scribble = sym $crate::rt::scribble,
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
