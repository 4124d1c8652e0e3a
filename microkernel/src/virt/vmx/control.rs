//! The virtual machine control structure (Intel SDM vol. 3, chapter 25 and appendix B): access, what is chosen for it once for all by the
//! capability MSRs (appendix A), and initial contents. Field numbers and bits are the crate `x86`'s.

use super::{Soft, newer};
use crate::mem::{self, Global};
use crate::object::Vcpu;
use crate::virt::apic;
use core::cell::Cell;
pub use hardware::*;
use x86::vmx::vmcs::control::{
    self as c, EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls,
};
use x86::vmx::vmcs::{guest as g, host as h};

/// What all VMCSs have in common, as the capability MSRs allow it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Controls {
    /// VMCS revision identifier.
    pub revision: u32,
    /// Pin-based, primary and secondary, exit and entry controls ([`PIN`] to [`ENTRY`]).
    pub sets: [u32; 5],
    /// Secondary controls that some guests have in addition ([`newer`]).
    pub newer: u32,
    /// Lower bits of the EPT pointer (25.6.11).
    ept: u64,
    /// Vectors can be posted ([`newer::posted`]).
    #[cfg(any(test, feature = "unproven"))]
    pub posts: bool,
    /// CR4 bits that guests may set.
    cr4: u64,
    /// EPT has pages of 1 GiB.
    pub gigabyte: bool,
    /// The preemption timer counts once in two to the power of this cycles of the TSC (25.5.1).
    pub rate: u32,
}

/// Places in [`Controls::sets`].
pub const PIN: usize = 0;
/// See there.
pub const PRIMARY: usize = 1;
/// See there.
pub const SECONDARY: usize = 2;
/// See there.
pub const EXIT: usize = 3;
const ENTRY: usize = 4;

/// Of the pin-based controls: activate VMX-preemption timer.
pub const TIMER: u32 = PinbasedControls::VMX_PREEMPTION_TIMER.bits();

/// Written at boot alone.
// SAFETY: zero is a value of each of its fields.
static CONTROLS: Global<Cell<Controls>> = Global(Cell::new(unsafe { core::mem::zeroed() }));
/// Physical addresses of the MSR bitmaps, the same for every VM: without and with a local APIC in hardware; written at boot alone.
static BITMAPS: Global<Cell<[u64; 2]>> = Global(Cell::new([0; 2]));

/// See [`Controls`].
#[inline(always)]
pub fn controls() -> Controls {
    CONTROLS.get()
}

/// The MSR bitmap of a guest, whose APIC may be in hardware.
pub fn bitmap(apic: bool) -> u64 {
    BITMAPS.get()[usize::from(apic)]
}

/// Boot: the controls and the MSR bitmaps, of one page each, for all VMs.
///
/// # Safety
/// The pages are the kernel's and nothing else's.
#[cold]
#[inline(never)]
pub unsafe fn init(controls: Controls, bitmaps: [u64; 2]) {
    CONTROLS.set(controls);
    for (phys, with_apic) in bitmaps.into_iter().zip([false, true]) {
        // SAFETY: the caller's page.
        apic::permit(unsafe { mem::page(phys) }, with_apic, true);
    }
    BITMAPS.set(bitmaps);
}

/// The capability MSRs (appendix A).
#[derive(Clone, Copy, Default)]
pub struct Capabilities {
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// The four for pin-based, primary, exit and entry controls, in their true form.
    pub sets: [u64; 4],
    /// IA32_VMX_PROCBASED_CTLS2.
    pub secondary: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept: u64,
    /// IA32_VMX_CR4_FIXED1.
    pub cr4: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
}

/// IA32_VMX_BASIC: the true capability MSRs are there.
pub const TRUE_CONTROLS: u64 = 1 << 55;
/// IA32_VMX_EPT_VPID_CAP: 4-level tables, write-back tables, 2 MiB pages, INVEPT of one context, INVVPID of one context and of all.
const EPT: u64 = 1 << 6 | 1 << 14 | 1 << 16 | 1 << 20 | 1 << 25 | 1 << 32 | 1 << 41 | 1 << 42;
/// 1 GiB pages.
const EPT_GIGABYTE: u64 = 1 << 17;
/// Accessed and dirty flags.
const EPT_ACCESSED: u64 = 1 << 21;

