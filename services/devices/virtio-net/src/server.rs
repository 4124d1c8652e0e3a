//! The server around the device: queues, pages shared with the VMM, the switch and a successor; still pure.

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::link::{LinkPage, NetConfig, Receiver, Sender, Way};
use ipc_schema::state_page::{Access, StatePage, StateWriter, kind};
use ipc_schema::virtio::{BAR_SIZE, NET, feature as all};
use virtio::pci::{Effect, Interrupt, Transport};
use virtio::{Error, Memory, Queue};

use crate::feature;
use crate::receive::Inlet;
use crate::transmit::{Round, Transmitter};

/// Most descriptors of a queue.
pub const MAX_SIZE: u16 = 256;
/// The queues.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// What is offered beside what every device has.
const FEATURES: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::MAC
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::MRG_RXBUF
    | feature::STATUS
    | all::INDIRECT_DESC
    | all::EVENT_IDX
    | all::RING_RESET;

/// Who is to be signalled.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The VMM: the interrupt page has changed.
    pub vmm: bool,
    /// The switch: there are frames, or room.
    pub switch: bool,
}

/// What the server is made of.
pub struct Parts<'a> {
    /// What it is.
    pub config: &'a NetConfig,
    /// The guest's memory.
    pub memory: &'a Memory,
    /// The interrupt page.
    pub irq: &'a InterruptPage,
    /// The state page.
    pub state: &'a StatePage,
    /// The link's indices.
    pub page: &'a LinkPage,
    /// The link's memory, that page included.
    pub link: &'a Memory,
}

/// A network card with its surroundings.
pub struct Server<'a> {
    image: [u8; NET.config_len as usize],
    transport: Transport,
    queues: [Option<Queue<'a>>; 2],
    inlet: Inlet<'a>,
    transmitter: Transmitter<'a>,
    memory: &'a Memory,
    irq: InterruptWriter<'a>,
    state: StateWriter<'a>,
}

/// The device's configuration (5.1.4): address, link up, one pair of queues.
fn image(config: &NetConfig) -> [u8; NET.config_len as usize] {
    let mut image = [0; NET.config_len as usize];
    let link_up = 1u16.to_le_bytes();
    let pairs = 1u16.to_le_bytes();
    let bytes = config.mac.into_iter().chain(link_up).chain(pairs);
    for (to, from) in image.iter_mut().zip(bytes) {
        *to = from;
    }
    image
}

impl<'a> Server<'a> {
    /// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor. [`Server::wake`] is to be called next,
    /// and all be signalled: the last signals may have been lost.
    #[must_use]
    pub fn new(parts: &Parts<'a>) -> (Self, bool) {
        let memory = parts.memory;
        let (state, record) = StateWriter::new(parts.state, kind::VIRTIO_NET);
        let mut transport = Transport::new(FEATURES, 2, MAX_SIZE);
        let was = record.is_some_and(|record| transport.restore(record.words()));
        let (from, to) = (
            Receiver::new(parts.page, Way::ToDevice),
            Sender::new(parts.page, Way::FromDevice),
        );
        let mut server = Self {
            image: image(parts.config),
            transport,
            queues: [None, None],
            inlet: Inlet::new(memory, parts.link, from),
            transmitter: Transmitter::new(memory, parts.link, to),
            memory,
            irq: InterruptWriter::new(parts.irq),
            state,
        };
        if was {
            for queue in [RECEIVE, TRANSMIT] {
                server.find(queue, Queue::restore);
                if server.transport.running() && server.queue(queue).is_some() {
                    // The guest may have been promised an interrupt that never came.
                    let interrupt = server.transport.interrupt(queue);
                    let _ = server.raise(interrupt);
                }
            }
        }
        (server, was)
    }

    fn queue(&mut self, queue: u16) -> Option<&mut Queue<'a>> {
        self.queues.get_mut(usize::from(queue))?.as_mut()
    }

    /// A routed access; gives the value of an IN, and who is to be signalled.
    pub fn access(&mut self, port: PortAccess, value: u32) -> (u32, Signals) {
        self.state.begin();
        let offset = port.port() % BAR_SIZE;
        let before = self.transport.clone();
        let mut signals = Signals::default();
        let mut answer = 0;
        if port.input() {
            answer = self.transport.read(offset, port.width(), &self.image);
        } else {
            match self.transport.write(offset, port.width(), value) {
                Effect::Reset => self.forget(None),
                Effect::QueueReset(queue) => self.forget(Some(queue)),
                Effect::QueueEnabled(queue) => signals.vmm |= self.find(queue, Queue::new),
                Effect::DriverOk | Effect::Notify(_) => signals = self.serve(),
                Effect::Nothing | Effect::FeaturesOk(_) | Effect::Config { .. } => {}
            }
        }
        signals.vmm |= self.irq.set_intx(self.transport.pin());
        if self.transport != before {
            let words = self.transport.save();
            self.state.commit(Access::of(port, value), answer, &words);
        }
        (answer, signals)
    }

    /// A doorbell rang, the switch has sent or taken something, or it is the start.
    pub fn wake(&mut self) -> Signals {
        let before = self.transport.clone();
        let signals = self.serve();
        if self.transport != before {
            self.state.save(&self.transport.save());
        }
        signals
    }

    /// Forgets a queue, or all.
    fn forget(&mut self, queue: Option<u16>) {
        for (number, place) in (0u16..).zip(&mut self.queues) {
            if queue.is_none_or(|q| q == number) {
                *place = None;
                if number == RECEIVE {
                    self.inlet.forget();
                }
            }
        }
    }

    /// Finds a queue in the guest's memory, if it is on. True if the VMM is to be signalled.
    fn find(
        &mut self,
        number: u16,
        how: impl FnOnce(&'a Memory, &virtio::split::Place, u64) -> Result<Queue<'a>, Error>,
    ) -> bool {
        let registers = self.transport.queue(number).filter(|q| q.enabled);
        let Some(registers) = registers else {
            return false;
        };
        match how(self.memory, &registers.place, self.transport.features()) {
            Ok(queue) => {
                if let Some(place) = self.queues.get_mut(usize::from(number)) {
                    *place = Some(queue);
                }
                false
            }
            Err(_) => self.lost(),
        }
    }

    fn serve(&mut self) -> Signals {
        let mut signals = Signals::default();
        if !self.transport.running() {
            return signals;
        }
        let features = self.transport.features();
        let [receive, transmit] = &mut self.queues;
        let rounds = [
            (
                TRANSMIT,
                transmit
                    .as_mut()
                    .map(|q| self.transmitter.serve(q, features)),
            ),
            (
                RECEIVE,
                receive.as_mut().map(|q| self.inlet.serve(q, features)),
            ),
        ];
        for (queue, round) in rounds {
            match round {
                Some(Ok(Round { switch, guest })) => {
                    signals.switch |= switch;
                    if guest {
                        let interrupt = self.transport.interrupt(queue);
                        signals.vmm |= self.raise(interrupt);
                    }
                }
                Some(Err(_)) => signals.vmm |= self.lost(),
                None => {}
            }
        }
        signals
    }

    /// The guest has broken the device: it does nothing more.
    fn lost(&mut self) -> bool {
        let interrupt = self.transport.needs_reset();
        interrupt.is_some_and(|interrupt| self.raise(interrupt))
    }

    fn raise(&mut self, interrupt: Interrupt) -> bool {
        match interrupt {
            Interrupt::Vector(vector) => self.irq.set_msi(vector.into()),
            Interrupt::Pin => self.irq.set_intx(self.transport.pin()),
        }
    }
}
