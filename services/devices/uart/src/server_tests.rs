//! The server between real pages, with a manager and a VMM at their other ends.

use super::*;
use crate::register::{DATA, FCR, IER, IIR, LSR, MCR};
use ipc_schema::interrupt_page::InterruptReader;
use ipc_schema::state_page::Outcome;
use std::boxed::Box;
use std::vec::Vec;

const BASE: u16 = 0x3f8;
const CONFIG: Config = Config {
    base: BASE,
    gsi: 4,
    linger: 1000,
};

#[path = "server_streams_tests.rs"]
mod streams;

thread_local! {
    /// Steps until the server dies.
    static LIFE: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
}

/// What ends a server.
struct Death;

/// The server has got this far.
pub(super) fn step() {
    let left = LIFE.with(|l| l.replace(l.get().wrapping_sub(1)));
    if left == 0 {
        std::panic::resume_unwind(Box::new(Death));
    }
}

#[derive(Default)]
struct Shared {
    irq: InterruptPage,
    state: StatePage,
    tx: RingPage,
    rx: RingPage,
}

impl Shared {
    fn pages(&self) -> Pages<'_> {
        Pages {
            irq: &self.irq,
            state: &self.state,
            tx: &self.tx,
            rx: &self.rx,
        }
    }
    fn server(&self) -> Server<'_> {
        let (mut server, _) = Server::new(CONFIG, &self.pages());
        let _ = server.wake(|| 0);
        server
    }
}

fn out(server: &mut Server<'_>, offset: u8, value: u8) -> Signals {
    server
        .access(
            PortAccess::new(BASE + u16::from(offset), 1, false),
            u32::from(value),
            || 0,
        )
        .1
}

fn inp(server: &mut Server<'_>, offset: u8) -> (u8, Signals) {
    let (value, signals) =
        server.access(PortAccess::new(BASE + u16::from(offset), 1, true), 0, || 0);
    (value as u8, signals)
}

fn set_up(server: &mut Server<'_>, ier: u8) {
    let _ = out(server, FCR, 0x07);
    let _ = out(server, MCR, 0x08);
    let _ = out(server, IER, ier);
}

fn pop(ring: &mut Consumer<'_>) -> Vec<u8> {
    let mut buffer = [0; 4096];
    let count = ring.pop(&mut buffer);
    buffer[..count].to_vec()
}

const VMM: Signals = Signals {
    vmm: true,
    manager: false,
};
const MANAGER: Signals = Signals {
    vmm: false,
    manager: true,
};
const NONE: Signals = Signals {
    vmm: false,
    manager: false,
};

#[test]
fn a_full_fifo_leaves_at_once_and_wakes_a_sleeping_manager() {
    let shared = Shared::default();
    let mut server = shared.server();
    let mut line = Consumer::new(&shared.tx);
    set_up(&mut server, 0);
    assert!(line.prepare_sleep());
    for i in 0..15 {
        assert_eq!(out(&mut server, DATA, i), NONE);
    }
    assert!(line.is_empty());
    assert_eq!(out(&mut server, DATA, 15), MANAGER);
    assert_eq!(pop(&mut line), (0..16).collect::<Vec<u8>>());
    // The manager is awake now: no more signals.
    for i in 0..16 {
        assert_eq!(out(&mut server, DATA, i), NONE);
    }
}

