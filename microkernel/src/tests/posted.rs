//! Posted interrupts, with VMX: who is told what, when the guest runs, is about to, and does not.

use super::vmx::{Guest, RICH};
use super::*;
use crate::arch::{TAKEN, TOLD};
use crate::mem;
use crate::virt::vmx::control::{Capabilities, bitmap, choose, init, peek, poke};
use crate::virt::vmx::exit::check::{DURING, THEN};
use crate::virt::vmx::newer::posted::post;
use core::mem::offset_of;
use ipc_schema::abi::vm::{Exit, Groups, POST, POSTED, Post, Requests, VcpuState, offers};
use ipc_schema::abi::{op, rights};
use x86::vmx::vmcs::{control as c, guest as g, ro};

const HLT: u64 = 12;
const INTERRUPT: u64 = 1;
const VECTOR: u64 = 0x51;
/// Pin-based control 7, exit control 15.
const PROCESS: u64 = 1 << 7;
const ACKNOWLEDGE: u64 = 1 << 15;

/// A guest whose APIC is in hardware, on a processor of these capabilities; its runner's Notification.
fn guest(capabilities: &Capabilities) -> (Guest, Obj<Notification>) {
    let m = Guest::new();
    let pages = [bitmap(false), bitmap(true)];
    // SAFETY: the machine's own.
    unsafe { init(choose(capabilities).unwrap(), pages) };
    crate::virt::vmx::newer::offer(m.v.get());
    let (n, _) = m.m.notification();
    m.t.bind(Some(n));
    m.leaves(HLT, 0, 2);
    m.state().apic = 1;
    m.run(Groups::ALL, Post::NONE, 0);
    TOLD.set(None);
    TAKEN.set(None);
    (m, n)
}
/// 32 bits of IRR.
fn requested(m: &Guest, vector: u64) -> u64 {
    let at = 0x200 + vector as usize / 32 * 16;
    // SAFETY: the vCPU's own page.
    unsafe { mem::page(m.v.control_phys) }.0[at / 8].get() & 0xffff_ffff
}

#[test]
fn the_descriptor_is_the_manuals() {
    // Table 30-1: requests in bits 0 to 255, ON is bit 256; aligned to 64 bytes.
    assert_eq!(offset_of!(VcpuState, apic_posted) % 64, 0);
    assert_eq!(
        (offset_of!(Requests, control), size_of::<Requests>()),
        (32, 64)
    );
    let (m, _) = guest(&RICH);
    for (vector, word) in [(16, 0), (VECTOR, 1), (255, 3)] {
        post(m.v.get(), vector).unwrap();
        assert_eq!(m.state().apic_posted.vectors[word], 1 << (vector % 64));
    }
    assert_eq!(m.state().apic_posted.control, [1, 0, 0, 0]);
}

#[test]
fn the_processor_is_told_where_it_is_while_the_apic_is_in_hardware() {
    let (m, _) = guest(&RICH);
    assert_eq!(m.state().offers & offers::POSTED, offers::POSTED);
    let (pin, exit) = (peek(c::PINBASED_EXEC_CONTROLS), peek(c::VMEXIT_CONTROLS));
    assert_eq!((pin & PROCESS, exit & ACKNOWLEDGE), (PROCESS, ACKNOWLEDGE));
    assert_eq!(peek(c::POSTED_INTERRUPT_NOTIFICATION_VECTOR), 0xf2);
    let at = m.v.state_phys + offset_of!(VcpuState, apic_posted) as u64;
    assert_eq!(peek(c::POSTED_INTERRUPT_DESC_ADDR_FULL), at);
    m.state().apic = 0;
    m.run(Groups::APIC, Post::NONE, 0);
    assert_eq!(peek(c::PINBASED_EXEC_CONTROLS), pin & !PROCESS);
    assert_eq!(peek(c::VMEXIT_CONTROLS), exit & !ACKNOWLEDGE);
}

#[test]
fn a_processor_without_is_not_asked_for_it() {
    let without = |set: usize, bit: u64| {
        let mut less = RICH;
        less.sets[set] &= !(bit << 32);
        less
    };
    let no_delivery = Capabilities {
        secondary: RICH.secondary & !(1 << 9 << 32),
        ..RICH
    };
    for less in [without(0, PROCESS), without(2, ACKNOWLEDGE), no_delivery] {
        let (m, n) = guest(&less);
        assert_eq!(m.state().offers & offers::POSTED, 0);
        assert_eq!(peek(c::PINBASED_EXEC_CONTROLS) & PROCESS, 0);
        assert_eq!(peek(c::VMEXIT_CONTROLS) & ACKNOWLEDGE, 0);
        assert_eq!(post(m.v.get(), VECTOR), Err(Status::BadOperation));
        assert_eq!((n.pending(), TOLD.take()), (false, None));
    }
}

