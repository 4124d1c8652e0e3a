//! The VMX preemption timer.

use super::vmx::{Guest, OneExit, RICH};
use super::*;
use crate::virt::vmx::control::{Capabilities, choose, init, peek, poke};
use ipc_schema::abi::vm::{Groups, Post};
use x86::vmx::vmcs::{control as c, guest as g};

#[test]
fn the_preemption_timer_is_set_for_the_next_deadline_once() {
    let m = Guest::new();
    let timer = || peek(g::VMX_PREEMPTION_TIMER_VALUE);
    let run = |deadline| {
        m.m.sys(m.t, 4, m.slot, 0, [0; 4], deadline);
        assert_eq!(status(m.t), Status::Ok);
    };
    m.leaves(12, 0, 2);
    m.run(Groups::ALL, Post::NONE, 0);
    assert_eq!(peek(c::PINBASED_EXEC_CONTROLS) >> 6 & 1, 1);
    assert_eq!(peek(c::VMEXIT_CONTROLS) >> 22 & 1, 1);
    // Far from now, but before the end of the Budget.
    let at = |cycles| crate::arch::now() + cycles;
    let until = at(640_000);
    run(until);
    let left = timer();
    assert!(left > 0 && left <= 640_000 >> 5, "{left}");
    // The same: what the processor has counted down to stays.
    poke(g::VMX_PREEMPTION_TIMER_VALUE, 7);
    run(until);
    run(NEVER);
    assert_eq!(timer(), 7);
    // A sooner one.
    run(at(32_000));
    assert!(timer() > 7 && timer() <= 1000);
    // Not before it.
    m.m.cpu.programmed.set(at(33));
    run(NEVER);
    assert_eq!(timer(), 1);
    // A time that is past: at once.
    m.m.cpu.programmed.set(1);
    run(NEVER);
    assert_eq!(timer(), 0);
    // Farther than it counts, and then again.
    m.m.cpu.programmed.set(at(32 * 0x1_0000_1000));
    run(NEVER);
    assert_eq!(timer() as u32, 0x1000);
    poke(g::VMX_PREEMPTION_TIMER_VALUE, 0);
    m.leaves(52, 0, 2);
    m.m.cpu.reschedule.set(true);
    crate::exit::enter::<OneExit>(m.m.run(m.t), m.t);
    m.leaves(12, 0, 2);
    m.m.cpu.reschedule.set(false);
    crate::arch::advance(32 * 0x1000);
    run(NEVER);
    assert_eq!(timer() as u32, 0);
    // What was set for it before the machine's interrupt came is not what is left now.
    let until = at(640_000);
    m.m.cpu.programmed.set(until);
    run(NEVER);
    crate::arch::advance(320_000);
    crate::sched::retime(m.m.cpu);
    m.m.cpu.programmed.set(until);
    run(NEVER);
    assert!(timer() <= 10_000);
}

#[test]
fn a_processor_without_preemption_timer_does_without() {
    let without = |set: usize, bit: u64| {
        let mut sets = RICH.sets;
        sets[set] &= !(1 << (32 + bit));
        Capabilities { sets, ..RICH }
    };
    let has = |m: &Capabilities| {
        let m_guest = Guest::new();
        // SAFETY: a page of its own.
        unsafe { init(choose(m).unwrap(), [m_guest.m.pool.take_page().unwrap(); 2]) };
        m_guest.m.cpu.programmed.set(1 << 20);
        m_guest.leaves(12, 0, 2);
        m_guest.run(Groups::ALL, Post::NONE, 0);
        let on = peek(c::PINBASED_EXEC_CONTROLS) >> 6 & 1;
        let saved = peek(c::VMEXIT_CONTROLS) >> 22 & 1;
        (on, saved, peek(g::VMX_PREEMPTION_TIMER_VALUE) != 0)
    };
    assert_eq!(has(&RICH), (1, 1, true));
    // One that is not saved begins anew at each entry.
    assert_eq!(has(&without(2, 22)), (1, 0, true));
    // Its value is not saved where there is none (27.2.1.2).
    assert_eq!(has(&without(0, 6)), (0, 0, false));
}
