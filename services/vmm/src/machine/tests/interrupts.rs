//! Interrupts, timers, HLT and events that come back.

use super::fake::{Cpu, ENTRY, Fake, Pages, machine};
use crate::machine::{End, Exit, Machine, Note, signal};
use ipc_schema::abi::vm::{Event, Groups, Post, gpr};
use ipc_schema::interrupt_page::InterruptWriter;

const IF: u64 = 1 << 9;

/// Lets the guest write 32 bits of a register in memory: `mov [addr], eax` at rip.
fn store(m: &mut Machine<'_, Fake>, address: u32, value: u32) {
    let mut code = [0xA3, 0, 0, 0, 0];
    code[1..].copy_from_slice(&address.to_le_bytes());
    let at = ENTRY + 0x100 + u64::from(address & 0xFF0) * 8 + u64::from(value & 0xFF) * 0x8000;
    m.memory.write(at, &code).unwrap();
    m.on(move |cpu: &mut Cpu| {
        cpu.state.rip = at;
        cpu.state.gpr[gpr::RAX] = value.into();
        (Exit::NestedFault, [address.into(), 2, 0])
    });
}

/// Enables the local APIC and sends GSI `pin` to it as `vector`, with these redirection bits.
fn route(m: &mut Machine<'_, Fake>, pin: u32, vector: u32, bits: u32) {
    store(m, 0xFEE0_00F0, 0x1FF);
    store(m, 0xFEC0_0000, 0x10 + 2 * pin);
    store(m, 0xFEC0_0010, vector | bits);
}

const LEVEL: u32 = 1 << 15;

#[test]
fn a_devices_interrupt_is_posted_until_the_guest_takes_it() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    route(&mut m, 4, 0x34, 0);
    let mut uart = InterruptWriter::new(&pages.irq[0]);
    assert!(uart.set_level(4, true));
    let device = Exit::Signal;
    m.exit(device, [signal::DEVICE, 0, 0]);
    m.exit(Exit::Init, [0; 3]); // not taken yet
    m.on(|cpu| {
        cpu.posted = false;
        (Exit::Init, [0; 3])
    });
    assert_eq!(m.run(), End::Killed);
    let posts: std::vec::Vec<Post> = m.kernel.entries.iter().map(|e| e.post).collect();
    let vector = Post::vector(0x34, false);
    assert_eq!(posts[3..], [Post::NONE, vector, vector, Post::NONE]);
    // In service now: the next edge waits for its EOI.
    assert!(uart.set_level(4, false));
    assert!(uart.set_level(4, true));
    m.exit(device, [signal::DEVICE, 0, 0]);
    store(&mut m, 0xFEE0_00B0, 0);
    m.kernel.entries.clear();
    m.run();
    let posts: std::vec::Vec<Post> = m.kernel.entries.iter().map(|e| e.post).collect();
    assert_eq!(posts, [Post::NONE, Post::NONE, vector]);
}

#[test]
fn a_level_that_fell_without_a_signal_is_seen_at_its_eoi() {
    for falls in [true, false] {
        let pages = Pages::default();
        let mut m = machine(&pages);
        route(&mut m, 4, 0x34, LEVEL);
        let mut uart = InterruptWriter::new(&pages.irq[0]);
        assert!(uart.set_level(4, true));
        m.exit(Exit::Signal, [signal::DEVICE, 0, 0]);
        m.on(|cpu| {
            cpu.posted = false;
            (Exit::Init, [0; 3])
        });
        m.run();
        assert_eq!(m.last().post, Post::NONE);
        if falls {
            // The server signals no falls.
            assert!(uart.set_level(4, false));
        }
        store(&mut m, 0xFEE0_00B0, 0);
        m.run();
        let again = Post::vector(0x34, false);
        assert_eq!(m.last().post, if falls { Post::NONE } else { again });
    }
}

#[test]
fn the_task_priority_goes_both_ways() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    store(&mut m, 0xFEE0_00F0, 0x1FF);
    store(&mut m, 0xFEE0_0080, 0x50);
    m.exit(Exit::Init, [0; 3]);
    m.on(|cpu| {
        assert_eq!(cpu.cr8, 5);
        cpu.cr8 = 9;
        (Exit::Init, [0; 3])
    });
    m.run();
    let posts: std::vec::Vec<Post> = m.kernel.entries.iter().map(|e| e.post).collect();
    assert_eq!(posts[2], Post::NONE.with_cr8(5));
    assert_eq!(
        posts[3..],
        [Post::NONE; 2],
        "the guest's own CR8 is left alone"
    );
    assert_eq!(m.chipset.tpr(0), 0x90);
}

#[test]
fn timers_run_by_the_deadline() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    store(&mut m, 0xFEE0_00F0, 0x1FF);
    store(&mut m, 0xFEE0_03E0, 0xB); // divide by 1
    store(&mut m, 0xFEE0_0320, 0x40);
    store(&mut m, 0xFEE0_0380, 7_000);
    m.on(|cpu| {
        cpu.now += 7_000;
        (Exit::Timeout, [0; 3])
    });
    m.run();
    let last = m.last();
    assert_eq!(m.kernel.entries[4].deadline, 1_007_000);
    assert_eq!(
        (last.post, last.deadline),
        (Post::vector(0x40, false), u64::MAX)
    );
}

