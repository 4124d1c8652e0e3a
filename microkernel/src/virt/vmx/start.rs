//! Whether a processor has VMX and lets it be used; switching it on, and the way into the kernel that goes with it.

use super::control::{self, Controls, FEATURE_CONTROL, LOCKED, VMXON, controls, usable};
use crate::RUN_VMX;
use crate::arch::{Cpu, cpuid, descriptors, entry};
use crate::boot::memory::phys;
use crate::mem;
use crate::object::Thread;
use crate::object::thread::{Regs, reg};
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use ipc_schema::abi::Syscall;
use x86_64::instructions::tables::sgdt;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

/// Whether this is a processor of Intel's.
pub fn intel() -> bool {
    // "Genu".
    cpuid(0).ebx == 0x756e_6547
}

/// Whether this processor can do the work; another than the first, whether it can do the same.
///
/// # Errors
/// What it lacks, and what to do about it.
pub fn check() -> Result<(), &'static str> {
    let (first, found) = (controls(), find()?);
    if first != Controls::default() && found != first {
        return Err("this processor's VMX is not that of the first.");
    }
    Ok(())
}

/// The controls for all VMCSs.
fn find() -> Result<Controls, &'static str> {
    // SAFETY: where VMX is, the first is; the others are read only if those before say that they are there.
    let read = |msr| unsafe { Msr::new(msr).read() };
    usable([cpuid(1).ecx, cpuid(7).ebx], read)
}

/// Whether extended tables have pages of 1 GiB.
pub fn gigabyte() -> bool {
    find().is_ok_and(|c| c.gigabyte)
}

/// Boot: what all VMCSs have in common, with the pages `io` and `msr` as MSR bitmaps. There is no I/O bitmap: all ports exit.
///
/// # Safety
/// Pages of the kernel's that are nothing else's.
pub unsafe fn init(io: u64, msr: u64) {
    if let Ok(controls) = find() {
        // SAFETY: the caller's pages.
        unsafe { control::init(controls, [msr, io]) };
    }
}

/// Switches it on.
#[inline(never)]
pub fn enable(cpu: &Cpu) {
    let region = cpu.host_control.get();
    cpu.asids.set(1 << 16);
    let gdt = sgdt();
    cpu.gdt.set([u64::from(gdt.limit) << 48, gdt.base.as_u64()]);
    for (msr, value) in (0x174..).zip(sysenter(cpu)) {
        // SAFETY: the MSRs of the kernel's own entry.
        unsafe { Msr::new(msr).write(value) };
    }
    let mut control = Msr::new(FEATURE_CONTROL);
    // SAFETY: VMX is there, and not locked off (`check`); the region is this processor's own page with its revision identifier, CR0
    // and CR4 are as they must be (`protect`). What an earlier kernel left under any identifier goes.
    unsafe {
        if control.read() & LOCKED == 0 {
            control.write(control.read() | VMXON | LOCKED);
        }
        // The way in and out of guests needs FSGSBASE (`enter`); SYSCALL stays off, since its MSRs are guests'.
        Cr4::update(|c| {
            c.insert(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS | Cr4Flags::FSGSBASE);
        });
        mem::page(region).0[0].set(controls().revision.into());
        core::arch::asm!("vmxon [{}]", in(reg) &region, options(nostack));
    }
    control::invalidate_vpid(2, 0);
}

unsafe extern "C" {
    // Of `arch::entry`.
    static vireo_leave_end: u8;
    fn vireo_sysenter_entry();
    static vireo_leave_sysexit: u8;
    static vireo_sysexit: u8;
    static vireo_stub_sysenter: u8;
}

