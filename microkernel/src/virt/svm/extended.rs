//! What VMRUN does not switch: x87/SSE/AVX state, PKRU, XCR0, DR0 to DR3. It stays in the processor until another vCPU needs it.
//!
//! The kernel and the servers use none of it, so nothing of theirs can be there; and they cannot read it: CR0.TS is set, and
//! CR4.OSXSAVE clear but for the moments in which the kernel itself switches. TSC_AUX, which servers could read, is the guest's while
//! the guest runs only ([`set_tsc_aux`]).

use crate::arch::Cpu;
use crate::mem::Obj;
use crate::object::Vcpu;
use core::mem::offset_of;
use ipc_schema::abi::vm::{Groups, VcpuState as S};

const DR_OFFSET: usize = offset_of!(S, dr);

/// State page to vCPU (and to the processor, if it is the owner).
pub fn load(v: &Vcpu, groups: u64) {
    if groups & Groups::XCR != 0 {
        // x87 always; AVX only with SSE; the AVX-512 trio together. Anything else would make XSETBV fault in the kernel.
        let mut x = v.state().0[offset_of!(S, xcr0) / 8].get() & hw::supported() | 1;
        if x & 2 == 0 {
            x &= !4;
        }
        if x & 4 == 0 || x & 0xe0 != 0xe0 {
            x &= !0xe0;
        }
        v.xcr0.set(x);
        v.tsc_aux
            .set(v.state().0[offset_of!(S, tsc_aux) / 8].get() & 0xffff_ffff);
        super::unusual(v);
    }
    if groups & Groups::DR != 0 {
        for (i, d) in v.dr.iter().enumerate() {
            d.set(v.state().0[DR_OFFSET / 8 + i].get());
        }
    }
    if Cpu::current().fpu_owner.get() == Some(Obj::of(v)) {
        if groups & Groups::XCR != 0 {
            hw::with_xsave(|| hw::set_xcr0(v.xcr0.get()));
        }
        if groups & Groups::DR != 0 {
            hw::set_dr(core::array::from_fn(|i| v.dr[i].get()));
        }
    }
}

/// vCPU to state page.
pub fn save(v: &Vcpu, groups: u64) {
    if groups & Groups::XCR != 0 {
        keep(v);
        v.state().0[offset_of!(S, xcr0) / 8].set(v.xcr0.get());
        v.state().0[offset_of!(S, tsc_aux) / 8].set(v.tsc_aux.get());
    }
    if groups & Groups::DR != 0 {
        keep(v);
        for (i, d) in v.dr.iter().enumerate() {
            v.state().0[DR_OFFSET / 8 + i].set(d.get());
        }
    }
}

/// Keeps what the guest can have changed without an exit, if it is the owner.
fn keep(v: &Vcpu) {
    if Cpu::current().fpu_owner.get() == Some(Obj::of(v)) {
        hw::with_xsave(|| keep_owners(v));
    }
}

/// Debug registers, and XCR0 on a processor that does not intercept XSETBV (QEMU 7.2).
fn keep_owners(v: &Vcpu) {
    for (d, value) in v.dr.iter().zip(hw::dr()) {
        d.set(value);
    }
    if let Some(x) = hw::xcr0() {
        v.xcr0.set(x & hw::supported() | 1);
    }
}

/// Makes `v` the owner.
#[inline(never)]
pub fn switch(cpu: &Cpu, v: &Vcpu) {
    release(cpu);
    crate::arch::speculation::switch();
    hw::with_xsave(|| hw::restore(v.extended_phys, v.xcr0.get()));
    hw::set_dr(core::array::from_fn(|i| v.dr[i].get()));
    cpu.fpu_owner.set(Some(Obj::of(v)));
}

/// Saves the state of the owner, which then has none here.
pub fn release(cpu: &Cpu) {
    if let Some(old) = cpu.fpu_owner.take() {
        hw::with_xsave(|| {
            keep_owners(old.get());
            hw::save(old.extended_phys);
        });
    }
}

/// TSC_AUX, on a processor that has it: before the entry of a guest that has set it, and back to the kernel's 0 after its exit.
#[cold]
pub fn set_tsc_aux(value: u64) {
    hw::set_tsc_aux(value);
}

/// Before an entry, if the guest has breakpoints: arms them, on a processor that takes DR7 from the VMCB without doing so
/// (QEMU 7.2). With GIF clear no breakpoint of the kernel's own can match (APM vol. 2, 15.17).
#[cold]
pub fn arm_breakpoints(dr7: u64) {
    hw::clgi();
    // Without general detect: the kernel is to read DR0 to DR3 freely.
    hw::set_dr7(dr7 & !(1 << 13));
}

