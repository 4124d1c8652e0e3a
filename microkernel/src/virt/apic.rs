//! The local APIC in hardware, where a processor keeps a guest's in a page: the registers that AVIC and APICv have in common (AMD APM vol. 2,
//! 15.29.3; Intel SDM vol. 3, 30.1.1), out of the state page and back.

use crate::mem::Words;
use crate::object::Vcpu;
use core::cell::Cell;
use core::mem::offset_of;
use ipc_schema::abi::vm::VcpuState as S;

/// Where they are in the page: 256 bits each, 32 of them in every 16 bytes.
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;

/// Whether a guest accesses an MSR without an exit: its own; with an APIC in hardware also, in x2APIC mode, TPR and EOI, and to read PPR, ISR,
/// TMR and IRR.
fn passes(msr: u32, write: bool, apic: bool) -> bool {
    match msr {
        0x174..=0x176 | 0xc000_0081..=0xc000_0084 | 0xc000_0100..=0xc000_0102 => true,
        0x808 => apic,
        0x80b => apic && write,
        0x80a | 0x810..=0x827 => apic && !write,
        _ => false,
    }
}

/// Fills a page of a map of MSRs, where bits are set for those that make an exit. SVM has two bits each, of which the second is for writes,
/// for 0000_0000 to 0000_1fff and then for c000_0000 to c000_1fff (APM vol. 2, 15.11); VMX a bit each of both for reads, and then for writes
/// (SDM vol. 3, 25.6.9).
#[inline(never)]
pub fn permit(page: &Words, apic: bool, vmx: bool) {
    for (i, word) in page.0.iter().enumerate() {
        let mut exits = 0;
        for bit in 0..64 {
            let at = i as u32 * 64 + bit;
            let (low, upper, write) = if vmx {
                (at, at >> 13 & 1, at >> 14)
            } else {
                (at >> 1, at >> 14, at & 1)
            };
            let msr = low & 0x1fff | (upper * 0xc000_0000);
            exits |= u64::from(!passes(msr, write == 1, apic)) << bit;
        }
        word.set(exits);
    }
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
#[inline(never)]
fn highest(page: &Words, at: usize) -> u64 {
    let found = (0..4).rev().find(|&i| get(page, at, i) != 0);
    found.map_or(0, |i| i as u64 * 64 + u64::from(get(page, at, i).ilog2()))
}

/// Group APIC to the page.
#[inline(never)]
pub fn load(v: &Vcpu, page: &Words) {
    for i in 0..4 {
        set(page, ISR, i, word(v, offset_of!(S, apic_isr), i).get());
        set(page, IRR, i, word(v, offset_of!(S, apic_irr), i).get());
    }
}
/// And back.
#[inline(never)]
pub fn save(v: &Vcpu, page: &Words) {
    for i in 0..4 {
        word(v, offset_of!(S, apic_isr), i).set(get(page, ISR, i));
        word(v, offset_of!(S, apic_irr), i).set(get(page, IRR, i));
    }
}
/// Group REQUESTS to the page; `level(i, vectors)` for `all`, or where 64 of the vectors are level-triggered in another way than before.
/// Answers the highest vector that is new; 0: none.
pub fn request(v: &Vcpu, page: &Words, all: bool, level: impl Fn(usize, u64)) -> u64 {
    for i in 0..4 {
        let levels = word(v, offset_of!(S, apic_level), i).get();
        if all || get(page, TMR, i) != levels {
            set(page, TMR, i, levels);
            level(i, levels);
        }
    }
    take(page, |i| word(v, offset_of!(S, apic_requests), i).take())
}
/// Requests vectors, 64 at a time. Answers the highest of them; 0: none.
pub fn take(page: &Words, new: impl Fn(usize) -> u64) -> u64 {
    let mut highest = 0;
    for i in 0..4 {
        let new = new(i);
        if new != 0 {
            set(page, IRR, i, get(page, IRR, i) | new);
            highest = i as u64 * 64 + u64::from(new.ilog2());
        }
    }
    highest
}
/// The highest vector in service in bits 8 to 15, the highest one requested in 0 to 7 (SDM vol. 3, 25.4.2).
#[inline(never)]
pub fn status(page: &Words) -> u64 {
    highest(page, ISR) << 8 | highest(page, IRR)
}
