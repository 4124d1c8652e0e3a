//! All clients of one disk.

use alloc::vec::Vec;

use ipc_schema::disk::{BLOCK_SECTORS, Channel, DriverConfig};

use crate::client::Client;
use crate::gpt::Partition;

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reads sectors into memory.
    Read,
    /// Writes them from memory.
    Write,
    /// Sees that what was written lasts.
    Flush,
    /// Is told that nobody needs what these sectors hold.
    Discard,
}

impl Work {
    /// Whether it is done with memory of the client's.
    #[must_use]
    pub const fn uses_pages(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

/// Memory that the device reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The driver's own.
    Own,
    /// A client's pages, by its number.
    Client(usize),
}

/// Work for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// What is to be done.
    pub work: Work,
    /// First sector of the disk.
    pub sector: u64,
    /// Whose memory.
    pub region: Region,
    /// Where in it.
    pub at: u64,
    /// Bytes: whole sectors, none of a flush. Of a discard those that nobody needs: there is no memory.
    pub len: u64,
}

/// By what the end of a job is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The client.
    pub client: u32,
    /// The request's number.
    pub number: u32,
    /// Its pages.
    pub chunk: u32,
    /// Whether it uses them at all.
    pub uses_pages: bool,
}

/// A disk.
pub trait Device {
    /// Whether it takes another job.
    fn room(&self) -> bool;
    /// Gives it a job. To be called if it has room.
    fn start(&mut self, ticket: Ticket, job: Job);
    /// Tells it that there are jobs.
    fn push(&mut self);
    /// Whether a job has ended.
    fn has_ended(&self) -> bool;
    /// A job that has ended, and whether well.
    fn ended(&mut self) -> Option<(Ticket, bool)>;
}

/// The server.
pub struct Server<'a> {
    clients: Vec<Client<'a>>,
}

impl<'a> Server<'a> {
    /// Gives each client its partition: the one with its disk's name, if that is large enough.
    #[must_use]
    pub fn new(
        config: &DriverConfig,
        partitions: &[Partition],
        channels: &[&'a Channel],
        now: u64,
    ) -> Self {
        let clients = config.clients.iter().zip(channels);
        let clients = clients.map(|(client, channel)| {
            let blocks = u64::from(client.disk.blocks);
            let partition = partitions.iter().find(|p| p.name == client.disk.name);
            let fits = |p: &&Partition| p.sectors / u64::from(BLOCK_SECTORS) >= blocks;
            let first = partition.filter(fits).map(|p| p.first);
            Client::new(channel, client, first, now)
        });
        Self {
            clients: clients.collect(),
        }
    }

    /// Whether a client has a partition. One that has none is refused everything.
    #[must_use]
    pub fn has_disk(&self, client: usize) -> bool {
        self.clients.get(client).is_some_and(Client::has_disk)
    }

    /// Does all that can be done now; `signal` is called with the number of each client that sleeps and has answers. After it there is
    /// nothing to do until the device interrupts, or a signal comes.
    pub fn serve(&mut self, device: &mut impl Device, mut signal: impl FnMut(usize)) {
        loop {
            while let Some((ticket, good)) = device.ended() {
                if let Some(client) = self.clients.get_mut(ticket.client as usize) {
                    client.ended(ticket, good);
                }
            }
            let mut busy = false;
            for (number, client) in self.clients.iter_mut().enumerate() {
                client.take(number, device);
                if client.answer() {
                    signal(number);
                }
                // Without room an interrupt comes before there is any.
                busy |= device.room() && !client.prepare_sleep();
            }
            device.push();
            busy |= device.has_ended();
            if !busy {
                return;
            }
        }
    }
}
