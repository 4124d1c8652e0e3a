//! The server around the device: pages shared with the VMM and a successor; still pure.

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::state_page::{Access, Past, StatePage, StateWriter, kind};

use crate::{Action, TestDev};

/// What is fixed for one device.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The guest's first port.
    pub base: u16,
    /// The guest's interrupt line.
    pub gsi: u32,
}

/// What the server does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Signal the VMM if `rose`, then reply.
    Reply {
        /// Value of an IN.
        value: u32,
        /// The line has risen.
        rose: bool,
    },
    /// Loop for ever, or do what kills: [`Action`] says which.
    Die(Action),
}

/// A device with its surroundings.
pub struct Server<'a> {
    device: TestDev,
    config: Config,
    irq: InterruptWriter<'a>,
    state: StateWriter<'a>,
}

impl<'a> Server<'a> {
    /// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor. The VMM is to be
    /// signalled once at the start.
    #[must_use]
    pub fn new(config: Config, irq: &'a InterruptPage, state: &'a StatePage) -> (Self, bool) {
        let (state, record) = StateWriter::new(state, kind::TESTDEV);
        let restored = record.and_then(|record| TestDev::restore(record.words()));
        let was = restored.is_some();
        let mut device = restored.unwrap_or_default();
        let mut irq = InterruptWriter::new(irq);
        if device.pulsed() {
            let _ = irq.pulse(config.gsi);
        }
        let server = Self {
            device,
            config,
            irq,
            state,
        };
        (server, was)
    }

    /// What has become of a predecessor's record.
    #[must_use]
    pub const fn past(&self) -> Past {
        self.state.past()
    }

    /// A routed port access.
    #[must_use]
    #[inline]
    pub fn access(&mut self, port: PortAccess, value: u32, now: impl Fn() -> u64) -> Todo {
        self.state.begin();
        let offset = port.port().wrapping_sub(self.config.base);
        let action = if port.input() {
            self.device.read(offset, port.width())
        } else {
            self.device.write(offset, port.width(), value)
        };
        let access = Access::of(port, value);
        match action {
            Action::Reply(value) => {
                let rose = self.set_line(self.device.irq());
                self.commit(access, value);
                Todo::Reply { value, rose }
            }
            Action::PulseAndReply(value, stamped) => {
                // A death in between has the successor pulse: twice rather than never.
                self.commit(access, value);
                if stamped {
                    self.device.stamp(now());
                }
                let rose = self.irq.pulse(self.config.gsi);
                self.device.pulsed();
                Todo::Reply { value, rose }
            }
            Action::CommitAndHang(value) => {
                self.commit(access, value);
                Todo::Die(action)
            }
            Action::Hang
            | Action::Crash
            | Action::TouchKernel
            | Action::TouchFpu
            | Action::TouchPort
            | Action::Flood => Todo::Die(action),
        }
    }

    /// The doorbell rang.
    pub fn doorbell(&mut self) {
        self.device.doorbell();
        if self.device.take_dirty() {
            self.state.save(&self.device.state());
        }
    }

    fn commit(&mut self, access: Access, value: u32) {
        if self.device.take_dirty() {
            self.state.commit(access, value, &self.device.state());
        }
    }

