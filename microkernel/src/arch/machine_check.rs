//! Machine checks, NMIs and debug exceptions of the kernel's own, each on a stack of its own (AMD APM vol. 2, 8.2 and 9;
//! Intel SDM vol. 3, 15).
//!
//! They come anywhere: before the kernel has its GS base, or in the middle of its data. So their handlers touch nothing but [`EVENTS`] of
//! their processor, whose address lies at the top of each of these stacks, and send the processor an interrupt, which reports at the
//! next moment at which it takes any: no other path looks for such events.

/// MCG_STATUS: the interrupted program can be resumed.
const RIPV: u64 = 1;
/// MCi_STATUS bits.
#[cfg_attr(
    not(target_os = "none"),
    allow(dead_code, reason = "on the host nobody reads banks")
)]
mod status {
    pub const VALID: u64 = 1 << 63;
    /// An earlier error was overwritten.
    pub const OVERFLOW: u64 = 1 << 62;
    pub const UNCORRECTED: u64 = 1 << 61;
    pub const ENABLED: u64 = 1 << 60;
    pub const MISC_VALID: u64 = 1 << 59;
    pub const ADDRESS_VALID: u64 = 1 << 58;
    /// The state of the processor is corrupt.
    pub const CORRUPT: u64 = 1 << 57;
}

/// What a machine check means for what it interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing: hardware corrected it.
    GoOn,
    /// The interrupted thread or guest used bad data and must not go on as if nothing had been; all others may.
    Harmed,
    /// The machine can't go on.
    Fatal,
}

/// Judges a machine check by MCG_STATUS and the status of all banks; `user`: it interrupted user level or a guest.
pub fn judge(global: u64, banks: impl Iterator<Item = u64>, user: bool) -> Verdict {
    let mut verdict = if global & RIPV == 0 {
        Verdict::Fatal
    } else {
        Verdict::GoOn
    };
    for s in banks.filter(|s| s & status::VALID != 0) {
        // An uncorrected error whose reporting is off was no reason for this one.
        if s & status::UNCORRECTED == 0 || s & status::ENABLED == 0 {
            continue;
        }
        // What was overwritten may have been anything.
        if s & (status::CORRUPT | status::OVERFLOW) != 0 || !user {
            return Verdict::Fatal;
        }
        if verdict == Verdict::GoOn {
            verdict = Verdict::Harmed;
        }
    }
    verdict
}

#[cfg(target_os = "none")]
pub use real::*;

