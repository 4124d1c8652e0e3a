//! The server around the device: queues, rings, pages shared with the VMM, the manager and a successor; still pure.
//!
//! It works in turns. Each moves what can be moved, so that nobody sees it: bytes into rings and buffers, entries into used rings. Then
//! it commits to the state page where all rings and queues are, with the registers and what each port's driver knows. Then it publishes
//! them, interrupts the guest and signals the manager. A successor takes the commit for what has happened and publishes it.

use alloc::vec::Vec;

use ipc_schema::abi::NEVER;
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::manifest::Ports;
use ipc_schema::state_page::{Access, StatePage, StateWriter, kind};
use ipc_schema::virtio::{BAR_SIZE, CONSOLE, feature as all};
use virtio::pci::{Effect, Interrupt, Transport};
use virtio::{Error, Memory, Queue};

use crate::control::{self, HEADER, Message};
use crate::port::{BATCH, Pause, Port, Rings};
use crate::{Size, feature};

/// Most descriptors of a queue.
pub const MAX_SIZE: u16 = 128;
/// Queues of control messages: to the driver, from the driver.
const TO_DRIVER: u16 = 2;
const FROM_DRIVER: u16 = 3;
/// Offset of `emerg_wr` in the configuration (5.3.4).
const EMERGENCY: u16 = 8;
/// Turns before calls are served first: a guest or a manager that works at the same time could keep us for ever.
const TURNS: usize = 16;
/// Words a port takes of the state.
const PORT_WORDS: usize = 2;

const FEATURES: u64 = feature::SIZE
    | feature::MULTIPORT
    | feature::EMERG_WRITE
    | all::INDIRECT_DESC
    | all::EVENT_IDX
    | all::RING_RESET;

/// A port's queues: what it receives, what it sends.
const fn queues_of(port: u16) -> [u16; 2] {
    if port == 0 {
        return [0, 1];
    }
    [2 * port + 2, 2 * port + 3]
}

/// Who is to be signalled.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The VMM: the interrupt page has changed.
    pub vmm: bool,
    /// The manager: there are bytes, or room.
    pub manager: bool,
}

/// What the server is made of.
pub struct Parts<'a> {
    /// Its ports.
    pub ports: &'a Ports,
    /// Its guest takes rows before columns.
    pub rows_first: bool,
    /// The guest's memory.
    pub memory: &'a Memory,
    /// The interrupt page.
    pub irq: &'a InterruptPage,
    /// The state page.
    pub state: &'a StatePage,
    /// The rings of each port.
    pub rings: &'a [Rings<'a>],
}

/// A console with its surroundings.
pub struct Server<'a> {
    names: &'a Ports,
    rows_first: bool,
    transport: Transport,
    queues: Vec<Option<Queue<'a>>>,
    ports: Vec<Port<'a>>,
    /// The window's size, as the guest can read it.
    size: Size,
    memory: &'a Memory,
    irq: InterruptWriter<'a>,
    state: StateWriter<'a>,
    /// What was committed last.
    committed: Vec<u64>,
    /// There is more to do at once.
    more: bool,
}

/// What each port waits for; nothing where no queue is served.
struct Waits {
    sending: Vec<Option<Pause>>,
    receiving: Vec<Option<Pause>>,
}

impl<'a> Server<'a> {
    /// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor. [`Server::wake`] is to be called next,
    /// and all be signalled: the last signals may have been lost.
    #[must_use]
    pub fn new(parts: &Parts<'a>) -> (Self, bool) {
        let (state, record) = StateWriter::new(parts.state, kind::VIRTIO_CONSOLE);
        let ports: Vec<Port<'a>> = parts.rings.iter().map(Port::new).collect();
        let count = queues_of(ports.len() as u16)[0];
        let mut server = Self {
            names: parts.ports,
            rows_first: parts.rows_first,
            transport: Transport::new(FEATURES, count, MAX_SIZE),
            queues: (0..count).map(|_| None).collect(),
            ports,
            size: Size::default(),
            memory: parts.memory,
            irq: InterruptWriter::new(parts.irq),
            state,
            committed: Vec::new(),
            more: false,
        };
        let was = record.is_some_and(|record| server.restore(record.words(), parts.rings));
        if was && server.transport.running() {
            // The guest may have been promised interrupts that never came.
            for queue in 0..count {
                if server.queue(queue).is_some() {
                    let interrupt = server.transport.interrupt(queue);
                    let _ = server.raise(interrupt);
                }
            }
        }
        (server, was)
    }