    /// Drives the line; true if it rose. The VMM learns of a fall when it next looks.
    fn set_line(&mut self, level: bool) -> bool {
        self.irq.set_level(self.config.gsi, level) && level
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{command, register};
    use ipc_schema::interrupt_page::{InterruptReader, Lines};
    use ipc_schema::state_page::Outcome;

    const CONFIG: Config = Config {
        base: 0x560,
        gsi: 5,
    };

    fn write(server: &mut Server<'_>, offset: u16, value: u32) -> Todo {
        server.access(
            PortAccess::new(CONFIG.base + offset, 4, false),
            value,
            || 77,
        )
    }

    fn read(server: &mut Server<'_>, offset: u16) -> Todo {
        server.access(PortAccess::new(CONFIG.base + offset, 4, true), 0, || 77)
    }

    fn reply(value: u32) -> Todo {
        Todo::Reply { value, rose: false }
    }

    #[test]
    fn a_hang_before_the_effect_is_retried_and_one_after_it_is_not() {
        let (irq, state) = (InterruptPage::new(), StatePage::new());
        let (mut server, _) = Server::new(CONFIG, &irq, &state);
        let count = PortAccess::new(CONFIG.base + register::COUNT, 4, true);
        let outcome = || state.outcome(kind::TESTDEV, Access::of(count, 0));
        assert_eq!(read(&mut server, register::COUNT), reply(1));
        assert_eq!(
            write(&mut server, register::COMMAND, command::HANG_NEXT),
            reply(0)
        );
        assert_eq!(read(&mut server, register::COUNT), Todo::Die(Action::Hang));
        assert_eq!(outcome(), Outcome::NotDone);
        let (mut server, was) = Server::new(CONFIG, &irq, &state);
        assert!(was);
        assert_eq!(
            write(&mut server, register::COMMAND, command::HANG_AFTER_COMMIT),
            reply(0)
        );
        assert_eq!(
            read(&mut server, register::COUNT),
            Todo::Die(Action::CommitAndHang(2))
        );
        assert_eq!(outcome(), Outcome::Done(2));
        let (mut server, _) = Server::new(CONFIG, &irq, &state);
        server.doorbell();
        assert_eq!(read(&mut server, register::COUNT), reply(3));
        assert_eq!(read(&mut server, register::COMMAND), reply(1));
    }

    #[test]
    fn a_pulse_that_was_only_committed_is_made_good() {
        let (irq, state) = (InterruptPage::new(), StatePage::new());
        let vmm = InterruptReader::new(&irq, 1 << 5);
        let (mut server, _) = Server::new(CONFIG, &irq, &state);
        let pulse = PortAccess::new(CONFIG.base + register::COMMAND, 4, false);
        // As in `access`, up to the commit.
        server.state.begin();
        let action = server.device.write(register::COMMAND, 4, command::PULSE);
        assert_eq!(action, Action::PulseAndReply(0, false));
        server.commit(Access::of(pulse, command::PULSE), 0);
        assert_eq!(vmm.look(), Lines::default());
        let (mut server, was) = Server::new(CONFIG, &irq, &state);
        assert!(was);
        assert_eq!(vmm.look().rises, 1 << 5);
        // Once its successor has committed anything, it is over.
        assert_eq!(read(&mut server, register::COUNT), reply(1));
        let _ = Server::new(CONFIG, &irq, &state);
        assert_eq!(vmm.look().rises, 0);
    }

    #[test]
    fn levels_and_pulses() {
        let (irq, state) = (InterruptPage::new(), StatePage::new());
        let (mut server, _) = Server::new(CONFIG, &irq, &state);
        let vmm = InterruptReader::new(&irq, 1 << 5);
        assert_eq!(
            write(&mut server, register::COMMAND, command::PULSE),
            Todo::Reply {
                value: 0,
                rose: true
            }
        );
        assert_eq!(
            vmm.look(),
            Lines {
                levels: 0,
                rises: 1 << 5
            }
        );
        assert_eq!(
            write(&mut server, register::COMMAND, command::STAMPED_PULSE),
            Todo::Reply {
                value: 0,
                rose: true
            }
        );
        assert_eq!(vmm.look().rises, 1 << 5);
        assert_eq!(read(&mut server, register::SCRATCH), reply(77));
        assert_eq!(
            write(&mut server, register::LINE, 1),
            Todo::Reply {
                value: 0,
                rose: true
            }
        );
        assert_eq!(
            vmm.look(),
            Lines {
                levels: 1 << 5,
                rises: 1 << 5
            }
        );
        assert_eq!(write(&mut server, register::LINE, 0), reply(0));
        assert_eq!(vmm.look(), Lines::default());
    }
}