/// CR4: VMXE, which the processor wants set, and MCE, which the kernel does: a guest that does not take machine checks must not turn
/// one into a shutdown.
const VMXE: u64 = 1 << 13;
const MCE: u64 = 1 << 6;
/// CR4 bits that a guest may have: VME to OSXMMEXCPT, UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE.
const CR4_GUEST: u64 = 0x77_0fff;
/// CR0: NE must be set; CD and NW would act on the machine, since neither entry nor exit loads them (27.3.2.1, 28.5.1).
const NE: u64 = 1 << 5;
const CACHING: u64 = 3 << 29;
/// CR0 bits that the guest sees as it set them, and has as the kernel does.
pub const CR0_SHADOWED: u64 = NE | CACHING;
/// The same of CR4.
pub const CR4_SHADOWED: u64 = MCE;

/// CR0 as the processor has it for a guest's.
pub fn real_cr0(guest: u64) -> u64 {
    guest & !CACHING | NE
}
/// CR4.
pub fn real_cr4(guest: u64) -> u64 {
    guest & !(0xffff_ffff & !controls().cr4) | VMXE | MCE
}

/// IA32_FEATURE_CONTROL: locked; VMXON is allowed (SDM vol. 3, 24.7).
pub const FEATURE_CONTROL: u32 = 0x3a;
/// See there.
pub const LOCKED: u64 = 1;
/// See there.
pub const VMXON: u64 = 1 << 2;

/// Whether a processor with CPUID 1 ECX and 7.0 EBX and these MSRs can do the work; the controls then.
///
/// # Errors
/// What it lacks, and what to do about it.
pub fn usable(
    [features, structured]: [u32; 2],
    read: impl Fn(u32) -> u64,
) -> Result<Controls, &'static str> {
    if features & 1 << 5 == 0 {
        return Err(
            "this processor has no hardware virtualisation (VMX): use one that has, or switch \"Intel Virtualization \
             Technology\" (\"VT-x\") on in the firmware setup. In QEMU: -cpu max,+svm,+npt.",
        );
    }
    if read(FEATURE_CONTROL) & (LOCKED | VMXON) == LOCKED {
        return Err(
            "hardware virtualisation (VMX) is disabled and locked by the firmware: enter its setup and switch \"Intel \
             Virtualization Technology\" (also \"VT-x\" or \"VMX\") on.",
        );
    }
    if structured & 1 == 0 {
        return Err("this processor has no FSGSBASE, which Vireo needs: use a newer one.");
    }
    let (basic, primary) = (read(0x480), read(0x482));
    let secondary = if primary >> 63 != 0 { read(0x48b) } else { 0 };
    // With EPT or VPID.
    let there = secondary >> 32 & (1 << 1 | 1 << 5) != 0;
    let truly = basic & TRUE_CONTROLS != 0;
    choose(&Capabilities {
        basic,
        sets: [0x48d, 0x48e, 0x48f, 0x490].map(|m| if truly { read(m) } else { 0 }),
        secondary,
        ept: if there { read(0x48c) } else { 0 },
        cr4: read(0x489),
        misc: read(0x485),
    })
}

