//! What a processor of Intel's asks for against speculative side channels.

use crate::arch::speculation::{BARRIER, CLEAR, FLUSH, Plan, STUFF, control};

/// What it says of itself.
#[derive(Clone, Copy, Default, Debug)]
pub struct Facts {
    /// CPUID 7.0 EDX.
    pub structured: u32,
    /// IA32_ARCH_CAPABILITIES (0 where there is none).
    pub capabilities: u64,
}

/// Bits of them.
mod bits {
    /// CPUID 7.0 EDX.
    pub const MD_CLEAR: u32 = 1 << 10;
    pub const IBRS_IBPB: u32 = 1 << 26;
    pub const L1D_FLUSH: u32 = 1 << 28;
    /// There is IA32_ARCH_CAPABILITIES.
    #[cfg(target_os = "none")]
    pub const CAPABILITIES: u32 = 1 << 29;
    /// IA32_ARCH_CAPABILITIES.
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const SKIP_L1D_FLUSH: u64 = 1 << 3;
    pub const MDS_NO: u64 = 1 << 5;
    pub const TAA_NO: u64 = 1 << 8;
    pub const RDCL_NO: u64 = 1;
}

/// Asks this processor.
#[cfg(target_os = "none")]
pub fn facts() -> Facts {
    let mut f = Facts {
        structured: crate::arch::cpuid(7).edx,
        capabilities: 0,
    };
    if f.structured & bits::CAPABILITIES != 0 {
        // SAFETY: CPUID says that it is there.
        f.capabilities = unsafe { x86_64::registers::model_specific::Msr::new(0x10a).read() };
    }
    f
}

/// Decides.
pub fn plan(f: &Facts) -> Plan {
    let mut p = Plan::default();
    let has = |bit| f.structured & bit != 0;
    let says = |bit| f.capabilities & bit != 0;
    p.on_switch(BARRIER | STUFF, has(bits::IBRS_IBPB));
    let leaks = !(says(bits::MDS_NO) && says(bits::TAA_NO));
    p.on_switch(CLEAR, has(bits::MD_CLEAR) && leaks);
    let leaks = !says(bits::RDCL_NO) && !says(bits::SKIP_L1D_FLUSH);
    p.on_switch(FLUSH, has(bits::L1D_FLUSH) && leaks);
    if has(bits::IBRS_IBPB) && says(bits::IBRS_ALL) {
        p.control |= control::IBRS;
    }
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_asks_for_nothing_gets_nothing() {
        assert_eq!(plan(&Facts::default()), Plan::default());
    }

    #[test]
    fn intel() {
        let old = Facts {
            structured: bits::MD_CLEAR | bits::IBRS_IBPB | bits::L1D_FLUSH,
            capabilities: 0,
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
