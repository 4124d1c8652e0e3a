//! What newer processors offer guests: a local APIC in hardware (SDM vol. 3, chapter 30), a TSC of another rate (25.3).

use super::Soft;
use super::control::{self, controls, read, write};
use crate::mem::{self, Words};
use crate::object::Vcpu;
use crate::virt::apic;
use core::mem::offset_of;
use ipc_schema::abi::vm::{Groups, VcpuState as S, offers};
use x86::vmx::vmcs::control::{self as c, SecondaryControls};
use x86::vmx::vmcs::guest as g;

/// Groups that are these.
pub const GROUPS: u64 = Groups::TSC | Groups::APIC | Groups::REQUESTS;
/// Secondary controls for the APIC: its registers are MSRs, reads of them make no exit, what is in IRR is delivered.
const APIC: u32 = SecondaryControls::VIRTUALIZE_X2APIC
    .union(SecondaryControls::VIRTUALIZE_APIC_REGISTER)
    .union(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY)
    .bits();
const SCALING: u32 = SecondaryControls::USE_TSC_SCALING.bits();

/// Those of the secondary controls that a processor can have which are set when a guest is to have what they offer.
pub fn choose(can: u32) -> u32 {
    can & SCALING | if can & APIC == APIC { APIC } else { 0 }
}

/// Tells the VMM.
#[inline(never)]
pub fn offer(v: &Vcpu) {
    let has = |bits, offer| u64::from(controls().newer & bits != 0) * offer;
    let all = has(APIC, offers::X2APIC) | has(SCALING, offers::TSC_RATIO);
    v.state().0[offset_of!(S, offers) / 8].set(all);
}

/// The virtual-APIC page.
#[inline(always)]
pub fn page(v: &Vcpu) -> &Words {
    // SAFETY: a page of the vCPU's own, for as long as it lives; only cells.
    unsafe { &*(v.control_virt as *const mem::Words) }
}

/// Has the ends of these vectors, from 64 * `i` on, make exits.
fn ends(i: usize, vectors: u64) {
    write(c::EOI_EXIT0_FULL + 2 * i as u32, vectors);
}

/// State page to VMCS and virtual-APIC page.
#[inline(never)]
pub fn load(v: &Vcpu, groups: u64) {
    let get = |at: usize| v.state().0[at / 8].get();
    let (k, s) = (controls(), Soft::of(v));
    let mut on = s.newer.get();
    let mut turn = |bits: u32, wanted| on = on & !bits | if wanted { bits & k.newer } else { 0 };
    if groups & Groups::TSC != 0 {
        let ratio = get(offset_of!(S, tsc_ratio));
        turn(SCALING, ratio != 0);
        if k.newer & SCALING != 0 {
            write(c::TSC_MULTIPLIER_FULL, ratio);
        }
    }
    if groups & Groups::APIC != 0 {
        turn(APIC, get(offset_of!(S, apic)) & 1 != 0);
        apic::load(v, page(v));
        write(c::MSR_BITMAPS_ADDR_FULL, control::bitmap(on & APIC != 0));
    }
    if s.newer.replace(on) != on {
        write(
            c::SECONDARY_PROCBASED_EXEC_CONTROLS,
            (k.sets[control::SECONDARY] | on).into(),
        );
    }
    if on & APIC != 0 {
        let all = groups & Groups::APIC != 0;
        let new = apic::request(v, page(v), all, ends);
        let old = if all {
            apic::status(page(v))
        } else {
            read(g::INTERRUPT_STATUS)
        };
        write(g::INTERRUPT_STATUS, old & 0xff00 | new.max(old & 0xff));
    }
}

/// Virtual-APIC page to state page.
#[inline(never)]
pub fn save(v: &Vcpu) {
    if Soft::of(v).newer.get() & APIC != 0 {
        apic::save(v, page(v));
    }
}