    /// The state: registers, the window's size, where the queues are, and the ports.
    fn words(&self) -> Vec<u64> {
        let mut words = self.transport.save();
        words.push(self.size.note().into());
        for four in self.queues.chunks(4) {
            let positions = four
                .iter()
                .rev()
                .map(|q| q.as_ref().map_or(0, Queue::position));
            words.push(positions.fold(0, |word, position| word << 16 | u64::from(position)));
        }
        words.extend(self.ports.iter().flat_map(Port::words));
        words
    }

    /// Takes what a predecessor has committed; false, and nothing taken, if it makes no sense.
    fn restore(&mut self, words: &[u64], rings: &[Rings<'a>]) -> bool {
        let Some(at) = words
            .len()
            .checked_sub(1 + self.queues.len().div_ceil(4) + PORT_WORDS * rings.len())
        else {
            return false;
        };
        let (registers, rest) = words.split_at(at);
        let (positions, ports) = rest.split_at(1 + self.queues.len().div_ceil(4));
        let (ports, _) = ports.as_chunks::<PORT_WORDS>();
        let ports = rings
            .iter()
            .zip(ports)
            .map(|(rings, &words)| Port::resume(rings, words));
        // Registers last: they are taken if they are sound.
        let Some(ports) = ports.collect::<Option<Vec<_>>>() else {
            return false;
        };
        if !self.transport.restore(registers) {
            return false;
        }
        self.ports = ports;
        let (&[size], positions) = positions.split_first_chunk().unwrap_or((&[0], &[]));
        self.size = Size::from_note(size as u32);
        let halves = positions
            .iter()
            .flat_map(|word| [0, 16, 32, 48].map(|by| (word >> by) as u16));
        for (queue, position) in (0..self.queues.len() as u16).zip(halves) {
            let _ = self.find(queue, |memory, place, features| {
                Queue::resume(memory, place, features, position)
            });
        }
        true
    }

    fn queue(&mut self, queue: u16) -> Option<&mut Queue<'a>> {
        self.queues.get_mut(usize::from(queue))?.as_mut()
    }

    /// The driver knows of several ports.
    fn multiport(&self) -> bool {
        self.transport.features() & feature::MULTIPORT != 0
    }

    /// The configuration (5.3.4).
    fn image(&self) -> [u8; CONSOLE.config_len as usize] {
        let mut image = [0; CONSOLE.config_len as usize];
        let size = self.size.note().to_le_bytes();
        let ports = (self.ports.len() as u32).to_le_bytes();
        for (to, from) in image.iter_mut().zip(size.into_iter().chain(ports)) {
            *to = from;
        }
        image
    }

    /// Until when to wait (absolute TSC).
    #[must_use]
    pub fn deadline(&self) -> u64 {
        if self.more { 0 } else { NEVER }
    }

    /// A routed access; gives the value of an IN, and who is to be signalled.
    pub fn access(&mut self, port: PortAccess, value: u32) -> (u32, Signals) {
        self.state.begin();
        step();
        let offset = port.port() % BAR_SIZE;
        let mut signals = Signals::default();
        let mut answer = 0;
        if port.input() {
            let image = self.image();
            answer = self.transport.read(offset, port.width(), &image);
        } else {
            match self.transport.write(offset, port.width(), value) {
                Effect::Reset => self.reset(),
                Effect::QueueReset(queue) => self.forget(queue),
                Effect::QueueEnabled(queue) => signals.vmm |= self.find(queue, Queue::new),
                Effect::DriverOk | Effect::Notify(_) => signals = self.serve(),
                Effect::Config { offset, .. } if offset == EMERGENCY => {
                    if let Some(port) = self.ports.first_mut() {
                        port.emergency(value as u8);
                    }
                }
                Effect::Nothing | Effect::FeaturesOk(_) | Effect::Config { .. } => {}
            }
        }
        signals.vmm |= self.irq.set_intx(self.transport.pin());
        let words = self.words();
        if words != self.committed {
            self.state.commit(Access::of(port, value), answer, &words);
            self.committed = words;
            step();
            signals.manager |= self.publish_ports();
        }
        (answer, signals)
    }

