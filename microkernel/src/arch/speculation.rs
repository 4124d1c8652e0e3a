//! What the processor asks for against speculative side channels: decided once from what it says of itself, and done at boot and when
//! the processor goes over from one vCPU to another. The table of what is and is not defended: `docs/SPECULATION.md`.

/// What a processor says of itself.
#[derive(Clone, Copy, Default, Debug)]
pub struct Facts {
    /// Whether it is AMD's (or Hygon's); Intel's otherwise.
    pub amd: bool,
    /// Family and model (CPUID 1 EAX, extended parts added).
    pub family: u32,
    /// See `family`.
    pub model: u32,
    /// CPUID 7.0 EDX.
    pub structured: u32,
    /// CPUID 8000_0008 EBX.
    pub sizes: u32,
    /// CPUID 8000_0021 EAX and ECX.
    pub more: [u32; 2],
    /// IA32_ARCH_CAPABILITIES (0 where there is none).
    pub capabilities: u64,
}

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
/// IBPB.
const BARRIER: u8 = 1;
/// Fill the return stack, which the barrier leaves.
const STUFF: u8 = 2;
/// VERW.
const CLEAR: u8 = 4;
/// Flush the first-level data cache.
const FLUSH: u8 = 8;

/// Bits of the registers that are read.
mod bits {
    /// CPUID 7.0 EDX.
    pub const MD_CLEAR: u32 = 1 << 10;
    pub const IBRS_IBPB: u32 = 1 << 26;
    pub const L1D_FLUSH: u32 = 1 << 28;
    /// CPUID 8000_0008 EBX (AMD APM vol. 3, E.4.8).
    pub const IBPB: u32 = 1 << 12;
    pub const IBRS: u32 = 1 << 14;
    pub const STIBP: u32 = 1 << 15;
    pub const IBRS_ALWAYS: u32 = 1 << 16;
    pub const STIBP_ALWAYS: u32 = 1 << 17;
    pub const IBPB_RET: u32 = 1 << 30;
    /// CPUID 8000_0021 EAX.
    pub const LFENCE_SERIALISES: u32 = 1 << 2;
    pub const VERW_CLEAR: u32 = 1 << 5;
    pub const AUTOMATIC_IBRS: u32 = 1 << 8;
    /// CPUID 8000_0021 ECX.
    pub const TSA_NO: u32 = 1 << 1 | 1 << 2;
    /// IA32_ARCH_CAPABILITIES.
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const SKIP_L1D_FLUSH: u64 = 1 << 3;
    pub const MDS_NO: u64 = 1 << 5;
    pub const TAA_NO: u64 = 1 << 8;
    pub const RDCL_NO: u64 = 1;
}
/// SPEC_CTRL.
pub mod control {
    /// Indirect branches of user level do not steer the kernel's.
    pub const IBRS: u64 = 1;
    /// Those of one thread of a core do not steer the other's.
    pub const STIBP: u64 = 1 << 1;
}
/// DE_CFG: LFENCE waits for all before it (AMD, "Software techniques for managing speculation").
const LFENCE: u64 = 1 << 1;
/// DE_CFG: against CVE-2023-20593 on Zen 2 (AMD-SB-7008).
const ZENBLEED: u64 = 1 << 9;

/// Decides.
pub fn plan(f: &Facts) -> Plan {
    let mut p = Plan::default();
    let mut switch = |what: u8, wanted: bool| p.switch |= if wanted { what } else { 0 };
    if f.amd {
        let has = |bit| f.sizes & bit != 0;
        let [more, tsa] = f.more;
        switch(BARRIER, has(bits::IBPB));
        switch(STUFF, has(bits::IBPB) && !has(bits::IBPB_RET));
        switch(
            CLEAR,
            more & bits::VERW_CLEAR != 0 && tsa & bits::TSA_NO != bits::TSA_NO,
        );
        p.automatic = more & bits::AUTOMATIC_IBRS != 0;
        if has(bits::IBRS) && has(bits::IBRS_ALWAYS) && !p.automatic {
            p.control |= control::IBRS;
        }
        if has(bits::STIBP) && (has(bits::STIBP_ALWAYS) || p.automatic) {
            p.control |= control::STIBP;
        }
        if matches!(f.family, 0x10 | 0x12 | 0x14..=0x18) && more & bits::LFENCE_SERIALISES == 0 {
            p.configuration |= LFENCE;
        }
        let zen2 = matches!(f.model, 0x30..=0x4f | 0x60..=0x7f | 0x90..=0x91 | 0xa0..=0xaf);
        if f.family == 0x17 && zen2 {
            p.configuration |= ZENBLEED;
        }
    } else {
        let has = |bit| f.structured & bit != 0;
        let says = |bit| f.capabilities & bit != 0;
        switch(BARRIER | STUFF, has(bits::IBRS_IBPB));
        switch(
            CLEAR,
            has(bits::MD_CLEAR) && !(says(bits::MDS_NO) && says(bits::TAA_NO)),
        );
        switch(
            FLUSH,
            has(bits::L1D_FLUSH) && !says(bits::RDCL_NO) && !says(bits::SKIP_L1D_FLUSH),
        );
        if has(bits::IBRS_IBPB) && says(bits::IBRS_ALL) {
            p.control |= control::IBRS;
        }
    }
    p
}

#[cfg(target_os = "none")]
pub use real::*;

