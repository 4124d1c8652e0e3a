//! What a processor of AMD's (or Hygon's) asks for against speculative side channels.

use crate::arch::speculation::{BARRIER, CLEAR, Plan, STUFF, control};

/// What it says of itself.
#[derive(Clone, Copy, Default, Debug)]
pub struct Facts {
    /// Family and model (CPUID 1 EAX, extended parts added).
    pub family: u32,
    /// See `family`.
    pub model: u32,
    /// CPUID 8000_0008 EBX.
    pub sizes: u32,
    /// CPUID 8000_0021 EAX and ECX.
    pub more: [u32; 2],
}

/// Bits of them.
mod bits {
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
}
/// DE_CFG: LFENCE waits for all before it (AMD, "Software techniques for managing speculation").
const LFENCE: u64 = 1 << 1;
/// DE_CFG: against CVE-2023-20593 on Zen 2 (AMD-SB-7008).
const ZENBLEED: u64 = 1 << 9;

/// Asks this processor.
#[cfg(target_os = "none")]
pub fn facts() -> Facts {
    let [first, sizes, more] = [1, 0x8000_0008, 0x8000_0021].map(crate::arch::cpuid);
    let family = (first.eax >> 8) & 15;
    Facts {
        // The extended part counts for the highest family only.
        family: family + ((first.eax >> 20) & 0xff) * (family / 15),
        model: (first.eax >> 4) & 15 | (first.eax >> 12) & 0xf0,
        sizes: sizes.ebx,
        more: [more.eax, more.ecx],
    }
}

/// Decides.
pub fn plan(f: &Facts) -> Plan {
    let mut p = Plan::default();
    let has = |bit| f.sizes & bit != 0;
    let [more, tsa] = f.more;
    p.on_switch(BARRIER, has(bits::IBPB));
    p.on_switch(STUFF, has(bits::IBPB) && !has(bits::IBPB_RET));
    let leaks = more & bits::VERW_CLEAR != 0 && tsa & bits::TSA_NO != bits::TSA_NO;
    p.on_switch(CLEAR, leaks);
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
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMD: Facts = Facts {
        family: 0x19,
        model: 0,
        sizes: 0,
        more: [0; 2],
    };

    #[test]
    fn a_processor_that_asks_for_nothing_gets_nothing() {
        // QEMU's TCG: family 15, none of the bits.
        let tcg = Facts { family: 0xf, ..AMD };
        assert_eq!(plan(&tcg), Plan::default());
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
}
