//! Port accesses and lost routes.

use super::fake::{ENTRY, Pages, TSC_HZ, machine};
use crate::machine::{End, Exit, Note, signal};
use ipc_schema::abi::Status;
use ipc_schema::abi::vm::{Event, Groups, PortAccess, gpr};
use ipc_schema::state_page::{Access, StateWriter, kind};
use std::boxed::Box;

const TAKEN: u64 = 1 << 23;
const STRING: u64 = 1 << 21;
const REP: u64 = 1 << 22;

fn input(port: u16, width: u8) -> u64 {
    PortAccess::new(port, width, true).0
}

fn output(port: u16, width: u8) -> u64 {
    PortAccess::new(port, width, false).0
}

#[test]
fn plain_accesses_need_no_code_and_merge() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.on(|cpu| {
        cpu.state.gpr[gpr::RAX] = 0x1111_2222_3333_44A5;
        (Exit::Port, [output(0x80, 1), ENTRY + 2, 0])
    });
    m.on(|cpu| {
        // 64-bit code: the stale page must not make it 32 bits.
        cpu.state.rip = 0xFFFF_FFFF_8000_0000;
        cpu.state.gpr[gpr::RAX] = 0x1111_2222_3333_4400;
        (Exit::Port, [input(0x80, 1), 0xFFFF_FFFF_8000_0002, 0])
    });
    m.on(|cpu| {
        assert_eq!(cpu.state.rip, 0xFFFF_FFFF_8000_0002);
        assert_eq!(cpu.state.gpr[gpr::RAX], 0x1111_2222_3333_44A5);
        (Exit::Port, [input(0x9999, 4), ENTRY + 4, 0])
    });
    m.run();
    assert_eq!(
        (m.cpu().gpr[gpr::RAX], m.cpu().rip),
        (0xFFFF_FFFF, ENTRY + 4)
    );
    assert_eq!(m.last().dirty, Groups::RIP);
    assert_eq!(m.kernel.groups[Exit::Port as usize], Groups::RIP);
    assert!(m.kernel.calls.is_empty());
}

#[test]
fn ends_by_port() {
    let pages = Pages::default();
    for (access, value, end) in [
        (output(0xF4, 4), 0x1234, End::DebugExit(0x1234)),
        (output(0xF4, 1), 0x1234, End::DebugExit(0x34)),
        (output(0xCF9, 1), 6, End::Reset),
        (output(0x64, 1), 0xFE, End::Reset),
        (output(0x604, 2), 5 << 10 | 1 << 13, End::PowerOff),
    ] {
        let mut m = machine(&pages);
        m.on(move |cpu| {
            cpu.state.gpr[gpr::RAX] = value;
            (Exit::Port, [access, ENTRY + 1, 0])
        });
        assert_eq!(m.run(), end);
    }
}

#[test]
fn a_stepped_out_traps() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    for _ in 0..2 {
        m.on(|cpu| {
            assert_eq!(cpu.state.rip, ENTRY);
            cpu.state.rflags |= 1 << 8;
            cpu.state.dr6 = 0xFFFF_0FF0;
            (Exit::Port, [output(0x80, 1), ENTRY + 2, 0])
        });
    }
    m.run();
    assert_eq!((m.cpu().rip, m.cpu().dr6), (ENTRY + 2, 0xFFFF_4FF0));
    assert_eq!(m.last().inject, Event::exception(1, None));
}

/// REP OUTSB to a device: asked for all groups first, then one call an element.
#[test]
fn strings_reach_devices() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.code(&[0xF3, 0x6E]);
    m.memory.write(0x9000, b"Hi!").unwrap();
    for _ in 0..2 {
        m.on(|cpu| {
            assert_eq!(cpu.state.rip, ENTRY);
            cpu.state.gpr[gpr::RSI] = 0x9000;
            cpu.state.gpr[gpr::RCX] = 3;
            cpu.state.gpr[gpr::RDX] = 0x3F8;
            (Exit::Port, [output(0x3F8, 1) | STRING | REP, ENTRY + 2, 0])
        });
    }
    for _ in 0..3 {
        m.kernel.answers.push_back(Box::new(|| Ok(0)));
    }
    m.run();
    let bytes: std::vec::Vec<_> = m.kernel.calls.iter().map(|c| (c.0, c.1.0, c.2)).collect();
    let byte = |b: u8| (0, output(0x3F8, 1), u32::from(b));
    assert_eq!(bytes, [byte(b'H'), byte(b'i'), byte(b'!')]);
    let cpu = m.cpu();
    assert_eq!(
        (cpu.rip, cpu.gpr[gpr::RCX], cpu.gpr[gpr::RSI]),
        (ENTRY + 2, 0, 0x9003)
    );
}

