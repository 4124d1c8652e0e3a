//! In and out of the kernel: system calls, interrupts, exceptions; all on one stack a processor, interrupts off.

use super::cpu::Cpu;
use super::{
    CALL_VECTOR, FIRST_IRQ, IRQS, SPURIOUS_VECTOR, TIMER_VECTOR, apic, console, descriptors,
    extended, machine_check, measure,
};
use crate::mem::Obj;
use crate::object::Thread;
use crate::object::thread::{Regs, Resume};
use crate::virt::{Virt, svm, vmx};
use crate::{exit, ipc, sched, sync};
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use ipc_schema::abi::{Syscall, layout};
use x86_64::registers::control::Cr2;

/// Points this processor's descriptor tables, GS base and system-call MSRs at `cpu`'s data.
pub fn init(cpu: &'static Cpu) {
    cpu.this.set(core::ptr::from_ref(cpu) as u64);
    cpu.stack.set(descriptors::stack_top(cpu));
    descriptors::init(cpu);
    // SAFETY: the MSRs of the kernel's own entry: GS bases, SYSCALL target (APM vol. 2, 6.1), flags cleared on entry.
    unsafe {
        use x86_64::registers::model_specific::Msr;
        Msr::new(0xc000_0101).write(core::ptr::from_ref(cpu) as u64);
        Msr::new(0xc000_0102).write(0);
        Msr::new(0xc000_0081).write(0x10 << 48 | 0x08 << 32);
        Msr::new(0xc000_0082).write(vireo_syscall_entry as *const () as u64);
        // IF, TF, DF, IOPL, NT, AC.
        Msr::new(0xc000_0084).write(0x4_7700);
    }
}

unsafe extern "C" {
    fn vireo_syscall_entry();
    /// The stub page, in the kernel's read-only data.
    pub static vireo_stub: [u8; 4096];
}

/// Where the stub page's system call goes on.
pub const RETURN_TO: u64 = layout::STUB + 2;