#[test]
fn hlt_waits_for_an_interrupt() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    route(&mut m, 4, 0x34, 0);
    m.code(&[0xF4]).on(|cpu| {
        cpu.state.rip = ENTRY;
        cpu.state.rflags |= IF;
        cpu.state.shadow = 1; // STI; HLT
        (Exit::Hlt, [0; 3])
    });
    m.kernel
        .waits
        .push_back(std::boxed::Box::new(|_| signal::DEVICE)); // for nothing
    m.kernel.waits.push_back(std::boxed::Box::new(|_| 0)); // a deadline for nothing
    m.run();
    assert_eq!(m.kernel.waited.len(), 3, "nothing woke it: told to quit");
    // The same with an interrupt on the second wait.
    let pages: &'static Pages = std::boxed::Box::leak(std::boxed::Box::default());
    let mut m = machine(pages);
    route(&mut m, 4, 0x34, 0);
    m.code(&[0xF4]).on(|cpu| {
        cpu.state.rip = ENTRY;
        cpu.state.rflags |= IF;
        (Exit::Hlt, [0; 3])
    });
    m.kernel
        .waits
        .push_back(std::boxed::Box::new(|_| signal::DEVICE));
    m.kernel.waits.push_back(std::boxed::Box::new(|_| {
        assert!(InterruptWriter::new(&pages.irq[0]).set_level(4, true));
        signal::DEVICE
    }));
    m.run();
    assert_eq!(m.kernel.waited, [u64::MAX, u64::MAX]);
    assert_eq!((m.cpu().rip, m.cpu().shadow), (ENTRY + 1, 0));
    let last = m.last();
    assert_eq!(
        (last.post, last.dirty),
        (Post::vector(0x34, false), Groups::RIP)
    );
}

#[test]
fn hlt_wakes_by_the_timer_and_not_below_the_task_priority() {
    for (tpr, wakes) in [(0, true), (0x50, false)] {
        let pages = Pages::default();
        let mut m = machine(&pages);
        store(&mut m, 0xFEE0_00F0, 0x1FF);
        store(&mut m, 0xFEE0_0080, tpr);
        store(&mut m, 0xFEE0_03E0, 0xB);
        store(&mut m, 0xFEE0_0320, 0x40);
        store(&mut m, 0xFEE0_0380, 7_000);
        m.code(&[0xF4]).on(|cpu| {
            cpu.state.rip = ENTRY;
            cpu.state.rflags |= IF;
            (Exit::Hlt, [0; 3])
        });
        m.kernel.waits.push_back(std::boxed::Box::new(|now| {
            *now += 7_000;
            0
        }));
        m.run();
        assert_eq!(m.kernel.waited[0], 1_007_000);
        assert_eq!(m.kernel.waited.len() == 1, wakes);
    }
}

#[test]
fn hlt_without_interrupts_is_the_end() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.code(&[0xF4]).exit(Exit::Hlt, [0; 3]);
    assert_eq!(m.run(), End::Halted);
    assert_eq!(m.kernel.notes, [Note::Halted]);
}

#[test]
fn what_was_not_delivered_is_delivered_again() {
    let pages = Pages::default();
    let interrupt = Event(0x8000_0030);
    let software = Event(0x8000_0480);
    let fault = Event::exception(14, Some(2));
    for (event, again) in [
        (interrupt, interrupt),
        (Event::NMI, Event::NMI),
        (fault, fault),
        (Event::exception(1, None), Event::exception(1, None)),
        (software, Event(0)),
        (Event::exception(3, None), Event(0)),
        (Event::exception(4, None), Event(0)),
    ] {
        for exit in [Exit::Signal, Exit::Timeout, Exit::Init] {
            let mut m = machine(&pages);
            m.on(move |cpu| {
                cpu.undelivered = event.0;
                (exit, [0; 3])
            });
            m.run();
            assert_eq!(m.last().inject, again, "{event:x?} at {exit:?}");
        }
    }
}

#[test]
fn an_interrupt_cut_short_by_an_exception_comes_after_it() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    m.on(|cpu| {
        cpu.undelivered = 0x8000_0030;
        (Exit::Exception, [17, 0, 0])
    });
    m.exit(Exit::Init, [0; 3]);
    m.on(|cpu| {
        cpu.posted = false;
        (Exit::Init, [0; 3])
    });
    m.run();
    let entries = &m.kernel.entries;
    assert_eq!(entries[1].inject, Event::exception(17, Some(0)));
    for entry in &entries[1..3] {
        assert_eq!(entry.post, Post::vector(0x30, true));
    }
    assert_eq!((entries[2].inject.0, entries[3].post), (0, Post::NONE));
    // An NMI comes with the entry after the exception's.
    let mut m = machine(&pages);
    m.on(|cpu| {
        cpu.undelivered = Event::NMI.0;
        (Exit::Exception, [1, 0, 0])
    });
    m.exit(Exit::Init, [0; 3]);
    m.run();
    let injected: std::vec::Vec<Event> = m.kernel.entries.iter().map(|e| e.inject).collect();
    assert_eq!(injected, [Event(0), Event::exception(1, None), Event::NMI]);
}

#[test]
fn an_nmi_of_the_chipsets_is_injected() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    store(&mut m, 0xFEE0_00F0, 0x1FF);
    store(&mut m, 0xFEE0_0300, 0x4400); // ICR: NMI, physical destination 0
    m.run();
    assert_eq!(m.last().inject, Event::NMI);
}

#[test]
fn the_power_button_reaches_the_guest() {
    let pages = Pages::default();
    let mut m = machine(&pages);
    // PM1 enable: power button.
    m.on(|cpu| {
        cpu.state.gpr[gpr::RAX] = 1 << 8;
        (Exit::Port, [0x602 | 2 << 16, ENTRY + 1, 0])
    });
    route(&mut m, 9, 0x39, LEVEL);
    m.exit(Exit::Signal, [signal::POWER, 0, 0]);
    m.run();
    assert_eq!(m.last().post, Post::vector(0x39, false));
}
