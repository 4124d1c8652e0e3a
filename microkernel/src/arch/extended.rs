//! x87, SSE and AVX state, XCR0, debug registers and TSC_AUX as the processor has them: what entering and leaving a guest does not switch.

use super::cpuid;
use crate::mem::{self, Global};
use core::arch::asm;
use core::cell::Cell;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3, Dr7};
use x86_64::registers::model_specific::Msr;
use x86_64::registers::xcontrol::XCr0;

/// What a processor has.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Have {
    /// XCR0 bits that the kernel switches (0: no XSAVE, FXSAVE is used).
    xcr0: u64,
    tsc_aux: bool,
    /// PCID and INVPCID.
    pcid: bool,
    /// XRSTOR and FXRSTOR leave the x87 pointers to the last instruction alone, unless an exception is pending (AMD without
    /// CPUID 8000_0008 EBX[2]): CVE-2006-1056.
    stale_pointers: bool,
}
/// The first one; all others have the same.
static HAVE: Global<Cell<Have>> = Global(Cell::new(Have {
    xcr0: 0,
    tsc_aux: false,
    pcid: false,
    stale_pointers: false,
}));

/// x87, SSE, AVX, AVX-512, and what guests are not given but can reach: MPX, where XSETBV is not intercepted (QEMU 7.2), and PKRU,
/// which CR4.PKE opens without XCR0. All of it fits the one page of the save area (APM vol. 2, 11.5; 2,696 bytes).
const KNOWN: u64 = 0xe7 | OTHERS;
/// XCR0 bits that no guest has.
const OTHERS: u64 = 1 << 3 | 1 << 4 | 1 << 9;

/// Finds out what there is to switch (boot); on another processor than the `first`, false if it differs from that.
pub fn init(first: bool) -> bool {
    let sizes = cpuid(0xd);
    let have = Have {
        xcr0: (u64::from(sizes.edx) << 32 | u64::from(sizes.eax)) & KNOWN,
        tsc_aux: cpuid(0x8000_0001).edx & 1 << 27 != 0,
        pcid: cpuid(1).ecx & 1 << 17 != 0 && cpuid(7).ebx & 1 << 10 != 0,
        stale_pointers: cpuid(0x8000_0008).ebx & 1 << 2 == 0,
    };
    if first {
        HAVE.set(have);
        if have.pcid {
            super::pcid::begin();
        }
    }
    let same = have == HAVE.get();
    if same {
        let _reach = Reach::new();
        set_xcr0(have.xcr0);
        set_tsc_aux(0);
        // SAFETY: they are there; what is in CR3 has had number 0 so far.
        unsafe { Cr4::update(|c| c.set(Cr4Flags::PCID, have.pcid)) };
    }
    same
}

/// XCR0 bits that guests can have.
pub fn supported() -> u64 {
    HAVE.get().xcr0 & !OTHERS
}

/// For as long as this lives XCR0 can be reached. At all other times nobody at CPL 3 can read it (XGETBV: #UD, APM vol. 4).
struct Reach;

impl Reach {
    fn new() -> Self {
        let there = HAVE.get().xcr0 != 0;
        // SAFETY: XSAVE is there; CR4.OSXSAVE changes what XSAVE and its like do, and nothing else.
        unsafe { Cr4::update(|c| c.set(Cr4Flags::OSXSAVE, there)) };
        Self
    }
}

impl Drop for Reach {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { Cr4::update(|c| c.remove(Cr4Flags::OSXSAVE)) };
    }
}

/// TSC_AUX, on a processor that has it: before the entry of a guest that has set it, and back to the kernel's 0 after its exit.
#[cold]
pub fn set_tsc_aux(value: u32) {
    if HAVE.get().tsc_aux {
        // SAFETY: CPUID shows it; only RDTSCP and RDPID read it.
        unsafe { Msr::new(0xc000_0103).write(u64::from(value)) };
    }
}

/// An MSR that acts on guests alone.
#[cfg(feature = "unproven")]
pub fn set_msr(msr: u32, value: u64) {
    // SAFETY: its caller has seen CPUID show it.
    unsafe { Msr::new(msr).write(value) };
}

fn set_xcr0(value: u64) {
    if HAVE.get().xcr0 != 0 {
        // SAFETY: a subset of what CPUID shows, in a legal combination (`virt::svm::extended::load`).
        unsafe { XCr0::write_raw(value) };
    }
}

/// XCR0 as it is, if there is one.
#[inline]
pub fn xcr0() -> Option<u64> {
    let _reach = Reach::new();
    (HAVE.get().xcr0 != 0).then(XCr0::read_raw)
}

/// DR0 to DR3.
pub fn dr() -> [u64; 4] {
    [Dr0::read(), Dr1::read(), Dr2::read(), Dr3::read()]
}

/// Saves the processor's state, all of it, whatever XCR0 its owner runs with.
pub fn save(phys: u64) {
    let area = mem::virt(phys);
    let _reach = Reach::new();
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

/// Loads state saved before, or the initial state; then XCR0 and DR0 to DR3.
pub fn restore(phys: u64, xcr0: u64, dr: [u64; 4]) {
    let area = mem::virt(phys);
    let have = HAVE.get();
    let _reach = Reach::new();
    set_xcr0(have.xcr0);
    // SAFETY: as for `save`. The area's header was written by XSAVE, or is zero: initial state for all components.
    unsafe {
        asm!("clts", options(nostack));
        if have.stale_pointers {
            // Any load of the kernel's own does.
            asm!("fnclex", "emms", "fild qword ptr [{}]", in(reg) area, options(nostack, readonly));
        }
        if have.xcr0 == 0 {
            asm!("fxrstor64 [{}]", in(reg) area, options(nostack));
        } else {
            asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
        }
        Cr0::update(|c| c.insert(Cr0Flags::TASK_SWITCHED));
    }
    set_xcr0(xcr0);
    // DR7 of the host enables none of them; the guest's DR7 is in its VMCB.
    Dr0::write(dr[0]);
    Dr1::write(dr[1]);
    Dr2::write(dr[2]);
    Dr3::write(dr[3]);
}

/// Before an entry, if the guest has breakpoints: arms them, on a processor that takes DR7 from the VMCB without doing so
/// (QEMU 7.2). With GIF clear no breakpoint of the kernel's own can match (APM vol. 2, 15.17).
#[cold]
pub fn arm_breakpoints(dr7: u64) {
    // SAFETY: interrupts are off anyway, and VMRUN follows.
    unsafe { asm!("clgi", options(nostack, nomem)) };
    // Without general detect: the kernel is to read DR0 to DR3 freely.
    Dr7::write_raw(dr7 & !(1 << 13));
}

/// CR2: before an entry, on a processor whose VMRUN does not load it.
pub fn set_cr2(value: u64) {
    // SAFETY: the kernel reads it after a page fault alone, which sets it.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nostack, nomem)) };
}

/// After an exit, if the guest has breakpoints: they are the guest's alone. The processor disables them (APM vol. 2, 15.6); QEMU
/// 7.2 only sets DR7, and leaves them armed for the kernel and the servers to run into. It disarms by the types in the old DR7 when
/// a bit beside the enabling ones changes: those without a type first, then those with the guest's.
#[cold]
pub fn disarm_breakpoints(dr7: u64) {
    Dr7::write_raw(dr7 & 0xffff_0000 | 0x600);
    Dr7::write_raw(0x400);
}
