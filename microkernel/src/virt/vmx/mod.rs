//! Intel VMX (SDM vol. 3, chapters 24 to 34).
//!
//! The VMCS that is current on a processor is that of the owner of its extended state: both come and go together (`extended`). What the
//! kernel has read of the guest's rip, flags and interruptibility since the exit, and what is to be written before the entry, is
//! remembered in [`Soft`], so that a frequent exit takes few accesses.

pub mod control;
pub mod exit;
pub mod extended;
#[cfg(target_os = "none")]
pub mod start;
pub mod state;

use super::{Then, Virt, Who};
use crate::arch::{Cpu, measure};
use crate::mem;
use crate::object::Vcpu;
use control::{read, write};
use core::cell::Cell;
use ipc_schema::abi::vm::ExitWord;
use x86::vmx::vmcs::control::{self as c, PrimaryControls};
use x86::vmx::vmcs::{guest as g, ro};

/// The back end.
pub struct Vmx;

/// MSRs that belong to the guest alone: STAR to SFMASK and kernel GS base are switched with the vCPU, the others are in the VMCS.
const PASSED: [u32; 10] = [
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0x174,
    0x175,
    0x176,
];
/// #DB, #AC and #MC, as on SVM.
pub(super) const EXCEPTIONS: u64 = 1 << 1 | 1 << 17 | 1 << 18;

/// What the kernel keeps of a vCPU beside its VMCS: in the page of the extended state, behind what the processor uses of that as the
/// virtual-APIC page. `Vcpu::control_virt` is that page's address: the VMCS itself is not memory to software.
#[repr(C)]
pub struct Soft {
    /// CR2, which neither entry nor exit switches.
    cr2: Cell<u64>,
    /// Kernel GS base, while the host runs.
    kernel_gs: Cell<u64>,
    /// Whether the VMCS has been launched since it became current.
    launched: Cell<u64>,
    /// Fields of [`HOT`] whose value is known (bits 0 to 2); those that the VMCS does not have yet (8 to 10); [`NO_SHADOW`].
    marks: Cell<u64>,
    /// Their values.
    hot: [Cell<u64>; 3],
    /// The event to inject ([`ipc_schema::abi::vm::Event`]), and afterwards the one whose delivery the exit interrupted.
    event: Cell<u64>,
    /// The vector to deliver ([`ipc_schema::abi::vm::Post`]).
    post: Cell<u64>,
    /// The primary controls that the VMCS has.
    controls: Cell<u32>,
    /// The TPR threshold that it has.
    threshold: Cell<u32>,
    /// 1 + number of the processor whose host state it has; 0: it has never been loaded.
    host: Cell<u64>,
    /// The host's CR3 that it has.
    root: Cell<u64>,
    /// STAR, LSTAR, CSTAR, SFMASK while another vCPU has the processor's.
    syscall: [Cell<u64>; 4],
    /// The same of DR6.
    dr6: Cell<u64>,
}

/// Where it is in its page.
const SOFT: u64 = 0x100;
const _: () = assert!(SOFT as usize + size_of::<Soft>() <= extended::AREA as usize);
/// TPR in the virtual-APIC page (SDM vol. 3, 30.1.1), a word here.
const TPR: usize = 0x80 / 8;

/// Fields that every exit needs.
const HOT: [u32; 3] = [g::RIP, g::RFLAGS, g::INTERRUPTIBILITY_STATE];
const RIP: usize = 0;
const RFLAGS: usize = 1;
const BLOCKING: usize = 2;
/// [`Soft::marks`]: what the frequent exits find out.
const KNOWN: u64 = 1 << RIP | 1 << RFLAGS;
/// The guest has left the interrupt shadow, if it was in one, by an instruction that was carried out for it. The VMCS is only looked at
/// if something is to be delivered: nothing else tells the difference, and the next instruction ends it anyway.
const NO_SHADOW: u64 = 1 << 16;
const fn dirty(i: usize) -> u64 {
    0x100 << i
}
/// Interruptibility (25.4.2): by STI or MOV SS; by NMI.
const SHADOW: u64 = 3;
const NMI_BLOCKED: u64 = 8;
/// RFLAGS.
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const RF: u64 = 1 << 16;

/// An event or posted vector is valid.
const VALID: u64 = 1 << 31;
/// Type of an event; NMI.
const KIND: u64 = 7 << 8;
const NMI: u64 = 2 << 8;
const INTERRUPT_WINDOW: u32 = PrimaryControls::INTERRUPT_WINDOW_EXITING.bits();
const NMI_WINDOW: u32 = PrimaryControls::NMI_WINDOW_EXITING.bits();