/// Chooses the controls.
///
/// # Errors
/// What the processor lacks.
pub fn choose(m: &Capabilities) -> Result<Controls, &'static str> {
    macro_rules! lacks {
        ($what:literal) => {
            concat!(
                "this processor's VMX has no ",
                $what,
                ", which Vireo needs: use a newer one. In Bochs: cpu: model=corei7_skylake_x."
            )
        };
    }
    if m.basic & TRUE_CONTROLS == 0 {
        return Err(lacks!("true control capabilities"));
    }
    let [pin, primary, exit, entry] = m.sets;
    type P = PinbasedControls;
    type R = PrimaryControls;
    type S = SecondaryControls;
    type X = ExitControls;
    type E = EntryControls;
    for (bit, name) in [
        (S::ENABLE_EPT, lacks!("extended page tables (EPT)")),
        (S::UNRESTRICTED_GUEST, lacks!("unrestricted guests")),
        (
            S::ENABLE_VPID,
            lacks!("virtual processor identifiers (VPID)"),
        ),
    ] {
        if m.secondary >> 32 & u64::from(bit.bits()) == 0 {
            return Err(name);
        }
    }
    if m.ept & EPT != EPT {
        return Err(lacks!(
            "EPT with four levels, write-back tables, 2 MiB pages, INVEPT and INVVPID"
        ));
    }
    // What each can have by its capability, what it must have, what it has if it can, and what is missing otherwise.
    let rows = [
        (
            pin,
            (P::EXTERNAL_INTERRUPT_EXITING | P::NMI_EXITING | P::VIRTUAL_NMIS).bits(),
            TIMER,
            lacks!("virtual NMIs"),
        ),
        (
            primary,
            (R::USE_TSC_OFFSETTING
                | R::HLT_EXITING
                | R::MWAIT_EXITING
                | R::RDPMC_EXITING
                | R::USE_TPR_SHADOW
                | R::UNCOND_IO_EXITING
                | R::USE_MSR_BITMAPS
                | R::MONITOR_EXITING
                | R::SECONDARY_CONTROLS)
                .bits(),
            0,
            lacks!("TPR shadow, TSC offsetting or MSR bitmaps"),
        ),
        (
            m.secondary,
            (S::ENABLE_EPT | S::ENABLE_VPID | S::WBINVD_EXITING | S::UNRESTRICTED_GUEST).bits(),
            (S::ENABLE_RDTSCP | S::ENABLE_INVPCID).bits(),
            lacks!("WBINVD exits"),
        ),
        (
            exit,
            (X::SAVE_DEBUG_CONTROLS
                | X::HOST_ADDRESS_SPACE_SIZE
                | X::LOAD_IA32_PAT
                | X::SAVE_IA32_EFER
                | X::LOAD_IA32_EFER)
                .bits(),
            (pin >> 32) as u32 / TIMER % 2 * X::SAVE_VMX_PREEMPTION_TIMER.bits(),
            lacks!("switching of PAT and EFER"),
        ),
        (
            entry,
            (E::LOAD_DEBUG_CONTROLS | E::LOAD_IA32_PAT | E::LOAD_IA32_EFER).bits(),
            0,
            lacks!("switching of PAT and EFER"),
        ),
    ];
    let mut sets = [0; 5];
    for (to, (capability, wanted, optional, name)) in sets.iter_mut().zip(rows) {
        // Bits that must be set are in the lower half, those that can be in the upper (A.3.1).
        let can = (capability >> 32) as u32;
        *to = wanted | optional & can | capability as u32;
        if *to & !can != 0 {
            return Err(name);
        }
    }
    let accessed = if m.ept & EPT_ACCESSED != 0 { 1 << 6 } else { 0 };
    Ok(Controls {
        revision: m.basic as u32 & 0x7fff_ffff,
        sets,
        newer: newer::choose((m.secondary >> 32) as u32),
        #[cfg(any(test, feature = "unproven"))]
        posts: newer::posted::can(m),
        ept: 3 << 3 | 6 | accessed,
        cr4: m.cr4 & CR4_GUEST,
        gigabyte: m.ept & EPT_GIGABYTE != 0,
        rate: m.misc as u32 & 31,
    })
}

/// The EPT pointer of `v`'s VM.
pub fn ept_pointer(v: &Vcpu) -> u64 {
    v.guest.table.root | controls().ept
}

