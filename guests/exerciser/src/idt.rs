//! Exceptions and interrupts: one entry for all 256 vectors, and a log of what came when.
//!
//! - a fault inside [`crate::exec`] ends that run and is its result;
//! - #DB, #BP and every vector from 0x20 up are logged, then acknowledged by who delivers them:
//!   [`PIC`] vectors to the PICs, [`SOFTWARE`] vectors and [`SPURIOUS`] to no one, the others to the local APIC;
//! - a vector may have a handler of its own ([`set_handler`]);
//! - anything else is the end.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::{apic, cpu, exec, legacy, say};

/// Vectors of the two PICs, IRQ 0 to 15.
pub const PIC: u8 = 0x20;
/// Sixteen vectors for INT n: nobody needs an end of interrupt.
pub const SOFTWARE: u8 = 0x80;

/// The local APIC's spurious vector, which takes no end of interrupt (SDM vol. 3, 11.9).
pub const SPURIOUS: u8 = 0xff;

/// The interrupted program's registers.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "they are the processor's names")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// One interrupt in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its vector.
    pub vector: u8,
    /// Where the program was interrupted.
    pub rip: u64,
    /// TSC at the handler's start.
    pub tsc: u64,
}

/// Entries in the log; later events only count.
const LOG: usize = 64;
static VECTORS: [AtomicU64; LOG] = [const { AtomicU64::new(0) }; LOG];
static RIPS: [AtomicU64; LOG] = [const { AtomicU64::new(0) }; LOG];
static TIMES: [AtomicU64; LOG] = [const { AtomicU64::new(0) }; LOG];
static LOGGED: AtomicUsize = AtomicUsize::new(0);
static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

/// Empties the log.
pub fn clear_log() {
    LOGGED.store(0, Relaxed);
}

/// How many interrupts came since [`clear_log`].
pub fn logged() -> usize {
    LOGGED.load(Relaxed)
}

/// The event number `index`, from 0.
pub fn event(index: usize) -> Option<Event> {
    (index < logged()).then_some(())?;
    Some(Event {
        vector: VECTORS.get(index)?.load(Relaxed) as u8,
        rip: RIPS.get(index)?.load(Relaxed),
        tsc: TIMES.get(index)?.load(Relaxed),
    })
}

/// How many logged events had this vector.
pub fn count(vector: u8) -> usize {
    (0..logged().min(LOG))
        .filter(|index| event(*index).is_some_and(|e| e.vector == vector))
        .count()
}

/// Gives a vector a handler that runs after it was logged and before it is acknowledged.
pub fn set_handler(vector: u8, handler: Option<fn(&mut Frame)>) {
    let address = handler.map_or(0, |handler| handler as usize);
    if let Some(slot) = HANDLERS.get(usize::from(vector)) {
        slot.store(address, Relaxed);
    }
}

/// Called by boot.s for every vector, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn idt_dispatch(frame: &mut Frame) {
    let tsc = cpu::tsc();
    let vector = frame.vector as u8;
    if vector == 1 && exec::trace(frame) {
        return;
    }
    if vector < 0x20 && !matches!(vector, 1 | 3 | 4) {
        if !exec::recover(frame) {
            die(frame);
        }
        return;
    }
    let index = LOGGED.fetch_add(1, Relaxed);
    if let (Some(v), Some(r), Some(t)) = (VECTORS.get(index), RIPS.get(index), TIMES.get(index)) {
        v.store(u64::from(vector), Relaxed);
        r.store(frame.rip, Relaxed);
        t.store(tsc, Relaxed);
    }
    let handler = HANDLERS
        .get(usize::from(vector))
        .map_or(0, |slot| slot.load(Relaxed));
    if handler != 0 {
        // SAFETY: only `set_handler` stores there, and only functions of this type.
        let handler: fn(&mut Frame) = unsafe { core::mem::transmute(handler) };
        handler(frame);
    }
    match vector {
        0..0x20 | SOFTWARE..=0x8f | SPURIOUS => {}
        PIC..=0x2f => legacy::acknowledge(vector - PIC),
        _ => apic::acknowledge(),
    }
}