#[test]
fn an_element_whose_answer_is_lost_is_done_once() {
    let pages: &'static Pages = Box::leak(Box::default());
    let mut m = machine(pages);
    m.code(&[0x6E]); // OUTSB
    m.memory.write(0x9000, b"a").unwrap();
    // An equal access has been committed before: that must not count.
    let access = Access {
        port: 0x3F8,
        width: 1,
        write: true,
        value: b'a'.into(),
        stamp: 0,
    };
    let (mut writer, _) = StateWriter::new(&pages.state[0], kind::UART);
    writer.commit(access, 0, &[]);
    for _ in 0..2 {
        m.on(|cpu| {
            cpu.state.gpr[gpr::RSI] = 0x9000;
            cpu.state.gpr[gpr::RDX] = 0x3F8;
            (Exit::Port, [output(0x3F8, 1) | STRING, ENTRY + 1, 0])
        });
    }
    // Its successor commits something else: the access before counts no more for that.
    m.kernel.answers.push_back(Box::new(|| {
        let (mut writer, _) = StateWriter::new(&pages.state[0], kind::UART);
        writer.save(&[]);
        Err(Status::Dead)
    }));
    m.kernel.answers.push_back(Box::new(move || {
        let (mut writer, _) = StateWriter::new(&pages.state[0], kind::UART);
        writer.begin();
        writer.commit(Access { stamp: 1, ..access }, 0, &[]);
        Err(Status::Dead)
    }));
    for _ in 0..2 {
        m.kernel.waits.push_back(Box::new(|_| signal::DEVICE));
    }
    m.run();
    assert_eq!(m.kernel.calls.len(), 2);
    assert_eq!(m.kernel.silent.len(), 2);
    assert_eq!(m.cpu().rip, ENTRY + 1);
}

/// The doorbell's port reads through the server, and an access across a device's edge is split as on an ISA bus.
#[test]
fn accesses_that_no_route_takes() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.kernel.answers.push_back(Box::new(|| Ok(0x77)));
    m.exit(Exit::Port, [input(0x5004, 1), ENTRY + 2, 0]);
    m.run();
    assert_eq!(m.cpu().gpr[gpr::RAX] & 0xFF, 0x77);
    m.kernel.answers.push_back(Box::new(|| Ok(0x66)));
    m.exit(Exit::Port, [input(0x3FF, 2), ENTRY + 4, 0]);
    m.run();
    assert_eq!(m.cpu().gpr[gpr::RAX] & 0xFFFF, 0xFF66);
    assert_eq!(m.kernel.calls[1].1, PortAccess::new(0x3FF, 1, true));
}

#[test]
fn a_route_lost_before_it_was_taken_is_tried_again() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.exit(Exit::RouteLost, [input(0x3FD, 1), 0, ENTRY + 1]);
    m.kernel.waits.push_back(Box::new(|_| signal::DEVICE));
    m.run();
    assert_eq!((m.cpu().rip, m.last().dirty), (ENTRY, 0));
    assert_eq!(m.kernel.waited.len(), 1);
    assert!(m.kernel.waited[0] > 1_000_000 && m.kernel.waited[0] < 1_000_000 + TSC_HZ / 20);
    assert!(matches!(
        m.kernel.notes[..],
        [Note::Lost {
            device: 0,
            times: 1,
            ..
        }]
    ));
}