// Servers enter by SYSENTER (SDM vol. 3, 5.8.7): its MSRs are host state of a VMCS, while those of SYSCALL stay the guest's until
// another vCPU needs them.
global_asm!(r#"
    .section .rodata
    .balign 4096
vireo_stub_sysenter:
    mov rcx, rsp
    sysenter
    ret
    .balign 4096, 0xcc

    .section .text
    .balign 64
# rcx is user level's stack pointer; only IF has been cleared of the flags.
vireo_sysenter_entry:
    # Whoever runs next is to find no bases of this thread's, which can set them.
    xor edx, edx
    wrfsbase rdx
    wrgsbase rdx
    swapgs
    mov rdx, rcx
    mov rcx, gs:[{CURRENT}]
    mov rsp, gs:[{STACK}]
    push 2
    popfq
    mov [rcx + {RSP}], rdx
    jmp vireo_call
vireo_leave_sysexit:
    mov rcx, rsp
    mov edx, {RETURN} + 3
    xor r11d, r11d
    swapgs
    sti
vireo_sysexit:
    sysexitq
"#,
    CURRENT = const offset_of!(Cpu, current),
    STACK = const offset_of!(Cpu, stack),
    RSP = const offset_of!(Thread, progress.regs) + offset_of!(Regs, gpr) + 8 * reg::RSP,
    RETURN = const entry::RETURN_TO,
);

/// SYSENTER_CS, _ESP and _EIP.
pub fn sysenter(cpu: &Cpu) -> [u64; 3] {
    let entry = vireo_sysenter_entry as *const () as u64;
    [descriptors::KERNEL_CODE.into(), cpu.stack.get(), entry]
}

/// An exception in the kernel with this frame (error, rip, cs, rflags, rsp, ss) leads back there. TF is user level's, which SYSENTER
/// leaves as it is. Between STI and SYSEXIT an interrupt would find user level's GS base: an exception that comes there ends STI's
/// shadow, so STI comes again.
pub fn mend(frame: &mut [u64; 6]) {
    let [_, rip, _, flags, ..] = frame;
    if *flags & 1 << 8 != 0 {
        // The single step over SYSENTER has left BS.
        *flags &= !(1 << 8);
        trapped(1);
    }
    if *rip == &raw const vireo_sysexit as u64 {
        *flags &= !(1 << 9);
        *rip -= 1;
    }
}

/// An interrupt or exception has come at user level: with VMX nothing of what it can change in the processor stays for others, the
/// bases of FS and GS, and for a guest BS in DR6 after a single step.
#[inline(always)]
pub fn trapped(vector: u64) {
    if super::HERE.get() {
        forget(vector);
    }
}

#[cold]
#[inline(never)]
fn forget(vector: u64) {
    // SAFETY: the kernel's GS base is the other one, and FS it does not use.
    unsafe {
        asm!("wrfsbase {0}", "swapgs", "wrgsbase {0}", "swapgs", in(reg) 0_u64, options(nomem, nostack));
    }
    if vector == 1 {
        control::set_dr6(control::dr6() & !(1 << 14));
    }
}

/// Boot: servers enter by SYSENTER and are left to by SYSEXIT. Answers the address of the stub page for it.
pub fn stub() -> u64 {
    let at = &raw const vireo_leave_end as u64;
    let to = &raw const vireo_leave_sysexit as u64;
    // JMP rel32.
    patch(at, 5, 0xe9 | (to.wrapping_sub(at + 5) & 0xffff_ffff) << 8);
    let run = &raw const entry::ENTRIES[Syscall::Run as usize];
    patch(run as u64, 8, entry::enter::<RUN_VMX> as *const () as u64);
    // It serialises.
    let _ = cpuid(0);
    &raw const vireo_stub_sysenter as u64
}

/// Overwrites bytes of the kernel's text or read-only data.
#[inline(never)]
fn patch(at: u64, bytes: u64, with: u64) {
    for i in 0..bytes {
        let to = mem::virt(phys(at + i).unwrap_or(0)) as *mut u8;
        // SAFETY: only entry code in assembly executes or reads it, as a whole; no thread has run yet, nor any other processor.
        unsafe { to.write((with >> (8 * i)) as u8) };
    }
}