#[cfg(target_os = "none")]
mod real {
    use super::{Verdict, judge, status};
    use crate::arch::{CALL_VECTOR, Cpu, MAX_CPUS, apic, console, port_in};
    use crate::mem::{self, Global, Obj};
    use crate::object::Thread;
    use core::arch::{asm, global_asm};
    use core::cell::Cell;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, Ordering};
    use x86_64::registers::control::{Cr4, Cr4Flags};
    use x86_64::registers::model_specific::Msr;

    const MCG_CAP: u32 = 0x179;
    const MCG_STATUS: u32 = 0x17a;
    const MCG_CTL: u32 = 0x17b;
    /// MCi_CTL of bank 0; then STATUS, ADDR, MISC; the next bank follows.
    const MC0_CTL: u32 = 0x400;
    /// Banks that this way of addressing reaches.
    const BANKS: u32 = 32;

    /// What the handlers of one processor leave for it to report.
    #[repr(C)]
    pub struct Events {
        nmis: AtomicU32,
        debugs: AtomicU32,
        checks: AtomicU32,
        number: Cell<u32>,
        /// Of them, how many have been reported.
        reported: Cell<[u32; 3]>,
        /// The bank that the last machine check was about: number, status, address, miscellaneous.
        bank: Cell<[u64; 4]>,
        /// Whom it harmed.
        harmed: Cell<Option<Obj<Thread>>>,
    }
    static EVENTS: Global<[Events; MAX_CPUS]> = Global(
        [const {
            Events {
                nmis: AtomicU32::new(0),
                debugs: AtomicU32::new(0),
                checks: AtomicU32::new(0),
                number: Cell::new(0),
                reported: Cell::new([0; 3]),
                bank: Cell::new([0; 4]),
                harmed: Cell::new(None),
            }
        }; MAX_CPUS],
    );

    /// Those of `cpu`.
    pub fn events(cpu: &Cpu) -> &'static Events {
        let e = &EVENTS[cpu.number as usize % MAX_CPUS];
        e.number.set(cpu.number);
        e
    }

    global_asm!(r#"
    .section .text
    .balign 16
    .globl vireo_nmi, vireo_nmi_end, vireo_debug, vireo_double_fault, vireo_machine_check
vireo_nmi:
    push rax
    push rcx
    mov rax, [rsp + 56]
    lock inc dword ptr [rax + {NMIS}]
    # An interrupt to itself: it leaves alone the half of the command register that the interrupted code may have written.
    mov rax, {APIC_COMMAND}
    mov dword ptr [rax], {CALL_SELF}
2:  test dword ptr [rax], 0x1000
    jnz 2b
    pop rcx
    pop rax
    iretq
vireo_nmi_end:

    .balign 16
vireo_debug:
    # At user level as any exception.
    test byte ptr [rsp + 8], 3
    jnz vireo_vectors + 16
    push 0
    push 1
    jmp 3f
vireo_double_fault:
    push 8
    jmp 3f
vireo_machine_check:
    push 0
    push 18
3:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    # Neither DF nor AC are the kernel's.
    push 2
    popfq
    mov rdi, rsp
    call vireo_rare
    test eax, eax
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    jnz 4f
    add rsp, 16
    iretq
4:  # Back into the handler of an NMI, without IRET, which would let the next one in.
    mov rsp, [rsp + 40]
    popfq
    retfq
"#,
        NMIS = const offset_of!(Events, nmis),
        APIC_COMMAND = const mem::PHYS_BASE + apic::BASE + apic::COMMAND_LOW,
        CALL_SELF = const 1 << 18 | 1 << 14 | CALL_VECTOR as u32,
    );

    unsafe extern "C" {
        static vireo_nmi: u8;
        static vireo_nmi_end: u8;
        static vireo_debug: u8;
        static vireo_double_fault: u8;
        static vireo_machine_check: u8;
    }

    /// The vectors that have stacks of their own, and their handlers; stack numbers are places in this list, from 1.
    pub fn handlers() -> [(usize, u64); 4] {
        [
            (2, &raw const vireo_nmi as u64),
            (8, &raw const vireo_double_fault as u64),
            (18, &raw const vireo_machine_check as u64),
            (1, &raw const vireo_debug as u64),
        ]
    }

    /// What lies on such a stack, from the bottom up.
    #[repr(C)]
    struct Frame {
        /// r15 to r8, rdi, rsi, rbp, rbx, rdx, rcx, rax.
        gpr: [u64; 15],
        vector: u64,
        error: u64,
        rip: u64,
        cs: u64,
        flags: u64,
        rsp: u64,
        ss: u64,
        events: &'static Events,
    }

    /// The handler of these vectors but NMI. Answers 1 if the way back is not by IRET.
    #[unsafe(no_mangle)]
    extern "sysv64" fn vireo_rare(f: &mut Frame) -> u32 {
        match f.vector {
            1 => {
                // A breakpoint of a guest's that an emulator left armed (`svm::extended`).
                // SAFETY: no breakpoint is the kernel's, and a guest's DR6 is in its VMCB.
                unsafe {
                    asm!("mov dr7, {}", "mov dr6, {}", in(reg) 0x400_u64, in(reg) 0xffff_0ff0_u64)
                };
                f.events.debugs.fetch_add(1, Ordering::Relaxed);
            }
            18 => {
                machine_check(f.events, f.cs & 3 != 0);
            }
            _ => double_fault(f),
        }
        call_self();
        let nmi = &raw const vireo_nmi as u64..&raw const vireo_nmi_end as u64;
        if f.cs & 3 != 0 || !nmi.contains(&f.rip) {
            return 0;
        }
        f.rsp -= 24;
        // SAFETY: room below the stack pointer of the NMI handler, which uses none there.
        unsafe { (f.rsp as *mut [u64; 3]).write([f.flags, f.rip, f.cs]) };
        1
    }

    fn read(msr: u32) -> u64 {
        // SAFETY: one of the machine-check MSRs, which CPUID and MCG_CAP show.
        unsafe { Msr::new(msr).read() }
    }
    fn write(msr: u32, value: u64) {
        // SAFETY: as for `read`; the values are what the architecture wants written.
        unsafe { Msr::new(msr).write(value) };
    }
    fn banks() -> u32 {
        (read(MCG_CAP) as u32 & 0xff).min(BANKS)
    }

    /// Has this processor report machine checks; what it found before is logged and cleared.
    pub fn init() {
        let features = raw_cpuid::CpuId::new().get_feature_info();
        if !features.is_some_and(|f| f.has_mce() && f.has_mca()) {
            return;
        }
        if read(MCG_CAP) & 1 << 8 != 0 {
            write(MCG_CTL, u64::MAX);
        }
        for b in 0..banks() {
            let status = read(MC0_CTL + 4 * b + 1);
            if status & status::VALID != 0 {
                defmt::warn!(
                    "hardware error before this boot: bank {=u32}, status {=u64:#x}",
                    b,
                    status
                );
            }
            write(MC0_CTL + 4 * b + 1, 0);
            write(MC0_CTL + 4 * b, u64::MAX);
        }
        // SAFETY: the handler is in the IDT.
        unsafe { Cr4::update(|c| c.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION)) };
    }

    /// Reads and clears the banks. `user`: it interrupted user level or a guest.
    fn machine_check(e: &Events, user: bool) -> Verdict {
        let all = (0..banks()).map(|b| read(MC0_CTL + 4 * b + 1));
        let verdict = judge(read(MCG_STATUS), all, user);
        let mut worst = [u64::MAX, 0, 0, 0];
        for b in 0..banks() {
            let at = MC0_CTL + 4 * b;
            let status = read(at + 1);
            if status & status::VALID == 0 {
                continue;
            }
            if status & status::UNCORRECTED >= worst[1] & status::UNCORRECTED {
                let more = |bit, msr| if status & bit != 0 { read(msr) } else { 0 };
                let address = more(status::ADDRESS_VALID, at + 2);
                let misc = more(status::MISC_VALID, at + 3);
                worst = [u64::from(b), status, address, misc];
            }
            write(at + 1, 0);
        }
        let [bank, status, address, misc] = worst;
        if verdict == Verdict::Fatal {
            console::fatal(format_args!(
                "machine check on processor {}: bank {bank}, status {status:#x}, address {address:#x}, misc {misc:#x}. \
                 The hardware is faulty; the system cannot go on.",
                e.number.get()
            ));
        }
        e.bank.set(worst);
        e.checks.fetch_add(1, Ordering::Relaxed);
        if verdict == Verdict::Harmed {
            e.harmed
                .set(Cpu::all()[e.number.get() as usize % MAX_CPUS].current.get());
        }
        // From here on the next one can come; before that it would have been a shutdown.
        write(MCG_STATUS, 0);
        verdict
    }

    /// A guest was left for a machine check (the processor delivers none then); whether the guest may go on.
    #[cold]
    pub fn in_guest(cpu: &Cpu) -> bool {
        let e = events(cpu);
        let verdict = machine_check(e, true);
        // The VMM decides what becomes of the guest.
        e.harmed.set(None);
        let _ = report(cpu);
        verdict == Verdict::GoOn
    }

    /// Has this processor interrupt itself.
    fn call_self() {
        apic::interrupt_self(CALL_VECTOR);
    }

    /// Logs what has come since the last time; answers the thread that was harmed, and the address of its bad data.
    #[inline(always)]
    pub fn report(cpu: &Cpu) -> Option<(Obj<Thread>, u64)> {
        let e = &EVENTS[cpu.number as usize % MAX_CPUS];
        let now = [&e.nmis, &e.debugs, &e.checks].map(|n| n.load(Ordering::Relaxed));
        if now == e.reported.get() {
            return None;
        }
        log(cpu, e, now)
    }

    #[cold]
    fn log(cpu: &Cpu, e: &Events, now: [u32; 3]) -> Option<(Obj<Thread>, u64)> {
        let [nmis, debugs, checks] = e.reported.replace(now);
        if now[0] != nmis {
            // Bits 6 and 7: I/O check, and parity or SERR (the chipset's NMI status).
            defmt::warn!(
                "NMI on processor {=u32}: {=u32} so far, port 0x61 {=u64:#x}",
                cpu.number,
                now[0],
                port_in(0x61, 1)
            );
        }
        if now[1] != debugs {
            defmt::warn!(
                "debug exception in the kernel on processor {=u32}: {=u32} so far",
                cpu.number,
                now[1]
            );
        }
        if now[2] == checks {
            return None;
        }
        let [bank, status, address, misc] = e.bank.get();
        let harmed = e.harmed.take();
        defmt::error!(
            "machine check on processor {=u32}: bank {=u64}, status {=u64:#x}, address {=u64:#x}, misc {=u64:#x}; a thread harmed: {=bool}",
            cpu.number,
            bank,
            status,
            address,
            misc,
            harmed.is_some()
        );
        harmed.map(|t| (t, address))
    }

    fn double_fault(f: &Frame) -> ! {
        console::fatal(format_args!(
            "double fault on processor {}: rip {:#x}, rsp {:#x}, flags {:#x}, cr2 {:#x}, r15 to r8, di, si, bp, bx, dx, cx, ax: {:x?}. \
             This is a bug in Vireo; please report it.",
            f.events.number.get(),
            f.rip,
            f.rsp,
            f.flags,
            x86_64::registers::control::Cr2::read_raw(),
            f.gpr
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use status::*;

    const ERROR: u64 = VALID | UNCORRECTED | ENABLED;

    #[test]
    fn only_what_the_architecture_lets_go_on_goes_on() {
        for (global, banks, user, verdict) in [
            // Nothing wrong but corrected errors, wherever.
            (
                RIPV,
                [0, VALID | ADDRESS_VALID | MISC_VALID],
                false,
                Verdict::GoOn,
            ),
            (RIPV, [0, VALID | OVERFLOW], true, Verdict::GoOn),
            // No return address.
            (0, [0, VALID], true, Verdict::Fatal),
            (0, [0, 0], true, Verdict::Fatal),
            (RIPV, [0, ERROR], true, Verdict::Harmed),
            (RIPV, [0, ERROR], false, Verdict::Fatal),
            (RIPV, [ERROR, ERROR | CORRUPT], true, Verdict::Fatal),
            (RIPV, [ERROR | OVERFLOW, 0], true, Verdict::Fatal),
            // Not reported, or not there.
            (
                RIPV,
                [VALID | UNCORRECTED, UNCORRECTED | ENABLED],
                false,
                Verdict::GoOn,
            ),
        ] {
            assert_eq!(judge(global, banks.into_iter(), user), verdict);
        }
    }
}