impl Soft {
    /// That of `v`.
    #[inline(always)]
    fn of(v: &Vcpu) -> &Self {
        // SAFETY: in a page of the vCPU's own, for as long as it lives; only cells, for which any bytes will do.
        unsafe { &*((v.control_virt + SOFT) as *const Self) }
    }

    /// After an exit: rip and flags, which whoever deals with an instruction needs.
    #[inline(always)]
    fn look(&self) -> u64 {
        let rip = read(g::RIP);
        self.hot[RIP].set(rip);
        self.hot[RFLAGS].set(read(g::RFLAGS));
        self.marks.set(KNOWN);
        rip
    }

    /// A hot field of the guest's. Its VMCS is current, unless the field is known.
    fn get(&self, i: usize) -> u64 {
        if self.marks.get() & 1 << i == 0 {
            let mut value = read(HOT[i]);
            if i == BLOCKING && self.marks.get() & NO_SHADOW != 0 && value & SHADOW != 0 {
                value &= !SHADOW;
                self.marks.set(self.marks.get() | dirty(BLOCKING));
            }
            self.hot[i].set(value);
            self.marks.set(self.marks.get() | 1 << i);
        }
        self.hot[i].get()
    }

    /// Sets one, if it is another; the entry writes it.
    fn set(&self, v: &Vcpu, i: usize, value: u64) {
        if self.marks.get() & 1 << i != 0 && self.hot[i].get() == value {
            return;
        }
        self.hot[i].set(value);
        self.marks.set(self.marks.get() | 1 << i | dirty(i));
        if i != RIP {
            unusual(v);
        }
    }

    /// Moves on to `rip`, out of any shadow, where nothing but that has to be written: if the flags, less RF, are to be `flags`. Answers
    /// whether it did.
    #[inline(always)]
    fn step(&self, rip: u64, flags: u64) -> bool {
        let quick = self.marks.get() == KNOWN && self.hot[RFLAGS].get() == flags & !RF;
        if quick {
            self.hot[RIP].set(rip);
            self.marks.set(KNOWN | dirty(RIP) | NO_SHADOW);
        }
        quick
    }

    /// Whether the guest is known to single-step.
    fn steps(&self) -> bool {
        self.marks.get() & 1 << RFLAGS != 0 && self.hot[RFLAGS].get() & TF != 0
    }

    /// For a new vCPU.
    fn reset(&self) {
        self.launched.set(0);
        self.host.set(0);
        self.root.set(0);
        self.controls.set(0);
        self.threshold.set(0);
        self.reset_guest();
    }

    fn reset_guest(&self) {
        for cell in [&self.cr2, &self.kernel_gs, &self.event, &self.post] {
            cell.set(0);
        }
        self.syscall.iter().for_each(|m| m.set(0));
        self.dr6.set(0xffff_0ff0);
        for (i, value) in [(RIP, 0xfff0), (RFLAGS, 2), (BLOCKING, 0)] {
            self.hot[i].set(value);
        }
        self.marks.set(0x707);
    }
}

/// Bit of [`Vcpu::flushes`]: the next entry takes [`Vmx::enter_prepared`], which looks at what is rare.
const UNUSUAL: u64 = 1 << 63;

/// Has the next entry look at everything.
fn unusual(v: &Vcpu) {
    v.flushes.set(v.flushes.get() | UNUSUAL);
}

/// Makes the VMCS of `v` current, if it is not.
#[inline(always)]
fn need(v: &Vcpu) {
    let cpu = Cpu::current();
    if cpu
        .fpu_owner
        .get()
        .map_or(core::ptr::null_mut(), |o| o.ptr())
        != mem::Obj::of(v).ptr()
    {
        extended::switch(cpu, v);
    }
}

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
fn exit_address() -> u64 {
    vireo_vmx_exit as *const () as u64
}

/// Enters the guest of a vCPU whose VMCS is current; goes on at its exit. Gives processor, its current thread and vCPU again, as
/// `svm`'s; and whether the processor refused to enter.
#[cfg(target_os = "none")]
#[inline(always)]
fn launch<'a>(_: &'a Cpu, v: &'a Vcpu) -> (Who<'a>, bool) {
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
fn launch<'a>(cpu: &'a Cpu, v: &'a Vcpu) -> (Who<'a>, bool) {
    exit::check::exits();
    let t = cpu.current.get().expect("a guest has a thread");
    ((cpu, t.get(), v), false)
}

impl Virt for Vmx {
    #[inline(always)]
    fn load(v: &Vcpu, groups: u64) {
        if groups != 0 {
            state::load(v, groups);
        }
    }

