//! The server around the device: pages shared with the VMM and a successor; still pure.

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::state_page::{Access, StatePage, StateWriter, kind};
use ipc_schema::virtio::{BAR_SIZE, feature};
use virtio::pci::{Effect, Interrupt, Transport};
use virtio::{Chain, Error, Memory, Queue};

use crate::entropy::Generator;

/// Most descriptors of the queue.
pub const MAX_SIZE: u16 = 64;
/// Most bytes for one buffer: the guest asks again.
const MOST: u32 = 1024;
/// The only queue.
const REQUESTS: u16 = 0;

/// An entropy source with its surroundings.
pub struct Server<'a> {
    transport: Transport,
    queue: Option<Queue<'a>>,
    generator: Generator,
    memory: &'a Memory,
    irq: InterruptWriter<'a>,
    state: StateWriter<'a>,
}

impl<'a> Server<'a> {
    /// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor. [`Server::wake`] is to be called next,
    /// and the VMM signalled: the last signals may have been lost.
    #[must_use]
    pub fn new(memory: &'a Memory, irq: &'a InterruptPage, state: &'a StatePage) -> (Self, bool) {
        let (state, record) = StateWriter::new(state, kind::VIRTIO_RNG);
        let features = feature::INDIRECT_DESC | feature::EVENT_IDX | feature::RING_RESET;
        let mut transport = Transport::new(features, 1, MAX_SIZE);
        let was = record.is_some_and(|record| transport.restore(record.words()));
        let mut server = Self {
            transport,
            queue: None,
            generator: Generator::new(),
            memory,
            irq: InterruptWriter::new(irq),
            state,
        };
        if was {
            server.find(Queue::restore);
        }
        if was && server.transport.running() {
            // The guest may have been promised an interrupt that never came.
            let interrupt = server.transport.interrupt(REQUESTS);
            let _ = server.raise(interrupt);
        }
        (server, was)
    }

    /// Mixes words in that the guest cannot know; before anything is served, and as often as there are some.
    pub fn mix(&mut self, words: [u64; 4]) {
        self.generator.mix(words);
    }

    /// A routed access; gives the value of an IN, and whether the VMM is to be signalled.
    pub fn access(&mut self, port: PortAccess, value: u32) -> (u32, bool) {
        self.state.begin();
        let offset = port.port() % BAR_SIZE;
        let before = self.transport.clone();
        let mut signal = false;
        let mut answer = 0;
        if port.input() {
            answer = self.transport.read(offset, port.width(), &[]);
        } else {
            match self.transport.write(offset, port.width(), value) {
                Effect::Reset | Effect::QueueReset(_) => self.queue = None,
                Effect::QueueEnabled(_) => signal |= self.find(Queue::new),
                Effect::DriverOk | Effect::Notify(_) => signal |= self.serve(),
                Effect::Nothing | Effect::FeaturesOk(_) | Effect::Config { .. } => {}
            }
        }
        signal |= self.irq.set_intx(self.transport.pin());
        if self.transport != before {
            let words = self.transport.save();
            self.state.commit(Access::of(port, value), answer, &words);
        }
        (answer, signal)
    }

    /// A doorbell rang, or it is the start; true if the VMM is to be signalled.
    #[must_use]
    pub fn wake(&mut self) -> bool {
        let before = self.transport.clone();
        let signal = self.serve();
        if self.transport != before {
            self.state.save(&self.transport.save());
        }
        signal
    }

    /// Finds the queue in the guest's memory, if it is on.
    fn find(
        &mut self,
        how: impl FnOnce(&'a Memory, &virtio::split::Place, u64) -> Result<Queue<'a>, Error>,
    ) -> bool {
        let registers = self.transport.queue(REQUESTS).filter(|q| q.enabled);
        let Some(registers) = registers else {
            return false;
        };
        match how(self.memory, &registers.place, self.transport.features()) {
            Ok(queue) => {
                self.queue = Some(queue);
                false
            }
            Err(_) => self.lost(),
        }
    }

    fn serve(&mut self) -> bool {
        let Some(queue) = self.queue.as_mut().filter(|_| self.transport.running()) else {
            return false;
        };
        match serve(queue, self.memory, &mut self.generator) {
            Ok(true) => {
                let interrupt = self.transport.interrupt(REQUESTS);
                self.raise(interrupt)
            }
            Ok(false) => false,
            Err(_) => self.lost(),
        }
    }

    /// The guest has broken the device.
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

/// Fills every buffer that is there; true if the guest wants an interrupt for them.
fn serve(queue: &mut Queue<'_>, memory: &Memory, generator: &mut Generator) -> Result<bool, Error> {
    let mut wanted = false;
    loop {
        while let Some(mut chain) = queue.pop()? {
            let written = fill(&mut chain, memory, generator)?;
            queue.complete(chain.token(), written)?;
        }
        wanted |= queue.publish()?;
        if !queue.arm()? {
            return Ok(wanted);
        }
    }
}

/// Fills one buffer, from its beginning; how many bytes were written.
fn fill(chain: &mut Chain<'_>, memory: &Memory, generator: &mut Generator) -> Result<u32, Error> {
    let mut done = 0;
    for part in chain {
        let part = part?;
        if !part.writable {
            continue;
        }
        let end = part.len.min(MOST - done);
        let mut at = 0;
        while at < end {
            let bytes = generator.block();
            let bytes = bytes.get(..(end - at).min(64) as usize).unwrap_or(&bytes);
            memory.write(part.gpa + u64::from(at), bytes)?;
            at += bytes.len() as u32;
        }
        done += end;
        if done == MOST {
            break;
        }
    }
    // What was given cannot be worked out from what comes.
    generator.mix([0; 4]);
    Ok(done)
}
