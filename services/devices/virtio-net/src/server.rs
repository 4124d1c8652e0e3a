//! The network card behind its registers; still pure.

use ipc_schema::link::{LinkPage, NetConfig, Receiver, Sender, Way};
use ipc_schema::state_page::kind;
use ipc_schema::virtio::{NET, feature::RING_PACKED};
use virtio::device::{self, Kind, Pages};
use virtio::{Device, Error, Memory, Model};

use crate::feature;
use crate::receive::Inlet;
use crate::transmit::{Round, Transmitter};

/// Most descriptors of a queue.
pub const MAX_SIZE: u16 = 256;
/// The queues.
const RECEIVE: u16 = 0;
/// What the guest sends.
pub const TRANSMIT: u16 = 1;

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
    image: [u8; NET.config_len as usize],
    inlet: Inlet<'a>,
    transmitter: Transmitter<'a>,
}

/// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor.
#[must_use]
pub fn begin<'a>(parts: &Parts<'a>) -> (Server<'a>, bool) {
    let kind = Kind {
        record: kind::VIRTIO_NET,
        features: match parts.config.packed {
            true => FEATURES,
            false => FEATURES & !RING_PACKED,
        },
        queues: 2,
        max_size: MAX_SIZE,
    };
    let memory = parts.pages.memory;
    let from = Receiver::new(parts.page, Way::ToDevice);
    let to = Sender::new(parts.page, Way::FromDevice);
    let card = Card {
        image: image(parts.config),
        inlet: Inlet::new(memory, parts.link, from),
        transmitter: Transmitter::new(memory, parts.link, to),
    };
    Server::new(&kind, parts.pages, card)
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

impl Card<'_> {
    /// Frames that were sent so far.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.transmitter.sent
    }
}

fn follow(device: &mut Device<'_>, queue: u16, round: Round) {
    device.signal_peer(round.switch);
    if round.guest {
        device.interrupt(queue);
    }
}

impl<'a> Model<'a> for Card<'a> {
    fn config(&self) -> &[u8] {
        &self.image
    }

    fn serve(&mut self, device: &mut Device<'a>) -> Result<(), Error> {
        if !device.running() {
            return Ok(());
        }
        let features = device.features();
        if let Some(queue) = device.queue(TRANSMIT) {
            let round = self.transmitter.serve(queue, features)?;
            follow(device, TRANSMIT, round);
        }
        if let Some(queue) = device.queue(RECEIVE) {
            let round = self.inlet.serve(queue, features)?;
            follow(device, RECEIVE, round);
        }
        Ok(())
    }

    fn forget(&mut self, queue: Option<u16>) {
        if queue.is_none_or(|queue| queue == RECEIVE) {
            self.inlet.forget();
        }
    }
}
