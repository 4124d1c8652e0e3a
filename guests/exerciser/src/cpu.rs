//! Single instructions: ports, MSRs, control registers, CPUID, time stamp.
//!
//! These are safe functions where this guest, which owns its whole machine and has started no
//! device that accesses memory, cannot hurt its own memory safety by them.

use core::arch::asm;

/// RFLAGS.TF.
pub const TF: u64 = 1 << 8;
/// RFLAGS.IF.
pub const IF: u64 = 1 << 9;
/// RFLAGS.DF.
pub const DF: u64 = 1 << 10;

/// IN AL, DX.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: no device that this guest has set up writes memory.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// IN AX, DX.
pub fn inw(port: u16) -> u16 {
    let value;
    // SAFETY: as in `inb`.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// IN EAX, DX.
pub fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: as in `inb`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// OUT DX, AL.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as in `inb`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// OUT DX, AX.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as in `inb`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) };
}

/// OUT DX, EAX.
pub fn outl(port: u16, value: u32) {
    // SAFETY: as in `inb`.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags))
    };
}

/// EAX, EBX, ECX, EDX of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpuid {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let found = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Cpuid {
        eax: found.eax,
        ebx: found.ebx,
        ecx: found.ecx,
        edx: found.edx,
    }
}

/// Whether the hypervisor under us calls itself Vireo (leaf 0x4000_0000).
pub fn on_vireo() -> bool {
    let found = cpuid(0x4000_0000, 0);
    let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
    (found.ebx, found.ecx, found.edx) == (word(b"Vire"), word(b"oVir"), word(b"eoVi"))
}

/// The time-stamp counter, after all earlier instructions.
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe {
        asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// RDMSR.
///
/// # Safety
/// The MSR exists: otherwise this is a #GP that nobody expects. [`crate::exec::rdmsr`] catches it.
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller says that it exists.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
///
/// # Safety
/// The MSR exists, takes `value`, and changes nothing that Rust relies on.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller says so.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    };
}

/// CR0.
pub fn cr0() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR2.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR3.
pub fn cr3() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR8, the task priority.
pub fn cr8() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr8", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets CR8, the task priority (0 to 15).
pub fn set_cr8(priority: u64) {
    // SAFETY: delays interrupts at most.
    unsafe { asm!("mov cr8, {}", in(reg) priority & 15, options(nostack, preserves_flags)) };
}

/// Sets CR0.
///
/// # Safety
/// Long mode, paging and write protection stay as they are.
pub unsafe fn set_cr0(value: u64) {
    // SAFETY: the caller says so.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Sets CR4.
///
/// # Safety
/// PAE stays on and every bit is one that the processor has.
pub unsafe fn set_cr4(value: u64) {
    // SAFETY: the caller says so.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Lets interrupts in for the length of one NOP after the STI shadow.
pub fn open_window() {
    // SAFETY: handlers restore all they change.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
}

/// STI; HLT; CLI: sleeps until an interrupt.
pub fn sleep() {
    // SAFETY: handlers restore all they change.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Ends the machine by the debug-exit port 0xf4; where there is none, halts for good.
pub fn exit(code: u32) -> ! {
    crate::serial::drain();
    outl(0xf4, code);
    loop {
        // SAFETY: nothing is left to do; interrupts are off.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
