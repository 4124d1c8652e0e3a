//! Hypervisor leaves: our own name and the guest's frequencies, and behind them the interface that Linux knows.
//!
//! A guest that finds no interrupt remapping leaves x2APIC mode unless the hypervisor is one that it knows to deliver
//! interrupts without; in xAPIC mode each access to its APIC is a nested-page fault to be decoded (an end of interrupt
//! costs half as much again as by MSR), and the local APIC in hardware (`docs/VIRT.md`) is not for it. So the second
//! interface, at a base of its own as the convention has it (a guest looks at every 0x100 from 0x4000_0000 on), is
//! KVM's, with no feature but one that takes no doing: the guest need not wait at its ports. What each bit means is in
//! the interface's documentation, docs.kernel.org/virt/kvm/x86/cpuid.html; a guest that does not know it sees us.

use super::{EMPTY, Row, constant};
use alloc::vec::Vec;

/// First hypervisor leaf.
pub(super) const BASE: u32 = 0x4000_0000;
/// Last of our own: frequencies.
const FREQUENCIES: u32 = BASE + 0x10;
/// Our name.
const SIGNATURE: &[u8; 12] = b"VireoVireoVi";
/// First leaf of the other interface.
const KNOWN: u32 = BASE + 0x100;
/// Its name.
const KNOWN_SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";
/// Its last leaf: features.
const KNOWN_FEATURES: u32 = KNOWN + 1;
/// Feature: no delay is wanted between accesses to ports.
const NOP_IO_DELAY: u32 = 1 << 1;

/// All leaves from [`BASE`] on. `tsc_hz` and `apic_hz`: frequencies of the guest's TSC and local APIC timer.
pub(super) fn rows(tsc_hz: u64, apic_hz: u64) -> Vec<Row> {
    let row = |leaf| match leaf {
        BASE => named(FREQUENCIES, SIGNATURE),
        FREQUENCIES => constant([(tsc_hz / 1000) as u32, (apic_hz / 1000) as u32, 0, 0]),
        KNOWN => named(KNOWN_FEATURES, KNOWN_SIGNATURE),
        KNOWN_FEATURES => constant([NOP_IO_DELAY, 0, 0, 0]),
        _ => EMPTY,
    };
    (BASE..=KNOWN_FEATURES).map(row).collect()
}

/// The first leaf of an interface: its last leaf and its name.
fn named(last: u32, name: &[u8; 12]) -> Row {
    let mut regs = [last, 0, 0, 0];
    let (words, _) = name.as_chunks();
    for (to, from) in regs.iter_mut().skip(1).zip(words) {
        *to = u32::from_le_bytes(*from);
    }
    constant(regs)
}
