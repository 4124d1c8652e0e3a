//! GDT, TSS, IDT and stacks of each processor (AMD APM vol. 2, 4.6 to 4.8, 8.9, 12.2.5).

use super::{Cpu, MAX_CPUS};
use crate::mem::Global;
use core::cell::Cell;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{DescriptorTablePointer, lgdt, lidt, load_tss};
use x86_64::structures::{gdt::SegmentSelector, tss::TaskStateSegment};

/// Kernel code selector.
pub const KERNEL_CODE: u16 = 0x08;
/// User data selector.
pub const USER_DATA: u16 = 0x18 | 3;
/// User code selector.
pub const USER_CODE: u16 = 0x20 | 3;
/// Behind the pair that SYSRET loads there is the same again for SYSEXIT (SDM vol. 2).
pub const TSS_SELECTOR: u16 = 0x38;

/// Exceptions that come on stacks of their own, since they come at any moment ([`super::machine_check`]), or when the stack is broken:
/// NMI, #DF and #MC. Not #DB, which can come right behind a guest with TR still the guest's.
const OWN_STACK: [usize; 3] = [2, 8, 18];

/// One processor's tables and stacks.
#[repr(C, align(16))]
struct Tables {
    gdt: [Cell<u64>; 9],
    /// Its I/O map base lies beyond the limit: no port is user level's.
    tss: Cell<TaskStateSegment>,
    idt: [Cell<[u64; 2]>; 256],
    /// The kernel's own.
    stack: Stack<{ 32 << 10 }>,
    /// Of the exceptions in [`OWN_STACK`].
    stacks: [Stack<{ 8 << 10 }>; OWN_STACK.len()],
}

/// A stack, and below it a page that boot takes out ([`guard_pages`]) of the kernel's page table.
#[repr(C, align(4096))]
struct Stack<const SIZE: usize> {
    guard: Cell<[u8; 4096]>,
    bytes: Cell<[u8; SIZE]>,
}

impl<const SIZE: usize> Stack<SIZE> {
    const fn new() -> Self {
        Self {
            guard: Cell::new([0; 4096]),
            bytes: Cell::new([0; SIZE]),
        }
    }
    fn top(&self) -> u64 {
        self.bytes.as_ptr() as u64 + SIZE as u64
    }
}

/// Each processor's own.
static TABLES: Global<[Tables; MAX_CPUS]> = Global(
    [const {
        Tables {
            gdt: [const { Cell::new(0) }; 9],
            // All zero, so that nothing of this is in the kernel's file.
            // SAFETY: numbers, for which 0 is a value.
            tss: Cell::new(unsafe { core::mem::zeroed() }),
            idt: [const { Cell::new([0; 2]) }; 256],
            stack: Stack::new(),
            stacks: [const { Stack::new() }; OWN_STACK.len()],
        }
    }; MAX_CPUS],
);

unsafe extern "C" {
    static vireo_vectors: [u8; 256 * 8];
}

fn of(cpu: &Cpu) -> &'static Tables {
    &TABLES[cpu.number as usize % MAX_CPUS]
}

/// Addresses of the pages below these stacks.
pub fn guard_pages() -> impl Iterator<Item = u64> {
    TABLES.iter().flat_map(|t| {
        let guards = t.stacks.iter().map(|s| &s.guard).chain([&t.stack.guard]);
        guards.map(|g| g.as_ptr() as u64)
    })
}

/// Top of the kernel stack of `cpu`.
pub fn stack_top(cpu: &Cpu) -> u64 {
    of(cpu).stack.top()
}

/// Number of the processor on one of whose stacks this address is.
pub fn owner(address: u64) -> usize {
    (address - TABLES.as_ptr() as u64) as usize / size_of::<Tables>()
}

/// Whether this is a stack pointer of an NMI's handler.
pub fn on_nmi_stack(rsp: u64) -> bool {
    let nmi = |t: &Tables| t.stacks[0].bytes.as_ptr() as u64..=t.stacks[0].top();
    TABLES.iter().any(|t| nmi(t).contains(&rsp))
}

/// Loads this processor's tables.
pub fn init(cpu: &Cpu) {
    let t = of(cpu);
    let tss = t.tss.as_ptr() as u64;
    for (g, v) in t.gdt.iter().zip([
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        103 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | ((tss >> 24) & 0xff) << 56,
        tss >> 32,
    ]) {
        g.set(v);
    }
    let mut segment = TaskStateSegment::new();
    segment.privilege_stack_table[0] = VirtAddr::new_truncate(t.stack.top());
    for (i, s) in t.stacks.iter().enumerate() {
        segment.interrupt_stack_table[i] = VirtAddr::new_truncate(s.top());
    }
    t.tss.set(segment);
    for (i, g) in t.idt.iter().enumerate() {
        // A 64-bit interrupt gate.
        let at = &raw const vireo_vectors as u64 + 8 * i as u64;
        let stack = OWN_STACK.iter().position(|&v| v == i).map_or(0, |p| p + 1);
        let low = at & 0xffff | u64::from(KERNEL_CODE) << 16 | (stack as u64) << 32;
        g.set([low | 0x8e << 40 | (at >> 16 & 0xffff) << 48, at >> 32]);
    }
    let pointer = |base: u64, limit| DescriptorTablePointer {
        limit,
        base: VirtAddr::new_truncate(base),
    };
    let data = SegmentSelector(0x10);
    // SAFETY: the tables are complete and live for ever.
    unsafe {
        lgdt(&pointer(t.gdt.as_ptr() as u64, 9 * 8 - 1));
        lidt(&pointer(t.idt.as_ptr() as u64, 256 * 16 - 1));
        CS::set_reg(SegmentSelector(KERNEL_CODE));
        SS::set_reg(data);
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        load_tss(SegmentSelector(TSS_SELECTOR));
    }
}