/// A new vCPU's VMCS is written when a processor first loads it.
pub fn create(v: &Vcpu) {
    // SAFETY: pages of the vCPU's own.
    let (vmcs, kept) = unsafe { (mem::page(v.extended_phys), mem::page(v.control_phys)) };
    // The area for XSAVE lies behind the virtual APIC and what belongs to it.
    let area = super::extended::AREA as usize / 8;
    for i in [0, 3] {
        kept.0[area + i].set(vmcs.0[i].take());
    }
    vmcs.0[0].set(controls().revision.into());
    // The rest of it is 0 in new pages.
    Soft::of(v).reset_guest();
    newer::offer(v);
    super::unusual(v);
}

/// Writes the VMCS of `v`, which has just become current for the first time.
pub fn reset(v: &Vcpu) {
    let k = controls();
    let [pin, primary, secondary, exit, _] = k.sets.map(u64::from);
    for (field, value) in [
        (c::PINBASED_EXEC_CONTROLS, pin),
        (c::PRIMARY_PROCBASED_EXEC_CONTROLS, primary),
        (c::SECONDARY_PROCBASED_EXEC_CONTROLS, secondary),
        (c::VMEXIT_CONTROLS, exit),
        (c::EXCEPTION_BITMAP, crate::virt::EXCEPTIONS),
        (c::MSR_BITMAPS_ADDR_FULL, bitmap(false)),
        (c::VIRT_APIC_ADDR_FULL, v.control_phys),
        (c::EPTP_FULL, ept_pointer(v)),
        (c::CR0_GUEST_HOST_MASK, CR0_SHADOWED),
        (c::CR4_GUEST_HOST_MASK, !k.cr4 | CR4_SHADOWED),
        (g::LINK_PTR_FULL, u64::MAX),
        (h::CS_SELECTOR, 0x08),
        (h::SS_SELECTOR, 0x10),
        (h::TR_SELECTOR, 0x38),
    ] {
        write(field, value);
    }
    // Zero, which a new VMCS need not be (25.11.3).
    for field in [
        c::PAGE_FAULT_ERR_CODE_MASK,
        c::PAGE_FAULT_ERR_CODE_MATCH,
        c::CR3_TARGET_COUNT,
        c::VMEXIT_MSR_STORE_COUNT,
        c::VMEXIT_MSR_LOAD_COUNT,
        c::VMENTRY_MSR_LOAD_COUNT,
        c::VMENTRY_INTERRUPTION_INFO_FIELD,
        c::TPR_THRESHOLD,
        g::IA32_DEBUGCTL_FULL,
        g::ACTIVITY_STATE,
        g::PENDING_DBG_EXCEPTIONS,
        g::SMBASE,
        h::DS_SELECTOR,
        h::ES_SELECTOR,
        h::FS_SELECTOR,
        h::GS_SELECTOR,
        h::FS_BASE,
    ] {
        write(field, 0);
    }
    Soft::of(v).controls.set(k.sets[PRIMARY]);
    reset_guest();
}

/// The guest's state after reset (SDM vol. 3, 10.1.1).
pub fn reset_guest() {
    for n in 0..8 {
        let (selector, rights, base) = match n {
            1 => (0xf000, 0x9b, 0xffff_0000),
            6 => (0, 0x82, 0),
            7 => (0, 0x8b, 0),
            _ => (0, 0x93, 0),
        };
        for (first, value) in [
            (g::ES_SELECTOR, selector),
            (g::ES_LIMIT, 0xffff),
            (g::ES_ACCESS_RIGHTS, rights),
            (g::ES_BASE, base),
        ] {
            write(first + 2 * n, value);
        }
    }
    for (field, value) in [
        (g::GDTR_BASE, 0),
        (g::GDTR_LIMIT, 0xffff),
        (g::IDTR_BASE, 0),
        (g::IDTR_LIMIT, 0xffff),
        (g::RSP, 0),
        (g::CR3, 0),
        (g::DR7, 0x400),
        (g::IA32_PAT_FULL, 0x0007_0406_0007_0406),
        (g::IA32_SYSENTER_CS, 0),
        (g::IA32_SYSENTER_ESP, 0),
        (g::IA32_SYSENTER_EIP, 0),
        (c::TSC_OFFSET_FULL, 0),
    ] {
        write(field, value);
    }
    set_cr(0x6000_0010, 0, 0);
}

