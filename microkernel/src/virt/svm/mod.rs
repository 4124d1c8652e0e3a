//! AMD SVM (APM vol. 2, chapter 15).

pub mod exit;
pub mod extended;
pub mod state;
pub mod vmcb;

use super::{Then, Virt};
use crate::arch::{Cpu, measure};
use crate::mem::{self, Global};
use crate::object::{Thread, Vcpu};
use core::cell::Cell;
use ipc_schema::abi::vm::{ExitWord, gpr};
use vmcb::{Vmcb, field as f};

/// The back end.
pub struct Svm;

/// Physical addresses of the I/O permission map (all ports intercepted: routes are looked up in software) and of the MSR permission
/// map; the same for every VM.
static MAPS: Global<Maps> = Global(Maps {
    io: Cell::new(0),
    msr: Cell::new(0),
});

struct Maps {
    io: Cell<u64>,
    msr: Cell<u64>,
}

/// See [`MAPS`].
pub fn maps() -> (u64, u64) {
    (MAPS.io.get(), MAPS.msr.get())
}

/// MSRs that belong to the guest alone, since VMRUN, VMLOAD and VMSAVE switch them: STAR to SFMASK, FS, GS and kernel GS base, SYSENTER.
const PASSED: [u32; 10] = [
    0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0x174,
    0x175, 0x176,
];

/// Fills the permission maps: `io` is three pages, `msr` two (APM vol. 2, 15.10.1, 15.11).
///
/// # Safety
/// Both are runs of kernel pages that are nothing else's.
pub unsafe fn init_maps(io: u64, msr: u64) {
    for (first, pages) in [(io, 3), (msr, 2)] {
        for i in 0..pages {
            // SAFETY: the caller's pages.
            unsafe { mem::page(first + i * mem::PAGE) }
                .0
                .iter()
                .for_each(|w| w.set(!0));
        }
    }
    for m in PASSED {
        // Two bits an MSR: 0000_0000 to 0000_1fff at byte 0, c000_0000 to c000_1fff at byte 0x800.
        let bit = u64::from(m & 0x1fff) * 2 + if m >= 0xc000_0000 { 0x800 * 8 } else { 0 };
        // SAFETY: the caller's pages; both ranges are in the first.
        let w = unsafe { &mem::page(msr).0[(bit / 64) as usize] };
        w.set(w.get() & !(3 << (bit % 64)));
    }
    MAPS.io.set(io);
    MAPS.msr.set(msr);
    // Next RIP saved, but no decode assists.
    BY_HAND.set(u64::from(core::arch::x86_64::__cpuid(0x8000_000a).edx & 0x88 == 8) << 32);
}

/// VMRUN does not load CR2, and does not see a virtual interrupt that the guest can take at once (Bochs 2.7), so each entry is an unusual
/// one. No processor that has decode assists is like that, and none that does not save the next RIP. A bit beyond TSC_AUX, or 0.
static BY_HAND: Global<Cell<u64>> = Global(Cell::new(0));

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
                "mov r8, [rsi + 64]",
                "mov r9, [rsi + 72]",
                "mov r10, [rsi + 80]",
                "mov r11, [rsi + 88]",
                "mov r12, [rsi + 96]",
                "mov r13, [rsi + 104]",
                "mov r14, [rsi + 112]",
                "mov r15, [rsi + 120]",
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
                "mov [rax + 64], r8",
                "mov [rax + 72], r9",
                "mov [rax + 80], r10",
                "mov [rax + 88], r11",
                "mov [rax + 96], r12",
                "mov [rax + 104], r13",
                "mov [rax + 112], r14",
                "mov [rax + 120], r15",
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
        let t = $cpu.current.get().expect("a guest has a thread");
        ($cpu, t.get(), $v)
    }};
}

/// V_INTR: V_INTR_MASKING, V_IRQ.
const MASKING: u64 = 1 << 24;
const V_IRQ: u64 = 1 << 8;

impl Virt for Svm {
    #[inline(always)]
    fn load(&self, v: &Vcpu, groups: u64) {
        if groups != 0 {
            state::load(v, groups);
        }
    }

    #[inline(always)]
    fn arm(&self, v: &Vcpu, post: u64, event: u64) {
        let c = Vmcb::of(v);
        let old = c.word(f::V_INTR).get();
        let tpr = if post & (1 << 44) != 0 {
            (post >> 40) & 15
        } else {
            old & 15
        };
        let mut new = MASKING | tpr;
        if post & (1 << 31) != 0 {
            new |=
                V_IRQ | ((post >> 8) & 15) << 16 | ((post >> 32) & 1) << 20 | (post & 0xff) << 32;
        }
        c.word(f::V_INTR).set(new);
        c.word(f::EVENTINJ).set(event);
    }

    fn switch_extended(&self, cpu: &Cpu, v: &Vcpu) {
        extended::switch(cpu, v);
        unusual(v);
    }

