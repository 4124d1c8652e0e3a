//! What newer processors offer guests, with SVM, that no emulator shows: against the layouts of the manual (APM vol. 2, appendix B, 15.29).

use super::*;
use crate::arch::extended::WRITTEN;
use crate::mem;
use crate::object::{GuestSpace, Vcpu};
use crate::virt::svm::control::{MAPS, Vmcb};
use crate::virt::svm::newer::{HAS, ended, feature};
use core::cell::Cell;
use ipc_schema::abi::vm::{Exit, ExitWord, Groups, Post, VcpuState, offers};

/// Fields of the control block, by the manual's figures.
const V_INTR: usize = 0x60;
const MSRPM_BASE: usize = 0x48;
const CLEAN: usize = 0xc0;
const AVIC: u64 = 1 << 31 | 1 << 30;

struct Guest {
    m: Machine,
    t: Obj<Thread>,
    v: Obj<Vcpu>,
    slot: u64,
}

impl Guest {
    /// On a processor with these features.
    fn on(features: u32) -> Self {
        let m = Machine::new();
        m.cpu.asids.set(16);
        HAS.set(features);
        MAPS.set((0x1000, 0x10_0000));
        let space = GuestSpace::create(m.pool).unwrap();
        let v = Vcpu::create(m.pool, space, m.space, 0x6000_0000).unwrap();
        let t = m.thread(5);
        let slot = m.name(v);
        v.get().adopt(t).unwrap();
        Self { m, t, v, slot }
    }
    #[allow(
        clippy::mut_from_ref,
        reason = "it is memory that the kernel writes too"
    )]
    fn state(&self) -> &mut VcpuState {
        // SAFETY: the state page, which nobody else has a reference to here.
        unsafe { &mut *(self.v.state_virt as *mut VcpuState) }
    }
    fn run(&self, dirty: u64, post: Post) -> ExitWord {
        self.m
            .sys(self.t, 4, self.slot, dirty, [post.0, 0, 0, 0], NEVER);
        assert_eq!(status(self.t), Status::Ok);
        ExitWord(self.t.get().get(reg::RSI))
    }
    fn field(&self, at: usize) -> u64 {
        Vmcb::of(self.v.get()).word(at).get()
    }
    /// 64 bits of the backing page.
    fn page(&self, at: usize) -> &Cell<u64> {
        // SAFETY: the vCPU's own page.
        &unsafe { mem::page(self.v.extended_phys) }.0[at / 8]
    }
}

#[test]
fn a_vmm_is_told_what_there_is() {
    let told = |features| Guest::on(features).state().offers;
    assert_eq!(told(0), 0);
    assert_eq!(told(feature::AVIC), 0, "in x2APIC mode, or not at all");
    assert_eq!(told(feature::AVIC | feature::X2AVIC), offers::X2APIC);
    assert_eq!(
        told(feature::TSC_RATE | feature::DECODE),
        offers::TSC_RATIO | offers::BYTES
    );
}

#[test]
fn the_features_are_the_manuals_bits() {
    use feature::*;
    // APM vol. 3, E.4.9: CPUID 8000_000A EDX.
    assert_eq!(
        [TSC_RATE, CLEAN, DECODE, AVIC, VIRTUAL_VMLOAD, X2AVIC].map(u32::ilog2),
        [4, 5, 7, 13, 15, 18]
    );
}

#[test]
fn avic_has_the_page_and_is_off_while_a_vector_is_posted() {
    let g = Guest::on(feature::AVIC | feature::X2AVIC);
    g.run(Groups::ALL, Post::NONE);
    assert_eq!(
        (g.field(V_INTR) & AVIC, g.field(MSRPM_BASE)),
        (0, 0x10_0000)
    );
    assert_eq!(
        (g.field(0xe0), g.field(0xf8), g.field(0xf0)),
        (g.v.extended_phys, 0x10_4000, 0)
    );
    g.state().apic = 1;
    g.state().apic_irr = [0, 1 << 20, 0, 0];
    g.state().apic_level = [0, 1 << 20, 0, 0];
    g.run(Groups::APIC | Groups::REQUESTS, Post::NONE.with_cr8(3));
    assert_eq!(
        (g.field(V_INTR) & AVIC, g.field(MSRPM_BASE)),
        (AVIC, 0x10_2000)
    );
    // Vector 84: register 2, at 0x220 and 0x1a0.
    assert_eq!(
        (g.page(0x220).get(), g.page(0x1a0).get(), g.page(0x80).get()),
        (1 << 20, 1 << 20, 0x30)
    );
    // The guest's CR8 is in the page.
    g.page(0x80).set(0x50);
    assert_eq!(g.run(0, Post::NONE).cr8(), 5);
    let word = g.run(0, Post::vector(0x30, true));
    assert_eq!(
        (word.cr8(), g.field(V_INTR) & AVIC, g.field(MSRPM_BASE)),
        (5, 0, 0x10_0000)
    );
    g.v.on_exit[Exit::Hlt as usize].set(Groups::APIC as u16);
    g.state().apic_requests.vectors = [1 << 40, 0, 0, 0];
    g.run(Groups::REQUESTS, Post::NONE);
    assert_eq!(g.field(V_INTR) & AVIC, AVIC);
    assert_eq!(
        (g.state().apic_irr, g.state().apic_requests.vectors),
        ([1 << 40, 1 << 20, 0, 0], [0; 4])
    );
}

