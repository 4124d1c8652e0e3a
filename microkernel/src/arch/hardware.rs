//! What the rest of the kernel needs of the processor.

use super::{Cpu, MAX_CPUS, apic, console, measure};
use crate::mem::{self, Global, Obj};
use crate::object::Thread;
use core::arch::asm;
use core::cell::Cell;
use raw_cpuid::{CpuIdResult, cpuid};
use x86_64::instructions::{interrupts, port::Port};

/// What is fixed at boot.
pub struct Boot {
    /// Physical address of the kernel's own root page.
    pub root: Cell<u64>,
    /// Physical address of the stub page.
    pub stub: Cell<u64>,
    /// A debug console answers at port 0xe9.
    pub debug_port: Cell<bool>,
    /// Root's first thread: the end of which is the end of all.
    pub root_thread: Cell<Option<Obj<Thread>>>,
}
/// Written by `boot` alone.
pub static BOOT: Global<Boot> = Global(Boot {
    root: Cell::new(0),
    stub: Cell::new(0),
    debug_port: Cell::new(false),
    root_thread: Cell::new(None),
});

/// What belongs to each processor; the others touch only its atomics, or all of it while it is stopped.
static CPUS: Global<[Cpu; MAX_CPUS]> = {
    let mut cpus = [const { Cpu::new(0) }; MAX_CPUS];
    let mut i = 0;
    while i < MAX_CPUS {
        cpus[i].number = i as u32;
        i += 1;
    }
    Global(cpus)
};

impl Cpu {
    /// The processor that runs this.
    #[inline(always)]
    #[must_use]
    pub fn current() -> &'static Self {
        let this: *const Self;
        // SAFETY: GS points at this processor's `Cpu` while the kernel runs on it (`entry::init`), and that begins a `static`; the
        // kernel never changes processors in the middle.
        unsafe {
            asm!("mov {}, gs:[{}]", out(reg) this, const core::mem::offset_of!(Self, this),
                options(pure, nomem, nostack, preserves_flags));
            &*this
        }
    }

    /// All processors that there can be.
    #[inline(always)]
    #[must_use]
    pub fn all() -> &'static [Self; MAX_CPUS] {
        &CPUS
    }
}

/// CPUID leaf `leaf`; zeros where the processor has none of that number.
#[must_use]
pub fn cpuid(leaf: u32) -> CpuIdResult {
    if cpuid!(leaf & 0x8000_0000).eax >= leaf {
        return cpuid!(leaf);
    }
    let (eax, ebx, ecx, edx) = (0, 0, 0, 0);
    CpuIdResult { eax, ebx, ecx, edx }
}

/// Where all physical memory is mapped, not executable.
#[inline(always)]
#[must_use]
pub const fn phys_base() -> u64 {
    0xffff_8000_0000_0000
}

/// The TSC.
#[inline(always)]
#[must_use]
pub fn now() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Loads a page-table root, with the number of its translations ([`super::pcid`]).
#[inline(always)]
pub fn load_root(root: u64) {
    // SAFETY: a Space's root, whose upper half is the kernel's.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Drops translations: of type 1, those under `number`; of type 3, all (SDM vol. 2, INVPCID). There are such numbers.
pub fn invpcid(kind: u64, number: u64) {
    let descriptor = [number, 0];
    // SAFETY: it is there; translations that are dropped are looked up again.
    unsafe {
        asm!("invpcid {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack, readonly))
    };
}

/// Makes sure that the timer interrupt comes at `at` or before.
#[inline(always)]
pub fn timer_at_most(cpu: &Cpu, at: u64) {
    if at < cpu.programmed.get() {
        cpu.programmed.set(at);
        if cpu.this.get() == Cpu::current().this.get() {
            apic::program(at);
        } else {
            // It is stopped, and does it when it goes on.
            cpu.retime.set(true);
        }
    }
}

/// Waits for something that another processor will have done in a moment, whatever it does now.
pub fn wait_until(_: &Cpu, done: impl Fn() -> bool) {
    while !done() {
        core::hint::spin_loop();
    }
}

/// Root of the kernel's own page table, which holds nothing of user level's.
#[inline(always)]
#[must_use]
pub fn kernel_root() -> u64 {
    BOOT.root.get()
}

/// Waits for an interrupt, and takes it.
pub fn idle(cpu: &Cpu) {
    measure::end(cpu);
    interrupts::enable_and_hlt();
    interrupts::disable();
    measure::begin(cpu, measure::Cause::Wake);
}

/// Takes interrupts that are pending; their handlers only mark what is to be done.
#[inline(always)]
pub fn take_interrupts(cpu: &Cpu) {
    measure::end(cpu);
    // SAFETY: the handlers run on this stack and return; STI holds interrupts back for one instruction.
    unsafe { asm!("sti", "nop", "cli") };
    measure::begin(cpu, measure::Cause::Exit(0));
}

/// The tables of the Space for which this is loaded are about to be freed: no processor may be in them. The others are stopped, and load
/// what they find here when they go on.
pub fn leave_space(loaded: u64) {
    for cpu in Cpu::all().iter().filter(|c| c.root.get() == loaded) {
        cpu.root.set(BOOT.root.get());
    }
    load_root(Cpu::current().root.get());
}

/// Gives a new root page the kernel's half.
pub fn share_kernel_half(root: u64) {
    // SAFETY: the upper halves of two root pages of the kernel's.
    unsafe {
        let (from, to) = (mem::page(BOOT.root.get()), mem::page(root));
        let half = to.0.as_ptr().add(256).cast_mut();
        half.copy_from_nonoverlapping(from.0.as_ptr().add(256), 256);
    }
}

/// The page of code through which user level enters.
#[must_use]
pub fn stub_page() -> u64 {
    BOOT.stub.get()
}

/// IN.
#[must_use]
pub fn port_in(port: u16, width: u8) -> u64 {
    // SAFETY: the caller holds a Ports capability for it, which no port of the kernel's own is left out of: user level may program
    // any device, and memory is protected from devices by the IOMMU's DmaSpaces, not here.
    unsafe {
        match width {
            1 => u64::from(Port::<u8>::new(port).read()),
            2 => u64::from(Port::<u16>::new(port).read()),
            _ => u64::from(Port::<u32>::new(port).read()),
        }
    }
}

/// OUT.
pub fn port_out(port: u16, width: u8, value: u64) {
    // SAFETY: as for `port_in`.
    unsafe {
        match width {
            1 => Port::<u8>::new(port).write(value as u8),
            2 => Port::<u16>::new(port).write(value as u16),
            _ => Port::<u32>::new(port).write(value as u32),
        }
    }
}

/// Sends bytes to the emulator's debug console, if there is one.
pub fn debug_bytes(bytes: impl Iterator<Item = u8>) {
    if BOOT.debug_port.get() {
        for b in bytes {
            port_out(console::DEBUG_PORT, 1, u64::from(b));
        }
    }
}

/// A thread without a supervisor faulted. If it is root, nobody is left to decide anything.
pub fn orphan_fault(t: Obj<Thread>, vector: u64, error: u64, address: u64) {
    let r = &t.get().regs;
    if BOOT.root_thread.get() != Some(t) {
        return defmt::warn!(
            "a thread without a supervisor faulted and stops: vector {=u64}, error {=u64:#x}, address {=u64:#x}, rip {=u64:#x}",
            vector,
            error,
            address,
            r.rip.get()
        );
    }
    console::fatal(
        "root faulted: vector #, error #, address #, rip #, rsp #. The system cannot go on; report this with the log.",
        &[vector, error, address, r.rip.get(), r.gpr[4].get()],
    );
}
