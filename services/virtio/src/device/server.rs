//! A device and its model: what accesses and wake-ups do, and what a successor takes over.

use alloc::vec::Vec;

use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::InterruptWriter;
use ipc_schema::state_page::{Access, Found, Past, StateWriter};
use ipc_schema::virtio::BAR_SIZE;

use super::{Device, Kind, Model, Pages, Signals};
use crate::pci::{Effect, Interrupt, Transport};
use crate::{Error, Queue};

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
        let device = Device {
            memory: pages.memory,
            transport: Transport::new(kind.features, kind.queues, kind.max_size),
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
        // An interrupt that is due is a new one, for who hears of rises alone.
        let _ = server.device.irq.set_intx(false);
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
        let pin = server.device.transport.pin();
        let _ = server.device.irq.set_intx(pin);
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
            let place = places.get(usize::from(queue)).filter(|_| newest);
            let found = match place {
                Some(&at) => self.device.find(queue, |memory, place, features, note| {
                    Queue::resume(memory, place, features, note, at)
                }),
                None => self.device.find(queue, Queue::restore),
            };
            if found.is_err() {
                // Its other queues are the guest's alone, too.
                self.judge(found);
                return true;
            }
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