    #[inline(always)]
    fn enter<T: Then>(&self, cpu: &Cpu, v: &Vcpu, then: T) -> T::Answer {
        Vmcb::of(v).word(f::RAX).set(v.gpr(gpr::RAX).get());
        measure::end(cpu);
        // Of an identifier's round only `enter_prepared` asks: others get some only when they have become owners of the extended state.
        let (cpu, t, v) = if v.flushes.get() != v.guest.flushes.get() {
            let (t, v) = enter_prepared(cpu, v);
            (Cpu::current(), t, v)
        } else {
            vmrun!(cpu, v, "")
        };
        let c = Vmcb::of(v);
        measure::begin(cpu, measure::Cause::Exit(c.word(f::EXITCODE).get()));
        if armed(c) {
            extended::disarm_breakpoints(c.word(f::DR7).get());
            unusual(v);
        }
        v.gpr(gpr::RAX).set(c.word(f::RAX).get());
        // An event whose delivery the exit interrupted is delivered again at the next entry, or told to the VMM (`left`).
        c.word(f::EVENTINJ).set(0);
        if c.word(f::EXITINTINFO).get() & (1 << 31) != 0 {
            interrupted_delivery(c);
        }
        exit::decode((cpu, t, v), c, then)
    }

    #[inline(always)]
    fn left(&self, v: &Vcpu, groups: u64) -> (u64, u64) {
        let c = Vmcb::of(v);
        state::save(v, c, groups);
        keep_shadow(v, c);
        // Left in place: `arm` writes it before the next entry.
        let event = c.word(f::EVENTINJ).get();
        let intr = c.word(f::V_INTR).get();
        // V_TPR to the CR8 field, V_IRQ to POST_PENDING.
        const _: () = assert!(ExitWord::POST_PENDING == 1 << (8 + 32) && ExitWord::CR8_SHIFT == 32);
        ((intr & (V_IRQ | 15)) << 32, event)
    }

    #[inline(always)]
    fn advance(&self, v: &Vcpu, next: u64) {
        let c = Vmcb::of(v);
        c.word(f::RIP).set(next);
        c.word(f::INTERRUPT_SHADOW).set(0);
        // Single step: the trap comes after the instruction that was carried out (APM vol. 2, 13.1.4). RF ends with it too.
        let flags = c.word(f::RFLAGS).get();
        if flags & (1 << 8 | 1 << 16) != 0 {
            c.word(f::RFLAGS).set(flags & !(1 << 16));
            if flags & (1 << 8) != 0 {
                let dr6 = c.word(f::DR6);
                dr6.set(dr6.get() | 1 << 14);
                c.word(f::EVENTINJ).set(1 | 3 << 8 | 1 << 31);
            }
        }
    }
}

/// Bit of [`Vcpu::flushes`]: the next entry takes [`Svm::enter_prepared`], which looks at what is rare.
const UNUSUAL: u64 = 1 << 63;

/// Has the next entry look at the address space identifier, breakpoints, the interrupt shadow and TSC_AUX.
pub fn unusual(v: &Vcpu) {
    v.flushes.set(v.flushes.get() | UNUSUAL);
}

/// Whether the guest has breakpoints that are enabled (L0 to G3).
#[inline(always)]
fn armed(c: Vmcb) -> bool {
    c.word(f::DR7).get() & 0xff != 0
}

/// After an exit whose instruction the kernel does not carry out itself: the guest may be in an interrupt shadow still.
#[inline(always)]
pub fn keep_shadow(v: &Vcpu, c: Vmcb) {
    if c.word(f::INTERRUPT_SHADOW).get() & 1 != 0 {
        unusual(v);
    }
}

/// Delivery of the event is to begin again at the next entry.
#[cold]
fn interrupted_delivery(c: Vmcb) {
    c.word(f::EVENTINJ).set(c.word(f::EXITINTINFO).get());
}

/// An entry with something rare about it: a new address space identifier, breakpoints, an interrupt shadow, a TSC_AUX that is not 0,
/// a processor that leaves work to software.
#[inline(never)]
fn enter_prepared<'a>(cpu: &'a Cpu, v: &'a Vcpu) -> (&'a Thread, &'a Vcpu) {
    let c = Vmcb::of(v);
    v.flushes.set(v.flushes.get() & !UNUSUAL);
    if v.asid_round.get() != cpu.asid_round.get() || v.flushes.get() != v.guest.flushes.get() {
        new_asid(cpu, v);
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
    // Flush only once.
    c.word(f::ASID_TLB).set(u64::from(v.asid.get()));
    (t, v)
}

/// Gives `v` an address space identifier of this round with nothing cached under it. TLB_CONTROL 1 (flush all) is all that every
/// processor knows; it is only needed when the round begins, since each identifier is given once in a round.
fn new_asid(cpu: &Cpu, v: &Vcpu) {
    let mut asid = cpu.next_asid.get();
    let mut flush = 0;
    if asid >= cpu.asids.get() {
        cpu.asid_round.set(cpu.asid_round.get() + 1);
        asid = 1;
        flush = 1;
    }
    cpu.next_asid.set(asid + 1);
    v.asid.set(asid);
    v.asid_round.set(cpu.asid_round.get());
    v.flushes.set(v.guest.flushes.get());
    Vmcb::of(v)
        .word(f::ASID_TLB)
        .set(u64::from(asid) | flush << 32);
}

#[cfg(any(test, feature = "checker"))]
#[path = "../../checker/svm.rs"]
pub(crate) mod check;