global_asm!(r#"
    .section .rodata
    .balign 4096
    .globl vireo_stub
vireo_stub:
    syscall
    ret
    .balign 4096, 0xcc

    .section .text
    .balign 64
    .globl vireo_syscall_entry
# rcx (return address: always the stub page's) and r11 (flags: always the same) are not kept.
vireo_syscall_entry:
    swapgs
    mov rcx, gs:[{CURRENT}]
    mov [rcx + {GPR} + 4*8], rsp
    mov rsp, gs:[{STACK}]
    .globl vireo_call, vireo_leave, vireo_leave_end
vireo_call:
    mov [rcx + {GPR} + 3*8], rbx
    mov [rcx + {GPR} + 5*8], rbp
    mov [rcx + {GPR} + 6*8], rsi
    mov [rcx + {GPR} + 7*8], rdi
    .irp n, 8, 9, 10, 12, 13, 14, 15
    mov [rcx + {GPR} + \n*8], r\n
    .endr
    mov byte ptr [rcx + {RESUME}], 0
    mov rdi, rcx
    cmp rax, {CALLS}
    jae 1f
    # Some return, others jump to `vireo_leave`.
    call qword ptr [8*rax + {TABLE}]
vireo_leave:
    cmp byte ptr [rax + {RESUME}], 0
    jne 2f
    mov rsp, [rax + {GPR} + 4*8]
    mov rbx, [rax + {GPR} + 3*8]
    mov rbp, [rax + {GPR} + 5*8]
    mov rsi, [rax + {GPR} + 6*8]
    mov rdi, [rax + {GPR} + 7*8]
    .irp n, 8, 9, 10, 12, 14, 15
    mov r\n, [rax + {GPR} + \n*8]
    .endr
    mov rax, [rax + {GPR}]
    # Nothing of the kernel's stays in a register.
    xor edx, edx
    xor r13d, r13d
    # Five bytes, where `virt::vmx` puts a jump.
vireo_leave_end:
    mov ecx, {RETURN}
    mov r11d, 0x202
    swapgs
    sysretq
1:
    call {OTHER}
2:
    mov rdi, rax
    # The function that came here has left its frame on the stack.
    mov rsp, gs:[{STACK}]
    movzx eax, byte ptr [rax + {RESUME}]
    call qword ptr [8*rax + vireo_ways - 8]
3:
    push {USER_DATA}
    push qword ptr [rdi + {GPR} + 4*8]
    push qword ptr [rdi + {RFLAGS}]
    push {USER_CODE}
    push qword ptr [rdi + {RIP}]
    mov rax, [rdi + {GPR}]
    mov rcx, [rdi + {GPR} + 1*8]
    mov rdx, [rdi + {GPR} + 2*8]
    mov rbx, [rdi + {GPR} + 3*8]
    mov rbp, [rdi + {GPR} + 5*8]
    mov rsi, [rdi + {GPR} + 6*8]
    .irp n, 8, 9, 10, 11, 12, 13, 14, 15
    mov r\n, [rdi + {GPR} + \n*8]
    .endr
    mov rdi, [rdi + {GPR} + 7*8]
    swapgs
    iretq

    .balign 16
    .globl vireo_vectors
vireo_vectors:
    .rept 256
    .balign 8
    call vireo_trap_entry
    .endr
    .balign 16
vireo_trap_entry:
    # Stack: address in the table (tells the vector), error code for some, rip, cs, rflags, rsp, ss.
    push rax
    push rcx
    mov rax, [rsp + 16]
    lea rcx, [rip + vireo_vectors]
    sub rax, rcx
    shr eax, 3
    lea rcx, [rsp + 24]
    cmp eax, 31
    ja 4f
    bt dword ptr [rip + 9f], eax
    jnc 4f
    add rcx, 8
4:
    # rcx: at rip; eax: vector.
    test byte ptr [rcx + 8], 3
    jz 6f
    swapgs
    push rdx
    mov rdx, gs:[{CURRENT}]
    mov [rdx + {GPR} + 3*8], rbx
    mov [rdx + {GPR} + 5*8], rbp
    mov [rdx + {GPR} + 6*8], rsi
    mov [rdx + {GPR} + 7*8], rdi
    .irp n, 8, 9, 10, 11, 12, 13, 14, 15
    mov [rdx + {GPR} + \n*8], r\n
    .endr
    mov r8, [rcx]
    mov [rdx + {RIP}], r8
    mov r8, [rcx + 24]
    mov [rdx + {GPR} + 4*8], r8
    mov r8, [rcx + 16]
    mov [rdx + {RFLAGS}], r8
    mov rsi, [rcx - 8]
    mov edi, eax
    pop rax
    mov [rdx + {GPR} + 2*8], rax
    pop rax
    mov [rdx + {GPR} + 1*8], rax
    pop rax
    mov [rdx + {GPR}], rax
    mov byte ptr [rdx + {RESUME}], 1
    mov rsp, gs:[{STACK}]
    # User level's AC would switch SMAP off.
    test r8d, {AC_DF}
    jz 5f
    push 2
    popfq
5:
    call vireo_trap
6:
    # From the kernel: an interrupt in one of its windows, its own mistake, or what comes at any moment, maybe with user level's AC.
    .irp r, rdx, rsi, rdi, r8, r9, r10, r11, rbp
    push \r
    .endr
    mov rbp, rsp
    and rsp, -16
    push 2
    popfq
    mov edi, eax
    cmp eax, 32
    jb 8f
    call vireo_kernel_interrupt
7:
    leave
    .irp r, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax
    pop \r
    .endr
    add rsp, 8
    iretq
8:
    lea rsi, [rcx - 8]
    call vireo_kernel_trap
    test al, al
    jz 7b
    leave
    .irp r, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax
    pop \r
    .endr
    mov rsp, [rsp + 32]
    popfq
    retfq

    .section .rodata
    .balign 4
9:  .long 0x60227d00
    .balign 8
vireo_ways:
    .quad 3b, {GUEST}, {GUEST_VMX}
"#,
    CURRENT = const offset_of!(Cpu, current),
    STACK = const offset_of!(Cpu, stack),
    GPR = const offset_of!(Thread, progress.regs) + offset_of!(Regs, gpr),
    RIP = const offset_of!(Thread, progress.regs) + offset_of!(Regs, rip),
    RFLAGS = const offset_of!(Thread, progress.regs) + offset_of!(Regs, rflags),
    RESUME = const offset_of!(Thread, progress.resume),
    RETURN = const RETURN_TO,
    AC_DF = const 1 << 18 | 1 << 10,
    USER_DATA = const descriptors::USER_DATA,
    USER_CODE = const descriptors::USER_CODE,
    TABLE = sym ENTRIES,
    CALLS = const ENTRIES.len(),
    OTHER = sym enter::<{ ENTRIES.len() as u64 }>,
    GUEST = sym enter_guest::<svm::BackEnd>,
    GUEST_VMX = sym enter_guest::<vmx::BackEnd>,
);

/// Lets `t` go on. The frames on the stack are given up without the compiler's restoring registers for a caller that needs none.
#[inline(always)]
pub fn go_on(t: Obj<Thread>) -> ! {
    // SAFETY: `vireo_leave` takes the thread in rax, needs nothing of the stack (it loads rsp before it uses it), and never returns.
    unsafe { asm!("jmp vireo_leave", in("rax") t.ptr(), options(noreturn, nostack)) }
}