/// Polling costs neither commits nor signals; a read that does change something has all its consequences.
#[test]
fn polling_has_no_consequences_but_reads_that_change_do() {
    let shared = Shared::default();
    let mut server = shared.server();
    let lines = InterruptReader::new(&shared.irq, 1 << 4);
    set_up(&mut server, 0x02);
    assert_eq!(lines.look().levels, 1 << 4, "transmitter empty");
    let commits = shared.state.sequence();
    for _ in 0..20 {
        assert_eq!(inp(&mut server, LSR), (0x60, NONE));
    }
    assert_eq!(shared.state.sequence(), commits);
    // Reading what the interrupt is ends it: the line falls and that is committed.
    assert_eq!(inp(&mut server, IIR), (0xC2, NONE));
    assert_eq!(lines.look().levels, 0);
    assert_eq!(shared.state.sequence(), commits + 1);
    let read = Access::of(PortAccess::new(BASE + 2, 1, true), 0);
    assert_eq!(shared.state.outcome(kind::UART, read), Outcome::Done(0xC2));
    // An equal read that changed nothing and was cut short is not taken for that one.
    let _ = inp(&mut server, LSR);
    assert_eq!(shared.state.outcome(kind::UART, read), Outcome::NotDone);
    // A byte that comes is there for the next look.
    let mut manager = Producer::new(&shared.rx);
    manager.push(b"x");
    assert!(manager.needs_signal());
    let _ = server.wake(|| 0);
    assert_eq!(inp(&mut server, LSR), (0x61, NONE));
    assert_eq!(inp(&mut server, DATA).0, b'x');
    assert_eq!(inp(&mut server, LSR), (0x60, NONE));
}

#[test]
fn a_short_burst_leaves_when_looked_at_or_in_time() {
    let shared = Shared::default();
    let mut server = shared.server();
    let mut line = Consumer::new(&shared.tx);
    set_up(&mut server, 0);
    assert_eq!(server.deadline(), NEVER);
    let _ = out(&mut server, DATA, b'a');
    assert_eq!(server.deadline(), 1000);
    let _ = server.wake(|| 999);
    assert!(line.is_empty());
    assert_eq!(
        inp(&mut server, LSR).0,
        0x60,
        "who looks sees an empty transmitter"
    );
    assert_eq!(
        (pop(&mut line), server.deadline()),
        (Vec::from(*b"a"), NEVER)
    );
    let _ = out(&mut server, DATA, b'b');
    let _ = server.wake(|| 1000);
    assert_eq!(
        (pop(&mut line), server.deadline()),
        (Vec::from(*b"b"), NEVER)
    );
    // Without FIFOs every byte leaves at once.
    let _ = out(&mut server, FCR, 0);
    let _ = out(&mut server, DATA, b'c');
    assert_eq!(pop(&mut line), b"c");
}

#[test]
fn a_slow_terminal_holds_the_guest_up_and_loses_nothing() {
    let shared = Shared::default();
    let mut server = shared.server();
    let mut line = Consumer::new(&shared.tx);
    set_up(&mut server, 0);
    let (mut sent, mut seen) = (Vec::new(), Vec::new());
    for i in 0..5000u32 {
        if inp(&mut server, LSR).0 & 0x20 != 0 {
            let _ = out(&mut server, DATA, i as u8);
            sent.push(i as u8);
        } else if i % 3 == 0 {
            let mut few = [0; 100];
            let count = line.pop(&mut few);
            seen.extend(&few[..count]);
            assert_eq!(
                line.needs_signal(),
                count != 0,
                "the server had announced that it waits for room"
            );
            let _ = server.wake(|| 0);
        }
    }
    let _ = server.wake(|| 5000);
    seen.extend(pop(&mut line));
    assert_eq!(seen, sent);
    assert!(sent.len() > 2500);
}

#[test]
fn input_interrupts_the_guest() {
    let shared = Shared::default();
    let mut server = shared.server();
    let vmm = InterruptReader::new(&shared.irq, 1 << 4);
    let mut manager = Producer::new(&shared.rx);
    set_up(&mut server, 0x01);
    manager.push(b"0123456789abcdefXY");
    assert!(manager.needs_signal(), "the server sleeps");
    assert_eq!(server.wake(|| 0), VMM);
    assert_eq!((vmm.look().levels, vmm.look().levels), (1 << 4, 1 << 4));
    assert_eq!(
        manager.room(),
        ipc_schema::ring::CAPACITY - 2,
        "the FIFO takes 16"
    );
    let text: Vec<u8> = (0..18).map(|_| inp(&mut server, DATA).0).collect();
    assert_eq!(text, b"0123456789abcdefXY");
    assert_eq!(
        vmm.look().levels,
        0,
        "the line has fallen, without a signal"
    );
    manager.push(b"!");
    assert!(manager.needs_signal(), "asleep again");
}