/// After an exit, if the guest has breakpoints: they are the guest's alone. The processor disables them (APM vol. 2, 15.6); QEMU
/// 7.2 only sets DR7, and leaves them armed for the kernel and the servers to run into. It disarms by the types in the old DR7 when
/// a bit beside the enabling ones changes: those without a type first, then those with the guest's.
#[cold]
pub fn disarm_breakpoints(dr7: u64) {
    hw::set_dr7(dr7 & 0xffff_0000 | 0x600);
    hw::set_dr7(0x400);
}

/// Finds out what there is to switch (boot).
pub fn init() {
    hw::init();
}

/// The same on another processor; false if it differs from the first in what there is to switch.
#[must_use]
pub fn init_other() -> bool {
    hw::init_other()
}

#[cfg(target_os = "none")]
mod hw {
    use crate::mem::{self, Global};
    use core::arch::asm;
    use core::cell::Cell;
    use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
    use x86_64::registers::model_specific::Msr;

    static HAVE: Global<Cell<Have>> = Global(Cell::new(Have {
        xcr0: 0,
        tsc_aux: false,
        stale_pointers: false,
    }));

    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Have {
        /// XCR0 bits that the kernel switches (0: no XSAVE, FXSAVE is used).
        xcr0: u64,
        tsc_aux: bool,
        /// XRSTOR and FXRSTOR leave the x87 pointers to the last instruction alone, unless an exception is pending (AMD without
        /// CPUID 8000_0008 EBX[2]): CVE-2006-1056.
        stale_pointers: bool,
    }

    /// x87, SSE, AVX, AVX-512, and what guests are not given but can reach: MPX, where XSETBV is not intercepted (QEMU 7.2), and PKRU,
    /// which CR4.PKE opens without XCR0. All of it fits the one page of the save area (APM vol. 2, 11.5; 2,696 bytes).
    const KNOWN: u64 = 0xe7 | OTHERS;
    /// XCR0 bits that no guest has.
    const OTHERS: u64 = 1 << 3 | 1 << 4 | 1 << 9;

