//! VM entries that the processor itself refuses, and what the host's state is then.
//!
//! Job: let a test reach what no valid argument can: [`spoil`] makes the next entry of a vCPU fail. Place: `Log`, operation [`SPOIL`].

use crate::mem::Obj;
use crate::object::Vcpu;
use crate::virt::svm::control::{Vmcb, field as f};
use crate::virt::{vmx, vmx::control};
use x86::vmx::vmcs::control as c;

/// Label of the `Log` operation that spoils a vCPU's control block; needs WRITE. w0: slot of the Vcpu (CONTROL) or 0, w1: how. Answers
/// what the host's own state is, in four words that change when any of it does.
pub const SPOIL: u64 = 0x7370_6f69_6c21;

/// No address space identifier (APM vol. 2, 15.5.1).
const NO_ASID: u64 = 1;
/// No VMRUN intercept; with VMX none of the pin-based controls that must be set.
const NO_INTERCEPT: u64 = 2;
/// As before.
const REPAIRED: u64 = 3;

/// Spoils the control block of `v` in way `how`; answers the host's state.
pub fn spoil(v: Option<Obj<Vcpu>>, how: u64) -> [u64; 4] {
    if let Some(v) = v.filter(|_| crate::virt::vmx::HERE.get()) {
        spoil_vmcs(v, how);
    } else if let Some(v) = v {
        let c = Vmcb::of(v.get());
        match how {
            NO_ASID => c.word(f::ASID_TLB).set(0),
            NO_INTERCEPT => {
                let w = c.word(f::INTERCEPT_2);
                w.set(w.get() & !1);
            }
            REPAIRED => c.word(f::ASID_TLB).set(u64::from(v.asid.get())),
            _ => {}
        }
    }
    state()
}

/// The same where there is a VMCS.
fn spoil_vmcs(v: Obj<Vcpu>, how: u64) {
    vmx::need(v.get());
    match how {
        NO_ASID => control::write(c::VPID, 0),
        NO_INTERCEPT => control::write(c::PINBASED_EXEC_CONTROLS, 0),
        REPAIRED => {
            control::write(c::VPID, v.asid.get().into());
            control::write(
                c::PINBASED_EXEC_CONTROLS,
                control::controls().sets[control::PIN].into(),
            );
        }
        _ => {}
    }
}

/// Control registers; the MSRs of entry and of segments; selectors; tables.
#[cfg(target_os = "none")]
fn state() -> [u64; 4] {
    use core::arch::asm;
    use x86_64::registers::control::{Cr0, Cr4};
    use x86_64::registers::model_specific::Msr;

    /// EFER, PAT, APIC base, VM_HSAVE_PA where there is one.
    const CONTROL: [u32; 4] = [0xc000_0080, 0x277, 0x1b, 0xc001_0117];
    /// STAR to SFMASK, which are a guest's with VMX.
    const SYSCALL: [u32; 4] = [0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084];
    /// FS, GS and kernel GS base, SYSENTER, TSC_AUX.
    const ENTRY: [u32; 7] = [
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0x174,
        0x175,
        0x176,
        0xc000_0103,
    ];
    let mix = |a: u64, b: u64| (a.rotate_left(7) ^ b).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // SAFETY: MSRs that every processor with SVM, or VMX, has.
    let msr = |hash: u64, n: &u32| mix(hash, unsafe { Msr::new(*n).read() });
    let (mut dr7, mut gdt, mut idt): (u64, [u8; 10], [u8; 10]) = (0, [0; 10], [0; 10]);
    let mut selectors = [0u64; 8];
    // SAFETY: reads, and stores of ten bytes each into arrays of as many.
    unsafe {
        asm!("mov {}, dr7", out(reg) dr7, options(nomem, nostack));
        asm!("sgdt [{}]", "sidt [{}]", in(reg) &mut gdt, in(reg) &mut idt, options(nostack));
        asm!("mov {0:r}, cs", "mov {1:r}, ss", "mov {2:r}, ds", "mov {3:r}, es", "mov {4:r}, fs", "mov {5:r}, gs",
            "str {6:r}", "sldt {7:r}",
            out(reg) selectors[0], out(reg) selectors[1], out(reg) selectors[2], out(reg) selectors[3],
            out(reg) selectors[4], out(reg) selectors[5], out(reg) selectors[6], out(reg) selectors[7],
            options(nomem, nostack));
    }
    let control = [Cr0::read_raw(), Cr4::read_raw(), dr7];
    let (hsave, syscall) = if crate::virt::vmx::HERE.get() {
        (0, 0)
    } else {
        (1, 4)
    };
    [
        CONTROL[..3 + hsave]
            .iter()
            .fold(control.into_iter().fold(0, mix), msr),
        SYSCALL[..syscall].iter().chain(&ENTRY).fold(0, msr),
        selectors.into_iter().fold(0, mix),
        gdt.into_iter()
            .chain(idt)
            .fold(0, |hash, byte| mix(hash, u64::from(byte))),
    ]
}

#[cfg(not(target_os = "none"))]
fn state() -> [u64; 4] {
    [0; 4]
}
