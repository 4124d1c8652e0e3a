//! The local APIC in its memory-mapped form (Intel SDM vol. 3, 11.4): end of interrupt, id, one-shot timer.

use super::{CALL_VECTOR, Cpu, SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::mem::{self, Global};
use core::cell::Cell;

/// Physical address of the registers (their reset place; the kernel puts them there).
pub const BASE: u64 = 0xfee0_0000;
const ID: u64 = 0x20;
const EOI: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
/// Interrupt command register.
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;

/// Ticks of the APIC timer in 2^32 TSC cycles; written at boot.
static RATE: Global<Cell<u64>> = Global(Cell::new(0));

fn register(offset: u64) -> *mut u32 {
    mem::virt(BASE + offset) as *mut u32
}
fn read(offset: u64) -> u32 {
    // SAFETY: a register of the local APIC, which is mapped uncached (MTRR default for this range, and `boot` sets PCD).
    unsafe { register(offset).read_volatile() }
}
fn write(offset: u64, value: u32) {
    // SAFETY: as for `read`; the registers written here affect interrupt delivery to this kernel only.
    unsafe { register(offset).write_volatile(value) }
}

/// Switches it on, timer stopped.
pub fn init() {
    write(SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
    write(LVT_LINT0, 1 << 16);
    // NMI, as this input is wired by convention.
    write(LVT_LINT1, 0b100 << 8);
    write(LVT_TIMER, u32::from(TIMER_VECTOR));
    // Divide by 1.
    write(TIMER_DIVIDE, 0b1011);
    write(TIMER_INITIAL, 0);
}

/// Measures the timer's rate while `wait` lets some cycles of the TSC pass; answers how many.
pub fn calibrate(wait: impl FnOnce() -> u64) -> u64 {
    write(LVT_TIMER, 1 << 16 | u32::from(TIMER_VECTOR));
    write(TIMER_INITIAL, u32::MAX);
    let cycles = wait();
    let ticks = u64::from(u32::MAX - read(TIMER_CURRENT));
    RATE.set((ticks << 32) / cycles.max(1));
    init();
    cycles
}

/// Lets the timer fire at TSC `at`; a far one fires early, and whoever gets it looks at the time and programs again.
pub fn program(at: u64) {
    let cycles = at.saturating_sub(super::now()).min(1 << 31);
    let ticks = ((cycles * RATE.get()) >> 32).clamp(1, u64::from(u32::MAX));
    write(TIMER_INITIAL, ticks as u32);
}

/// End of interrupt.
pub fn eoi() {
    write(EOI, 0);
}

/// The id that interrupt controllers address it by.
pub fn id() -> u32 {
    read(ID) >> 24
}

const CALL: u32 = CALL_VECTOR as u32;

/// Waits until the APIC has taken the message before.
fn idle() {
    while read(COMMAND_LOW) & 1 << 12 != 0 {
        core::hint::spin_loop();
    }
}

/// Sends a message by the interrupt command register (SDM vol. 3, 11.6.1).
fn command(to: u32, low: u32) {
    idle();
    write(COMMAND_HIGH, (to & 0xff) << 24);
    write(COMMAND_LOW, 1 << 14 | low);
}

/// Interrupts `cpu`.
pub fn call(cpu: &Cpu) {
    command(cpu.apic_id.get(), CALL);
}

/// Tells `cpu` that something was posted to its guest.
#[cfg(feature = "unproven")]
pub fn tell_of_posted(cpu: &Cpu) {
    command(cpu.apic_id.get(), u32::from(super::POSTED_VECTOR));
}

/// Interrupts this processor, and leaves the destination half of the register alone, which the interrupted code may have written.
pub fn call_self() {
    write(COMMAND_LOW, 0b01 << 18 | 1 << 14 | CALL);
    idle();
}

/// Interrupts all other processors that take interrupts.
pub fn call_others() {
    command(0, 0b11 << 18 | CALL);
}

/// Resets the processor `to`: it waits for a start-up message then.
pub fn send_init(to: u32) {
    command(to, 0b101 << 8);
}

/// Has the processor `to`, which waits for it, begin in real mode at page `page` (below 1 MiB).
pub fn send_startup(to: u32, page: u8) {
    command(to, 0b110 << 8 | u32::from(page));
}
