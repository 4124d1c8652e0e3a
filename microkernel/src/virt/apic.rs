//! The local APIC in hardware, where a processor keeps a guest's in a page: the registers that AVIC and APICv have in common (AMD APM vol. 2,
//! 15.29.3; Intel SDM vol. 3, 30.1.1), out of the state page and back.

use crate::mem::Words;
use crate::object::Vcpu;
use crate::virt::PASSED;
use core::cell::Cell;
use core::mem::offset_of;
use ipc_schema::abi::vm::VcpuState as S;

/// Where they are in the page: 256 bits each, 32 of them in every 16 bytes.
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;

/// MSRs that a guest accesses without an exit, and whether it writes: its own; with an APIC in hardware also, in x2APIC mode, TPR and EOI,
/// and PPR, ISR, TMR, IRR to read.
pub fn passed(apic: bool) -> impl Iterator<Item = (u32, bool)> {
    let own = PASSED.into_iter().flat_map(|m| [(m, false), (m, true)]);
    let written = [0x808, 0x80b].map(|m| (m, true));
    let read = [0x808, 0x80a].into_iter().chain(0x810..0x828);
    let of_apic = written.into_iter().chain(read.map(|m| (m, false)));
    own.chain(of_apic.filter(move |_| apic))
}

/// 64 vectors of a register, from 64 * `i` on: the lower and the upper half.
fn halves(page: &Words, at: usize, i: usize) -> [&Cell<u64>; 2] {
    [0, 2].map(|half| &page.0[at / 8 + 4 * i + half])
}
fn get(page: &Words, at: usize, i: usize) -> u64 {
    let [low, high] = halves(page, at, i);
    low.get() & 0xffff_ffff | high.get() << 32
}
fn set(page: &Words, at: usize, i: usize, value: u64) {
    let [low, high] = halves(page, at, i);
    low.set(value & 0xffff_ffff);
    high.set(value >> 32);
}
/// The word of the state page for these vectors.
fn word(v: &Vcpu, at: usize, i: usize) -> &Cell<u64> {
    &v.state().0[at / 8 + i]
}
/// The highest vector of a register; 0: none.
#[inline]
fn highest(page: &Words, at: usize) -> u64 {
    let found = (0..4).rev().find(|&i| get(page, at, i) != 0);
    found.map_or(0, |i| i as u64 * 64 + u64::from(get(page, at, i).ilog2()))
}

/// Group APIC to the page.
pub fn load(v: &Vcpu, page: &Words) {
    for i in 0..4 {
        set(page, ISR, i, word(v, offset_of!(S, apic_isr), i).get());
        set(page, IRR, i, word(v, offset_of!(S, apic_irr), i).get());
    }
}
/// And back.
pub fn save(v: &Vcpu, page: &Words) {
    for i in 0..4 {
        word(v, offset_of!(S, apic_isr), i).set(get(page, ISR, i));
        word(v, offset_of!(S, apic_irr), i).set(get(page, IRR, i));
    }
}
/// Group REQUESTS to the page; `level(i, vectors)` where 64 of the vectors are level-triggered in another way than before.
pub fn request(v: &Vcpu, page: &Words, level: impl Fn(usize, u64)) {
    for i in 0..4 {
        let new = word(v, offset_of!(S, apic_requests), i).take();
        set(page, IRR, i, get(page, IRR, i) | new);
        let levels = word(v, offset_of!(S, apic_level), i).get();
        if get(page, TMR, i) != levels {
            set(page, TMR, i, levels);
            level(i, levels);
        }
    }
}
/// The highest vector in service in bits 8 to 15, the highest one requested in 0 to 7 (SDM vol. 3, 25.4.2).
pub fn status(page: &Words) -> u64 {
    highest(page, ISR) << 8 | highest(page, IRR)
}