    pub fn init() {
        HAVE.set(there_is());
        switch_on();
    }
    pub fn init_other() -> bool {
        let same = there_is() == HAVE.get();
        if same {
            switch_on();
        }
        same
    }
    /// What this processor has.
    fn there_is() -> Have {
        let id = raw_cpuid::CpuId::new();
        let mut xcr0 = 0;
        if id.get_feature_info().is_some_and(|f| f.has_xsave()) {
            let leaf = raw_cpuid::cpuid!(0xd, 0);
            xcr0 = (u64::from(leaf.edx) << 32 | u64::from(leaf.eax)) & KNOWN;
        }
        let tsc_aux = id
            .get_extended_processor_and_feature_identifiers()
            .is_some_and(|f| f.has_rdtscp());
        let intel = id
            .get_vendor_info()
            .is_some_and(|v| v.as_str() == "GenuineIntel");
        let restored = raw_cpuid::cpuid!(0x8000_0000).eax >= 0x8000_0008
            && raw_cpuid::cpuid!(0x8000_0008).ebx & 1 << 2 != 0;
        Have {
            xcr0,
            tsc_aux,
            stale_pointers: !intel && !restored,
        }
    }
    fn switch_on() {
        // SAFETY: FXSR is part of x86-64; the kernel itself never uses SSE.
        unsafe { Cr4::update(|c| c.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE)) };
        with_xsave(|| set_xcr0(HAVE.get().xcr0));
        set_tsc_aux(0);
        // SAFETY: an FPU instruction at user level, or in the kernel, is to fault.
        unsafe {
            Cr0::update(|c| {
                c.insert(
                    Cr0Flags::TASK_SWITCHED
                        | Cr0Flags::MONITOR_COPROCESSOR
                        | Cr0Flags::NUMERIC_ERROR,
                )
            })
        };
    }
    /// Does something for which XCR0 can be reached. At all other times nobody at CPL 3 can read it (XGETBV: #UD, APM vol. 4).
    pub fn with_xsave(act: impl FnOnce()) {
        let there = HAVE.get().xcr0 != 0;
        // SAFETY: XSAVE is there; CR4.OSXSAVE changes what XSAVE and its like do, and nothing else.
        unsafe { Cr4::update(|c| c.set(Cr4Flags::OSXSAVE, there)) };
        act();
        // SAFETY: as above.
        unsafe { Cr4::update(|c| c.remove(Cr4Flags::OSXSAVE)) };
    }
    pub fn supported() -> u64 {
        HAVE.get().xcr0 & !OTHERS
    }
    pub fn set_xcr0(value: u64) {
        if HAVE.get().xcr0 != 0 {
            // SAFETY: a subset of what CPUID shows, in a legal combination (`load`).
            unsafe {
                asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
            };
        }
    }
    /// XCR0 as it is, if there is one.
    pub fn xcr0() -> Option<u64> {
        if HAVE.get().xcr0 == 0 {
            return None;
        }
        let (low, high): (u32, u32);
        // SAFETY: a read; CR4.OSXSAVE is set (`with_xsave`).
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack, nomem))
        };
        Some(u64::from(high) << 32 | u64::from(low))
    }
    pub fn clgi() {
        // SAFETY: interrupts are off anyway, and VMRUN follows.
        unsafe { asm!("clgi", options(nostack, nomem)) };
    }
    pub fn set_dr7(value: u64) {
        // SAFETY: the caller's: no breakpoint is live where the kernel or a server could meet it.
        unsafe { asm!("mov dr7, {}", in(reg) value, options(nostack, nomem)) };
    }
    pub fn set_tsc_aux(value: u64) {
        if HAVE.get().tsc_aux {
            // SAFETY: only RDTSCP and RDPID read it.
            unsafe { Msr::new(0xc000_0103).write(value) };
        }
    }
    /// Saves the processor's state, all of it, whatever XCR0 its owner runs with.
    pub fn save(phys: u64) {
        let area = mem::virt(phys);
        set_xcr0(HAVE.get().xcr0);
        // SAFETY: the area is a page of the vCPU's own, large enough for KNOWN; TS is clear only here.
        unsafe {
            asm!("clts", options(nostack));
            if HAVE.get().xcr0 == 0 {
                asm!("fxsave64 [{}]", in(reg) area, options(nostack));
            } else {
                asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            }
            Cr0::update(|c| c.insert(Cr0Flags::TASK_SWITCHED));
        }
    }
    /// Loads state saved before, or (a cleared page) the initial state; then `xcr0`.
    pub fn restore(phys: u64, xcr0: u64) {
        let area = mem::virt(phys);
        set_xcr0(HAVE.get().xcr0);
        // SAFETY: as for `save`. The area's header was written by XSAVE, or is zero: initial state for all components. For the legacy
        // form a cleared area has FCW and MXCSR 0, so those are set; MXCSR 0 is legal for XRSTOR too, but not the reset value.
        unsafe {
            let legacy = area as *mut u8;
            if legacy.add(24).cast::<u32>().read() == 0 {
                legacy.cast::<u16>().write(0x37f);
                legacy.add(24).cast::<u32>().write(0x1f80);
            }
            asm!("clts", options(nostack));
            if HAVE.get().stale_pointers {
                // Any load of the kernel's own does.
                asm!("fnclex", "emms", "fild qword ptr [{}]", in(reg) area, options(nostack, readonly));
            }
            if HAVE.get().xcr0 == 0 {
                asm!("fxrstor64 [{}]", in(reg) area, options(nostack));
            } else {
                asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            }
            Cr0::update(|c| c.insert(Cr0Flags::TASK_SWITCHED));
        }
        set_xcr0(xcr0);
    }
    pub fn set_dr(d: [u64; 4]) {
        // SAFETY: DR7 of the host enables none of them; the guest's DR7 is in its VMCB.
        unsafe {
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) d[0], in(reg) d[1], in(reg) d[2],
                in(reg) d[3], options(nostack, nomem));
        }
    }
    pub fn dr() -> [u64; 4] {
        let mut d = [0; 4];
        // SAFETY: reads.
        unsafe {
            asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) d[0], out(reg) d[1], out(reg) d[2],
                out(reg) d[3], options(nostack, nomem));
        }
        d
    }
}

#[cfg(not(target_os = "none"))]
mod hw {
    //! No processor state to switch on the host.
    pub fn init() {}
    pub fn init_other() -> bool {
        true
    }
    pub fn supported() -> u64 {
        7
    }
    pub fn with_xsave(act: impl FnOnce()) {
        act();
    }
    pub fn set_xcr0(_: u64) {}
    pub fn xcr0() -> Option<u64> {
        None
    }
    pub fn clgi() {}
    pub fn set_dr7(_: u64) {}
    pub fn set_tsc_aux(_: u64) {}
    pub fn save(_: u64) {}
    pub fn restore(_: u64, _: u64) {}
    pub fn set_dr(_: [u64; 4]) {}
    pub fn dr() -> [u64; 4] {
        [0; 4]
    }
}
