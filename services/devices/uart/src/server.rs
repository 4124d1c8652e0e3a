//! The server around the model: pages shared with VMM, manager and successor; still pure.
//!
//! An access is taken in the order: mark it begun, carry it out, write bytes into the ring unseen, set the line, commit, show the
//! bytes. The commit holds the model's state *and* where the rings' own ends are, so that it is one with what has left and what has
//! come in: a death before it means that the access did not happen and nothing of it was seen; after it the successor shows
//! what was written. No byte is lost and none comes twice, whenever the server dies.
//!
//! What the driver has set is committed to both slots of the state page when it changes, so that a scribble over one of them leaves it:
//! then the bytes in the FIFOs are lost, and the guest goes on.
//!
//! Bytes do not leave one by one: a burst of writes is collected in the transmit FIFO until it is full, the guest looks
//! whether it is empty, or [`LINGER`] has passed. So a driver that fills the FIFO 16 bytes at a time costs one signal
//! and one interrupt, not 16.

use ipc_schema::abi::NEVER;
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::ring::{Consumer, Producer, RingPage};
use ipc_schema::state_page::{Access, Found, Past, Record, StatePage, StateWriter, kind};

use crate::fifo::DEPTH;
use crate::{STATE_WORDS, Uart, register};

/// How long bytes wait for more, in microseconds. 16 bytes take 1,389 at 115,200 baud, so nobody will notice.
pub const LINGER: u64 = 100;

/// Most rounds in which a peer that works at the same time, or a hostile one, can keep us from going on. After these
/// the deadline is now, so that calls are served first.
const ROUNDS: usize = 8;

/// No configuration: MSR's place is not 0.
const NONE: u64 = u64::MAX;

/// The pages of one UART.
pub struct Pages<'a> {
    /// Interrupt line, shared with the VMM.
    pub irq: &'a InterruptPage,
    /// State, for a successor and the VMM.
    pub state: &'a StatePage,
    /// Bytes that the guest sends.
    pub tx: &'a RingPage,
    /// Bytes that the guest receives.
    pub rx: &'a RingPage,
}

/// What is fixed for one UART.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The guest's first port.
    pub base: u16,
    /// The guest's interrupt line.
    pub gsi: u32,
    /// [`LINGER`] in TSC cycles.
    pub linger: u64,
}

/// Whom to signal now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Signals {
    /// The line has risen.
    pub vmm: bool,
    /// The manager waits for bytes or for room.
    pub manager: bool,
}

/// A UART with its surroundings.
pub struct Server<'a> {
    uart: Uart,
    config: Config,
    irq: InterruptWriter<'a>,
    state: StateWriter<'a>,
    /// What was committed last of what the driver has set; [`NONE`]: nothing yet.
    configuration: u64,
    tx: Producer<'a>,
    rx: Consumer<'a>,
    /// Bytes of `rx` that the model has taken but the ring has not given up, until they are committed.
    taken: usize,
    /// Bytes have gone into `tx`, or out of `rx`, and the manager may have to be signalled.
    pushed: bool,
    popped: bool,
    /// The manager knows that it must signal when bytes come.
    announced: bool,
    /// When bytes in the FIFO must leave.
    flush_at: Option<u64>,
}