    /// A doorbell rang, the manager has written or read, the deadline has passed, or it is the start.
    pub fn wake(&mut self) -> Signals {
        let signals = self.serve();
        self.save();
        signals
    }

    /// Commits what was no access, if there is anything.
    fn save(&mut self) {
        let words = self.words();
        if words != self.committed {
            self.state.save(&words);
            self.committed = words;
        }
        step();
    }

    fn reset(&mut self) {
        self.queues.fill_with(|| None);
        self.ports.iter_mut().for_each(Port::reset);
    }

    fn forget(&mut self, queue: u16) {
        if let Some(place) = self.queues.get_mut(usize::from(queue)) {
            *place = None;
        }
        for (number, port) in (0..).zip(&mut self.ports) {
            if queues_of(number)[1] == queue {
                port.forget_sending();
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
        for _ in 0..TURNS {
            match self.turn(&mut signals) {
                Ok(true) => {}
                Ok(false) => {
                    self.more = false;
                    return signals;
                }
                // What was moved before is committed in the next turn, the last.
                Err(_) => signals.vmm |= self.lost(),
            }
        }
        self.more = true;
        signals
    }

    /// One turn; true if there may be more to do already.
    fn turn(&mut self, signals: &mut Signals) -> Result<bool, Error> {
        signals.vmm |= self.look_at_size();
        if !self.transport.running() {
            self.save();
            signals.manager |= self.publish_ports();
            return Ok(false);
        }
        let waits = self.work()?;
        self.save();
        for number in 0..self.queues.len() as u16 {
            let wanted = match self.queue(number) {
                Some(queue) => queue.publish()?,
                None => false,
            };
            step();
            if wanted {
                let interrupt = self.transport.interrupt(number);
                signals.vmm |= self.raise(interrupt);
            }
        }
        signals.manager |= self.publish_ports();
        self.sleep(&waits)
    }

    /// The manager may have told another size. True if the VMM is to be signalled.
    fn look_at_size(&mut self) -> bool {
        let size = self.ports.first().map(|port| Size::from_note(port.note()));
        let Some(size) = size.filter(|&size| size != self.size) else {
            return false;
        };
        self.size = size;
        if let Some(port) = self.ports.first_mut() {
            port.status.resized();
        }
        let told = self.transport.running() && self.transport.features() & feature::SIZE != 0;
        if !told {
            return false;
        }
        let interrupt = self.transport.config_changed();
        self.raise(interrupt)
    }

    /// Moves what can be moved.
    fn work(&mut self) -> Result<Waits, Error> {
        let multiport = self.multiport();
        if multiport {
            self.hear()?;
            self.tell()?;
        }
        let (mut sending, mut receiving) = (Vec::new(), Vec::new());
        for (number, port) in (0..).zip(&mut self.ports) {
            let [to, from] = queues_of(number);
            let used = number == 0 || multiport;
            let queue = |queue: u16| usize::from(queue);
            let sent = match self.queues.get_mut(queue(from)).and_then(Option::as_mut) {
                Some(queue) if used => Some(port.send(queue, self.memory)?),
                _ => None,
            };
            sending.push(sent);
            // A driver of several ports says when it reads one.
            let reads = used && (!multiport || port.status.open());
            let received = match self.queues.get_mut(queue(to)).and_then(Option::as_mut) {
                Some(queue) if reads => Some(port.receive(queue, self.memory)?),
                _ => None,
            };
            receiving.push(received);
            step();
        }
        Ok(Waits { sending, receiving })
    }

    /// Hears the driver's control messages.
    fn hear(&mut self) -> Result<(), Error> {
        for _ in 0..BATCH {
            let memory = self.memory;
            let Some(queue) = self.queue(FROM_DRIVER) else {
                return Ok(());
            };
            let Some(mut chain) = queue.pop()? else {
                return Ok(());
            };
            let mut bytes = [0; HEADER];
            let mut have = 0;
            for part in &mut chain {
                let part = part?;
                let rest = bytes.get_mut(have..).unwrap_or(&mut []);
                let len = rest.len().min(part.len as usize);
                if !part.writable {
                    memory.read(part.gpa, rest.get_mut(..len).unwrap_or(&mut []))?;
                    have += len;
                }
            }
            queue.complete(chain.token(), 0)?;
            if have == HEADER {
                self.heard(Message::from_bytes(bytes));
            }
        }
        Ok(())
    }

    fn heard(&mut self, message: Message) {
        if message.event == control::event::DEVICE_READY {
            if message.value == 1 {
                self.ports.iter_mut().for_each(|p| p.status.announce());
            }
            return;
        }
        let number = usize::try_from(message.port).unwrap_or(usize::MAX);
        if let Some(port) = self.ports.get_mut(number) {
            port.status.heard(message, number == 0);
        }
    }

    /// Tells the driver what it is owed, as far as it has given buffers.
    fn tell(&mut self) -> Result<(), Error> {
        while let Some((number, event)) = self.owed() {
            let memory = self.memory;
            let name = self
                .names
                .names()
                .get(number)
                .map_or("", |name| name.as_str());
            let (bytes, len) =
                control::message(number as u32, event, name, self.size, self.rows_first);
            let Some(queue) = self.queue(TO_DRIVER) else {
                return Ok(());
            };
            let Some(mut chain) = queue.pop()? else {
                return Ok(());
            };
            let mut rest = bytes.get(..len).unwrap_or(&[]);
            for part in &mut chain {
                let part = part?;
                if part.writable {
                    let (now, later) = rest.split_at(rest.len().min(part.len as usize));
                    memory.write(part.gpa, now)?;
                    rest = later;
                }
            }
            if !rest.is_empty() {
                return Err(Error::Length);
            }
            queue.complete(chain.token(), len as u32)?;
            if let Some(port) = self.ports.get_mut(number) {
                port.status.told(event);
            }
        }
        Ok(())
    }

    /// The next message that the driver is owed: port and event.
    fn owed(&self) -> Option<(usize, u16)> {
        let ports = self.ports.iter().enumerate();
        let sized = self.transport.features() & feature::SIZE != 0;
        let size = if sized { self.size } else { Size::default() };
        ports
            .filter_map(|(number, port)| Some((number, port.status.next(size)?)))
            .next()
    }

    /// Tells everybody that we sleep; true if there is more to do.
    fn sleep(&mut self, waits: &Waits) -> Result<bool, Error> {
        let mut more = false;
        let mut numbers = Vec::new();
        if self.multiport() {
            numbers.push(FROM_DRIVER);
            if self.owed().is_some() {
                numbers.push(TO_DRIVER);
            }
        }
        let pauses = waits.sending.iter().zip(&waits.receiving);
        for ((number, port), (&sending, &receiving)) in (0..).zip(&self.ports).zip(pauses) {
            let [to, from] = queues_of(number);
            match sending {
                Some(Pause::NoBuffer) => numbers.push(from),
                Some(Pause::Ring) => more |= !port.sleep_for_room(),
                Some(Pause::More) => more = true,
                None => {}
            }
            match receiving {
                Some(Pause::NoBuffer) => numbers.push(to),
                Some(Pause::Ring) => more |= !port.sleep_for_bytes(),
                Some(Pause::More) => more = true,
                None => {}
            }
        }
        for number in numbers {
            if let Some(queue) = self.queue(number) {
                more |= queue.arm()?;
            }
        }
        Ok(more)
    }

    /// What has been committed happens to the rings; true if the manager is to be signalled.
    fn publish_ports(&mut self) -> bool {
        let mut signal = false;
        for port in &mut self.ports {
            port.publish();
            step();
            signal |= port.needs_signal();
        }
        signal
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

/// Between two things that others see: where tests let the server die.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn step() {}
#[cfg(test)]
pub(crate) use crate::tests::step;
