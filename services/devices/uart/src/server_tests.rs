//! The server between real pages, with a manager and a VMM at their other ends.

use super::*;
use crate::register::{DATA, FCR, IER, IIR, LSR, MCR};
use ipc_schema::interrupt_page::InterruptReader;
use ipc_schema::state_page::Outcome;
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

const BASE: u16 = 0x3f8;
const CONFIG: Config = Config {
    base: BASE,
    gsi: 4,
    linger: 1000,
};

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

/// A guest, its VMM and its operator around a server that dies at any step of whatever it does.
struct Mortal<'a> {
    shared: &'a Shared,
    server: Server<'a>,
    /// Steps of the next lives.
    lives: std::iter::Cycle<std::vec::IntoIter<usize>>,
    deaths: usize,
    stamp: u64,
}

impl<'a> Mortal<'a> {
    fn new(shared: &'a Shared, mut lives: Vec<usize>) -> Self {
        // One long enough for anything.
        lives.push(1000);
        let mut mortal = Self {
            shared,
            server: shared.server(),
            lives: lives.into_iter().cycle(),
            deaths: 0,
            stamp: 0,
        };
        mortal.live();
        mortal
    }

    fn live(&mut self) {
        LIFE.with(|l| l.set(self.lives.next().unwrap_or(usize::MAX)));
    }

    /// Does something with the server; `None`: it died of it, and its successor is there, as root would start it.
    fn with<T>(&mut self, act: impl FnOnce(&mut Server<'a>) -> T) -> Option<T> {
        let server = &mut self.server;
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(server)));
        done.map_err(|_| {
            self.deaths += 1;
            LIFE.with(|l| l.set(usize::MAX));
            self.server = self.shared.server();
            self.live();
        })
        .ok()
    }

    /// A routed access, tried again by the VMM for as long as the state page says that it was not done.
    fn access(&mut self, port: PortAccess, value: u32) -> u32 {
        loop {
            let page = &self.shared.state;
            self.stamp += 1;
            let port = PortAccess(port.0 | self.stamp << 32);
            // It may die before it has looked at what it has taken.
            let done = self.with(|s| {
                step();
                s.access(port, value, || 0)
            });
            if let Some((value, _)) = done {
                return value;
            }
            if let Outcome::Done(value) = page.outcome(kind::UART, Access::of(port, value)) {
                return value;
            }
        }
    }

    fn out(&mut self, offset: u8, value: u8) {
        let port = PortAccess::new(BASE + u16::from(offset), 1, false);
        self.access(port, u32::from(value));
    }

    fn inp(&mut self, offset: u8) -> u8 {
        self.access(PortAccess::new(BASE + u16::from(offset), 1, true), 0) as u8
    }

    fn wake(&mut self, now: u64) {
        while self.with(|s| s.wake(|| now)).is_none() {}
    }
}

proptest! {
    /// Whenever the server dies, in the middle of an access or of a signal: output comes out once and in order, and so does input.
    #[test]
    fn streams_survive_deaths(
        steps in proptest::collection::vec((0u8..5, any::<u8>()), 0..200),
        lives in proptest::collection::vec(0usize..60, 1..40),
    ) {
        let shared = Shared::default();
        let mut m = Mortal::new(&shared, lives);
        m.out(FCR, 0x07);
        m.out(MCR, 0x08);
        m.out(IER, 0x03);
        let (mut typed, mut read, mut sent, mut seen) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut manager = Producer::new(&shared.rx);
        let mut terminal = Consumer::new(&shared.tx);
        for (step, byte) in steps {
            match step {
                0 => {
                    let chunk: Vec<u8> = (0..byte % 40).collect();
                    let count = manager.push(&chunk);
                    typed.extend(&chunk[..count]);
                    if manager.needs_signal() {
                        m.wake(0);
                    }
                }
                1 => while m.inp(LSR) & 1 != 0 {
                    read.push(m.inp(DATA));
                },
                2 => for _ in 0..byte % 20 {
                    if m.inp(LSR) & 0x20 != 0 {
                        // Many are the same.
                        m.out(DATA, byte / 64);
                        sent.push(byte / 64);
                    }
                },
                3 => {
                    seen.extend(pop(&mut terminal));
                    if terminal.needs_signal() {
                        m.wake(0);
                    }
                }
                _ => m.wake(u64::from(byte) * 10),
            }
        }
        LIFE.with(|l| l.set(usize::MAX));
        let mut server = shared.server();
        let _ = server.wake(|| 10_000);
        while inp(&mut server, LSR).0 & 1 != 0 {
            read.push(inp(&mut server, DATA).0);
        }
        seen.extend(pop(&mut terminal));
        prop_assert_eq!(read, typed);
        prop_assert_eq!(seen, sent);
    }

    /// Output comes out once and in order, input goes in once and in order, whoever restarts between accesses.
    #[test]
    fn streams_survive_restarts(steps in proptest::collection::vec((0u8..6, any::<u8>()), 0..300)) {
        let shared = Shared::default();
        let mut server = shared.server();
        set_up(&mut server, 0x03);
        let (mut typed, mut read, mut sent, mut seen) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut manager = Producer::new(&shared.rx);
        let mut terminal = Consumer::new(&shared.tx);
        for (step, byte) in steps {
            match step {
                0 => {
                    let chunk: Vec<u8> = (0..byte % 40).collect();
                    let count = manager.push(&chunk);
                    typed.extend(&chunk[..count]);
                    if manager.needs_signal() {
                        let _ = server.wake(|| 0);
                    }
                }
                1 => while inp(&mut server, LSR).0 & 1 != 0 {
                    read.push(inp(&mut server, DATA).0);
                },
                2 => for i in 0..byte % 20 {
                    if inp(&mut server, LSR).0 & 0x20 != 0 {
                        let _ = out(&mut server, DATA, i);
                        sent.push(i);
                    }
                },
                3 => seen.extend(pop(&mut terminal)),
                4 => {
                    server = shared.server();
                }
                _ => { let _ = server.wake(|| u64::from(byte) * 10); }
            }
        }
        let _ = server.wake(|| 10_000);
        while inp(&mut server, LSR).0 & 1 != 0 {
            read.push(inp(&mut server, DATA).0);
        }
        seen.extend(pop(&mut terminal));
        prop_assert_eq!(read, typed);
        prop_assert_eq!(seen, sent);
    }

    #[test]
    fn a_scribbled_page_is_survived(words in proptest::collection::vec(any::<u64>(), 6), heads: [u32; 2]) {
        let shared = Shared::default();
        StateWriter::new(&shared.state, kind::UART).0.save(&words);
        // Someone wrote nonsense into the ring: as many bytes as an index can say.
        let mut manager = Producer::new(&shared.rx);
        manager.push(&heads[0].to_le_bytes());
        let mut server = shared.server();
        for offset in 0..8 {
            let _ = inp(&mut server, offset);
            let _ = out(&mut server, offset, heads[1] as u8);
        }
        prop_assert!(Uart::restore(&server.uart.state()).is_some());
    }
}
