//! VMLAUNCH and VMRESUME, and what is prepared for them when something is rare.

use super::control::{self, PRIMARY, read, write};
use super::{BLOCKING, HOT, IF, KIND, NMI, NMI_BLOCKED, RFLAGS, SHADOW, Soft, TF, VALID};
use super::{dirty, exit, tpr};
use crate::arch::Cpu;
use crate::object::Vcpu;
use crate::virt::{UNUSUAL, Who, identify, unusual};
use core::cell::Cell;
use x86::vmx::vmcs::control::{self as c, PrimaryControls};
use x86::vmx::vmcs::{guest as g, host as h, ro};

const INTERRUPT_WINDOW: u32 = PrimaryControls::INTERRUPT_WINDOW_EXITING.bits();
const NMI_WINDOW: u32 = PrimaryControls::NMI_WINDOW_EXITING.bits();

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
    .section .text
    .globl vireo_vmx_enter, vireo_vmx_exit
# rdi: Vcpu, rsi: whether it has been launched, rdx: Soft. Answers in rax: 0, the guest has left; 1, it was not entered. Then rdi is the
# Vcpu, and but for rsp no other register is kept.
vireo_vmx_enter:
    push rbx
    push rbp
    push rdi
    push rdx
    mov gs:[{STACK}], rsp
    mov rax, [rdx + {KERNEL_GS}]
    swapgs
    wrgsbase rax
    swapgs
    mov rax, cr2
    mov rcx, [rdx + {CR2}]
    cmp rax, rcx
    je 1f
    mov cr2, rcx
1:
    mov rax, [rdi + {STATE}]
    test esi, esi
    mov rcx, [rax + 8]
    mov rdx, [rax + 16]
    mov rbx, [rax + 24]
    mov rbp, [rax + 40]
    mov rsi, [rax + 48]
    mov rdi, [rax + 56]
    .irp n, 8, 9, 10, 11, 12, 13, 14, 15
    mov r\n, [rax + \n*8]
    .endr
    mov rax, [rax]
    jz 2f
    vmresume
    jmp 3f
2:
    vmlaunch
3:
    # The processor refused, and has done nothing else.
    mov esi, 1
    jmp 4f
vireo_vmx_exit:
    mov rsp, gs:[{STACK}]
    push rax
    mov rax, [rsp + 16]
    mov rax, [rax + {STATE}]
    mov [rax + 8], rcx
    mov [rax + 16], rdx
    mov [rax + 24], rbx
    mov [rax + 40], rbp
    mov [rax + 48], rsi
    mov [rax + 56], rdi
    .irp n, 8, 9, 10, 11, 12, 13, 14, 15
    mov [rax + \n*8], r\n
    .endr
    pop qword ptr [rax]
    lgdt gs:[{GDT} + 6]
    xor esi, esi
4:
    pop rdx
    mov rax, cr2
    mov [rdx + {CR2}], rax
    xor ecx, ecx
    swapgs
    rdgsbase rax
    wrgsbase rcx
    swapgs
    mov [rdx + {KERNEL_GS}], rax
    mov eax, esi
    pop rdi
    pop rbp
    pop rbx
    ret
"#,
    STACK = const core::mem::offset_of!(Cpu, guest_stack),
    GDT = const core::mem::offset_of!(Cpu, gdt),
    STATE = const core::mem::offset_of!(Vcpu, state_virt),
    KERNEL_GS = const core::mem::offset_of!(Soft, kernel_gs),
    CR2 = const core::mem::offset_of!(Soft, cr2),
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn vireo_vmx_enter();
    fn vireo_vmx_exit();
}

/// Where exits lead.
#[cfg(target_os = "none")]
pub fn exit_address() -> u64 {
    vireo_vmx_exit as *const () as u64
}

