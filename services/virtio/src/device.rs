//! What all device models are around: registers, queues, interrupts, and the pages shared with the VMM and a successor.
//!
//! Job: a [`Server`] answers accesses and wake-ups with a [`Model`], which is what makes a device of its kind; the model works on the
//! [`Device`], which holds the rest. Still pure: who is signalled is an answer.
//!
//! Registers are committed to the state page when they change, and [words of the model's](Model::words) with them; queues say by themselves
//! where they are. A model for which that is not enough [keeps the places](Model::KEEPS) of its queues too: they are committed with the
//! rest, before anybody sees what it did.
//!
//! Of what is committed most is *configuration*: what the driver has set, which nobody but it knows. It changes rarely, and is then in both
//! slots of the state page, so that a scribble over one of them leaves it; places it leaves out of date, and they are found in the queues.
//! Without either slot the device [needs a reset](Transport::lose), and is as good as new after it.

use alloc::vec::Vec;

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::state_page::{Access, Found, Note, Past, StatePage, StateWriter};
use ipc_schema::virtio::{BAR_SIZE, feature};

use crate::pci::{Effect, Interrupt, Transport};
use crate::split::Place;
use crate::{Error, Memory, Queue};

/// Who is to be signalled.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The VMM: the interrupt page has changed.
    pub vmm: bool,
    /// The model's back end, if it has one.
    pub peer: bool,
}

impl Signals {
    /// All: the last signals of a predecessor may have been lost.
    pub const ALL: Self = Self {
        vmm: true,
        peer: true,
    };
}

/// Features that every device has.
pub const FEATURES: u64 =
    feature::INDIRECT_DESC | feature::EVENT_IDX | feature::RING_PACKED | feature::RING_RESET;

/// What a model is to the transport.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Which records of the state page are its own ([`ipc_schema::state_page::kind`]).
    pub record: u64,
    /// Features that are offered.
    pub features: u64,
    /// Queues.
    pub queues: u16,
    /// Most descriptors of each.
    pub max_size: u16,
}

/// What a device shares with the guest, the VMM and its successor.
#[derive(Clone, Copy)]
pub struct Pages<'a> {
    /// The guest's memory.
    pub memory: &'a Memory,
    /// The interrupt page.
    pub irq: &'a InterruptPage,
    /// The state page.
    pub state: &'a StatePage,
}

/// What makes a device of its kind.
pub trait Model<'a> {
    /// Its queues' places are committed with the rest: [`Device::commit`] in [`Model::serve`], before [`Device::publish`]; and after an
    /// access that has changed them.
    const KEEPS: bool = false;

    /// The device-specific configuration.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// The driver writes to the device-specific configuration. Nobody sees what that does before [`Model::committed`].
    fn write_config(&mut self, offset: u16, value: u32) {
        let _ = (offset, value);
    }

    /// What a successor is to know beside registers and queues. Whoever changes it, but by forgetting, calls [`Device::commit`] before
    /// anybody sees what changed.
    fn words(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Takes what a predecessor has kept; false, and nothing taken, if it makes no sense.
    fn restore(&mut self, words: &[u64]) -> bool {
        words.is_empty()
    }

    /// As [`Model::restore`], from a record of which only the configuration is known to be the newest.
    fn restore_configuration(&mut self, words: &[u64]) -> bool {
        self.restore(words)
    }

    /// Which bits of this of its words are configuration, which cannot be found again ([`Model::restore_configuration`]).
    #[must_use]
    fn lasts(word: usize) -> u64 {
        let _ = word;
        u64::MAX
    }

    /// An access has been committed: what it did is to be seen.
    fn committed(&mut self, device: &mut Device<'a>) {
        let _ = device;
    }

    /// Does what there is to be done, and asks to be told of more. An error is the guest's: the device is lost, and this is called once
    /// more.
    fn serve(&mut self, device: &mut Device<'a>) -> Result<(), Error>;

    /// What was taken from this queue, or from all, is the driver's again.
    fn forget(&mut self, queue: Option<u16>) {
        let _ = queue;
    }
}

/// A device as its model sees it.
pub struct Device<'a> {
    memory: &'a Memory,
    transport: Transport,
    queues: Vec<Option<Queue<'a>>>,
    irq: InterruptWriter<'a>,
    state: StateWriter<'a>,
    /// Where queues are is committed.
    keeps: bool,
    /// Of the model's words.
    lasts: fn(usize) -> u64,
    past: Past,
    /// What was committed last.
    kept: Vec<u64>,
    signals: Signals,
    /// A doorbell rang, and the queue has not been looked at ([`Server::hold`]).
    held: bool,
}

