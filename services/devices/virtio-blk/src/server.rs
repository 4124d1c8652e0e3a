//! The disk behind its registers: the requests of its queues; still pure.

use ipc_schema::disk::{BlkConfig, Channel};
use ipc_schema::state_page::kind;
use ipc_schema::virtio::BLOCK as IDENTITY;
use virtio::device::{Kind, Pages};
use virtio::{Device, Error, Memory, Model};

use crate::config;
use crate::content::{Content, give};
use crate::flight::{Done, Flight};
use crate::request::{Asked, ID, Raw, status};

/// Most requests under way at a time.
const MAX_REQUESTS: usize = 128;
/// Runs of guest memory in requests under way after which no further one is taken: a guest must not fill the heap.
const MAX_SPANS: usize = 1024;

/// What the disk is made of.
pub struct Parts<'a> {
    /// What it is.
    pub config: &'a BlkConfig,
    /// What it shares with the guest, the VMM and a successor.
    pub pages: Pages<'a>,
    /// The way to `store`.
    pub channel: &'a Channel,
    /// The disk's pages, which are nobody else's.
    pub content: &'a mut [u8],
    /// The disk's image.
    pub image: &'a [u8],
}

/// A block device with its surroundings; its back end is `store`.
pub type Server<'a> = virtio::Server<'a, Disk<'a>>;

/// What becomes of requests.
pub struct Disk<'a> {
    config: &'a BlkConfig,
    image: [u8; IDENTITY.config_len as usize],
    flight: Flight<'a>,
}

/// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor.
#[must_use]
pub fn begin(parts: Parts<'_>) -> (Server<'_>, bool) {
    let config = parts.config;
    let kind = Kind {
        record: kind::VIRTIO_BLK,
        features: config::features(config),
        queues: config.queues,
        max_size: config::MAX_SIZE,
    };
    let content = Content::new(parts.content, parts.image);
    let disk = Disk {
        config,
        image: config::image(config),
        flight: Flight::new(parts.channel, config.depth(), content),
    };
    Server::new(&kind, parts.pages, disk)
}

impl<'a> Model<'a> for Disk<'a> {
    fn config(&self) -> &[u8] {
        &self.image
    }

    fn serve(&mut self, device: &mut Device<'a>) -> Result<(), Error> {
        while self.turn(device)? {}
        Ok(())
    }

    fn forget(&mut self, queue: Option<u16>) {
        self.flight.forget(queue);
    }
}

impl<'a> Disk<'a> {
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

    /// Does what there is to be done; true if there may be more already.
    fn turn(&mut self, device: &mut Device<'a>) -> Result<bool, Error> {
        while let Some(done) = self.flight.answer(device.memory()) {
            finish(device, done)?;
        }
        let running = device.running();
        if running {
            self.take(device)?;
        }
        device.signal_peer(self.flight.ask());
        if running {
            for number in 0..self.config.queues {
                device.publish(number)?;
            }
        }
        let mut more = !self.flight.prepare_sleep();
        if running && self.has_room() {
            for queue in device.queues() {
                more |= queue.arm()?;
            }
        }
        Ok(more)
    }

    fn has_room(&self) -> bool {
        self.flight.requests() < MAX_REQUESTS && self.flight.spans() < MAX_SPANS
    }

    /// Takes requests out of the queues.
    fn take(&mut self, device: &mut Device<'a>) -> Result<(), Error> {
        let memory = device.memory();
        for number in 0..self.config.queues {
            while self.has_room() {
                let Some(queue) = device.queue(number) else {
                    break;
                };
                let Some(mut chain) = queue.pop()? else {
                    break;
                };
                let raw = Raw::new(memory, &mut chain)?;
                let token = chain.token();
                let asked = raw.asked(memory, self.config)?;
                let mut done = Done {
                    queue: number,
                    token,
                    raw,
                    status: status::OK,
                    reads: false,
                };
                match asked {
                    Asked::Parts(parts) if !parts.is_empty() => self.flight.begin(done, parts),
                    Asked::Parts(_) => finish(device, done)?,
                    Asked::Id => {
                        self.identify(memory, &done.raw)?;
                        done.reads = true;
                        finish(device, done)?;
                    }
                    Asked::Refused(status) => {
                        done.status = status;
                        finish(device, done)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn identify(&self, memory: &Memory, raw: &Raw) -> Result<(), Error> {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(self.config.serial.bytes()) {
            *to = from;
        }
        let room: u64 = raw.input.iter().map(|span| span.len).sum();
        let len = usize::try_from(room).map_or(ID, |room| room.min(ID));
        give(memory, &raw.input, 0, id.get(..len).unwrap_or(&[]))
    }
}

/// A request is done: the guest finds its status, and its buffer when the queue is published.
fn finish(device: &mut Device<'_>, done: Done) -> Result<(), Error> {
    device.memory().write(done.raw.status, &[done.status])?;
    let written = match (done.status, done.raw.input.is_empty()) {
        (_, true) => 1,
        (status::OK, false) if done.reads => done.raw.written(),
        // Not all that comes before the status was written.
        _ => 0,
    };
    match device.queue(done.queue) {
        Some(queue) => queue.complete(done.token, written),
        None => Ok(()),
    }
}