#[test]
fn a_successor_goes_on() {
    let shared = Shared::default();
    let mut server = shared.server();
    set_up(&mut server, 0x03);
    let _ = out(&mut server, DATA, b'x');
    Producer::new(&shared.rx).push(b"in");
    let _ = server.wake(|| 0);
    let (mut server, was) = Server::new(CONFIG, &shared.pages());
    assert!(was);
    assert_eq!(server.wake(|| 0), NONE, "the line is where it was");
    assert_eq!(pop(&mut Consumer::new(&shared.tx)), b"x");
    assert_eq!(
        (inp(&mut server, DATA).0, inp(&mut server, DATA).0),
        (b'i', b'n')
    );
    assert_eq!(inp(&mut server, IIR).0, 0xc2);
}

/// A predecessor has scribbled over a slot of its state page: what the driver has set is in the other, whatever was under way.
#[test]
fn a_scribbled_slot_costs_no_new_byte() {
    for other in [false, true] {
        let shared = Shared::default();
        let mut server = shared.server();
        let mut line = Consumer::new(&shared.tx);
        let vmm = InterruptReader::new(&shared.irq, 1 << 4);
        set_up(&mut server, 0x03);
        for byte in b"old" {
            let _ = out(&mut server, DATA, *byte);
        }
        assert_eq!(Producer::new(&shared.rx).push(b"typed"), 5);
        let _ = server.wake(|| 0);
        assert_eq!(inp(&mut server, DATA).0, b't');
        shared.state.spoil(other);
        let mut server = shared.server();
        assert!(server.past().goes_on());
        if other {
            // It was not the newest: nothing is lost.
            assert_eq!([(); 4].map(|()| inp(&mut server, DATA).0), *b"yped");
        }
        // The driver goes on by the interrupt of an empty transmitter, and receives.
        assert_eq!(vmm.look().levels, 1 << 4);
        let _ = inp(&mut server, LSR);
        assert_eq!(pop(&mut line), if other { &b"old"[..] } else { b"" });
        assert_eq!(
            (inp(&mut server, IIR).0, inp(&mut server, IER).0),
            (0xc2, 3)
        );
        for byte in b"new" {
            let _ = out(&mut server, DATA, *byte);
        }
        let _ = inp(&mut server, LSR);
        assert_eq!(pop(&mut line), b"new");
        assert_eq!(Producer::new(&shared.rx).push(b"x"), 1);
        let _ = server.wake(|| 0);
        assert_eq!(
            (vmm.look().levels, inp(&mut server, DATA).0),
            (1 << 4, b'x')
        );
        // And the next scribble finds as much.
        shared.state.spoil(false);
        let mut server = shared.server();
        assert!(server.past().goes_on());
        assert_eq!(inp(&mut server, IER).0, 3);
        for other in [false, true] {
            shared.state.spoil(other);
        }
        let (server, was) = Server::new(CONFIG, &shared.pages());
        assert_eq!((was, server.past()), (false, Past::Lost));
        let (_, was) = Server::new(CONFIG, &shared.pages());
        assert!(was, "what it began with was written again");
    }
}

#[test]
fn the_vmm_learns_what_became_of_a_lost_access() {
    let shared = Shared::default();
    let mut server = shared.server();
    set_up(&mut server, 0);
    Producer::new(&shared.rx).push(b"kl");
    let _ = server.wake(|| 0);
    let port = PortAccess::new(BASE, 1, true);
    let outcome = || shared.state.outcome(kind::UART, Access::of(port, 0xdead));
    assert_eq!(outcome(), Outcome::NotDone);
    assert_eq!(inp(&mut server, DATA).0, b'k');
    assert_eq!(
        outcome(),
        Outcome::Done(u32::from(b'k')),
        "the reply was lost: the byte is not"
    );
    // The next access was taken, and the server died in it.
    server.state.begin();
    assert_eq!(outcome(), Outcome::NotDone);
    let write = PortAccess::new(BASE + 7, 1, false);
    let _ = server.access(write, 0xffff_ff42, || 0);
    assert_eq!(
        shared.state.outcome(kind::UART, Access::of(write, 0x42)),
        Outcome::Done(0xffff_ff42)
    );
}