#[test]
fn losses_again_and_again_wait_longer_but_never_for_ever() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    for _ in 0..12 {
        m.exit(Exit::RouteLost, [input(0x3FD, 1), 0, ENTRY + 1]);
        m.kernel.waits.push_back(Box::new(|_| 0));
    }
    m.run();
    let pauses: std::vec::Vec<u64> = m.kernel.waited.iter().map(|at| at - 1_000_000).collect();
    assert!(pauses.windows(2).all(|w| w[0] <= w[1]));
    assert!(pauses[0] < TSC_HZ / 100 && pauses[11] <= TSC_HZ / 10);
    assert_eq!(m.kernel.notes.len(), 4, "the 1st, 2nd, 4th and 8th");
    assert_eq!(m.kernel.silent, [0], "its supervisor is told at once");
    for expected in 2..6 {
        m.on(|cpu| {
            cpu.now += TSC_HZ / 10;
            (Exit::RouteLost, [input(0x3FD, 1), 0, ENTRY + 1])
        });
        m.kernel.waits.push_back(Box::new(|_| 0));
        m.run();
        assert_eq!(m.kernel.silent.len(), expected, "and again in time");
    }
    // And the VM can be ended meanwhile.
    m.exit(Exit::RouteLost, [input(0x3FD, 1), 0, ENTRY + 1]);
    m.kernel.waits.push_back(Box::new(|_| signal::QUIT));
    m.exit(Exit::Shutdown, [0; 3]);
    assert_eq!(m.run(), End::Killed);
}

#[test]
fn a_taken_access_is_finished_from_the_state_page() {
    let pages = Pages::default();
    let (mut uart, _) = StateWriter::new(&pages.state[0], kind::UART);
    let access = Access {
        port: 0x3F8,
        width: 1,
        write: false,
        value: 0,
        stamp: 0,
    };
    uart.begin();
    uart.commit(access, 0x41, &[1]);
    let mut m = machine(&pages);
    m.on(|cpu| {
        cpu.state.gpr[gpr::RAX] = 0x1111_2222_3333_4455;
        cpu.state.rflags |= 1 << 8;
        cpu.state.dr6 = 0xFFFF_0FF0;
        cpu.state.dr = [1, 2, 3, 4];
        (Exit::RouteLost, [input(0x3F8, 1) | TAKEN, 0, ENTRY + 1])
    });
    m.run();
    let cpu = m.cpu();
    assert_eq!(
        (cpu.gpr[gpr::RAX], cpu.rip),
        (0x1111_2222_3333_4441, ENTRY + 1)
    );
    assert_eq!((cpu.dr6, cpu.dr), (0xFFFF_4FF0, [1, 2, 3, 4]));
    assert!(m.kernel.waited.is_empty());
    // Not done: again, after a pause.
    uart.begin();
    m.on(|cpu| {
        cpu.state.rip = ENTRY;
        (Exit::RouteLost, [input(0x3F8, 1) | TAKEN, 0, ENTRY + 1])
    });
    m.kernel.waits.push_back(Box::new(|_| 0));
    m.run();
    assert_eq!(m.cpu().rip, ENTRY);
}

#[test]
fn a_slow_server_that_finishes_during_the_pause_is_not_asked_twice() {
    let pages: &'static Pages = Box::leak(Box::default());
    let access = Access {
        port: 0x3F8,
        width: 1,
        write: true,
        value: 0x42,
        stamp: 0,
    };
    let mut m = machine(pages);
    m.exit(Exit::RouteLost, [output(0x3F8, 1) | TAKEN, 0x42, ENTRY + 1]);
    m.kernel.waits.push_back(Box::new(move |_| {
        let (mut uart, _) = StateWriter::new(&pages.state[0], kind::UART);
        uart.commit(access, 0, &[]);
        0
    }));
    m.run();
    assert_eq!(m.cpu().rip, ENTRY + 1);
}

#[test]
fn an_access_that_kills_is_dropped_at_last() {
    let pages: &'static Pages = Box::leak(Box::default());
    let mut m = machine(pages);
    // Another access, and a device that has done something in between, begin the count anew.
    for (port, commits) in [
        (0x3F8, false),
        (0x3F8, false),
        (0x3F9, false),
        (0x3F8, false),
        (0x3F8, true),
        (0x3F8, false),
        (0x3F8, false),
        (0x3F8, false),
    ] {
        m.exit(Exit::RouteLost, [input(port, 1) | TAKEN, 0, ENTRY + 1]);
        m.kernel.waits.push_back(Box::new(move |_| {
            if commits {
                StateWriter::new(&pages.state[0], kind::UART).0.save(&[]);
            }
            signal::DEVICE
        }));
    }
    m.run();
    let dropped = |note: &&Note| matches!(note, Note::Dropped { device: 0, .. });
    assert_eq!(m.kernel.notes.iter().filter(dropped).count(), 1);
    assert_eq!(
        (m.cpu().rip, m.cpu().gpr[gpr::RAX] & 0xFF),
        (ENTRY + 1, 0xFF)
    );
    assert_eq!(m.kernel.waited.len(), 7, "none after the last");
}