    #[inline(always)]
    fn arm(v: &Vcpu, post: u64, event: u64) {
        let s = Soft::of(v);
        if post & 1 << 44 != 0 {
            tpr(v).set((post >> 40 & 15) << 4);
            unusual(v);
        }
        s.post.set(post);
        s.event.set(event);
        if (post | event) & VALID != 0 {
            unusual(v);
        }
    }

    fn switch_extended(cpu: &Cpu, v: &Vcpu) {
        extended::switch(cpu, v);
    }

    #[inline(always)]
    fn enter<T: Then>(cpu: &Cpu, v: &Vcpu, then: T) -> T::Answer {
        let s = Soft::of(v);
        measure::end(cpu);
        let (who, failed) = if v.flushes.get() != v.guest.flushes.get() {
            Self::enter_prepared(cpu, v)
        } else {
            if s.marks.get() & dirty(RIP) != 0 {
                // Whatever else is dirty is unusual.
                write(g::RIP, s.hot[RIP].get());
            }
            launch(cpu, v)
        };
        exit::decode(who, failed, then)
    }

    #[inline(always)]
    fn left(v: &Vcpu, groups: u64) -> (u64, u64) {
        state::save(v, groups);
        let s = Soft::of(v);
        const _: () = assert!(ExitWord::POST_PENDING == 1 << 40 && ExitWord::CR8_SHIFT == 32);
        let pending = s.post.get() & VALID;
        // Left in place: `arm` writes it before the next entry.
        let event = s.event.get();
        (
            pending << 9 | (tpr(v).get() >> 4 & 15) << 32,
            if event & VALID != 0 { event } else { 0 },
        )
    }

    #[inline(always)]
    fn advance(v: &Vcpu, next: u64) {
        let s = Soft::of(v);
        if s.hot[RFLAGS].get() & TF != 0 || !s.step(next, s.hot[RFLAGS].get()) {
            advance_slowly(v, next);
        }
    }

    fn hold(v: &Vcpu) {
        need(v);
    }
}

/// With a trap to come, RF to clear, or not right after the exit.
#[cold]
#[inline(never)]
fn advance_slowly(v: &Vcpu, next: u64) {
    need(v);
    let s = Soft::of(v);
    s.set(v, RIP, next);
    s.set(v, BLOCKING, s.get(BLOCKING) & !SHADOW);
    let flags = s.get(RFLAGS);
    s.set(v, RFLAGS, flags & !RF);
    if flags & TF != 0 {
        // As on SVM: the trap comes after the instruction that was carried out.
        control::set_dr6(control::dr6() | 1 << 14);
        s.event.set(1 | 3 << 8 | VALID);
        unusual(v);
    }
}

/// The guest's TPR, whose upper half is its CR8.
#[inline(always)]
fn tpr(v: &Vcpu) -> &Cell<u64> {
    // SAFETY: a page of the vCPU's own.
    &unsafe { &*(v.control_virt as *const mem::Words) }.0[TPR]
}

impl Vmx {
    /// An entry with something rare about it.
    #[inline(never)]
    fn enter_prepared<'a>(cpu: &'a Cpu, v: &'a Vcpu) -> (Who<'a>, bool) {
        let s = Soft::of(v);
        v.flushes.set(v.flushes.get() & !UNUSUAL);
        if v.asid_round.get() != cpu.asid_round.get() {
            Self::new_vpid(cpu, v);
        }
        if v.flushes.get() != v.guest.flushes.get() {
            // Of all vCPUs of the VM that have run here.
            control::invalidate_ept(control::ept_pointer(v));
            v.flushes.set(v.guest.flushes.get());
        }
        if cpu.root != s.root {
            s.root.set(cpu.root.get());
            // The bit that keeps translations at a load of CR3 is none of it.
            write(x86::vmx::vmcs::host::CR3, cpu.root.get() & !(1 << 63));
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
        if s.controls.get() != control::controls().primary() {
            unusual(v);
        }
        left
    }

    /// Gives `v` an identifier of this round, under which nothing is cached.
    fn new_vpid(cpu: &Cpu, v: &Vcpu) {
        let mut vpid = cpu.next_asid.get();
        if vpid >= cpu.asids.get() {
            cpu.asid_round.set(cpu.asid_round.get() + 1);
            vpid = 1;
            control::invalidate_vpid(2, 0);
        }
        cpu.next_asid.set(vpid + 1);
        v.asid.set(vpid);
        v.asid_round.set(cpu.asid_round.get());
        write(c::VPID, vpid.into());
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
    let controls = control::controls().primary() | window;
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
