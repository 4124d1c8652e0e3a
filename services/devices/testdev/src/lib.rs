//! A device for tests and benches: the cheapest port access, interrupts, a doorbell, and every way to die.
//!
//! Job: 16 ports that a test guest reads and writes, to measure exit routes and to see that a server that hangs or
//! crashes in the middle of an access costs its guest no more than a pause. Place: a `device-testdev` server of a VM
//! whose TOML asks for it; never in a shipped system. Trust: as any device model; the guest can only hurt this server.
//!
//! | offset | read | write |
//! |---|---|---|
//! | 0 | scratch: what was written, 8, 16 or 32 bits of it | scratch |
//! | 4 | number of reads of this register, this one included | sets that number |
//! | 8 | 1 if the interrupt line is high | bit 0: level of the interrupt line |
//! | 12 | number of doorbells | a [`command`] |
//!
//! The doorbell port is a doorbell route: it never comes here as an access, only as a signal ([`TestDev::doorbell`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod server;

/// Ports of the device.
pub const PORTS: u16 = 16;
/// Words of state.
pub const STATE_WORDS: usize = 2;

/// Offsets of the registers.
pub mod register {
    /// Scratch.
    pub const SCRATCH: u16 = 0;
    /// Read counter.
    pub const COUNT: u16 = 4;
    /// Interrupt line.
    pub const LINE: u16 = 8;
    /// Commands (write), doorbells (read).
    pub const COMMAND: u16 = 12;
}

/// What can be written to [`register::COMMAND`].
pub mod command {
    /// The next access makes the server hang in an endless loop, before it takes effect.
    pub const HANG_NEXT: u32 = 1;
    /// The next access makes the server touch an unmapped address, before it takes effect.
    pub const CRASH_NEXT: u32 = 2;
    /// The server hangs in the middle of this very write.
    pub const HANG_NOW: u32 = 3;
    /// The server crashes in the middle of this very write.
    pub const CRASH_NOW: u32 = 4;
    /// The next access takes effect and is committed; then the server hangs before it replies.
    pub const HANG_AFTER_COMMIT: u32 = 5;
    /// Interrupt: the line goes high and low again before the reply.
    pub const PULSE: u32 = 6;
    /// As [`PULSE`], and the scratch register then holds the lower half of the host's TSC, read right before the interrupt became
    /// pending.
    pub const STAMPED_PULSE: u32 = 10;
    /// The next access makes the server touch memory of the kernel.
    pub const TOUCH_KERNEL_NEXT: u32 = 7;
    /// The next access makes the server use an FPU register.
    pub const TOUCH_FPU_NEXT: u32 = 8;
    /// The next access makes the server execute an OUT to a port it does not own.
    pub const TOUCH_PORT_NEXT: u32 = 9;
    /// The next access makes the server ask root for ever what it is refused.
    pub const FLOOD_NEXT: u32 = 11;
}

/// What the server does about an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Commit the state if it is dirty, set the line, reply with this value.
    Reply(u32),
    /// The same, with a pulse on the interrupt line; if so, its time is to be noted ([`TestDev::stamp`]).
    PulseAndReply(u32, bool),
    /// Commit, then loop for ever.
    CommitAndHang(u32),
    /// Loop for ever.
    Hang,
    /// Touch an unmapped address.
    Crash,
    /// Touch memory of the kernel.
    TouchKernel,
    /// Use an FPU register.
    TouchFpu,
    /// Execute an OUT.
    TouchPort,
    /// Ask root in vain for ever.
    Flood,
}

/// What is armed for the next access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trap {
    #[default]
    None,
    Hang,
    Crash,
    HangAfterCommit,
    TouchKernel,
    TouchFpu,
    TouchPort,
    Flood,
}

/// The device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestDev {
    scratch: u32,
    count: u32,
    doorbells: u32,
    line: bool,
    /// A pulse is due.
    pulsing: bool,
    /// Not part of the state that survives: a successor is healthy.
    trap: Trap,
    dirty: bool,
}

impl TestDev {
    /// An IN of `width` bytes (1, 2 or 4) at `offset`.
    #[must_use]
    pub fn read(&mut self, offset: u16, width: u8) -> Action {
        let trap = core::mem::take(&mut self.trap);
        if let Some(action) = before(trap) {
            return action;
        }
        let mask = u32::MAX >> (32 - 8 * u32::from(width.clamp(1, 4)));
        let value = match offset {
            register::SCRATCH => self.scratch,
            register::COUNT => {
                self.count = self.count.wrapping_add(1);
                self.dirty = true;
                self.count
            }
            register::LINE => u32::from(self.line),
            register::COMMAND => self.doorbells,
            _ => u32::MAX,
        };
        after(trap, value & mask)
    }

