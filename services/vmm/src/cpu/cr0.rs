//! Writes to CR0 that change more than TS and MP.

use super::GeneralProtection;
use crate::emulate::Mode;
use ipc_schema::abi::vm::VcpuState;

const PE: u64 = 1 << 0;
const ET: u64 = 1 << 4;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const PG: u64 = 1 << 31;
/// PE, MP, EM, TS, NE, WP, AM, NW, CD, PG: what a write can change. ET is always 1; other bits of the lower half are ignored.
const WRITABLE: u64 = 0b10_1111 | 1 << 16 | 1 << 18 | NW | CD | PG;
const CR4_PAE: u64 = 1 << 5;
const CR4_PCIDE: u64 = 1 << 17;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Segment attribute L.
const LONG: u16 = 1 << 9;

/// CR0 and EFER after a write of `value` to CR0. `lme`: EFER.LME, which counts from when paging is switched on.
///
/// # Errors
/// What AMD APM vol. 2, 3.1.1 and 14.6.2, and Intel SDM vol. 2, MOV to control registers, forbid: paging without protection, write-through
/// without cache disable, the upper half; long mode without PAE or out of a segment that is 64-bit already; and paging switched off in
/// 64-bit mode or with PCIDs.
pub fn write(state: &VcpuState, lme: bool, value: u64) -> Result<(u64, u64), GeneralProtection> {
    let (was, will) = (state.cr0 & PG != 0, value & PG != 0);
    let long_segment = state.cs.attributes & LONG != 0;
    let forbidden = state.cpl != 0
        || value >> 32 != 0
        || will && value & PE == 0
        || value & NW != 0 && value & CD == 0
        || !was && will && lme && (state.cr4 & CR4_PAE == 0 || long_segment)
        || was && !will && (Mode::of(state) == Mode::Long || state.cr4 & CR4_PCIDE != 0);
    if forbidden {
        return Err(GeneralProtection);
    }
    let mut efer = state.efer & !(EFER_LME | EFER_LMA);
    if lme {
        efer |= EFER_LME | if will { EFER_LMA } else { 0 };
    }
    Ok((value & WRITABLE | ET, efer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::testing;

    /// A state in 32-bit protected mode, with or without paging.
    fn flat(paging: bool) -> alloc::boxed::Box<VcpuState> {
        let mut state = testing::state();
        state.cr0 = PE | ET | if paging { PG } else { 0 };
        state.cs.attributes = 0xC9B;
        state
    }

    #[test]
    fn into_long_mode_and_out_of_it() {
        let mut state = flat(false);
        // Long mode takes PAE.
        assert_eq!(write(&state, true, PG | PE), Err(GeneralProtection));
        state.cr4 = CR4_PAE;
        let on = (PG | PE | ET, EFER_LME | EFER_LMA);
        assert_eq!(write(&state, true, PG | PE), Ok(on));
        // What need not be in the page while paging is off.
        state.efer = 1;
        assert_eq!(write(&state, true, PG | PE), Ok((on.0, on.1 | 1)));
        assert_eq!(write(&state, false, PG | PE), Ok((on.0, 1)));
        // Not out of a segment that would be 64-bit code at once.
        state.cs.attributes |= LONG;
        assert_eq!(write(&state, true, PG | PE), Err(GeneralProtection));
        // In 64-bit mode paging stays on.
        (state.cr0, state.efer) = on;
        assert_eq!(write(&state, true, PE), Err(GeneralProtection));
        assert_eq!(write(&state, true, PG | PE), Ok(on));
        // In compatibility mode it may be switched off, unless there are PCIDs.
        state.cs.attributes = 0xC9B;
        assert_eq!(write(&state, true, PE), Ok((PE | ET, EFER_LME)));
        state.cr4 |= CR4_PCIDE;
        assert_eq!(write(&state, true, PE), Err(GeneralProtection));
    }

    #[test]
    fn bits() {
        let state = flat(true);
        let on = PG | PE;
        for bad in [PG, NW | on, 1 << 32 | on, 1 << 63 | on] {
            assert_eq!(
                write(&state, false, bad),
                Err(GeneralProtection),
                "{bad:#x}"
            );
        }
        // Ignored ones read 0, ET reads 1.
        assert_eq!(write(&state, false, 0x1FFA_FFC0 | on), Ok((on | ET, 0)));
        for bit in [1, 2, 3, 5, 16, 18, 30] {
            let value = on | 1 << bit;
            assert_eq!(write(&state, false, value), Ok((value | ET, 0)));
        }
        assert_eq!(
            write(&state, false, on | CD | NW),
            Ok((on | CD | NW | ET, 0))
        );
        let mut user = flat(true);
        user.cpl = 3;
        assert_eq!(write(&user, false, on), Err(GeneralProtection));
    }
}