#[cfg(target_os = "none")]
mod real {
    use super::{BARRIER, CLEAR, FLUSH, Facts, STUFF, plan};
    use crate::arch::cpuid;
    use crate::mem::Global;
    use core::arch::asm;
    use core::cell::Cell;
    use x86_64::registers::control::Efer;
    use x86_64::registers::model_specific::Msr;

    const SPEC_CTRL: u32 = 0x48;
    const PRED_CMD: u32 = 0x49;
    const ARCH_CAPABILITIES: u32 = 0x10a;
    const FLUSH_CMD: u32 = 0x10b;
    const DE_CFG: u32 = 0xc001_1029;
    /// EFER.AIBRSE (AMD APM vol. 2, 3.1.7).
    const AUTOMATIC: u64 = 1 << 21;

    /// [`super::Plan::switch`] of all processors.
    static SWITCH: Global<Cell<u8>> = Global(Cell::new(0));

    /// Whether this is a processor of Intel's.
    pub fn intel() -> bool {
        // "Genu".
        cpuid(0).ebx == 0x756e_6547
    }

    fn facts() -> Facts {
        let first = cpuid(1).eax;
        let family = (first >> 8) & 15;
        let structured = cpuid(7).edx;
        let more = cpuid(0x8000_0021);
        let mut capabilities = 0;
        if structured & 1 << 29 != 0 {
            // SAFETY: CPUID says that it is there.
            capabilities = unsafe { Msr::new(ARCH_CAPABILITIES).read() };
        }
        Facts {
            amd: !intel(),
            // The extended part counts for the highest family only.
            family: family + ((first >> 20) & 0xff) * (family / 15),
            model: (first >> 4) & 15 | (first >> 12) & 0xf0,
            structured,
            sizes: cpuid(0x8000_0008).ebx,
            more: [more.eax, more.ecx],
            capabilities,
        }
    }

    /// Finds out, and does what is done once on each processor.
    pub fn start() {
        let p = plan(&facts());
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

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: Facts = Facts {
        amd: false,
        family: 6,
        model: 0,
        structured: 0,
        sizes: 0,
        more: [0; 2],
        capabilities: 0,
    };
    const AMD: Facts = Facts {
        amd: true,
        family: 0x19,
        ..INTEL
    };

    #[test]
    fn a_processor_that_asks_for_nothing_gets_nothing() {
        // QEMU's TCG: family 15, none of the bits.
        let tcg = Facts { family: 0xf, ..AMD };
        assert_eq!(plan(&tcg), Plan::default());
        assert_eq!(plan(&INTEL), Plan::default());
    }

    #[test]
    fn amd() {
        let zen2 = Facts {
            family: 0x17,
            model: 0x71,
            sizes: bits::IBPB | bits::STIBP,
            ..AMD
        };
        let expected = Plan {
            switch: BARRIER | STUFF,
            configuration: LFENCE | ZENBLEED,
            ..Plan::default()
        };
        assert_eq!(plan(&zen2), expected);
        // IBRS is set once only where the processor prefers it on for good.
        let sizes = bits::IBPB | bits::IBRS | bits::IBRS_ALWAYS | bits::STIBP | bits::STIBP_ALWAYS;
        let zen3 = Facts {
            sizes,
            more: [bits::VERW_CLEAR | bits::LFENCE_SERIALISES, 0],
            ..AMD
        };
        let expected = Plan {
            switch: BARRIER | STUFF | CLEAR,
            control: control::IBRS | control::STIBP,
            ..Plan::default()
        };
        assert_eq!(plan(&zen3), expected);
        let on_demand = Facts {
            sizes: bits::IBRS,
            ..AMD
        };
        assert_eq!(plan(&on_demand), Plan::default());
        let zen5 = Facts {
            family: 0x1a,
            sizes: sizes | bits::IBPB_RET,
            more: [bits::AUTOMATIC_IBRS | bits::VERW_CLEAR, bits::TSA_NO],
            ..AMD
        };
        let expected = Plan {
            switch: BARRIER,
            automatic: true,
            control: control::STIBP,
            ..Plan::default()
        };
        assert_eq!(plan(&zen5), expected);
        // One of the two forms is enough to be affected.
        let half = Facts {
            more: [bits::VERW_CLEAR, 1 << 1],
            ..AMD
        };
        assert_eq!(plan(&half).switch, CLEAR);
    }

    #[test]
    fn intel() {
        let old = Facts {
            structured: bits::MD_CLEAR | bits::IBRS_IBPB | bits::L1D_FLUSH,
            ..INTEL
        };
        let all = Plan {
            switch: BARRIER | STUFF | CLEAR | FLUSH,
            ..Plan::default()
        };
        assert_eq!(plan(&old), all);
        let new = Facts {
            capabilities: bits::IBRS_ALL | bits::RDCL_NO | bits::MDS_NO | bits::TAA_NO,
            ..old
        };
        let expected = Plan {
            switch: BARRIER | STUFF,
            control: control::IBRS,
            ..Plan::default()
        };
        assert_eq!(plan(&new), expected);
        let half = Facts {
            capabilities: bits::MDS_NO | bits::SKIP_L1D_FLUSH,
            ..old
        };
        assert_eq!(
            plan(&half),
            Plan {
                switch: all.switch & !FLUSH,
                ..all
            }
        );
    }
}