#[test]
fn what_is_posted_to_a_guest_that_does_not_run_is_requested_when_it_does() {
    let (m, n) = guest(&RICH);
    poke(g::INTERRUPT_STATUS, 0x2000 | 0x31);
    post(m.v.get(), VECTOR).unwrap();
    post(m.v.get(), VECTOR - 1).unwrap();
    assert_eq!((n.take_now(), TOLD.take()), (POSTED, None));
    m.run(0, Post::NONE, 0);
    assert_eq!(requested(&m, VECTOR), 0b11 << 16);
    assert_eq!(peek(g::INTERRUPT_STATUS), 0x2000 | VECTOR);
    assert_eq!(m.state().apic_posted, Requests::default());
    // Once.
    poke(g::INTERRUPT_STATUS, 0);
    m.run(0, Post::NONE, 0);
    assert_eq!(peek(g::INTERRUPT_STATUS), 0);
}

#[test]
fn its_processor_is_told_while_it_runs_and_the_vmm_if_that_came_too_late() {
    let (m, n) = guest(&RICH);
    let v = m.v;
    DURING.set(Some(Box::new(move || {
        post(v.get(), VECTOR).unwrap();
        post(v.get(), VECTOR).unwrap();
        assert!(!n.pending(), "it is inside");
        assert_eq!(TOLD.take(), Some(v.home().number));
        // As the processor would at the notification (30.6).
        // SAFETY: the state page, which nobody else has a reference to here.
        let posted = unsafe { &mut (*(v.state_virt as *mut VcpuState)).apic_posted };
        *posted = Requests::default();
    })));
    m.run(0, Post::NONE, 0);
    assert!(!n.pending());

    // The guest leaves before the notification comes.
    DURING.set(Some(Box::new(move || post(v.get(), VECTOR).unwrap())));
    m.run(0, Post::NONE, 0);
    assert_eq!(TOLD.take(), Some(v.home().number));
    assert_eq!(n.take_now(), POSTED);
    m.run(0, Post::NONE, 0);
    assert_eq!(requested(&m, VECTOR), 1 << 17);
}

#[test]
fn an_interrupt_that_the_exit_has_taken_is_dealt_with() {
    let (m, _) = guest(&RICH);
    m.leaves(INTERRUPT, 0, 2);
    THEN.set(Some(HLT));
    poke(ro::VMEXIT_INTERRUPTION_INFO, 1 << 31 | 0x42);
    m.run(0, Post::NONE, 0);
    assert_eq!(TAKEN.take(), Some(0x42));
    // Not taken: it comes as any other, behind the exit.
    m.leaves(INTERRUPT, 0, 2);
    THEN.set(Some(HLT));
    poke(ro::VMEXIT_INTERRUPTION_INFO, 0x42);
    m.run(0, Post::NONE, 0);
    assert_eq!(TAKEN.take(), None);
}

#[test]
fn it_takes_a_capability_to_send_and_a_vector_that_is_one() {
    let (m, n) = guest(&RICH);
    let t = m.m.thread(4);
    let limited = |rights: u32| {
        let mut cap = Cap::new(m.v.get().header());
        cap.rights = rights as u16;
        m.m.put(cap)
    };
    let tries = |slot, vector| m.m.operate(t, slot, POST, [vector, 0, 0, 0]);
    assert_eq!(
        tries(limited(rights::CONTROL), VECTOR),
        Status::MissingRight
    );
    let slot = limited(rights::SEND);
    assert_eq!(tries(slot, 15), Status::OutOfRange);
    assert_eq!(tries(slot, 256), Status::OutOfRange);
    assert!(!n.pending());
    assert_eq!(tries(slot, VECTOR), Status::Ok);
    assert!(n.pending());
    let control =
        m.m.operate(t, slot, op::vcpu::ON_EXIT, [Exit::Hlt as u64, 0, 0, 0]);
    assert_eq!(control, Status::MissingRight);
}
