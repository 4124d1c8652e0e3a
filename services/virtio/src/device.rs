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

mod server;

pub use server::Server;

use alloc::vec::Vec;

use ipc_schema::interrupt_page::{InterruptPage, InterruptWriter};
use ipc_schema::state_page::{Note, Past, StatePage, StateWriter};
use ipc_schema::virtio::feature;

use crate::pci::{Interrupt, Transport};
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
    /// access that has changed them. Such a model asks its queues whether they [must be published](Queue::must_publish) first.
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
            true => self.queues.len(),
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
            let places = self.queues.iter();
            words.extend(places.map(|queue| queue.as_ref().map_or(0, Queue::position)));
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