/// Writes the guest's CR0, CR4 and EFER.
pub fn set_cr(cr0: u64, cr4: u64, efer: u64) {
    // LMA follows from LME and PG (27.3.1.1).
    let long = cr0 >> 31 & efer >> 8 & 1;
    for (field, value) in [
        (g::CR0, real_cr0(cr0)),
        (c::CR0_READ_SHADOW, cr0),
        (g::CR4, real_cr4(cr4)),
        (c::CR4_READ_SHADOW, cr4),
        (g::IA32_EFER_FULL, efer & !(1 << 10) | long << 10),
        (
            c::VMENTRY_CONTROLS,
            u64::from(controls().sets[ENTRY]) | long << 9,
        ),
    ] {
        write(field, value);
    }
}

/// The instructions. All of them are for the VMCS that is current: that of the owner of the processor's extended state.
#[cfg(target_os = "none")]
#[allow(missing_docs, reason = "as the real ones")]
mod hardware {
    use core::arch::asm;
    use x86_64::registers::model_specific::Msr;

    const SYSCALL: [u32; 4] = [0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084];

    /// VMREAD of `field`.
    #[inline(always)]
    pub fn read(field: u32) -> u64 {
        let value;
        // SAFETY: VMX is on and a VMCS current; a field that every processor with what `choose` asks for has.
        unsafe {
            asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field), options(nomem, nostack));
        }
        value
    }
    /// VMWRITE of `field`.
    #[inline(always)]
    pub fn write(field: u32, value: u64) {
        // SAFETY: as for `read`; what the guest may not have, the processor finds at entry or a mask keeps out.
        unsafe {
            asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nomem, nostack));
        }
    }
    /// VMCLEAR.
    pub fn clear(phys: u64) {
        // SAFETY: a VMCS that is no other processor's.
        unsafe { asm!("vmclear [{}]", in(reg) &phys, options(nostack)) };
    }
    /// VMPTRLD.
    pub fn make_current(phys: u64) {
        // SAFETY: as above, with its revision identifier in place.
        unsafe { asm!("vmptrld [{}]", in(reg) &phys, options(nostack)) };
    }
    /// INVEPT of one context (1).
    pub fn invalidate_ept(pointer: u64) {
        let descriptor = [pointer, 0];
        // SAFETY: only forgets translations.
        unsafe {
            asm!("invept {}, [{}]", in(reg) 1_u64, in(reg) &descriptor, options(nostack));
        }
    }
    /// INVVPID of one context (1) or of all (2).
    pub fn invalidate_vpid(kind: u64, vpid: u32) {
        let descriptor = [u64::from(vpid), 0];
        // SAFETY: only forgets translations.
        unsafe {
            asm!("invvpid {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack));
        }
    }
    /// STAR, LSTAR, CSTAR, SFMASK, which neither entry nor exit switches.
    pub fn syscall_msrs() -> [u64; 4] {
        // SAFETY: MSRs that every processor in long mode has.
        SYSCALL.map(|m| unsafe { Msr::new(m).read() })
    }
    /// Sets them, to what the processor takes (`extended::load`).
    pub fn set_syscall_msrs(values: [u64; 4]) {
        for (m, value) in SYSCALL.into_iter().zip(values) {
            // SAFETY: the kernel's own entry is another.
            unsafe { Msr::new(m).write(value) };
        }
    }
    /// Sets DR6.
    pub fn set_dr6(value: u64) {
        // SAFETY: status bits of a guest's breakpoints; the kernel has none.
        unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack)) };
    }
    /// DR6.
    pub fn dr6() -> u64 {
        let value;
        // SAFETY: as above.
        unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack)) };
        value
    }
}

#[cfg(not(target_os = "none"))]
#[path = "../../checker/vmcs.rs"]
mod hardware;
