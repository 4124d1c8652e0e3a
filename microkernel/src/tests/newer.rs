//! What newer processors offer guests, with VMX: the local APIC in hardware, a TSC of another rate.

use super::vmx::{Guest, RICH};
use super::*;
use crate::mem;
use crate::virt::vmx::control::{ACCESSES, Capabilities, bitmap, choose, init, peek, poke};
use ipc_schema::abi::vm::{Exit, Groups, Post, offers};
use x86::vmx::vmcs::{control as c, guest as g, ro};

const HLT: u64 = 12;
const EOI: u64 = 45;
/// Secondary controls.
const APIC: u64 = 1 << 4 | 1 << 8 | 1 << 9;
const SCALING: u64 = 1 << 25;

/// 32 bits of the virtual-APIC page.
fn register(m: &Guest, at: usize) -> u64 {
    // SAFETY: the vCPU's own page.
    unsafe { mem::page(m.v.control_phys) }.0[at / 8].get() >> (at % 8 * 8) & 0xffff_ffff
}
fn put(m: &Guest, at: usize, value: u64) {
    // SAFETY: as above.
    unsafe { mem::page(m.v.control_phys) }.0[at / 8].set(value);
}
/// A guest on a processor that lacks these secondary controls.
fn without(bits: u64) -> Guest {
    let m = Guest::new();
    let secondary = RICH.secondary & !(bits << 32);
    let pages = [0; 2].map(|_| m.m.pool.take_page().unwrap());
    // SAFETY: pages of their own.
    unsafe { init(choose(&Capabilities { secondary, ..RICH }).unwrap(), pages) };
    crate::virt::vmx::newer::offer(m.v.get());
    m.leaves(HLT, 0, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    m
}
fn secondary() -> u64 {
    peek(c::SECONDARY_PROCBASED_EXEC_CONTROLS)
}

#[test]
fn a_vmm_is_told_what_there_is() {
    let told = |bits| without(bits).state().offers & !offers::POSTED;
    assert_eq!(told(0), offers::X2APIC | offers::TSC_RATIO);
    assert_eq!(told(SCALING), offers::X2APIC);
    // The APIC's three come together.
    for bit in [4, 8, 9] {
        assert_eq!(told(1 << bit), offers::TSC_RATIO);
    }
}

#[test]
fn vectors_go_to_the_page_that_the_processor_delivers_from() {
    let m = without(0);
    assert_eq!(
        (
            secondary() & (APIC | SCALING),
            peek(c::MSR_BITMAPS_ADDR_FULL)
        ),
        (0, bitmap(false))
    );
    m.state().apic = 1;
    m.state().apic_isr = [1 << 33, 0, 1 << 2, 0];
    m.state().apic_irr = [0, 1 << 63, 0, 1 << 40];
    m.state().apic_level = [0, 1 << 63, 0, 0];
    m.run(Groups::APIC | Groups::REQUESTS, Post::NONE, 0);
    assert_eq!(secondary() & (APIC | SCALING), APIC);
    assert_eq!(peek(c::MSR_BITMAPS_ADDR_FULL), bitmap(true));
    // 32 vectors in every 16 bytes.
    assert_eq!((register(&m, 0x110), register(&m, 0x140)), (2, 4));
    assert_eq!(
        (register(&m, 0x230), register(&m, 0x270)),
        (1 << 31, 1 << 8)
    );
    assert_eq!(register(&m, 0x1b0), 1 << 31, "TMR");
    assert_eq!(
        [0, 2, 4, 6].map(|i| peek(c::EOI_EXIT0_FULL + i)),
        [0, 1 << 63, 0, 0]
    );
    assert_eq!(
        peek(g::INTERRUPT_STATUS),
        130 << 8 | 232,
        "in service, requested"
    );

    // The guest takes one, and asks for another; the VMM sees what the processor has.
    put(&m, 0x270, 0);
    put(&m, 0x170, 1 << 8);
    m.v.on_exit[Exit::Hlt as usize].set(Groups::APIC as u16);
    m.run(0, Post::NONE, 0);
    assert_eq!(m.state().apic_isr, [1 << 33, 0, 1 << 2, 1 << 40]);
    assert_eq!(m.state().apic_irr, [0, 1 << 63, 0, 0]);

    // Requests come in addition, and are taken once.
    // As the processor would have it (25.4.2): the one that was taken is in service.
    poke(g::INTERRUPT_STATUS, 232 << 8 | 127);
    m.state().apic_requests.vectors = [0, 0, 0, 1 << 63];
    m.run(Groups::REQUESTS, Post::NONE, 0);
    assert_eq!(m.state().apic_requests.vectors, [0; 4]);
    assert_eq!(m.state().apic_irr, [0, 1 << 63, 0, 1 << 63]);
    assert_eq!(peek(g::INTERRUPT_STATUS), 232 << 8 | 255);

    m.state().apic = 0;
    m.run(Groups::APIC, Post::NONE, 0);
    assert_eq!(
        (secondary() & APIC, peek(c::MSR_BITMAPS_ADDR_FULL)),
        (0, bitmap(false))
    );
}

#[test]
fn a_processor_without_is_never_asked_for_it() {
    let m = without(1 << 9 | SCALING);
    poke(g::INTERRUPT_STATUS, 0x5a5a);
    poke(c::TSC_MULTIPLIER_FULL, 0x5a5a);
    m.state().apic = 1;
    m.state().tsc_ratio = 1 << 47;
    m.state().apic_requests.vectors = [0, 1, 0, 0];
    m.run(Groups::ALL, Post::NONE, 0);
    assert_eq!(
        (peek(g::INTERRUPT_STATUS), peek(c::TSC_MULTIPLIER_FULL)),
        (0x5a5a, 0x5a5a)
    );
    assert_eq!(
        (
            secondary() & (APIC | SCALING),
            peek(c::MSR_BITMAPS_ADDR_FULL)
        ),
        (0, bitmap(false))
    );
}

#[test]
fn a_request_takes_few_accesses() {
    let m = without(0);
    m.state().apic = 1;
    m.run(Groups::ALL, Post::NONE, 0);
    let count = || ACCESSES.with(|a| [a[0].get(), a[1].get()]);
    let took = |dirty| {
        let before = count();
        m.run(dirty, Post::NONE, 0);
        let after = count();
        [after[0] - before[0], after[1] - before[1]]
    };
    let plain = took(0);
    m.state().apic_requests.vectors = [0, 1, 0, 0];
    assert_eq!(took(Groups::REQUESTS), [plain[0] + 1, plain[1] + 1]);
}

#[test]
fn the_end_of_a_level_triggered_interrupt_is_told() {
    let m = without(0);
    m.state().apic = 1;
    m.run(Groups::APIC, Post::NONE, 0);
    m.leaves(EOI, 0x1000, 2);
    poke(ro::EXIT_QUALIFICATION, 0x51);
    let (word, _) = m.run(0, Post::NONE, 0);
    assert_eq!((word.exit(), m.t.get().get(reg::R8)), (Exit::Eoi, 0x51));
}

#[test]
fn only_what_the_processor_virtualises_is_passed_to_the_guest() {
    let m = Guest::new();
    let passed = |apic: bool, msr: u64, write: bool| {
        // SAFETY: pages of the machine's own.
        let page = unsafe { mem::page(bitmap(apic)) };
        let bit = msr & 0x1fff | (msr >> 31) << 13 | u64::from(write) << 14;
        page.0[(bit / 64) as usize].get() >> (bit % 64) & 1 == 0
    };
    for msr in (0..0x2000).chain(0xc000_0000..0xc000_2000) {
        let own =
            matches!(msr, 0x174..=0x176 | 0xc000_0081..=0xc000_0084 | 0xc000_0100..=0xc000_0102);
        for write in [false, true] {
            let apic = match msr {
                0x808 => true,
                0x80b => write,
                0x80a | 0x810..=0x827 => !write,
                _ => false,
            };
            assert_eq!(passed(false, msr, write), own, "{msr:x}");
            assert_eq!(passed(true, msr, write), own || apic, "{msr:x}");
        }
    }
    drop(m);
}

#[test]
fn a_guests_tsc_has_the_rate_that_it_is_given() {
    let m = without(0);
    m.state().tsc_ratio = 3 << 47;
    m.run(Groups::TSC, Post::NONE, 0);
    assert_eq!(
        (secondary() & SCALING, peek(c::TSC_MULTIPLIER_FULL)),
        (SCALING, 3 << 47)
    );
    m.state().tsc_ratio = 0;
    m.run(Groups::TSC, Post::NONE, 0);
    assert_eq!(secondary() & SCALING, 0);
}