#[test]
fn the_extended_state_lies_behind_the_registers() {
    let g = Guest::on(0);
    // FCW and MXCSR.
    assert_eq!((g.page(0x540).get(), g.page(0x558).get()), (0x37f, 0x1f80));
    assert_eq!((g.page(0).get(), g.page(0x18).get()), (0, 0));
    crate::virt::svm::control::entry_failed(g.v.get());
    assert_eq!((g.page(0x540).get(), g.page(0x558).get()), (0x37f, 0x1f80));
}

#[test]
fn an_end_of_interrupt_that_is_not_accelerated_is_told() {
    assert_eq!(ended(1 << 32 | 0xb0, 0x51), Some(0x51));
    assert_eq!(ended(0xb0, 0x51), None, "a read");
    assert_eq!(ended(1 << 32 | 0x80, 0x51), None, "another register");
}

#[test]
fn a_guests_tsc_has_the_rate_that_it_is_given_while_it_has_the_processor() {
    let g = Guest::on(feature::TSC_RATE);
    g.run(Groups::ALL, Post::NONE);
    assert_eq!(WRITTEN.get(), (0xc000_0104, 1 << 32));
    // 1.5 in 16.48, and in 8.32.
    g.state().tsc_ratio = 3 << 47;
    g.run(Groups::TSC, Post::NONE);
    assert_eq!(WRITTEN.get(), (0xc000_0104, 3 << 31));
    let other = Vcpu::create(g.m.pool, g.v.guest, g.m.space, 0x6000_1000).unwrap();
    crate::virt::svm::extended::switch(g.m.cpu, other.get());
    assert_eq!(WRITTEN.get(), (0xc000_0104, 1 << 32));
    g.run(0, Post::NONE);
    assert_eq!(WRITTEN.get(), (0xc000_0104, 3 << 31));
    WRITTEN.set((0, 0));
    drop(g);
    Guest::on(0).run(Groups::ALL, Post::NONE);
    assert_eq!(WRITTEN.get(), (0, 0));
}

#[test]
fn what_has_not_changed_is_said_to_be_clean() {
    let g = Guest::on(feature::CLEAN);
    g.run(Groups::ALL, Post::NONE);
    // All that are defined, but for V_TPR and its like, which each entry writes.
    assert_eq!(g.field(CLEAN), 0xfff & !8);
    g.run(0, Post::vector(0x30, false));
    for group in [
        Groups::SEG,
        Groups::DESC,
        Groups::PAT,
        Groups::TSC,
        Groups::CR,
        Groups::DR,
    ] {
        // Seen by the model of the processor: nothing that changes is said to be clean (checker/svm.rs).
        g.state().es.base ^= 0x1000;
        g.state().gdtr.base ^= 0x1000;
        g.state().pat ^= 1;
        g.state().tsc_offset ^= 1;
        g.state().cr3 ^= 0x1000;
        g.state().dr7 ^= 2;
        g.run(group, Post::NONE);
    }
    drop(g);
    let g = Guest::on(0);
    g.run(Groups::ALL, Post::NONE);
    assert_eq!(g.field(CLEAN), 0);
}

#[test]
fn virtual_vmload_is_on_where_it_is_there() {
    assert_eq!(Guest::on(feature::VIRTUAL_VMLOAD).field(0xb8), 2);
    assert_eq!(Guest::on(0).field(0xb8), 0);
}

#[test]
fn the_bytes_of_a_faulting_instruction_are_as_the_state_page_has_them() {
    let g = Guest::on(feature::DECODE);
    let c = Vmcb::of(g.v.get());
    // Three bytes: 0f 01 d8.
    c.word(0xd0).set(0xd801_0f03);
    c.word(0xd8).set(7);
    crate::virt::svm::newer::fetched(g.v.get(), c);
    assert_eq!(g.state().fetched, [0xd801_0f03, 7]);
    HAS.set(0);
    c.word(0xd0).set(1);
    crate::virt::svm::newer::fetched(g.v.get(), c);
    assert_eq!(g.state().fetched, [0xd801_0f03, 7]);
}
