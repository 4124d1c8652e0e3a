//! In and out of the kernel: system calls, interrupts, exceptions; all on one stack a processor, interrupts off.

use super::cpu::Cpu;
use super::{
    CALL_VECTOR, FIRST_IRQ, IRQS, MAX_CPUS, SPURIOUS_VECTOR, TIMER_VECTOR, apic, console,
    descriptors, machine_check, measure,
};
use crate::mem::{Global, Obj};
use crate::object::thread::{Regs, Resume, State, reg};
use crate::object::{Thread, cap};
use crate::{exit, ipc, sched, sync};
use core::arch::{asm, global_asm};
use core::cell::Cell;
use core::mem::offset_of;
use ipc_schema::abi::{Status, Syscall, Tag, layout};

/// Bytes of a kernel stack.
const STACK_SIZE: usize = 32 * 1024;
/// A stack, and below it a page that boot takes out ([`guard_pages`]) of the kernel's page table.
#[repr(C, align(4096))]
struct Stack {
    guard: Cell<[u8; 4096]>,
    bytes: Cell<[u8; STACK_SIZE]>,
}
/// Each processor's own.
static STACKS: Global<[Stack; MAX_CPUS]> = Global(
    [const {
        Stack {
            guard: Cell::new([0; 4096]),
            bytes: Cell::new([0; STACK_SIZE]),
        }
    }; MAX_CPUS],
);

/// Addresses of the pages below the kernel stacks.
pub fn guard_pages() -> impl Iterator<Item = u64> {
    let stacks = STACKS.iter().map(|s| s.guard.as_ptr() as u64);
    stacks.chain(descriptors::guard_pages())
}

/// Top of the kernel stack of `cpu`.
pub fn stack_top(cpu: &Cpu) -> u64 {
    let stack = &STACKS[cpu.number as usize % MAX_CPUS];
    stack.bytes.as_ptr() as u64 + STACK_SIZE as u64
}

/// Points this processor's descriptor tables, GS base and system-call MSRs at `cpu`'s data.
pub fn init(cpu: &'static Cpu) {
    cpu.this.set(core::ptr::from_ref(cpu) as u64);
    cpu.stack.set(stack_top(cpu));
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
    /// Never returns: lets a thread go on.
    #[allow(improper_ctypes, reason = "a transparent pointer")]
    pub fn vireo_resume(t: Obj<Thread>) -> !;
    static vireo_stub: [u8; 16];
}

/// The code of the stub page.
pub fn stub_code() -> &'static [u8] {
    // SAFETY: a constant in the kernel's read-only data.
    unsafe { &vireo_stub }
}

const RETURN_TO: u64 = layout::STUB + 2;