impl<'a> Device<'a> {
    /// The guest's memory.
    #[must_use]
    pub const fn memory(&self) -> &'a Memory {
        self.memory
    }

    /// Whether the driver drives and the device is not lost.
    #[must_use]
    pub const fn running(&self) -> bool {
        self.transport.running()
    }

    /// Features that the driver has accepted.
    #[must_use]
    pub const fn features(&self) -> u64 {
        self.transport.features()
    }

    /// A queue, if it is on.
    #[inline]
    pub fn queue(&mut self, queue: u16) -> Option<&mut Queue<'a>> {
        self.queues.get_mut(usize::from(queue))?.as_mut()
    }

    /// The queues that are on.
    pub fn queues(&mut self) -> impl Iterator<Item = &mut Queue<'a>> {
        self.queues.iter_mut().flatten()
    }

    /// The driver is to look at a queue.
    pub fn interrupt(&mut self, queue: u16) {
        let interrupt = self.transport.interrupt(queue);
        self.raise(interrupt);
    }

    /// The driver is told of what is complete in a queue, and interrupted if it wants to be.
    #[inline]
    pub fn publish(&mut self, number: u16) -> Result<(), Error> {
        self.tell(number)?;
        self.ask(number).map(drop)
    }

    /// The driver is told of what is complete in a queue; of so many it is to be [asked](Self::ask).
    #[inline]
    pub fn tell(&mut self, number: u16) -> Result<u16, Error> {
        self.queue(number).map_or(Ok(0), Queue::tell)
    }

    /// The driver is interrupted if it wants to be for what it was told of in a queue; whether it was.
    #[inline]
    pub fn ask(&mut self, number: u16) -> Result<bool, Error> {
        let wanted = self.queue(number).map_or(Ok(false), Queue::ask)?;
        if wanted {
            self.interrupt(number);
        }
        Ok(wanted)
    }

    /// The driver is told that the device-specific configuration has changed.
    pub fn config_changed(&mut self) {
        let interrupt = self.transport.config_changed();
        self.raise(interrupt);
    }

    /// The model's back end is to be signalled, if `wanted`.
    pub const fn signal_peer(&mut self, wanted: bool) {
        self.signals.peer |= wanted;
    }

    /// Commits registers, where the queues are if that is kept, and these words of the model, if any of it has changed. What has not been
    /// published is the successor's to publish where places are kept, and to do again where they are not.
    pub fn commit(&mut self, model: &[u64]) {
        let words = self.words(model);
        if words == self.kept {
            return;
        }
        if self.is_lasting(&words) {
            self.state.save_lasting(&words);
        } else {
            self.state.save(&words);
        }
        self.kept = words;
    }

    /// How many words queues' places take.
    fn places(&self) -> usize {
        match self.keeps {
            true => self.queues.len().div_ceil(PLACES),
            false => 0,
        }
    }

    /// Whether these words are of another configuration than what was committed last.
    fn is_lasting(&self, words: &[u64]) -> bool {
        let own = self.transport.words();
        let all = own + self.places();
        let lasts = |word: usize| match word.checked_sub(all) {
            Some(word) => (self.lasts)(word),
            None if word >= own => 0,
            None => Transport::lasts(word),
        };
        let mut both = words.iter().zip(&self.kept).enumerate();
        let same = |(word, (new, old)): (usize, (&u64, &u64))| (new ^ old) & lasts(word) == 0;
        words.len() != self.kept.len() || !both.all(same)
    }

    /// Registers, where the queues are if that is kept, and the model's words.
    fn words(&self, model: &[u64]) -> Vec<u64> {
        let mut words = self.transport.save();
        if self.keeps {
            words.extend(self.queues.chunks(PLACES).map(|queues| {
                let places = queues
                    .iter()
                    .map(|q| q.as_ref().map_or(0, |q| q.position()));
                places.rev().fold(0, |word, at| word << 16 | u64::from(at))
            }));
        }
        words.extend(model);
        words
    }

    fn raise(&mut self, interrupt: Interrupt) {
        self.signals.vmm |= match interrupt {
            Interrupt::Vector(vector) => self.irq.set_msi(vector.into()),
            Interrupt::Pin => self.irq.set_intx(self.transport.pin()),
        };
    }

    /// Finds a queue in the guest's memory, if it is on.
    fn find(
        &mut self,
        number: u16,
        how: impl FnOnce(&'a Memory, &Place, u64, Note<'a>) -> Result<Queue<'a>, Error>,
    ) -> Result<(), Error> {
        let registers = self.transport.queue(number).filter(|q| q.enabled);
        let place = self.queues.get_mut(usize::from(number));
        let note = self.state.note(number);
        if let (Some(registers), Some(place), Some(note)) = (registers, place, note) {
            let features = self.transport.features();
            *place = Some(how(self.memory, &registers.place, features, note)?);
        }
        Ok(())
    }

    fn forget(&mut self, queue: Option<u16>) {
        for (number, place) in (0u16..).zip(&mut self.queues) {
            if queue.is_none_or(|q| q == number) {
                *place = None;
            }
        }
    }
}

