//! VMRUN, and what is prepared for it when something is rare.

use super::control::{BY_HAND, FLUSH_OWN, Vmcb, field as f};
use super::{V_IRQ, armed, extended};
use crate::arch::Cpu;
use crate::object::{Thread, Vcpu};
use crate::virt::{UNUSUAL, identify, unusual};

/// What [`BY_HAND`] says: a virtual interrupt that can be taken (APM vol. 2, 15.21.4) becomes the event to inject.
#[cold]
fn by_hand(c: Vmcb) {
    extended::set_cr2(c.word(f::CR2).get());
    let intr = c.word(f::V_INTR).get();
    if intr & V_IRQ == 0 {
        return;
    }
    // Beyond V_TPR: V_IGN_TPR, or its priority.
    let over = intr & 1 << 20 != 0 || intr >> 16 & 15 > intr & 15;
    let open = c.word(f::RFLAGS).get() & 1 << 9 != 0 && c.word(f::INTERRUPT_SHADOW).get() & 1 == 0;
    if over && open && c.word(f::EVENTINJ).get() & 1 << 31 == 0 {
        c.word(f::V_INTR).set(intr & !V_IRQ);
        c.word(f::EVENTINJ).set(1 << 31 | intr >> 32 & 0xff);
    }
}

/// Enters the guest of a vCPU, with `$sti` before VMRUN; goes on at its exit.
///
/// Interrupts are off. A pending one ends the guest at once, since IF is on at VMRUN and V_INTR_MASKING makes it the one that counts.
/// That STI comes well before: VMRUN in its shadow hands the shadow on to the guest (on some processors, and on QEMU), whose first
/// instruction may be CLI.
///
/// Gives processor, its current thread and vCPU again: the first and the last survive on the stack anyway, and the compiler need not keep
/// copies of any of them, nor of what it would derive from them.
#[cfg(target_os = "none")]
macro_rules! vmrun {
    ($cpu:expr, $v:expr, $sti:literal) => {{
        let (cpu, v): (&Cpu, &Vcpu) = ($cpu, $v);
        let (cpu_at, t_at, v_at): (*const Cpu, *const crate::object::Thread, *const Vcpu);
        // SAFETY: the VMCB was validated field by field where the processor would not (`state::load`), the intercepts are the kernel's,
        // nested paging confines the guest to what was mapped for it. Who enters a guest is the processor's current thread. Of the registers that hold the guest's at its exit, the
        // compiler keeps nothing in those named here, and rbx and rbp come back from the stack; VMLOAD, VMSAVE and STGI bring back the
        // host's hidden state, #VMEXIT its segments, CR0, CR3, CR4, EFER and RFLAGS (APM vol. 2, 15.5, 15.6).
        unsafe {
            core::arch::asm!(
                "push rbx",
                "push rbp",
                "push rdx",
                "push rsi",
                "mov rsi, [rsi + {STATE}]",
                "clgi",
                "sti",
                "vmload rax",
                "mov rcx, [rsi + 8]",
                "mov rdx, [rsi + 16]",
                "mov rbx, [rsi + 24]",
                "mov rbp, [rsi + 40]",
                "mov rdi, [rsi + 56]",
                ".irp n, 8, 9, 10, 11, 12, 13, 14, 15",
                "mov r\\n, [rsi + \\n*8]",
                ".endr",
                "mov rsi, [rsi + 48]",
                $sti,
                "vmrun rax",
                "cli",
                "vmsave rax",
                "mov rax, [rsp]",
                "mov rax, [rax + {STATE}]",
                "mov [rax + 8], rcx",
                "mov [rax + 16], rdx",
                "mov [rax + 24], rbx",
                "mov [rax + 40], rbp",
                "mov [rax + 48], rsi",
                "mov [rax + 56], rdi",
                ".irp n, 8, 9, 10, 11, 12, 13, 14, 15",
                "mov [rax + \\n*8], r\\n",
                ".endr",
                "pop r14",
                "pop r12",
                "mov rax, [r12 + {HOST}]",
                "mov r13, [r12 + {CURRENT}]",
                "vmload rax",
                "stgi",
                "pop rbp",
                "pop rbx",
                STATE = const core::mem::offset_of!(Vcpu, state_virt),
                HOST = const core::mem::offset_of!(Cpu, host_control),
                CURRENT = const core::mem::offset_of!(Cpu, current),
                inout("rax") v.control_phys => _,
                inout("rsi") core::ptr::from_ref(v) => _,
                inout("rdx") core::ptr::from_ref(cpu) => _,
                out("rcx") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") cpu_at, out("r13") t_at, out("r14") v_at, out("r15") _,
            );
            (&*cpu_at, &*t_at, &*v_at)
        }
    }};
}
#[cfg(not(target_os = "none"))]
macro_rules! vmrun {
    ($cpu:expr, $v:expr, $sti:literal) => {{
        let _ = $sti;
        Vmcb::of($v).word(f::EXITCODE).set(0x78);
        #[cfg(any(test, feature = "checker"))]
        crate::virt::svm::check::enters($v);
        let t = $cpu.current.get().expect("a guest has a thread");
        ($cpu, t.get(), $v)
    }};
}

pub(super) use vmrun;

/// An entry with something rare about it: a new address space identifier, breakpoints, an interrupt shadow, a TSC_AUX that is not 0,
/// a processor that leaves work to software.
#[inline(never)]
pub fn enter_prepared<'a>(cpu: &'a Cpu, v: &'a Vcpu) -> (&'a Thread, &'a Vcpu) {
    let c = Vmcb::of(v);
    v.flushes.set(v.flushes.get() & !UNUSUAL);
    if v.asid_round.get() != cpu.asid_round.get() || v.flushes.get() != v.guest.flushes.get() {
        renew(cpu, v, c);
    }
    if armed(c) {
        extended::arm_breakpoints(c.word(f::DR7).get());
    }
    let rare = v.tsc_aux.get() | BY_HAND.get();
    if rare != 0 {
        if rare as u32 != 0 {
            extended::set_tsc_aux(rare as u32);
        }
        if rare >> 32 != 0 {
            by_hand(c);
        }
    }
    #[cfg(any(test, feature = "unproven"))]
    super::newer::enters(c);
    let (_, t, v) = if c.word(f::INTERRUPT_SHADOW).get() & 1 != 0 {
        // Handed on by an STI right before: QEMU 7.2 does not look at the VMCB's field for that.
        vmrun!(cpu, v, "sti")
    } else {
        vmrun!(cpu, v, "")
    };
    if rare != 0 {
        if rare as u32 != 0 {
            extended::set_tsc_aux(0);
        }
        unusual(v);
    }
    #[cfg(any(test, feature = "unproven"))]
    super::newer::has_left(Vmcb::of(v));
    // Flush only once.
    c.word(f::ASID_TLB).set(u64::from(v.asid.get()));
    (t, v)
}

/// Nothing that was cached for `v` is to be found any more.
#[inline(never)]
fn renew(cpu: &Cpu, v: &Vcpu, c: Vmcb) {
    // TLB_CONTROL 1 (flush all) is all that every processor knows.
    let own = FLUSH_OWN.get() * u64::from(v.asid_round == cpu.asid_round);
    let flush = own.max(u64::from(own == 0 && identify(cpu, v)));
    v.flushes.set(v.guest.flushes.get());
    c.word(f::ASID_TLB)
        .set(u64::from(v.asid.get()) | flush << 32);
}