/// Enters the guest of a vCPU whose VMCS is current; goes on at its exit. Gives processor, its current thread and vCPU again, as
/// `svm`'s; and whether the processor refused to enter.
#[cfg(target_os = "none")]
#[inline(always)]
pub fn launch<'a>(_: &'a Cpu, v: &'a Vcpu) -> (Who<'a>, bool) {
    let s = Soft::of(v);
    let (v_at, failed): (*const Vcpu, u64);
    // SAFETY: the VMCS's controls are the kernel's, EPT confines the guest to what was mapped for it. Who enters a guest is the
    // processor's current thread. Of the registers that hold the guest's at its exit the compiler keeps nothing; the exit brings back
    // the host's segments, control registers and MSRs.
    unsafe {
        core::arch::asm!(
            "call {}",
            sym vireo_vmx_enter,
            inout("rdi") core::ptr::from_ref(v) => v_at,
            inout("rsi") s.launched.get() => _,
            inout("rdx") core::ptr::from_ref(s) => _,
            out("rax") failed,
            out("rcx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
        let cpu = Cpu::current();
        let t: *const crate::object::Thread = cpu
            .current
            .as_ptr()
            .cast::<*const crate::object::Thread>()
            .read();
        ((cpu, &*t, &*v_at), failed != 0)
    }
}
#[cfg(not(target_os = "none"))]
pub fn launch<'a>(cpu: &'a Cpu, v: &'a Vcpu) -> (Who<'a>, bool) {
    #[cfg(any(test, feature = "checker"))]
    crate::checker::tlb::enters(
        v,
        control::peek(c::VPID) as u32,
        Some(control::peek(c::EPTP_FULL)),
        [g::CR0, g::CR3, g::CR4, g::IA32_EFER_FULL].map(control::peek),
    );
    exit::check::exits();
    let t = cpu.current.get().expect("a guest has a thread");
    ((cpu, t.get(), v), false)
}

/// An entry with something rare about it.
#[inline(never)]
pub fn enter_prepared<'a>(cpu: &'a Cpu, v: &'a Vcpu) -> (Who<'a>, bool) {
    let s = Soft::of(v);
    v.flushes.set(v.flushes.get() & !UNUSUAL);
    if v.asid_round.get() != cpu.asid_round.get() {
        if identify(cpu, v) {
            control::invalidate_vpid(2, 0);
        }
        write(c::VPID, v.asid.get().into());
    }
    if v.flushes.get() != v.guest.flushes.get() {
        // Of all vCPUs of the VM that have run here.
        control::invalidate_ept(control::ept_pointer(v));
        v.flushes.set(v.guest.flushes.get());
    }
    if cpu.root != s.root {
        s.root.set(cpu.root.get());
        // The bit that keeps translations at a load of CR3 is none of it.
        write(h::CR3, cpu.root.get() & !(1 << 63));
    }
    let given = inject(v);
    for (i, field) in HOT.into_iter().enumerate() {
        if s.marks.get() & dirty(i) != 0 {
            write(field, s.hot[i].get());
        }
    }
    let aux = v.tsc_aux.get();
    if aux != 0 {
        crate::arch::extended::set_tsc_aux(aux as u32);
    }
    let left = launch(cpu, v);
    s.launched.set(1);
    if aux != 0 {
        crate::arch::extended::set_tsc_aux(0);
        unusual(v);
    }
    // A refused entry delivers nothing.
    if !left.1 && read(ro::EXIT_REASON) & exit::REFUSED == 0 {
        for cell in given.into_iter().flatten() {
            cell.set(0);
        }
    }
    if s.controls.get() != control::controls().sets[PRIMARY] {
        unusual(v);
    }
    left
}

/// Sets the preemption timer for the processor's next deadline, not before it: the guest leaves then even if the machine's interrupt
/// does not make it (Bochs 2.7: one whose IF has never been set), and executes nothing if it is past. What the exits take is not
/// counted, but in them, and at entries, the interrupt comes.
#[inline(never)]
pub fn bound(cpu: &Cpu) {
    let (k, until) = (control::controls(), cpu.programmed.get());
    cpu.until.set(until);
    if k.sets[control::PIN] & control::TIMER != 0 {
        let left = until.saturating_sub(crate::arch::now());
        // Rounded up. The processor takes the lower half: a far deadline has it fire early, and be set again.
        let less = left.wrapping_neg() as i64 >> k.rate;
        write(g::VMX_PREEMPTION_TIMER_VALUE, less.wrapping_neg() as u64);
    }
}