impl<'a> Server<'a> {
    /// Takes the pages over from a predecessor, or begins with a UART after reset. True if there was a predecessor.
    /// Both neighbours are to be signalled once at the start, for its last signals may have been lost.
    #[must_use]
    pub fn new(config: Config, pages: &Pages<'a>) -> (Self, bool) {
        let (state, found) = StateWriter::take_over(pages.state, kind::UART);
        let restore = |record: &Record, newest: bool| {
            let (&ends, model) = record.words().split_last()?;
            let uart = match newest {
                true => Uart::restore(model),
                false => Uart::restore_configuration(model),
            };
            Some((uart?, newest.then_some(ends)))
        };
        let restored = match &found {
            Found::Newest(record) => restore(record, true),
            Found::Configuration(record) => restore(record, false),
            Found::Nothing | Found::Lost => None,
        };
        let was = restored.is_some();
        let (uart, ends) = restored.unwrap_or_default();
        // Of an older record the ends are none: then the rings say where they are.
        let (tx, rx) = ends.map_or_else(
            || (Producer::new(pages.tx), Consumer::new(pages.rx)),
            |ends| {
                let (tx, rx) = (ends as u32, (ends >> 32) as u32);
                (
                    Producer::resume(pages.tx, tx),
                    Consumer::resume(pages.rx, rx),
                )
            },
        );
        let mut server = Self {
            uart,
            config,
            irq: InterruptWriter::new(pages.irq),
            state,
            configuration: NONE,
            tx,
            rx,
            taken: 0,
            pushed: false,
            popped: false,
            announced: false,
            flush_at: None,
        };
        let words = server.words();
        match found {
            Found::Nothing => {}
            // Both slots have it.
            Found::Newest(_) if was => server.configuration = Uart::configuration(&words),
            // A successor must not find the same once more.
            _ => {
                server.configuration = Uart::configuration(&words);
                server.state.save_lasting(&words);
            }
        }
        (server, was)
    }

    /// What has become of a predecessor's record.
    #[must_use]
    pub const fn past(&self) -> Past {
        self.state.past()
    }

    /// A routed port access; gives the value of an IN.
    #[inline]
    pub fn access(
        &mut self,
        port: PortAccess,
        value: u32,
        now: impl Fn() -> u64,
    ) -> (u32, Signals) {
        self.state.begin();
        step();
        let offset = u8::try_from(port.port().wrapping_sub(self.config.base)).unwrap_or(u8::MAX);
        if port.input() && port.width() == 1 && self.is_quiet() {
            let value = u32::from(self.uart.read(offset));
            if !self.uart.is_dirty() {
                return (value, Signals::default());
            }
            return self.conclude(port, value);
        }
        self.access_any(port, offset, value, now)
    }

    /// Nothing waits on either side: a read that does not change the model has no consequences.
    #[inline]
    fn is_quiet(&self) -> bool {
        self.announced && self.flush_at.is_none() && self.uart.output_len() == 0
    }

    #[inline(never)]
    fn access_any(
        &mut self,
        port: PortAccess,
        offset: u8,
        value: u32,
        now: impl Fn() -> u64,
    ) -> (u32, Signals) {
        let value = if port.input() {
            if offset != register::DATA {
                // The guest may look whether the transmitter is empty: that it is.
                self.flush();
            }
            self.uart.read_wide(offset, port.width())
        } else {
            self.uart.write_wide(offset, port.width(), value);
            self.collect(now);
            value
        };
        step();
        self.conclude(port, value)
    }

    /// What follows an access that may have changed the model.
    #[inline(never)]
    fn conclude(&mut self, port: PortAccess, value: u32) -> (u32, Signals) {
        self.receive();
        let vmm = self.set_line();
        if self.uart.take_dirty() {
            let (access, words) = (Access::of(port, value), self.words());
            if self.is_lasting(&words) {
                self.state.commit_lasting(access, value, &words);
            } else {
                self.state.commit(access, value, &words);
            }
        }
        let signals = self.finish(vmm);
        step();
        (value, signals)
    }

    /// A signal came, or the deadline has passed.
    pub fn wake(&mut self, now: impl Fn() -> u64) -> Signals {
        // Whatever the manager announced to us is used up.
        self.announced = false;
        if self.flush_at.is_none_or(|at| at <= now()) {
            self.flush();
        }
        self.receive();
        let vmm = self.set_line();
        self.save();
        self.finish(vmm)
    }

    /// The state: the model's, and where the rings' own ends will be.
    fn words(&self) -> [u64; STATE_WORDS + 1] {
        let (tx, rx) = (self.tx.position(), self.rx.position());
        let rx = rx.wrapping_add(self.taken as u32);
        let mut words = [u64::from(tx) | u64::from(rx) << 32; STATE_WORDS + 1];
        words
            .iter_mut()
            .zip(self.uart.state())
            .for_each(|(to, from)| *to = from);
        words
    }