    /// An OUT of `width` bytes (1, 2 or 4) at `offset`.
    #[must_use]
    pub fn write(&mut self, offset: u16, width: u8, value: u32) -> Action {
        let trap = core::mem::take(&mut self.trap);
        if let Some(action) = before(trap) {
            return action;
        }
        let mask = u32::MAX >> (32 - 8 * u32::from(width.clamp(1, 4)));
        let value = value & mask;
        self.dirty = true;
        match offset {
            register::SCRATCH => self.scratch = self.scratch & !mask | value,
            register::COUNT => self.count = self.count & !mask | value,
            register::LINE => self.line = value & 1 != 0,
            register::COMMAND => match value {
                command::HANG_NEXT => self.trap = Trap::Hang,
                command::CRASH_NEXT => self.trap = Trap::Crash,
                command::HANG_NOW => return Action::Hang,
                command::CRASH_NOW => return Action::Crash,
                command::HANG_AFTER_COMMIT => self.trap = Trap::HangAfterCommit,
                command::PULSE | command::STAMPED_PULSE => {
                    self.pulsing = true;
                    return Action::PulseAndReply(0, value == command::STAMPED_PULSE);
                }
                command::TOUCH_KERNEL_NEXT => self.trap = Trap::TouchKernel,
                command::TOUCH_FPU_NEXT => self.trap = Trap::TouchFpu,
                command::TOUCH_PORT_NEXT => self.trap = Trap::TouchPort,
                command::FLOOD_NEXT => self.trap = Trap::Flood,
                _ => {}
            },
            _ => {}
        }
        after(trap, 0)
    }

    /// The doorbell rang. Several rings between two looks count as one, as with any doorbell.
    pub fn doorbell(&mut self) {
        self.doorbells = self.doorbells.wrapping_add(1);
        self.dirty = true;
    }

    /// Whether a pulse was due; it is not any more.
    #[inline]
    pub fn pulsed(&mut self) -> bool {
        core::mem::take(&mut self.pulsing)
    }

    /// Puts the time of a pulse where the guest finds it.
    #[inline]
    pub fn stamp(&mut self, tsc: u64) {
        self.scratch = tsc as u32;
        self.dirty = true;
    }

    /// The level of the interrupt line.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.line
    }

    /// True if the state has changed since the last call: it should be committed.
    #[must_use]
    pub fn take_dirty(&mut self) -> bool {
        core::mem::take(&mut self.dirty)
    }

    /// The state that survives: everything but an armed trap.
    #[must_use]
    pub fn state(&self) -> [u64; STATE_WORDS] {
        [
            u64::from(self.count) << 32 | u64::from(self.scratch),
            u64::from(self.pulsing) << 63 | u64::from(self.doorbells) << 1 | u64::from(self.line),
        ]
    }

    /// Rebuilds the device from [`TestDev::state`]'s words; `None` if they are not such.
    #[must_use]
    pub fn restore(words: &[u64]) -> Option<Self> {
        let &[first, second] = words else { return None };
        Some(Self {
            scratch: first as u32,
            count: (first >> 32) as u32,
            doorbells: u32::try_from(second << 1 >> 2).ok()?,
            line: second & 1 != 0,
            pulsing: second >> 63 != 0,
            ..Self::default()
        })
    }
}

fn before(trap: Trap) -> Option<Action> {
    match trap {
        Trap::None | Trap::HangAfterCommit => None,
        Trap::Hang => Some(Action::Hang),
        Trap::Crash => Some(Action::Crash),
        Trap::TouchKernel => Some(Action::TouchKernel),
        Trap::TouchFpu => Some(Action::TouchFpu),
        Trap::TouchPort => Some(Action::TouchPort),
        Trap::Flood => Some(Action::Flood),
    }
}

fn after(trap: Trap, value: u32) -> Action {
    if trap == Trap::HangAfterCommit {
        Action::CommitAndHang(value)
    } else {
        Action::Reply(value)
    }
}

