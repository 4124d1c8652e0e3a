//! A port: its two rings, and bytes between them and its queues. What is moved is seen by nobody before [`Port::publish`].

use ipc_schema::ring::{CAPACITY, Consumer, Producer, RingPage};
use virtio::{Chain, Error, Memory, Queue};

use crate::control::Status;

/// Most buffers that one turn takes from a queue: then the queue's place is committed, and others have theirs.
pub const BATCH: usize = 64;
/// Bytes copied at a time.
const PIECE: usize = 256;

/// The rings of a port.
#[derive(Clone, Copy)]
pub struct Rings<'a> {
    /// What the guest sends.
    pub tx: &'a RingPage,
    /// What the guest receives.
    pub rx: &'a RingPage,
}

/// Why a turn has ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// There is more to do.
    More,
    /// Nothing is in the queue.
    NoBuffer,
    /// The ring has no room, or no bytes.
    Ring,
}

/// A port.
pub struct Port<'a> {
    /// What its driver knows of it.
    pub status: Status,
    tx: Producer<'a>,
    rx: Consumer<'a>,
    /// The buffer that is being sent, at its beginning, and how many of its bytes are in the ring.
    sending: Option<Chain<'a>>,
    sent: u32,
    /// Bytes that have been taken from `rx` and are still there.
    taken: usize,
    /// Something was written or taken since the manager was last asked whether it waits.
    moved: bool,
}

impl<'a> Port<'a> {
    /// A port whose rings a predecessor, if any, has left as they say.
    #[must_use]
    pub fn new(rings: &Rings<'a>) -> Self {
        Self {
            status: Status::default(),
            tx: Producer::new(rings.tx),
            rx: Consumer::new(rings.rx),
            sending: None,
            sent: 0,
            taken: 0,
            moved: false,
        }
    }

    /// A port as a predecessor has committed it; `None` if that makes no sense.
    #[must_use]
    pub fn resume(rings: &Rings<'a>, [ends, rest]: [u64; 2]) -> Option<Self> {
        let status = Status::from_word(rest >> 32)?;
        Some(Self {
            status,
            tx: Producer::resume(rings.tx, ends as u32),
            rx: Consumer::resume(rings.rx, (ends >> 32) as u32),
            sent: rest as u32,
            ..Self::new(rings)
        })
    }

    /// A port as a predecessor has committed it at some time, apart from where it was: the rings say that by themselves. A buffer of which
    /// a part was sent is sent again; what the guest was given and not told of is lost.
    #[must_use]
    pub fn begin_again(rings: &Rings<'a>, [_, rest]: [u64; 2]) -> Option<Self> {
        let status = Status::from_word(rest >> 32)?;
        Some(Self {
            status,
            ..Self::new(rings)
        })
    }

    /// What a successor needs: where the rings will be, and what the driver knows.
    #[must_use]
    pub fn words(&self) -> [u64; 2] {
        // Not more than a ring holds.
        let rx = self.rx.position().wrapping_add(self.taken as u32);
        [
            u64::from(self.tx.position()) | u64::from(rx) << 32,
            u64::from(self.sent) | self.status.word() << 32,
        ]
    }

    /// The word that the manager has left beside what the guest receives.
    #[must_use]
    pub fn note(&self) -> u32 {
        self.rx.note()
    }

    /// Forgets the queue that it sends from; what is in the ring stays.
    pub fn forget_sending(&mut self) {
        self.sending = None;
        self.sent = 0;
    }

    /// The driver is to begin anew.
    pub fn reset(&mut self) {
        self.forget_sending();
        self.status = Status::default();
    }

    /// Writes a byte past the queues, if there is room.
    pub fn emergency(&mut self, byte: u8) {
        self.moved |= self.tx.write(&[byte]) != 0;
    }

    /// Moves what the guest sends into the ring.
    pub fn send(&mut self, queue: &mut Queue<'a>, memory: &Memory) -> Result<Pause, Error> {
        for _ in 0..BATCH {
            let mut chain = match self.sending.clone() {
                Some(chain) => chain,
                None => match queue.pop()? {
                    Some(chain) => self.sending.insert(chain).clone(),
                    None => return Ok(Pause::NoBuffer),
                },
            };
            if !self.copy(&mut chain, memory)? {
                return Ok(Pause::Ring);
            }
            queue.complete(chain.token(), 0)?;
            self.forget_sending();
            if queue.must_publish() {
                break;
            }
        }
        Ok(Pause::More)
    }

    /// Copies what of a buffer is not yet in the ring; false if there is no room for all.
    fn copy(&mut self, chain: &mut Chain<'a>, memory: &Memory) -> Result<bool, Error> {
        let mut skip = self.sent;
        for part in chain {
            let part = part?;
            if part.writable {
                continue;
            }
            let mut at = skip.min(part.len);
            skip -= at;
            while at < part.len {
                let mut bytes = [0; PIECE];
                let len = PIECE.min(self.tx.room()).min((part.len - at) as usize);
                let bytes = bytes.get_mut(..len).unwrap_or(&mut []);
                memory.read(part.gpa + u64::from(at), bytes)?;
                let len = self.tx.write(bytes);
                if len == 0 {
                    return Ok(false);
                }
                self.moved = true;
                // At most a piece; all parts together have less than 2^32 bytes.
                at += len as u32;
                self.sent += len as u32;
            }
        }
        Ok(true)
    }

    /// Moves what the ring has into the guest's next buffer.
    pub fn receive(&mut self, queue: &mut Queue<'a>, memory: &Memory) -> Result<Pause, Error> {
        for _ in 0..BATCH {
            let mut bytes = [0; CAPACITY];
            let len = self.rx.peek(&mut bytes);
            let mut rest = bytes.get(..len).unwrap_or(&[]);
            if rest.is_empty() {
                return Ok(Pause::Ring);
            }
            let Some(mut chain) = queue.pop()? else {
                return Ok(Pause::NoBuffer);
            };
            for part in &mut chain {
                let part = part?;
                if part.writable {
                    let (now, later) = rest.split_at(rest.len().min(part.len as usize));
                    memory.write(part.gpa, now)?;
                    rest = later;
                }
            }
            self.taken = len - rest.len();
            queue.complete(chain.token(), self.taken as u32)?;
            self.moved |= self.taken != 0;
            // A second look would see the same bytes again.
            if self.taken != 0 || queue.must_publish() {
                break;
            }
        }
        Ok(Pause::More)
    }

    /// What has been committed happens to the rings.
    pub fn publish(&mut self) {
        if self.moved {
            self.tx.publish();
            crate::server::step();
            self.rx.advance(core::mem::take(&mut self.taken));
        }
    }

    /// Whether the manager waits for what has been moved, and must be signalled.
    #[must_use]
    pub fn needs_signal(&mut self) -> bool {
        let moved = core::mem::take(&mut self.moved);
        // Both: each takes an announcement.
        moved && self.tx.needs_signal() | self.rx.needs_signal()
    }

    /// Announces that there is no room; false: there is by now.
    #[must_use]
    pub fn sleep_for_room(&self) -> bool {
        self.tx.prepare_sleep()
    }

    /// Announces that there is nothing to receive; false: there is by now.
    #[must_use]
    pub fn sleep_for_bytes(&self) -> bool {
        self.rx.prepare_sleep()
    }
}