global_asm!(r#"
    .section .rodata
    .globl vireo_stub
vireo_stub:
    syscall
    ret
    .balign 16, 0xcc

    .section .text
    .balign 64
    .globl vireo_syscall_entry
# rcx (return address: always the stub page's) and r11 (flags: always the same) are not kept.
vireo_syscall_entry:
    swapgs
    mov rcx, gs:[{CURRENT}]
    mov [rcx + {GPR} + 4*8], rsp
    mov rsp, gs:[{STACK}]
    mov [rcx + {GPR} + 3*8], rbx
    mov [rcx + {GPR} + 5*8], rbp
    mov [rcx + {GPR} + 6*8], rsi
    mov [rcx + {GPR} + 7*8], rdi
    mov [rcx + {GPR} + 8*8], r8
    mov [rcx + {GPR} + 9*8], r9
    mov [rcx + {GPR} + 10*8], r10
    mov [rcx + {GPR} + 12*8], r12
    mov [rcx + {GPR} + 13*8], r13
    mov [rcx + {GPR} + 14*8], r14
    mov [rcx + {GPR} + 15*8], r15
    mov byte ptr [rcx + {RESUME}], 0
    mov rdi, rcx
    cmp rax, {CALLS}
    jae 1f
    # Some return, others jump to `vireo_leave`.
    call qword ptr [8*rax + {TABLE}]
    .globl vireo_leave
vireo_leave:
    cmp byte ptr [rax + {RESUME}], 0
    jne 2f
    mov rsp, [rax + {GPR} + 4*8]
    mov rbx, [rax + {GPR} + 3*8]
    mov rbp, [rax + {GPR} + 5*8]
    mov rsi, [rax + {GPR} + 6*8]
    mov rdi, [rax + {GPR} + 7*8]
    mov r8, [rax + {GPR} + 8*8]
    mov r9, [rax + {GPR} + 9*8]
    mov r10, [rax + {GPR} + 10*8]
    mov r12, [rax + {GPR} + 12*8]
    mov r14, [rax + {GPR} + 14*8]
    mov r15, [rax + {GPR} + 15*8]
    mov rax, [rax + {GPR}]
    # Nothing of the kernel's stays in a register.
    xor edx, edx
    xor r13d, r13d
    mov ecx, {RETURN}
    mov r11d, 0x202
    swapgs
    sysretq
1:
    call vireo_no_syscall
2:
    mov rdi, rax
    # The function that came here has left its frame on the stack.
    mov rsp, gs:[{STACK}]
    cmp byte ptr [rax + {RESUME}], 1
    je 3f
    call vireo_enter_guest
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
    mov r8, [rdi + {GPR} + 8*8]
    mov r9, [rdi + {GPR} + 9*8]
    mov r10, [rdi + {GPR} + 10*8]
    mov r11, [rdi + {GPR} + 11*8]
    mov r12, [rdi + {GPR} + 12*8]
    mov r13, [rdi + {GPR} + 13*8]
    mov r14, [rdi + {GPR} + 14*8]
    mov r15, [rdi + {GPR} + 15*8]
    mov rdi, [rdi + {GPR} + 7*8]
    swapgs
    iretq

    .globl vireo_resume
vireo_resume:
    mov rax, rdi
    mov rsp, gs:[{STACK}]
    jmp vireo_leave

    .balign 4096
    .globl vireo_vectors
vireo_vectors:
    .rept 256
    .balign 16
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
    shr eax, 4
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
    mov [rdx + {GPR} + 8*8], r8
    mov [rdx + {GPR} + 9*8], r9
    mov [rdx + {GPR} + 10*8], r10
    mov [rdx + {GPR} + 11*8], r11
    mov [rdx + {GPR} + 12*8], r12
    mov [rdx + {GPR} + 13*8], r13
    mov [rdx + {GPR} + 14*8], r14
    mov [rdx + {GPR} + 15*8], r15
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
    jnz 7f
5:
    call vireo_trap
7:
    push 2
    popfq
    jmp 5b
6:
    # From the kernel: an interrupt in one of its windows, or its own mistake.
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push rbp
    mov rbp, rsp
    and rsp, -16
    cld
    mov edi, eax
    mov rsi, [rcx - 8]
    mov rdx, rcx
    call vireo_kernel_trap
    mov rsp, rbp
    pop rbp
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 8
    iretq

    .section .rodata
    .balign 4
9:  .long 0x60227d00
"#,
    CURRENT = const offset_of!(Cpu, current),
    STACK = const offset_of!(Cpu, stack),
    GPR = const offset_of!(Thread, regs) + offset_of!(Regs, gpr),
    RIP = const offset_of!(Thread, regs) + offset_of!(Regs, rip),
    RFLAGS = const offset_of!(Thread, regs) + offset_of!(Regs, rflags),
    RESUME = const offset_of!(Thread, resume),
    RETURN = const RETURN_TO,
    AC_DF = const 1 << 18 | 1 << 10,
    USER_DATA = const descriptors::USER_DATA,
    USER_CODE = const descriptors::USER_CODE,
    TABLE = sym ENTRIES,
    CALLS = const ENTRIES.len(),
);

/// Lets `t` go on. The frames on the stack are given up without the compiler's restoring registers for a caller that needs none.
#[inline(always)]
fn go_on(t: Obj<Thread>) -> ! {
    // SAFETY: `vireo_leave` takes the thread in rax, needs nothing of the stack (it loads rsp before it uses it), and never returns.
    unsafe { asm!("jmp vireo_leave", in("rax") t.ptr(), options(noreturn, nostack)) }
}

/// A system call: the thread's registers are saved. Each has an entry of its own, so that none saves registers for another.
type Entry = extern "sysv64" fn(Obj<Thread>) -> Obj<Thread>;

/// Those whose quick way is long give their frames up; the compiler lets the quick way of the others have none.
macro_rules! entries {
    ($($call:ident $end:expr),*) => {
        /// By number.
        static ENTRIES: [Entry; [$(Syscall::$call),*].len()] = [$({
            extern "sysv64" fn enter(t: Obj<Thread>) -> Obj<Thread> {
                let cpu = Cpu::current();
                measure::begin(cpu, || measured(t, Syscall::$call));
                let next = crate::syscall(cpu, t, Syscall::$call as u64);
                measure::leave(cpu, next);
                $end(next)
            }
            enter
        }),*];
        const _: () = {
            let calls = [$(Syscall::$call),*];
            let mut i = 0;
            while i < calls.len() {
                assert!(calls[i] as usize == i);
                i += 1;
            }
        };
    };
}
entries!(Call go_on, ReplyRecv go_on, Signal core::convert::identity, Wait core::convert::identity, Run go_on, Yield go_on);

