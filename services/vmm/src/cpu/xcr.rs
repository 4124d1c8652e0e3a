//! XSETBV.

use super::GeneralProtection;
use ipc_schema::abi::vm::VcpuState;

/// Checks XSETBV of register `ecx` with `edx:eax` as in `state` against `supported` bits; gives the new XCR0 to store
/// (state page group XCR).
pub fn xsetbv(state: &VcpuState, supported: u64) -> Result<u64, GeneralProtection> {
    let _ = (state, supported);
    Err(GeneralProtection)
}
