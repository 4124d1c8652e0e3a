//! What the processor asks for against speculative side channels: decided once from what it says of itself (`virt::svm::speculation`,
//! `virt::vmx::speculation`), and done at boot and when the processor goes over from one vCPU to another. The table of what is and is not defended: `docs/SPECULATION.md`.

/// What is to be done.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Bits that SPEC_CTRL keeps for good; 0: it is left alone.
    pub control: u64,
    /// EFER.AIBRSE: the processor keeps the kernel's branch prediction apart by itself.
    pub automatic: bool,
    /// DE_CFG bits that are set.
    pub configuration: u64,
    /// What is done when another vCPU gets the processor ([`BARRIER`] to [`FLUSH`]).
    pub switch: u8,
}

impl Plan {
    /// This is done then too, if it is `wanted`.
    pub fn on_switch(&mut self, what: u8, wanted: bool) {
        self.switch |= if wanted { what } else { 0 };
    }
}
/// IBPB.
pub const BARRIER: u8 = 1;
/// Fill the return stack, which the barrier leaves.
pub const STUFF: u8 = 2;
/// VERW.
pub const CLEAR: u8 = 4;
/// Flush the first-level data cache.
pub const FLUSH: u8 = 8;

/// SPEC_CTRL.
pub mod control {
    /// Indirect branches of user level do not steer the kernel's.
    pub const IBRS: u64 = 1;
    /// Those of one thread of a core do not steer the other's.
    pub const STIBP: u64 = 1 << 1;
}
#[cfg(target_os = "none")]
pub use real::*;

#[cfg(target_os = "none")]
mod real {
    use super::{BARRIER, CLEAR, FLUSH, STUFF};
    use crate::mem::Global;
    use crate::virt::with_virt;
    use core::arch::asm;
    use core::cell::Cell;
    use x86_64::registers::control::Efer;
    use x86_64::registers::model_specific::Msr;

    const SPEC_CTRL: u32 = 0x48;
    const PRED_CMD: u32 = 0x49;
    const FLUSH_CMD: u32 = 0x10b;
    const DE_CFG: u32 = 0xc001_1029;
    /// EFER.AIBRSE (AMD APM vol. 2, 3.1.7).
    const AUTOMATIC: u64 = 1 << 21;

    /// [`super::Plan::switch`] of all processors.
    static SWITCH: Global<Cell<u8>> = Global(Cell::new(0));

    /// Finds out, and does what is done once on each processor.
    pub fn start() {
        let p = with_virt!(v => v::speculation::plan(&v::speculation::facts()));
        let mut de_cfg = Msr::new(DE_CFG);
        // SAFETY: CPUID shows each of these; they only make the processor more careful.
        unsafe {
            if p.control != 0 {
                Msr::new(SPEC_CTRL).write(p.control);
            }
            if p.automatic {
                Efer::write_raw(Efer::read_raw() | AUTOMATIC);
            }
            if p.configuration != 0 && de_cfg.read() & p.configuration != p.configuration {
                de_cfg.write(de_cfg.read() | p.configuration);
            }
        }
        // What any processor asks for, all do.
        SWITCH.set(SWITCH.get() | p.switch);
        defmt::info!(
            "speculation: control {0=u64:#x}, automatic {1=bool}, configuration {2=u64:#x}, barrier {3=0..1}, stuff {3=1..2}, clear {3=2..3}, flush {3=3..4}",
            p.control,
            p.automatic,
            p.configuration,
            p.switch
        );
    }

    /// Another vCPU gets the processor.
    pub fn switch() {
        let does = |what| SWITCH.get() & what != 0;
        // SAFETY: commands and an instruction that CPUID shows; they change no state that can be read.
        unsafe {
            if does(BARRIER) {
                Msr::new(PRED_CMD).write(1);
            }
            if does(STUFF) {
                asm!(".rept 32", "call 2f", "int3", "2:", ".endr", "add rsp, 256");
            }
            if does(FLUSH) {
                Msr::new(FLUSH_CMD).write(1);
            }
            if does(CLEAR) {
                let selector = 0x10_u16;
                asm!("verw [{}]", in(reg) &selector, options(nostack, readonly));
            }
        }
    }
}

#[cfg(not(target_os = "none"))]
/// Nothing on the host.
pub fn switch() {}
