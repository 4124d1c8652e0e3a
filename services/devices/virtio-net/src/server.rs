//! The network card behind its registers; still pure.

use alloc::vec::Vec;

use ipc_schema::abi::NEVER;
use ipc_schema::link::{LinkPage, NetConfig, Receiver, Sender, Way};
use ipc_schema::state_page::kind;
use ipc_schema::virtio::{MAX_PAIRS, NET, feature::RING_PACKED, net_queues};
use virtio::device::{self, Kind, Pages};
use virtio::{Device, Error, Memory, Model};

use crate::control::{Command, Settings};
use crate::feature;
use crate::flow::Flows;
use crate::receive::Inlet;
use crate::restraint::Restraint;
use crate::transmit::Transmitter;

/// Most descriptors of a queue.
pub const MAX_SIZE: u16 = 256;

/// A pair's queue of frames to the guest (5.1.2).
pub const fn receive(pair: u16) -> u16 {
    2 * pair
}

/// A pair's queue of frames from the guest.
pub const fn transmit(pair: u16) -> u16 {
    2 * pair + 1
}

/// Whether a queue is one of frames from the guest.
pub const fn transmits(queue: u16) -> bool {
    queue % 2 == 1
}

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
    | feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::CTRL_RX_EXTRA
    | feature::CTRL_MAC_ADDR
    | device::FEATURES;

/// What the card is made of.
pub struct Parts<'a> {
    /// What it is.
    pub config: &'a NetConfig,
    /// What it shares with the guest, the VMM and a successor.
    pub pages: Pages<'a>,
    /// The link's indices.
    pub page: &'a LinkPage,
    /// The link's memory, that page included.
    pub link: &'a Memory,
}

/// A network card with its surroundings; its back end is the switch.
pub type Server<'a> = virtio::Server<'a, Card<'a>>;

/// What goes on between the queues and the link.
pub struct Card<'a> {
    config: &'a NetConfig,
    /// Pairs of queues that there are.
    pairs: u16,
    settings: Settings,
    image: [u8; NET.config_len as usize],
    inlet: Inlet<'a>,
    transmitter: Transmitter<'a>,
    flows: Flows,
    /// A notification of the control queue was asked for.
    armed: bool,
}

/// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor.
#[must_use]
pub fn begin<'a>(parts: &Parts<'a>) -> (Server<'a>, bool) {
    let pairs = parts.config.pairs.clamp(1, MAX_PAIRS);
    let mut features = FEATURES;
    if !parts.config.packed {
        features &= !RING_PACKED;
    }
    if pairs > 1 {
        features |= feature::MQ;
    }
    let kind = Kind {
        record: kind::VIRTIO_NET,
        features,
        queues: net_queues(pairs),
        max_size: MAX_SIZE,
    };
    let memory = parts.pages.memory;
    let from = Receiver::new(parts.page, Way::ToDevice);
    let to = Sender::new(parts.page, Way::FromDevice);
    let mut card = Card {
        config: parts.config,
        pairs,
        settings: Settings::new(parts.config.mac),
        image: [0; NET.config_len as usize],
        inlet: Inlet::new(memory, parts.link, from, pairs),
        transmitter: Transmitter::new(memory, parts.link, to, pairs),
        flows: Flows::new(),
        armed: false,
    };
    card.describe();
    Server::new(&kind, parts.pages, card)
}

impl Card<'_> {
    /// What its driver has set.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Frames that were sent so far.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.transmitter.sent
    }

    /// How long the question for an interrupt may be put off ([`crate::restraint`]).
    pub fn put_off(&mut self, most: u64) {
        self.transmitter.restraints.fill(Restraint::new(most));
    }

    /// What time it is, of the TSC's.
    pub const fn clock(&mut self, now: u64) {
        self.transmitter.now = now;
    }

    /// When it is to be woken.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        let all = self.transmitter.restraints.iter();
        all.map(Restraint::deadline).min().unwrap_or(NEVER)
    }

    /// The device's configuration (5.1.4): address, link up, pairs of queues.
    fn describe(&mut self) {
        let link_up = 1u16.to_le_bytes();
        let pairs = self.pairs.to_le_bytes();
        let bytes = self.settings.mac.into_iter().chain(link_up).chain(pairs);
        for (to, from) in self.image.iter_mut().zip(bytes) {
            *to = from;
        }
    }

    /// The control queue's number: the driver who knows of several pairs finds it behind all of them (5.1.2).
    const fn control(&self, features: u64) -> u16 {
        if features & feature::MQ == 0 {
            2
        } else {
            2 * self.pairs
        }
    }

    /// Carries out the driver's commands: what they set is committed before they are answered.
    fn obey(&mut self, device: &mut Device<'_>) -> Result<(), Error> {
        let (memory, features) = (device.memory(), device.features());
        let number = self.control(features);
        if features & feature::CTRL_VQ == 0 {
            return Ok(());
        }
        loop {
            let Some(queue) = device.queue(number) else {
                return Ok(());
            };
            if let Some(mut chain) = queue.pop()? {
                self.armed = false;
                let command = Command::new(memory, &mut chain)?;
                let done = self.settings.obey(&command, features, self.pairs)?;
                command.answer(done)?;
                queue.complete(chain.token(), 1)?;
                self.describe();
                device.commit(&self.settings.words());
                device.publish(number)?;
            } else if self.armed || !queue.arm()? {
                self.armed = true;
                return Ok(());
            }
        }
    }
}

impl<'a> Model<'a> for Card<'a> {
    fn config(&self) -> &[u8] {
        &self.image
    }

    fn words(&self) -> Vec<u64> {
        self.settings.words()
    }

    fn restore(&mut self, words: &[u64]) -> bool {
        let Some(settings) = Settings::from_words(words, self.pairs) else {
            return false;
        };
        self.settings = settings;
        self.describe();
        true
    }

    fn serve(&mut self, device: &mut Device<'a>) -> Result<(), Error> {
        if !device.running() {
            return Ok(());
        }
        self.obey(device)?;
        let flows = (self.settings.pairs > 1).then_some(&mut self.flows);
        // A queue that is not in use any more may have frames of before.
        let pairs = match device.features() & feature::MQ {
            0 => 1,
            _ => self.pairs,
        };
        self.transmitter.serve(device, pairs, flows)?;
        let before = self.inlet.delivered;
        self.inlet.serve(device, &self.settings, &self.flows)?;
        if self.inlet.delivered != before {
            let now = self.transmitter.now;
            for restraint in &mut self.transmitter.restraints {
                restraint.answered(now);
            }
        }
        Ok(())
    }

    fn forget(&mut self, queue: Option<u16>) {
        self.armed = false;
        match queue {
            None => {
                self.settings = Settings::new(self.config.mac);
                self.describe();
                self.inlet.forget(None);
            }
            Some(queue) if queue.is_multiple_of(2) => self.inlet.forget(Some(queue / 2)),
            Some(_) => {}
        }
    }
}
