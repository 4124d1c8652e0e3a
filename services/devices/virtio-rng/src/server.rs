//! The entropy source behind its registers; still pure.

use ipc_schema::state_page::kind;
use virtio::device::{FEATURES, Kind, Pages};
use virtio::{Chain, Device, Error, Memory, Model, Queue};

use crate::entropy::Generator;

/// Most descriptors of the queue.
pub const MAX_SIZE: u16 = 64;
/// Most bytes for one buffer: the guest asks again.
const MOST: u32 = 1024;
/// The only queue.
const REQUESTS: u16 = 0;

/// An entropy source with its surroundings.
pub type Server<'a> = virtio::Server<'a, Source>;

/// What answers the guest's requests.
pub struct Source(Generator);

/// Takes the pages over from a predecessor, or begins anew. True if there was a predecessor.
#[must_use]
pub fn begin(pages: Pages<'_>) -> (Server<'_>, bool) {
    let kind = Kind {
        record: kind::VIRTIO_RNG,
        features: FEATURES,
        queues: 1,
        max_size: MAX_SIZE,
    };
    Server::new(&kind, pages, Source(Generator::new()))
}

impl Source {
    /// Mixes words in that the guest cannot know; before anything is served, and as often as there are some.
    pub fn mix(&mut self, words: [u64; 4]) {
        self.0.mix(words);
    }
}

impl<'a> Model<'a> for Source {
    fn serve(&mut self, device: &mut Device<'a>) -> Result<(), Error> {
        let (running, memory) = (device.running(), device.memory());
        let Some(queue) = device.queue(REQUESTS).filter(|_| running) else {
            return Ok(());
        };
        if serve(queue, memory, &mut self.0)? {
            device.interrupt(REQUESTS);
        }
        Ok(())
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
