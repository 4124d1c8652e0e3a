//! XSETBV.

use super::GeneralProtection;
use ipc_schema::abi::vm::{VcpuState, gpr};

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// Opmask, ZMM_Hi256 and Hi16_ZMM: all or none.
const AVX512: u64 = 0b111 << 5;

/// Checks XSETBV with ecx and edx:eax as in `state` against the bits that the guest may set
/// ([`super::Policy::xcr0_supported`]); gives the new XCR0, to be stored in the state page (group XCR).
/// Intel SDM vol. 1, 13.3. The processor has checked privilege level and CR4.OSXSAVE before the exit.
pub fn xsetbv(state: &VcpuState, supported: u64) -> Result<u64, GeneralProtection> {
    let [rax, rcx, rdx] = [gpr::RAX, gpr::RCX, gpr::RDX].map(|r| state.gpr[r]);
    let value = rax & 0xFFFF_FFFF | rdx << 32;
    let wide = value & AVX512;
    let legal = rcx as u32 == 0
        && state.cpl == 0
        && value & !supported == 0
        && value & X87 != 0
        && (value & AVX == 0 || value & SSE != 0)
        && (wide == 0 || (wide == AVX512 && value & AVX != 0));
    if legal {
        Ok(value)
    } else {
        Err(GeneralProtection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: u64, rcx: u64) -> Result<u64, GeneralProtection> {
        let mut state = crate::emulate::testing::state();
        // Upper halves are ignored.
        state.gpr[gpr::RAX] = 0xFFFF_FFFF_0000_0000 | value & 0xFFFF_FFFF;
        state.gpr[gpr::RDX] = 0xFFFF_FFFF_0000_0000 | value >> 32;
        state.gpr[gpr::RCX] = rcx;
        xsetbv(&state, X87 | SSE | AVX | AVX512)
    }

    #[test]
    fn only_legal_combinations() {
        for good in [1, 3, 7, 0xE7] {
            assert_eq!(with(good, 0), Ok(good));
        }
        for bad in [0, 2, 5, 6, 0x27, 0xE3, 0xE5, 0x20_0007, 1 << 63 | 7, 0xF] {
            assert_eq!(with(bad, 0), Err(GeneralProtection), "{bad:#x}");
        }
        assert_eq!(with(7, 1), Err(GeneralProtection));
        assert_eq!(with(7, 1 << 32), Ok(7));
    }
}
