//! GDT, TSS, IDT and the system-call MSRs (AMD APM vol. 2, 4.6 to 4.8, 6.1, 8.9).

use super::{Cpu, MAX_CPUS, machine_check};
use crate::mem::Global;
use core::arch::asm;
use core::cell::Cell;

/// Kernel code selector.
pub const KERNEL_CODE: u16 = 0x08;
/// User data selector.
pub const USER_DATA: u16 = 0x18 | 3;
/// User code selector.
pub const USER_CODE: u16 = 0x20 | 3;
const TSS_SELECTOR: u16 = 0x28;

/// Bytes of the stacks for NMI, #DF, #MC and #DB.
const IST_SIZE: usize = 8192;

/// One processor's tables.
#[repr(C, align(16))]
struct Tables {
    gdt: [Cell<u64>; 7],
    /// 104 bytes (APM vol. 2, 12.2.5), as 32-bit words; the I/O map base lies beyond the limit: no port is user level's.
    tss: [Cell<u32>; 26],
    idt: [Cell<[u64; 2]>; 256],
    stacks: [Stack; 4],
}

/// A stack, below it a page that is not mapped, and at its top the address of the processor's [`machine_check::Events`].
#[repr(C, align(4096))]
struct Stack {
    guard: Cell<[u8; 4096]>,
    bytes: Cell<[u8; IST_SIZE - 16]>,
    events: Cell<u64>,
}

/// Each processor's own.
static TABLES: Global<[Tables; MAX_CPUS]> = Global(
    [const {
        Tables {
            gdt: [const { Cell::new(0) }; 7],
            tss: [const { Cell::new(0) }; 26],
            idt: [const { Cell::new([0; 2]) }; 256],
            stacks: [const {
                Stack {
                    guard: Cell::new([0; 4096]),
                    bytes: Cell::new([0; IST_SIZE - 16]),
                    events: Cell::new(0),
                }
            }; 4],
        }
    }; MAX_CPUS],
);

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

unsafe extern "C" {
    static vireo_vectors: [u8; 256 * 16];
}

/// Addresses of the pages below these stacks.
pub fn guard_pages() -> impl Iterator<Item = u64> {
    let stacks = TABLES.iter().flat_map(|t| &t.stacks);
    stacks.map(|s| s.guard.as_ptr() as u64)
}

/// A 64-bit interrupt gate.
fn gate(handler: u64, ist: u64) -> [u64; 2] {
    let low = (handler & 0xffff)
        | u64::from(KERNEL_CODE) << 16
        | ist << 32
        | 0x8e << 40
        | ((handler >> 16) & 0xffff) << 48;
    [low, handler >> 32]
}

/// Loads this processor's tables.
pub fn init(cpu: &Cpu) {
    let t = &TABLES[cpu.number as usize % MAX_CPUS];
    let tss = t.tss.as_ptr() as u64;
    let limit = 103_u64;
    for (g, v) in t.gdt.iter().zip([
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | ((tss >> 24) & 0xff) << 56,
        tss >> 32,
    ]) {
        g.set(v);
    }
    let set = |word: usize, v: u64| {
        t.tss[word].set(v as u32);
        t.tss[word + 1].set((v >> 32) as u32);
    };
    set(1, cpu.stack.get());
    for (i, s) in t.stacks.iter().enumerate() {
        s.events
            .set(core::ptr::from_ref(machine_check::events(cpu)) as u64);
        set(9 + 2 * i, s.events.as_ptr() as u64);
    }
    t.tss[25].set(104 << 16);
    // SAFETY: only the address of this symbol is used.
    let vectors = unsafe { vireo_vectors.as_ptr() as u64 };
    for (i, g) in t.idt.iter().enumerate() {
        g.set(gate(vectors + 16 * i as u64, 0));
    }
    for (i, (vector, handler)) in machine_check::handlers().into_iter().enumerate() {
        t.idt[vector].set(gate(handler, 1 + i as u64));
    }
    let gdt = Pointer {
        limit: 7 * 8 - 1,
        base: t.gdt.as_ptr() as u64,
    };
    let idt = Pointer {
        limit: 256 * 16 - 1,
        base: t.idt.as_ptr() as u64,
    };
    // SAFETY: the tables are complete and live for ever; the far return loads the new code selector.
    unsafe {
        asm!(
            "lgdt [{gdt}]", "lidt [{idt}]",
            "push {code}", "lea {tmp}, [rip + 2f]", "push {tmp}", "retfq", "2:",
            "mov ds, {zero:e}", "mov es, {zero:e}", "mov fs, {zero:e}", "mov gs, {zero:e}", "mov ss, {data:e}",
            "ltr {tss:x}",
            gdt = in(reg) &gdt, idt = in(reg) &idt, code = in(reg) u64::from(KERNEL_CODE), tmp = out(reg) _,
            zero = in(reg) 0, data = in(reg) 0x10, tss = in(reg) TSS_SELECTOR,
        );
    }
}
