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
    #[cfg(any(test, feature = "unproven"))]
    let all = all | posted::offer();
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
        #[cfg(any(test, feature = "unproven"))]
        posted::turn(v, on & APIC != 0);
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

/// Posted interrupts (SDM vol. 3, 30.6), which no emulator shows: in the kernel with its feature `unproven` alone. Who posts a vector and
/// who runs the guest may be two processors: one writes that there is something and then looks whether the guest is inside, the other
/// writes that it is inside, or no longer, and then looks whether there is something; each by a locked instruction, so that at least one of
/// them sees the other.
#[cfg(any(test, feature = "unproven"))]
pub mod posted {
    use super::control::{Capabilities, EXIT, PIN};
    use super::*;
    use crate::arch::{self, Cpu};
    use crate::ipc;
    use crate::virt::Who;
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use ipc_schema::abi::{Status, vm};
    use x86::vmx::vmcs::control::{ExitControls, PinbasedControls};
    use x86::vmx::vmcs::ro;

    /// Of the pin-based controls: process posted interrupts.
    const PROCESS: u32 = PinbasedControls::POSTED_INTERRUPTS.bits();
    /// Of the exit controls, which goes with it (27.2.1.1): acknowledge interrupt on exit.
    const ACKNOWLEDGE: u32 = ExitControls::ACK_INTERRUPT_ON_EXIT.bits();
    /// The posted-interrupt descriptor (table 30-1): 256 bits of requests, then ON.
    const DESCRIPTOR: usize = offset_of!(S, apic_posted);
    const OUTSTANDING: usize = 4;

    /// Whether the processor can do it.
    pub fn can(m: &Capabilities) -> bool {
        let [pin, _, exit, _] = m.sets.map(|set| (set >> 32) as u32);
        pin & PROCESS != 0
            && exit & ACKNOWLEDGE != 0
            && choose((m.secondary >> 32) as u32) & APIC != 0
    }
    /// See [`super::offer`].
    pub fn offer() -> u64 {
        u64::from(controls().posts) * offers::POSTED
    }

    /// A word that other processors write, too.
    fn shared(cell: &core::cell::Cell<u64>) -> &AtomicU64 {
        // SAFETY: it is only accessed as this while the machine has more than one processor; aligned for words.
        unsafe { AtomicU64::from_ptr(cell.as_ptr()) }
    }
    fn word(v: &Vcpu, i: usize) -> &AtomicU64 {
        shared(&v.state().0[DESCRIPTOR / 8 + i])
    }

    /// Has the processor deliver what is posted, or not.
    pub fn turn(v: &Vcpu, on: bool) {
        let k = controls();
        if k.posts {
            let with = |set: usize, bit| u64::from(k.sets[set] | if on { bit } else { 0 });
            write(c::PINBASED_EXEC_CONTROLS, with(PIN, PROCESS));
            write(c::VMEXIT_CONTROLS, with(EXIT, ACKNOWLEDGE));
            write(
                c::POSTED_INTERRUPT_NOTIFICATION_VECTOR,
                arch::POSTED_VECTOR.into(),
            );
            write(
                c::POSTED_INTERRUPT_DESC_ADDR_FULL,
                v.state_phys + DESCRIPTOR as u64,
            );
        }
    }

    /// Posts `vector` ([`vm::POST`]).
    ///
    /// # Errors
    /// `BadOperation`: the processor cannot do it; `OutOfRange`.
    pub fn post(v: &Vcpu, vector: u64) -> Result<(), Status> {
        if !controls().posts {
            return Err(Status::BadOperation);
        }
        // Those below are no interrupts (11.5.2).
        if !(16..256).contains(&vector) {
            return Err(Status::OutOfRange);
        }
        word(v, vector as usize / 64).fetch_or(1 << (vector % 64), SeqCst);
        if word(v, OUTSTANDING).swap(1, SeqCst) == 0 {
            if shared(&Soft::of(v).inside).load(SeqCst) == 0 {
                wake(Cpu::current(), v);
            } else {
                arch::tell_of_posted(v.home());
            }
        }
        Ok(())
    }
    /// The VMM learns of it.
    fn wake(cpu: &Cpu, v: &Vcpu) {
        if let Some(n) = v.runner.get().and_then(|t| t.bound.get()) {
            ipc::signal(cpu, n, vm::POSTED);
        }
    }

    /// The guest is about to be entered: what was posted before is requested as the processor would (30.6).
    pub fn enters(v: &Vcpu) {
        let s = Soft::of(v);
        if s.newer.get() & APIC == 0 || !controls().posts {
            return;
        }
        shared(&s.inside).swap(1, SeqCst);
        if word(v, OUTSTANDING).load(SeqCst) & 1 == 0 {
            return;
        }
        word(v, OUTSTANDING).swap(0, SeqCst);
        let new = apic::take(page(v), |i| word(v, i).swap(0, SeqCst));
        let old = read(g::INTERRUPT_STATUS);
        write(g::INTERRUPT_STATUS, old & 0xff00 | new.max(old & 0xff));
    }
    /// It has left; on the way here an interrupt that was to tell it may have come too late for that.
    pub fn has_left((cpu, _, v): Who) {
        if shared(&Soft::of(v).inside).swap(0, SeqCst) != 0
            && word(v, OUTSTANDING).load(SeqCst) & 1 != 0
        {
            wake(cpu, v);
        }
    }
    /// The guest has left for an interrupt, which the processor has taken, if it was to (28.2.2).
    pub fn acknowledged() {
        let info = read(ro::VMEXIT_INTERRUPTION_INFO);
        if info & 1 << 31 != 0 {
            arch::interrupt(Cpu::current(), info as u8);
        }
    }
}