/// What the measurement calls it.
fn measured(t: Obj<Thread>, call: Syscall) -> u64 {
    let label = Tag(t.get().get(reg::RSI)).label();
    match (call, cap::peek(t.get(), t.get().get(reg::RDI))) {
        (Syscall::Call, Ok(cap)) => measure::call(0, u64::from(cap.kind()), label),
        _ => measure::call(call as u64, 0, 0),
    }
}

/// A number that is no system call's.
#[unsafe(no_mangle)]
extern "sysv64" fn vireo_no_syscall(t: Obj<Thread>) -> ! {
    t.finish(Status::BadOperation);
    go_on(t)
}

/// A thread whose next step is its guest.
#[unsafe(no_mangle)]
extern "sysv64" fn vireo_enter_guest(t: Obj<Thread>) -> ! {
    let cpu = Cpu::current();
    measure::begin(cpu, || measure::EXIT);
    let next = exit::enter(cpu, t);
    measure::leave(cpu, next);
    go_on(next)
}

/// An interrupt or exception at user level.
#[unsafe(no_mangle)]
extern "sysv64" fn vireo_trap(vector: u64, error: u64, t: Obj<Thread>) -> ! {
    let cpu = Cpu::current();
    measure::begin(cpu, || measure::trap(vector));
    let next = trap(cpu, vector, error, t);
    measure::leave(cpu, next);
    go_on(next)
}

#[inline(always)]
fn trap(cpu: &Cpu, vector: u64, error: u64, t: Obj<Thread>) -> Obj<Thread> {
    debug_assert!(t.resume.get() == Resume::Interrupt);
    if vector >= 32 {
        if vector == u64::from(CALL_VECTOR) {
            return called(cpu, t);
        }
        interrupt(cpu, vector as u8);
        return sched::current_or_better(cpu, t);
    }
    let has_error = (0x6022_7d00_u32 >> vector) & 1 == 1;
    let address = if vector == 14 {
        x86_64::registers::control::Cr2::read_raw()
    } else {
        0
    };
    ipc::fault(cpu, t, vector, if has_error { error } else { 0 }, address)
}

/// An interrupt by which a processor calls another, or itself, came at user level, in `t`.
#[cold]
fn called(cpu: &Cpu, t: Obj<Thread>) -> Obj<Thread> {
    match call(cpu) {
        // A stop may have taken it away.
        Some((harmed, address))
            if harmed == t && cpu.current.get() == Some(t) && t.state.get() == State::Ready =>
        {
            ipc::fault(cpu, t, 18, 0, address)
        }
        _ => sched::current_or_better(cpu, t),
    }
}

/// Does what the others, or the handlers of machine checks and NMIs, have asked for; answers the thread that a machine check harmed, and
/// its bad address.
fn call(cpu: &Cpu) -> Option<(Obj<Thread>, u64)> {
    apic::eoi();
    sync::join(cpu);
    ipc::collect(cpu);
    machine_check::report(cpu)
}

/// An interrupt in a window of the kernel's, or an exception of the kernel's own. `frame`: rip, cs, rflags, rsp, ss.
#[unsafe(no_mangle)]
extern "sysv64" fn vireo_kernel_trap(vector: u64, error: u64, frame: &[u64; 5]) {
    if vector >= 32 {
        let cpu = Cpu::current();
        sched::woken(cpu);
        return interrupt(cpu, vector as u8);
    }
    let cr2 = x86_64::registers::control::Cr2::read_raw();
    let [rip, _, flags, rsp, _] = *frame;
    console::fatal(format_args!(
        "the kernel faulted: vector {vector}, error {error:#x}, rip {rip:#x}, rsp {rsp:#x}, flags {flags:#x}, cr2 {cr2:#x}. \
         This is a bug in Vireo; please report it."
    ));
}

/// A device's or the timer's interrupt, or another processor's.
fn interrupt(cpu: &Cpu, vector: u8) {
    if vector == SPURIOUS_VECTOR {
        return;
    }
    if vector == CALL_VECTOR {
        call(cpu);
        return;
    }
    apic::eoi();
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