/// Queues' places in a word.
const PLACES: usize = 4;

/// A device and its model.
pub struct Server<'a, M> {
    device: Device<'a>,
    model: M,
}

impl<'a, M: Model<'a>> Server<'a, M> {
    /// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor. [`Server::wake`] is to be called next,
    /// and [`Signals::ALL`] be signalled.
    #[must_use]
    pub fn new(kind: &Kind, pages: Pages<'a>, model: M) -> (Self, bool) {
        let (state, found) = StateWriter::take_over(pages.state, kind.record);
        let packed = if M::KEEPS { feature::RING_PACKED } else { 0 };
        let device = Device {
            memory: pages.memory,
            // A queue's place is committed as a split one's.
            transport: Transport::new(kind.features & !packed, kind.queues, kind.max_size),
            queues: (0..kind.queues).map(|_| None).collect(),
            irq: InterruptWriter::new(pages.irq),
            keeps: M::KEEPS,
            lasts: M::lasts,
            past: state.past(),
            kept: Vec::new(),
            signals: Signals::default(),
            held: false,
            state,
        };
        let mut server = Self { device, model };
        // A predecessor may have waited for more; its successor begins by looking.
        server.device.irq.hold(0);
        let was = match found {
            Found::Nothing => return (server, false),
            Found::Newest(record) => server.take_over(kind.queues, record.words(), true),
            Found::Configuration(record) => server.take_over(kind.queues, record.words(), false),
            Found::Lost => false,
        };
        if !was {
            server.lose();
        }
        // So a successor finds both slots whole, and what was found out about the queues.
        server.device.commit(&server.model.words());
        (server, was)
    }

    /// What has become of the predecessor's record.
    pub const fn past(&self) -> Past {
        self.device.past
    }

    /// There was a predecessor, and nothing is known of what its driver set.
    fn lose(&mut self) {
        let device = &mut self.device;
        device.past = Past::Lost;
        for vector in device.transport.lose() {
            device.raise(Interrupt::Vector(vector));
        }
        device.raise(Interrupt::Pin);
    }

    /// Takes what a predecessor has committed, all of it or its configuration; false, and nothing taken, if it makes no sense.
    fn take_over(&mut self, queues: u16, words: &[u64], newest: bool) -> bool {
        let own = self.device.transport.words();
        let all = own + self.device.places();
        let Some((all, model)) = words.split_at_checked(all) else {
            return false;
        };
        let (registers, places) = all.split_at(own);
        let fresh = self.device.transport.clone();
        if !self.device.transport.restore(registers) {
            return false;
        }
        let restored = match newest {
            true => self.model.restore(model),
            false => self.model.restore_configuration(model),
        };
        if !restored {
            self.device.transport = fresh;
            return false;
        }
        if self.device.transport.lost() {
            // Its queues are the guest's alone until it resets the device.
            if let Some(interrupt) = self.device.transport.still_needs_reset() {
                self.device.raise(interrupt);
            }
            return true;
        }
        for queue in 0..queues {
            let place = places.get(usize::from(queue) / PLACES);
            let place = place.filter(|_| newest);
            let found = match place {
                Some(word) => {
                    let at = (word >> (16 * (usize::from(queue) % PLACES))) as u16;
                    self.device.find(queue, |memory, place, features, _| {
                        Queue::resume(memory, place, features, at)
                    })
                }
                None => self.device.find(queue, Queue::restore),
            };
            self.judge(found);
        }
        if self.device.running() {
            // The guest may have been promised interrupts that never came.
            for queue in 0..queues {
                if self.device.queue(queue).is_some() {
                    self.device.interrupt(queue);
                }
            }
            if !newest {
                self.device.config_changed();
            }
        }
        true
    }

    /// What makes it a device of its kind.
    pub const fn model(&self) -> &M {
        &self.model
    }

    /// As above.
    pub const fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    /// Dies, and leaves what the model owns.
    pub fn into_model(self) -> M {
        self.model
    }

    /// A routed access; gives the value of an IN, and who is to be signalled.
    pub fn access(&mut self, port: PortAccess, value: u32) -> (u32, Signals) {
        self.device.state.begin();
        let offset = port.port() % BAR_SIZE;
        let mut answer = 0;
        if port.input() {
            let config = self.model.config();
            answer = self.device.transport.read(offset, port.width(), config);
        } else {
            let effect = self.device.transport.write(offset, port.width(), value);
            self.follow(effect);
        }
        let device = &mut self.device;
        device.signals.vmm |= device.irq.set_intx(device.transport.pin());
        let access = Access::of(port, value);
        // Of one that keeps places all is compared with what was committed.
        if device.transport.take_changed() || M::KEEPS {
            let words = device.words(&self.model.words());
            if words != device.kept {
                if device.is_lasting(&words) {
                    device.state.commit_lasting(access, answer, &words);
                } else {
                    device.state.commit(access, answer, &words);
                }
                device.kept = words;
                self.model.committed(device);
            }
        }
        (answer, core::mem::take(&mut device.signals))
    }

    fn follow(&mut self, effect: Effect) {
        match effect {
            Effect::Reset => self.forget(None),
            Effect::QueueReset(queue) => self.forget(Some(queue)),
            Effect::QueueEnabled(queue) => {
                let found = self.device.find(queue, Queue::new);
                self.judge(found);
            }
            Effect::DriverOk | Effect::Notify(_) => self.serve(),
            Effect::Config { offset, value, .. } => self.model.write_config(offset, value),
            Effect::Nothing | Effect::FeaturesOk(_) => {}
        }
    }

    /// A queue's doorbell rang, and it is not looked at before the next [`Server::wake`]: more may follow. The driver is asked for no
    /// more notifications, and the VMM to ring once the guest halts. False: it is to be looked at now.
    pub fn hold(&mut self, queue: u16) -> bool {
        let device = &mut self.device;
        let bit = 1u64.checked_shl(queue.into()).unwrap_or(0);
        if device.held || bit == 0 || !device.running() {
            return false;
        }
        device.held = device.queue(queue).is_some_and(|q| q.disarm().is_ok());
        if device.held {
            device.irq.hold(bit);
        }
        device.held
    }

    /// A doorbell rang, the back end has done something, or it is the start.
    pub fn wake(&mut self) -> Signals {
        if core::mem::take(&mut self.device.held) {
            self.device.irq.hold(0);
        }
        self.serve();
        let device = &mut self.device;
        if device.transport.take_changed() || M::KEEPS {
            device.commit(&self.model.words());
        }
        core::mem::take(&mut device.signals)
    }

    fn serve(&mut self) {
        let served = self.model.serve(&mut self.device);
        if served.is_err() {
            self.judge(served);
            // It may still have something to say to its back end.
            let _ = self.model.serve(&mut self.device);
        }
    }

    fn forget(&mut self, queue: Option<u16>) {
        self.device.forget(queue);
        self.model.forget(queue);
    }

    /// After an error the guest has broken the device: it does nothing more, and its queues are the guest's alone.
    fn judge(&mut self, so_far: Result<(), Error>) {
        if so_far.is_ok() {
            return;
        }
        // What was done and not told is not told any more, by a successor either.
        self.forget(None);
        if let Some(interrupt) = self.device.transport.needs_reset() {
            self.device.raise(interrupt);
        }
    }
}