/// A system call: the thread's registers are saved. Each has an entry of its own, so that none saves registers for another.
pub type Entry = extern "sysv64" fn(Obj<Thread>) -> Obj<Thread>;

/// The entry of one.
pub extern "sysv64" fn enter<const CALL: u64>(t: Obj<Thread>) -> Obj<Thread> {
    let cpu = Cpu::current();
    measure::begin(cpu, measure::Cause::Call(t, CALL));
    let next = crate::syscall(cpu, t, CALL);
    measure::leave(cpu, next);
    if CALL == Syscall::Signal as u64 || CALL == Syscall::Wait as u64 {
        // The compiler lets their quick way have no frame.
        return next;
    }
    go_on(next)
}

/// By number ([`Syscall`]).
pub static ENTRIES: [Entry; 6] = [
    enter::<0>, enter::<1>, enter::<2>, enter::<3>, enter::<4>, enter::<5>,
];

/// A thread whose next step is its guest.
extern "sysv64" fn enter_guest<V: Virt>(t: Obj<Thread>) -> ! {
    let cpu = Cpu::current();
    measure::begin(cpu, measure::Cause::Exit(0));
    let next = exit::enter::<V>(cpu, t);
    measure::leave(cpu, next);
    go_on(next)
}

/// An interrupt or exception at user level.
#[unsafe(no_mangle)]
extern "sysv64" fn vireo_trap(vector: u64, error: u64, t: Obj<Thread>) -> ! {
    let cpu = Cpu::current();
    measure::begin(cpu, measure::Cause::Trap(vector));
    let next = trap(cpu, vector, error, t);
    measure::leave(cpu, next);
    go_on(next)
}

#[inline(always)]
fn trap(cpu: &Cpu, vector: u64, error: u64, t: Obj<Thread>) -> Obj<Thread> {
    debug_assert!(t.resume.get() == Resume::Interrupt);
    vmx::start::trapped(vector);
    if vector >= 32 {
        interrupt(cpu, vector as u8);
        return sched::current_or_better(cpu, t);
    }
    let address = match vector {
        14 => Cr2::read_raw(),
        2 | 18 => match machine_check::outside(cpu, vector) {
            Some(harmed) => harmed,
            None => return t,
        },
        _ => 0,
    };
    let has_error = (0x6022_7d00_u32 >> vector) & 1 == 1;
    ipc::fault(cpu, t, vector, if has_error { error } else { 0 }, address)
}

/// An interrupt in a window of the kernel's.
#[unsafe(no_mangle)]
extern "sysv64" fn vireo_kernel_interrupt(vector: u64) {
    let cpu = Cpu::current();
    measure::begin(cpu, measure::Cause::Trap(vector));
    sched::woken(cpu);
    interrupt(cpu, vector as u8);
    measure::end(cpu);
}

/// An exception in the kernel. `frame`: error, rip, cs, rflags, rsp, ss. Answers whether the way back is not by IRET.
#[unsafe(no_mangle)]
extern "sysv64" fn vireo_kernel_trap(vector: u64, frame: &mut [u64; 6]) -> bool {
    vmx::start::mend(frame);
    if vector == 1 {
        // A guest's: a breakpoint that was left armed (QEMU 7.2), or a single step that was pending at an exit (Bochs 2.7); or user
        // level's single step over SYSENTER. The kernel has none of its own.
        extended::disarm_breakpoints(0);
        return false;
    }
    if matches!(vector, 2 | 18) {
        return machine_check::in_kernel(vector, frame);
    }
    let [error, rip, _, flags, rsp, _] = *frame;
    console::fatal(
        "the kernel faulted: vector #, error #, rip #, rsp #, flags #, cr2 #. This is a bug in Vireo; please report it.",
        &[vector, error, rip, rsp, flags, Cr2::read_raw()],
    );
}

/// A device's or the timer's interrupt, or another processor's.
pub fn interrupt(cpu: &Cpu, vector: u8) {
    if vector == SPURIOUS_VECTOR {
        return;
    }
    apic::eoi();
    if vector == CALL_VECTOR {
        // What the others, or the handlers of machine checks and NMIs, have asked for.
        sync::join(cpu);
        ipc::collect(cpu);
        return machine_check::report(cpu);
    }
    if vector == TIMER_VECTOR {
        return sched::tick(cpu);
    }
    let i = usize::from(vector.wrapping_sub(FIRST_IRQ));
    if i < IRQS
        && let Some(irq) = cpu.irqs[i].get()
    {
        ipc::notify(cpu, &irq.target.get());
    }
}