/// Prepares what is to be delivered at the entry: the event, then the posted vector; opens a window for what has to wait. Answers what
/// is delivered if the entry succeeds.
fn inject(v: &Vcpu) -> [Option<&Cell<u64>>; 2] {
    let s = Soft::of(v);
    let mut given = [None; 2];
    let (mut window, mut threshold) = (0, 0);
    let (event, post) = (s.event.get(), s.post.get());
    let waits = (event | post) & VALID != 0 || s.marks.get() & dirty(BLOCKING) != 0 || s.steps();
    let (blocking, flags) = if waits {
        (s.get(BLOCKING), s.get(RFLAGS))
    } else {
        (0, 0)
    };
    let open = blocking & SHADOW == 0 && flags & IF != 0;
    if event & VALID != 0 {
        match event & KIND {
            NMI if blocking & (SHADOW | NMI_BLOCKED) != 0 => window |= NMI_WINDOW,
            0 if !open => window |= INTERRUPT_WINDOW,
            _ => {
                deliver(event);
                given[0] = Some(&s.event);
            }
        }
    }
    if post & VALID != 0 {
        let (priority, tpr) = (post >> 8 & 15, tpr(v).get() >> 4 & 15);
        if post & 1 << 32 == 0 && priority <= tpr {
            threshold = priority as u32;
        } else if open && given[0].is_none() && event & VALID == 0 {
            deliver(post & 0xff | VALID);
            given[1] = Some(&s.post);
        } else {
            window |= INTERRUPT_WINDOW;
        }
    }
    let controls = control::controls().sets[PRIMARY] | window;
    if s.controls.replace(controls) != controls {
        write(c::PRIMARY_PROCBASED_EXEC_CONTROLS, controls.into());
    }
    if s.threshold.replace(threshold) != threshold {
        write(c::TPR_THRESHOLD, threshold.into());
    }
    // With a shadow the processor wants to find the trap that it has put off (27.3.1.5). Otherwise there is none; Bochs 2.7 leaves one
    // after an instruction that has made an exit.
    if blocking & SHADOW != 0 || flags & TF != 0 {
        let trap = if blocking & SHADOW != 0 {
            flags & TF
        } else {
            0
        };
        write(g::PENDING_DBG_EXCEPTIONS, trap << 6);
    }
    given
}

/// Has the entry deliver an event.
#[inline]
fn deliver(event: u64) {
    const ERROR: u64 = 1 << 11;
    let mut info = event & (0xff | KIND | ERROR | VALID);
    if info >> 8 & 7 > 4 {
        // Types that are VMX's own: as one that does not exist.
        info = info & !KIND | 1 << 8;
    }
    // In real mode no exception has an error code, and the processor refuses one (27.2.1.3).
    if info & ERROR != 0 && read(g::CR0) & 1 == 0 {
        info &= !ERROR;
    }
    if info & ERROR != 0 {
        write(c::VMENTRY_EXCEPTION_ERR_CODE, event >> 32);
    }
    if info & KIND == 4 << 8 {
        // The guest's rip is that of the next instruction.
        write(c::VMENTRY_INSTRUCTION_LEN, 0);
    }
    write(c::VMENTRY_INTERRUPTION_INFO_FIELD, info);
}

/// What the processor `cpu` itself is after an exit: the same for as long as the VMCS stays there.
#[cfg(target_os = "none")]
pub fn write_host(cpu: &Cpu) {
    use crate::arch::descriptors::TSS_SELECTOR;
    use x86_64::instructions::tables::{sgdt, sidt};
    use x86_64::registers::control::{Cr0, Cr4, Efer};
    use x86_64::registers::model_specific::Msr;
    let [gdt, idt] = [sgdt(), sidt()].map(|table| table.base.as_u64());
    // SAFETY: the descriptor that TR was loaded from, two words (SDM vol. 3, 8.2.3).
    let [low, high] = unsafe { *((gdt + u64::from(TSS_SELECTOR)) as *const [u64; 2]) };
    let tss = high << 32 | low >> 32 & 0xff00_0000 | low >> 16 & 0xff_ffff;
    let [cs, esp, eip] = super::start::sysenter(cpu);
    // SAFETY: every processor with VMX has PAT.
    let pat = unsafe { Msr::new(0x277).read() };
    for (field, value) in [
        (h::CR0, Cr0::read_raw()),
        (h::CR4, Cr4::read_raw()),
        (h::IA32_EFER_FULL, Efer::read_raw()),
        (h::IA32_PAT_FULL, pat),
        (h::GS_BASE, cpu.this.get()),
        (h::TR_BASE, tss),
        (h::GDTR_BASE, gdt),
        (h::IDTR_BASE, idt),
        (h::IA32_SYSENTER_CS, cs),
        (h::IA32_SYSENTER_ESP, esp),
        (h::IA32_SYSENTER_EIP, eip),
        // The way back changes stacks at once.
        (h::RSP, cpu.stack.get()),
        (h::RIP, exit_address()),
    ] {
        write(field, value);
    }
}

#[cfg(not(target_os = "none"))]
/// There is none.
pub fn write_host(_: &Cpu) {}
