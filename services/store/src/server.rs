//! All disks, and the channels of all who use them.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use ipc_schema::disk::{Channel, Provider, Status, StoreConfig};

use crate::disk::Disk;
use crate::map::Report;

/// A client.
struct Client<'a> {
    channel: Provider<'a>,
    disk: usize,
}

/// The server.
pub struct Store<'a> {
    disks: Vec<Disk<'a>>,
    clients: Vec<Client<'a>>,
    /// The disk's number, if one has just become full.
    full: Option<usize>,
}

impl<'a> Store<'a> {
    /// Takes all disks over; what was found of each. `None`: the configuration and the memory do not fit each other.
    #[must_use]
    pub fn new(
        config: &StoreConfig,
        maps: &[&'a [AtomicU64]],
        channels: &[&'a Channel],
        now: u64,
    ) -> Option<(Self, Vec<Report>)> {
        let mut disks = Vec::new();
        let mut reports = Vec::new();
        for (geometry, words) in config.disks.iter().zip(maps) {
            let (disk, report) = Disk::new(words, geometry, now)?;
            disks.push(disk);
            reports.push(report);
        }
        let mut clients = Vec::new();
        for (&disk, channel) in config.clients.iter().zip(channels) {
            let (channel, disk) = (Provider::new(channel), disk as usize);
            disks.get(disk)?;
            clients.push(Client { channel, disk });
        }
        let all = disks.len() == config.disks.len() && clients.len() == config.clients.len();
        let full = None;
        let store = Self {
            disks,
            clients,
            full,
        };
        all.then_some((store, reports))
    }

    /// Answers everything that was asked; `signal` is called with the number of each client that sleeps and has answers now. After it
    /// there is nothing to do until a signal comes.
    pub fn serve(&mut self, mut signal: impl FnMut(usize)) {
        loop {
            let mut busy = false;
            for (number, client) in self.clients.iter_mut().enumerate() {
                let Some(disk) = self.disks.get_mut(client.disk) else {
                    continue;
                };
                let mut answered = false;
                while let Some(request) = client.channel.peek() {
                    let reply = disk.handle(&request);
                    if reply.status == Status::Full {
                        self.full = Some(client.disk);
                    }
                    let places = reply.places.as_ref();
                    let count = request.count as usize;
                    let places = places.and_then(|(e, p)| Some((*e, p.get(..count)?)));
                    client.channel.answer(reply.status, places);
                    answered = true;
                }
                if answered && client.channel.needs_signal() {
                    signal(number);
                }
                busy |= !client.channel.prepare_sleep();
            }
            if !busy {
                return;
            }
        }
    }

    /// The number of a disk that has become full since this was asked last.
    pub const fn take_full(&mut self) -> Option<usize> {
        self.full.take()
    }

    /// Pages that are free on a disk.
    #[must_use]
    pub fn free(&self, disk: usize) -> u32 {
        self.disks.get(disk).map_or(0, Disk::free)
    }
}
