//! The server around the model: pages shared with the VMM and a successor; still pure.

use ipc_schema::abi::NEVER;
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::state_page::{Access, Found, Past, StatePage, StateWriter, kind};

use crate::{Clock, PORT_INDEX, Rtc};

/// What is fixed for one RTC.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The guest's index port; the data port follows.
    pub base: u16,
    /// The guest's interrupt line.
    pub gsi: u32,
}

/// An RTC with its surroundings.
pub struct Server<'a> {
    rtc: Rtc,
    config: Config,
    irq: InterruptWriter<'a>,
    state: StateWriter<'a>,
}

impl<'a> Server<'a> {
    /// Takes the pages over from a predecessor, or begins with a clock that shows `clock`'s time. True if there was a
    /// predecessor. The VMM is to be signalled once at the start, for the last signal may have been lost.
    #[must_use]
    pub fn new(
        config: Config,
        clock: Clock,
        irq: &'a InterruptPage,
        state: &'a StatePage,
    ) -> (Self, bool) {
        let (mut state, found) = StateWriter::take_over(state, kind::RTC);
        let restored = match &found {
            // All commits are lasting, so that a whole slot has all.
            Found::Newest(record) | Found::Configuration(record) => Rtc::restore(record.words()),
            Found::Nothing | Found::Lost => None,
        };
        let was = restored.is_some();
        let rtc = restored.unwrap_or_else(|| Rtc::new(clock));
        if matches!(found, Found::Configuration(_) | Found::Lost) {
            // A successor must not find the same once more.
            state.save_lasting(&rtc.state());
        }
        (
            Self {
                rtc,
                config,
                irq: InterruptWriter::new(irq),
                state,
            },
            was,
        )
    }

    /// What has become of a predecessor's record.
    #[must_use]
    pub const fn past(&self) -> Past {
        self.state.past()
    }

    /// A routed port access at `now` (TSC); gives the value of an IN, and whether the VMM is to be signalled.
    pub fn access(&mut self, port: PortAccess, value: u32, now: u64) -> (u32, bool) {
        self.state.begin();
        // Wherever the guest sees its two ports, the model knows them as 0x70 and 0x71.
        let model = port
            .port()
            .wrapping_sub(self.config.base)
            .saturating_add(PORT_INDEX);
        let value = if port.input() {
            self.rtc.read_wide(model, port.width(), now)
        } else {
            self.rtc.write_wide(model, port.width(), value, now);
            value
        };
        let rose = self.set_line();
        if self.rtc.take_dirty() {
            self.state
                .commit_lasting(Access::of(port, value), value, &self.rtc.state());
        }
        (value, rose)
    }

    /// The deadline has passed, or it is the start; true if the VMM is to be signalled.
    #[must_use]
    pub fn wake(&mut self, now: u64) -> bool {
        self.rtc.tick(now);
        let rose = self.set_line();
        if self.rtc.take_dirty() {
            self.state.save_lasting(&self.rtc.state());
        }
        rose
    }

    /// Until when to wait (absolute TSC).
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.rtc.next_deadline().unwrap_or(NEVER)
    }

    /// Drives the line; true if it rose. The VMM learns of a fall when it next looks.
    fn set_line(&mut self) -> bool {
        let level = self.rtc.irq();
        self.irq.set_level(self.config.gsi, level) && level
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc_schema::interrupt_page::InterruptReader;
    use ipc_schema::state_page::Outcome;

    const CONFIG: Config = Config { base: 0x70, gsi: 8 };
    const HZ: u64 = 1_000_000_000;

    fn clock(unix_seconds: i64) -> Clock {
        Clock {
            unix_seconds,
            tsc: 0,
            hz: HZ,
        }
    }

    fn out(server: &mut Server<'_>, port: u16, value: u32, now: u64) -> bool {
        server.access(PortAccess::new(port, 1, false), value, now).1
    }

    fn get(server: &mut Server<'_>, index: u32, now: u64) -> u32 {
        let _ = out(server, 0x70, index, now);
        server.access(PortAccess::new(0x71, 1, true), 0, now).0
    }

    #[test]
    fn an_interrupt_from_the_deadline_to_the_read_of_c() {
        let (irq, state) = (InterruptPage::new(), StatePage::new());
        let vmm = InterruptReader::new(&irq, 1 << 8);
        let (mut server, was) = Server::new(CONFIG, clock(100), &irq, &state);
        assert!(!was && !server.wake(5));
        assert_eq!(server.deadline(), NEVER);
        let _ = out(&mut server, 0x70, 0x0b, 5);
        assert!(!out(&mut server, 0x71, 0x12, 5));
        assert_eq!(server.deadline(), HZ);
        assert!(server.wake(HZ));
        assert_eq!((vmm.look().rises, server.deadline()), (1 << 8, NEVER));
        let port = PortAccess::new(0x71, 1, true);
        assert_eq!(get(&mut server, 0x0c, HZ) & 0x90, 0x90);
        assert!(
            matches!(state.outcome(kind::RTC, Access::of(port, 0)), Outcome::Done(value) if value & 0x90 == 0x90)
        );
        assert_eq!((vmm.look().levels, server.deadline()), (0, 2 * HZ));
    }

    #[test]
    fn a_successor_keeps_time_that_the_guest_has_set() {
        let (irq, state) = (InterruptPage::new(), StatePage::new());
        let (mut server, _) = Server::new(CONFIG, clock(0), &irq, &state);
        let _ = out(&mut server, 0x70, 4, 7);
        let _ = out(&mut server, 0x71, 0x17, 7);
        let (mut successor, was) = Server::new(CONFIG, clock(999_999), &irq, &state);
        assert!(was);
        assert_eq!(get(&mut successor, 4, 100 * HZ), 0x17);
        assert_eq!(get(&mut successor, 2, 100 * HZ), 0x01);
        assert_eq!(get(&mut successor, 0, 100 * HZ), 0x40);
    }

    /// Whichever slot of its state page a predecessor has scribbled over, and one after the other.
    #[test]
    fn a_scribbled_slot_costs_nothing() {
        let (irq, state) = (InterruptPage::new(), StatePage::new());
        let (mut server, _) = Server::new(CONFIG, clock(0), &irq, &state);
        let _ = out(&mut server, 0x70, 4, 7);
        let _ = out(&mut server, 0x71, 0x17, 7);
        for other in [false, true, true, false] {
            state.spoil(other);
            let (mut successor, was) = Server::new(CONFIG, clock(999_999), &irq, &state);
            assert!(was && successor.past().goes_on());
            assert_eq!(get(&mut successor, 4, 100 * HZ), 0x17);
        }
        for other in [false, true] {
            state.spoil(other);
        }
        let (successor, was) = Server::new(CONFIG, clock(0), &irq, &state);
        assert_eq!((was, successor.past()), (false, Past::Lost));
        let (_, was) = Server::new(CONFIG, clock(0), &irq, &state);
        assert!(was, "it was written again");
    }

    #[test]
    fn elsewhere_in_port_space() {
        let (irq, state) = (InterruptPage::new(), StatePage::new());
        let (mut server, _) = Server::new(
            Config {
                base: 0x270,
                gsi: 8,
            },
            clock(0),
            &irq,
            &state,
        );
        let _ = out(&mut server, 0x270, 0x0d, 0);
        assert_eq!(server.access(PortAccess::new(0x271, 1, true), 0, 0).0, 0x80);
        assert_eq!(
            server.access(PortAccess::new(0x71, 4, true), 0, 0).0,
            u32::MAX,
            "not ours"
        );
    }
}