#[cfg(test)]
mod tests {
    use super::register::*;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scratch_in_every_width() {
        let mut device = TestDev::default();
        assert_eq!(device.write(SCRATCH, 4, 0x1122_3344), Action::Reply(0));
        assert_eq!(device.write(SCRATCH, 2, 0xffff_aabb), Action::Reply(0));
        assert_eq!(device.write(SCRATCH, 1, 0xcc), Action::Reply(0));
        assert_eq!(device.read(SCRATCH, 4), Action::Reply(0x1122_aacc));
        assert_eq!(device.read(SCRATCH, 2), Action::Reply(0xaacc));
        assert_eq!(device.read(SCRATCH, 1), Action::Reply(0xcc));
        assert_eq!(device.read(2, 2), Action::Reply(0xffff));
    }

    #[test]
    fn counts_reads_and_doorbells() {
        let mut device = TestDev::default();
        assert_eq!(device.read(COUNT, 4), Action::Reply(1));
        assert_eq!(device.read(COUNT, 4), Action::Reply(2));
        assert_eq!(device.write(COUNT, 4, 9), Action::Reply(0));
        assert_eq!(device.read(COUNT, 4), Action::Reply(10));
        device.doorbell();
        assert_eq!(device.read(COMMAND, 4), Action::Reply(1));
    }

    #[test]
    fn drives_its_line() {
        let mut device = TestDev::default();
        assert_eq!(device.write(LINE, 1, 1), Action::Reply(0));
        assert!(device.irq());
        assert_eq!(device.read(LINE, 1), Action::Reply(1));
        assert_eq!(device.write(LINE, 1, 2), Action::Reply(0));
        assert!(!device.irq());
        assert_eq!(
            device.write(COMMAND, 4, command::PULSE),
            Action::PulseAndReply(0, false)
        );
    }

    #[test]
    fn traps_spring_once_and_before_any_effect() {
        for (number, action) in [
            (command::HANG_NEXT, Action::Hang),
            (command::CRASH_NEXT, Action::Crash),
            (command::TOUCH_KERNEL_NEXT, Action::TouchKernel),
            (command::TOUCH_FPU_NEXT, Action::TouchFpu),
            (command::TOUCH_PORT_NEXT, Action::TouchPort),
            (command::FLOOD_NEXT, Action::Flood),
        ] {
            let mut device = TestDev::default();
            assert_eq!(device.write(COMMAND, 1, number), Action::Reply(0));
            assert_eq!(
                TestDev::restore(&device.state()),
                Some(TestDev::default()),
                "a successor is healthy"
            );
            assert_eq!(device.read(COUNT, 4), action);
            assert_eq!(device.read(COUNT, 4), Action::Reply(1));
            assert_eq!(device.write(COMMAND, 1, number), Action::Reply(0));
            assert_eq!(device.write(SCRATCH, 4, 7), action);
            assert_eq!(device.read(SCRATCH, 4), Action::Reply(0));
        }
        let mut device = TestDev::default();
        assert_eq!(device.write(COMMAND, 1, command::HANG_NOW), Action::Hang);
        assert_eq!(device.write(COMMAND, 1, command::CRASH_NOW), Action::Crash);
        assert_eq!(
            device.write(COMMAND, 1, command::HANG_AFTER_COMMIT),
            Action::Reply(0)
        );
        assert_eq!(device.read(COUNT, 4), Action::CommitAndHang(1));
        assert_eq!(device.read(COUNT, 4), Action::Reply(2));
    }

    proptest! {
        #[test]
        fn any_history_survives_a_restart(steps in proptest::collection::vec((any::<bool>(), 0u16..20, any::<u8>(), any::<u32>()), 0..50)) {
            let mut device = TestDev::default();
            for (write, offset, width, value) in steps {
                let before = device.state();
                let _ = if write { device.write(offset, width, value) } else { device.read(offset, width) };
                if value % 7 == 0 {
                    device.doorbell();
                }
                prop_assert!(device.take_dirty() || device.state() == before);
                let mut expected = device.clone();
                expected.trap = Trap::None;
                prop_assert_eq!(TestDev::restore(&device.state()), Some(expected));
            }
        }

        #[test]
        fn noise_is_refused_or_harmless(words: [u64; 2]) {
            prop_assert_eq!(TestDev::restore(&words).map(|device| device.state()), (words[1] << 1 >> 34 == 0).then_some(words));
            prop_assert_eq!(TestDev::restore(&words[..1]), None);
        }
    }
}