/// An exception that nobody expects: says what is known and ends the machine with 3.
fn die(frame: &Frame) -> ! {
    say!(
        "PANIC exception {} error {:#x} rip {:#x} rsp {:#x} rflags {:#x} cr2 {:#x}",
        frame.vector,
        frame.error,
        frame.rip,
        frame.rsp,
        frame.rflags,
        cpu::cr2()
    );
    cpu::exit(3)
}

/// Memory that only [`init`] and the processor touch.
#[repr(C, align(4096))]
struct Table<T>(UnsafeCell<T>);
// SAFETY: written by `init` alone, before anything else runs.
unsafe impl<T> Sync for Table<T> {}

static IDT: Table<[[u64; 2]; 256]> = Table(UnsafeCell::new([[0; 2]; 256]));
static TSS: Table<[u32; 26]> = Table(UnsafeCell::new([0; 26]));
static FAULT_STACK: Table<[u8; 8192]> = Table(UnsafeCell::new([0; 8192]));

unsafe extern "C" {
    static isr_table: u8;
    static mut boot_gdt: [u64; 5];
}

/// Loads the task register (with a stack of its own for #DF and NMI) and the IDT.
pub fn init() {
    let stack = FAULT_STACK.0.get() as u64 + 8192;
    let tss = TSS.0.get() as u64;
    // SAFETY: first use of these tables, interrupts off, one processor; boot.s made the GDT with
    // five entries, the last two free for this descriptor (Intel SDM vol. 3, 8.2.3).
    unsafe {
        let words = &mut *TSS.0.get();
        words[9] = stack as u32;
        words[10] = (stack >> 32) as u32;
        words[25] = 104 << 16;
        let gdt = &raw mut boot_gdt;
        (*gdt)[3] = 103 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        (*gdt)[4] = tss >> 32;
        asm!("ltr {0:x}", in(reg) 0x18u16, options(nostack, preserves_flags));
    }
    let stubs = &raw const isr_table as u64;
    for vector in 0..=255 {
        set_entry(vector, stubs + u64::from(vector) * 16);
    }
    load(4095);
}

/// Sends a vector straight to the code at `entry`, past the log and everything else here: for
/// measurements. #DF and NMI keep their own stack.
pub fn set_entry(vector: u8, entry: u64) {
    let stack = u64::from(matches!(vector, 2 | 8));
    let low = entry & 0xffff | 0x08 << 16 | stack << 32 | 0x8e << 40 | (entry >> 16 & 0xffff) << 48;
    // SAFETY: one processor, and every caller has interrupts off.
    let gates = unsafe { &mut *IDT.0.get() };
    if let Some(gate) = gates.get_mut(usize::from(vector)) {
        *gate = [low, entry >> 32];
    }
}

/// Delivers a vector on the stack of #DF and NMI from now on; the address of the first word that
/// each delivery writes there (SS).
pub fn use_fault_stack(vector: u8) -> u64 {
    // SAFETY: one processor, and every caller has interrupts off.
    let gates = unsafe { &mut *IDT.0.get() };
    if let Some([low, _]) = gates.get_mut(usize::from(vector)) {
        *low |= 1 << 32;
    }
    FAULT_STACK.0.get() as u64 + 8192 - 8
}

/// LIDT with this limit: 4095 for the table that [`init`] made, 0 to make any event fatal.
pub fn load(limit: u16) {
    let base = IDT.0.get() as u64;
    let pointer: [u16; 5] = [
        limit,
        base as u16,
        (base >> 16) as u16,
        (base >> 32) as u16,
        (base >> 48) as u16,
    ];
    // SAFETY: the table is the one `init` filled in; with limit 0 the next event ends the machine.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}
