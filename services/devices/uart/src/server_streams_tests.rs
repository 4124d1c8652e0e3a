//! Streams of bytes both ways, through deaths at any step.

use super::*;
use proptest::prelude::*;

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