    /// Commits what was no access, if there is anything.
    fn save(&mut self) {
        if self.uart.take_dirty() {
            let words = self.words();
            if self.is_lasting(&words) {
                self.state.save_lasting(&words);
            } else {
                self.state.save(&words);
            }
        }
    }

    /// Whether these words, which are committed now, have another configuration than those before.
    #[inline]
    fn is_lasting(&mut self, words: &[u64; STATE_WORDS + 1]) -> bool {
        let configuration = Uart::configuration(words);
        core::mem::replace(&mut self.configuration, configuration) != configuration
    }

    /// Until when to wait (absolute TSC).
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.flush_at.unwrap_or(NEVER)
    }

    /// After a write: lets bytes leave now, or gives them a little time.
    fn collect(&mut self, now: impl Fn() -> u64) {
        let waiting = self.uart.output_len();
        if waiting == 0 {
            return;
        }
        if waiting >= usize::from(DEPTH) || !self.uart.fifos_enabled() {
            self.flush();
        } else if self.flush_at.is_none() {
            self.flush_at = Some(now().saturating_add(self.config.linger));
        }
    }

    /// Writes bytes from the transmit FIFO into the ring, as many as there is room for. They are seen after the commit.
    fn flush(&mut self) {
        self.flush_at = None;
        for _ in 0..ROUNDS {
            if self.uart.output_len() == 0 {
                return;
            }
            let mut bytes = [0; DEPTH as usize];
            let room = bytes.len().min(self.tx.room());
            if room == 0 {
                // The guest waits with us: the manager signals when there is room, or there is some by now.
                if self.tx.prepare_sleep() {
                    return;
                }
                continue;
            }
            let count = self
                .uart
                .take_output(bytes.get_mut(..room).unwrap_or(&mut []));
            self.tx.write(bytes.get(..count).unwrap_or(&[]));
            self.pushed = true;
            step();
        }
        self.flush_at = Some(0);
    }

    /// Moves bytes from the ring to the receiver, as many as it has room for. They leave the ring after the commit.
    fn receive(&mut self) {
        // Announced and not signalled since: the ring is empty.
        if self.announced {
            return;
        }
        let mut bytes = [0; DEPTH as usize];
        let room = bytes.len().min(self.uart.input_room());
        let count = self.rx.peek(bytes.get_mut(..room).unwrap_or(&mut []));
        self.taken = self.uart.input(bytes.get(..count).unwrap_or(&[]));
        step();
    }

    /// Drives the line; true if it rose. The VMM learns of a fall when it next looks.
    fn set_line(&mut self) -> bool {
        let level = self.uart.irq();
        let rose = self.irq.set_level(self.config.gsi, level) && level;
        step();
        rose
    }

    /// After the commit: shows what was sent, gives up what was received, and finds out whom to signal.
    fn finish(&mut self, mut vmm: bool) -> Signals {
        self.release();
        // With the receiver full there is no use in being woken: the guest's next read looks at the ring again.
        for _ in 0..ROUNDS {
            if self.announced || self.uart.input_room() == 0 {
                break;
            }
            self.announced = self.rx.prepare_sleep();
            if !self.announced {
                // More has come since.
                self.receive();
                vmm |= self.set_line();
                self.save();
                self.release();
            }
        }
        if !self.announced && self.uart.input_room() != 0 {
            self.flush_at = Some(0);
        }
        // Only who has changed a ring asks: the peer's announcement is taken by asking.
        let pushed = core::mem::take(&mut self.pushed) && self.tx.needs_signal();
        let popped = core::mem::take(&mut self.popped) && self.rx.needs_signal();
        Signals {
            vmm,
            manager: pushed || popped,
        }
    }

    /// What has been committed happens to the rings.
    fn release(&mut self) {
        step();
        if self.pushed {
            self.tx.publish();
        }
        step();
        let taken = core::mem::take(&mut self.taken);
        if taken != 0 {
            self.rx.advance(taken);
            self.popped = true;
        }
        step();
    }
}

/// Between two things that others see: where tests let the server die.
#[cfg(not(test))]
#[inline(always)]
const fn step() {}
#[cfg(test)]
use tests::step;

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
