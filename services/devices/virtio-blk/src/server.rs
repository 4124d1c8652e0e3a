//! The server around the device: queues, requests under way, pages shared with the VMM and a successor; still pure.

use alloc::vec::Vec;

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::disk::{BlkConfig, Channel};
use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::state_page::{Access, StatePage, StateWriter, kind};
use ipc_schema::virtio::{BAR_SIZE, BLOCK as IDENTITY};
use virtio::pci::{Effect, Interrupt, Transport};
use virtio::{Error, Memory, Queue};

use crate::config;
use crate::content::{Content, give};
use crate::flight::{Done, Flight};
use crate::request::{Asked, ID, Raw, status};

/// Most requests under way at a time.
const MAX_REQUESTS: usize = 256;
/// Runs of guest memory in requests under way after which no further one is taken: a guest must not fill the heap.
const MAX_SPANS: usize = 4096;

/// Who is to be signalled.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The VMM: the interrupt page has changed.
    pub vmm: bool,
    /// `store`: there are requests for it.
    pub store: bool,
}

/// What the server is made of.
pub struct Parts<'a> {
    /// What it is.
    pub config: &'a BlkConfig,
    /// The guest's memory.
    pub memory: &'a Memory,
    /// The interrupt page.
    pub irq: &'a InterruptPage,
    /// The state page.
    pub state: &'a StatePage,
    /// The way to `store`.
    pub channel: &'a Channel,
    /// The disk's pages, which are nobody else's.
    pub pages: &'a mut [u8],
    /// The disk's image.
    pub image: &'a [u8],
}

/// A block device with its surroundings.
pub struct Server<'a> {
    config: &'a BlkConfig,
    image: [u8; IDENTITY.config_len as usize],
    transport: Transport,
    queues: Vec<Option<Queue<'a>>>,
    flight: Flight<'a>,
    memory: &'a Memory,
    irq: InterruptWriter<'a>,
    state: StateWriter<'a>,
}

impl<'a> Server<'a> {
    /// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor. [`Server::wake`] is to be called next,
    /// and all be signalled: the last signals may have been lost.
    #[must_use]
    pub fn new(parts: Parts<'a>) -> (Self, bool) {
        let Parts { config, memory, .. } = parts;
        let (state, record) = StateWriter::new(parts.state, kind::VIRTIO_BLK);
        let mut transport =
            Transport::new(config::features(config), config.queues, config::MAX_SIZE);
        let was = record.is_some_and(|record| transport.restore(record.words()));
        let content = Content::new(parts.pages, parts.image);
        let mut server = Self {
            config,
            image: config::image(config),
            transport,
            queues: (0..config.queues).map(|_| None).collect(),
            flight: Flight::new(parts.channel, config.depth(), content),
            memory,
            irq: InterruptWriter::new(parts.irq),
            state,
        };
        if was {
            for queue in 0..config.queues {
                server.find(queue, Queue::restore);
            }
            if server.transport.running() {
                // The guest may have been promised interrupts that never came.
                for queue in 0..config.queues {
                    if server.queue(queue).is_some() {
                        let interrupt = server.transport.interrupt(queue);
                        let _ = server.raise(interrupt);
                    }
                }
            }
        }
        (server, was)
    }

    /// Whether `store` owes an answer, and how many it has given, modulo 2^32.
    #[must_use]
    pub fn waits(&self) -> (bool, u32) {
        self.flight.waits()
    }

    /// Dies, and leaves the disk's pages to a successor.
    #[must_use]
    pub fn into_pages(self) -> &'a mut [u8] {
        self.flight.into_content().into_pages()
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
                Effect::Reset => {
                    self.queues.fill_with(|| None);
                    self.flight.forget(None);
                }
                Effect::QueueReset(queue) => {
                    if let Some(queue) = self.queues.get_mut(usize::from(queue)) {
                        *queue = None;
                    }
                    self.flight.forget(Some(queue));
                }
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

    /// A doorbell rang, `store` has answered, or it is the start.
    pub fn wake(&mut self) -> Signals {
        let before = self.transport.clone();
        let signals = self.serve();
        if self.transport != before {
            self.state.save(&self.transport.save());
        }
        signals
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
        loop {
            match self.turn(&mut signals) {
                Ok(true) => {}
                Ok(false) => return signals,
                Err(_) => signals.vmm |= self.lost(),
            }
        }
    }

    /// Does what there is to be done; true if there may be more already.
    fn turn(&mut self, signals: &mut Signals) -> Result<bool, Error> {
        while let Some(done) = self.flight.answer(self.memory) {
            self.finish(done)?;
        }
        let mut running = self.transport.running();
        if running {
            self.take()?;
        }
        signals.store |= self.flight.ask();
        if running {
            for number in 0..self.config.queues {
                let wanted = match self.queue(number) {
                    Some(queue) => queue.publish()?,
                    None => false,
                };
                if wanted {
                    let interrupt = self.transport.interrupt(number);
                    signals.vmm |= self.raise(interrupt);
                }
            }
        }
        let mut more = !self.flight.prepare_sleep();
        running &= self.has_room();
        for queue in self.queues.iter_mut().flatten().filter(|_| running) {
            more |= queue.arm()?;
        }
        Ok(more)
    }

    fn has_room(&self) -> bool {
        self.flight.requests() < MAX_REQUESTS && self.flight.spans() < MAX_SPANS
    }

    /// Takes requests out of the queues.
    fn take(&mut self) -> Result<(), Error> {
        for number in 0..self.config.queues {
            while self.has_room() {
                let Some(queue) = self.queue(number) else {
                    break;
                };
                let Some(mut chain) = queue.pop()? else {
                    break;
                };
                let raw = Raw::new(self.memory, &mut chain)?;
                let token = chain.token();
                let asked = raw.asked(self.memory, self.config)?;
                let mut done = Done {
                    queue: number,
                    token,
                    raw,
                    status: status::OK,
                    reads: false,
                };
                match asked {
                    Asked::Parts(parts) if !parts.is_empty() => self.flight.begin(done, parts),
                    Asked::Parts(_) => self.finish(done)?,
                    Asked::Id => {
                        self.identify(&done.raw)?;
                        done.reads = true;
                        self.finish(done)?;
                    }
                    Asked::Refused(status) => {
                        done.status = status;
                        self.finish(done)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn identify(&self, raw: &Raw) -> Result<(), Error> {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(self.config.serial.bytes()) {
            *to = from;
        }
        let room: u64 = raw.input.iter().map(|span| span.len).sum();
        let len = usize::try_from(room).map_or(ID, |room| room.min(ID));
        give(self.memory, &raw.input, 0, id.get(..len).unwrap_or(&[]))
    }

    /// A request is done: the guest finds its status, and its buffer when the queue is published.
    fn finish(&mut self, done: Done) -> Result<(), Error> {
        self.memory.write(done.raw.status, &[done.status])?;
        let written = match (done.status, done.raw.input.is_empty()) {
            (_, true) => 1,
            (status::OK, false) if done.reads => done.raw.written(),
            // Not all that comes before the status was written.
            _ => 0,
        };
        match self.queue(done.queue) {
            Some(queue) => queue.complete(done.token, written),
            None => Ok(()),
        }
    }

    /// The guest has broken the device: it does nothing more.
    fn lost(&mut self) -> bool {
        self.flight.forget(None);
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
