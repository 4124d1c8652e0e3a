//! AMD SVM (APM vol. 2, chapter 15).

pub mod control;
mod enter;
pub mod exit;
pub mod extended;
#[cfg(any(test, feature = "unproven"))]
pub mod newer;
pub mod speculation;
#[cfg(target_os = "none")]
pub mod start;
pub mod state;

use super::{Then, Virt, unusual};
use crate::arch::{Cpu, measure};
use crate::object::Vcpu;
use crate::object::thread::Resume;
use control::{Vmcb, field as f};
use enter::{enter_prepared, vmrun};
use ipc_schema::abi::vm::{ExitWord, gpr};

/// The back end.
pub struct BackEnd;

/// V_INTR: V_INTR_MASKING, V_IRQ.
const MASKING: u64 = 1 << 24;
const V_IRQ: u64 = 1 << 8;

impl Virt for BackEnd {
    const RESUME: Resume = Resume::Guest;

    #[inline(always)]
    fn load(v: &Vcpu, groups: u64) {
        if groups != 0 {
            state::load(v, groups);
        }
    }

    #[inline(always)]
    fn arm(v: &Vcpu, post: u64, event: u64) {
        let c = Vmcb::of(v);
        let old = c.word(f::V_INTR).get();
        let tpr = if post & (1 << 44) != 0 {
            (post >> 40) & 15
        } else {
            old & 15
        };
        let mut new = MASKING | tpr;
        if post & (1 << 31) != 0 {
            new |=
                V_IRQ | ((post >> 8) & 15) << 16 | ((post >> 32) & 1) << 20 | (post & 0xff) << 32;
        }
        #[cfg(any(test, feature = "unproven"))]
        let new = newer::arm(v, c, post, new);
        c.word(f::V_INTR).set(new);
        c.word(f::EVENTINJ).set(event);
    }

    fn switch_extended(cpu: &Cpu, v: &Vcpu) {
        extended::switch(cpu, v);
    }

    #[inline(always)]
    fn enter<T: Then>(cpu: &Cpu, v: &Vcpu, then: T) -> T::Answer {
        Vmcb::of(v).word(f::RAX).set(v.gpr(gpr::RAX).get());
        measure::end(cpu);
        // Of an identifier's round only `enter_prepared` asks: others get some only when they have become owners of the extended state.
        let (cpu, t, v) = if v.flushes.get() != v.guest.flushes.get() {
            let (t, v) = enter_prepared(cpu, v);
            (Cpu::current(), t, v)
        } else {
            vmrun!(cpu, v, "")
        };
        let c = Vmcb::of(v);
        measure::begin(cpu, measure::Cause::Exit(c.word(f::EXITCODE).get()));
        if armed(c) {
            extended::disarm_breakpoints(c.word(f::DR7).get());
            unusual(v);
        }
        v.gpr(gpr::RAX).set(c.word(f::RAX).get());
        // An event whose delivery the exit interrupted is delivered again at the next entry, or told to the VMM (`left`).
        c.word(f::EVENTINJ).set(0);
        if c.word(f::EXITINTINFO).get() & (1 << 31) != 0 {
            interrupted_delivery(c);
        }
        exit::decode((cpu, t, v), c, then)
    }

    #[inline(always)]
    fn left(v: &Vcpu, groups: u64) -> (u64, u64) {
        let c = Vmcb::of(v);
        state::save(v, c, groups);
        keep_shadow(v, c);
        // Left in place: `arm` writes it before the next entry.
        let event = c.word(f::EVENTINJ).get();
        let intr = c.word(f::V_INTR).get();
        #[cfg(any(test, feature = "unproven"))]
        let intr = newer::left(v, intr);
        // V_TPR to the CR8 field, V_IRQ to POST_PENDING.
        const _: () = assert!(ExitWord::POST_PENDING == 1 << (8 + 32) && ExitWord::CR8_SHIFT == 32);
        ((intr & (V_IRQ | 15)) << 32, event)
    }

    #[inline(always)]
    fn advance(v: &Vcpu, next: u64) {
        let c = Vmcb::of(v);
        c.word(f::RIP).set(next);
        c.word(f::INTERRUPT_SHADOW).set(0);
        // Single step: the trap comes after the instruction that was carried out (APM vol. 2, 13.1.4). RF ends with it too.
        let flags = c.word(f::RFLAGS).get();
        if flags & (1 << 8 | 1 << 16) != 0 {
            c.word(f::RFLAGS).set(flags & !(1 << 16));
            if flags & (1 << 8) != 0 {
                #[cfg(any(test, feature = "unproven"))]
                unusual(v);
                let dr6 = c.word(f::DR6);
                dr6.set(dr6.get() | 1 << 14);
                c.word(f::EVENTINJ).set(1 | 3 << 8 | 1 << 31);
            }
        }
    }
}

/// Whether the guest has breakpoints that are enabled (L0 to G3).
#[inline(always)]
fn armed(c: Vmcb) -> bool {
    c.word(f::DR7).get() & 0xff != 0
}

/// After an exit whose instruction the kernel does not carry out itself: the guest may be in an interrupt shadow still.
#[inline(always)]
pub fn keep_shadow(v: &Vcpu, c: Vmcb) {
    if c.word(f::INTERRUPT_SHADOW).get() & 1 != 0 {
        unusual(v);
    }
}

/// Delivery of the event is to begin again at the next entry.
#[cold]
fn interrupted_delivery(c: Vmcb) {
    c.word(f::EVENTINJ).set(c.word(f::EXITINTINFO).get());
}

#[cfg(any(test, feature = "checker"))]
#[path = "../../checker/svm.rs"]
pub(crate) mod check;
