//! The server of the machine's second disk: wires [`driver_virtio_blk::server::Server`] to the kernel and to the device.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod disk;
#[cfg(target_os = "none")]
mod dma;
#[cfg(target_os = "none")]
mod registers;

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::format;
    use alloc::vec::Vec;

    use driver_virtio_blk::gpt::{self, Partition, Table};
    use driver_virtio_blk::server::{Device, Job, Region, Server, Ticket, Work};
    use ipc_schema::disk::DriverConfig;
    use runtime::abi::{NEVER, layout::slot};
    use runtime::heart::reply_recv;
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, now, rpc, time};

    use crate::disk::Disk;

    runtime::entry!(main);

    /// How long the device may take for anything, in microseconds: a disk that has to think is slow, one that says nothing is broken.
    const PATIENCE: u64 = 30_000_000;

    /// What the driver itself reads from the disk before it serves anybody.
    fn read(disk: &mut Disk, sector: u64, sectors: u64) -> Vec<u8> {
        let ticket = Ticket {
            client: u32::MAX,
            number: 0,
            chunk: 0,
            uses_pages: false,
        };
        let len = sectors * gpt::SECTOR as u64;
        disk.start(
            ticket,
            Job {
                work: Work::Read,
                sector,
                region: Region::Own,
                at: 0,
                len,
            },
        );
        disk.push();
        let until = time::after(PATIENCE);
        loop {
            match disk.ended() {
                Some((_, true)) => return disk.own(len),
                Some((_, false)) => panic!("sector {sector} cannot be read"),
                None if now() > until => panic!("the disk does not answer"),
                None => {
                    let _ = Notification(slot::NOTIFICATION).wait(until);
                }
            }
        }
    }

    fn partitions(disk: &mut Disk) -> Result<Vec<Partition>, gpt::Why> {
        if disk.capacity() <= gpt::HEADER_AT {
            return Err(gpt::Why::None);
        }
        let table = Table::parse(&read(disk, gpt::HEADER_AT, 1), disk.capacity())?;
        table.partitions(&read(disk, table.first, table.sectors()))
    }

    type Made = (Server<'static>, Disk, Vec<Notification>);

    fn set_up(start: &'static StartInfo) -> Result<Made, StartError> {
        let config: DriverConfig = start.config()?;
        let (mut channels, mut clients) = (Vec::new(), Vec::new());
        for n in 0..config.clients.len() {
            channels.push(start.disk_channel(&format!("channel:{n}"))?);
            clients.push(start.notification(&format!("client:{n}"))?);
        }
        let mut disk = Disk::new(start, &config)?;
        let name = start.instance.as_str();
        defmt::warn!(
            "{=str}: its DMA is trusted: nothing confines the device to the memory it is told, until there is an IOMMU driver",
            name
        );
        defmt::info!(
            "{=str}: {=u64} MiB, the disk can be written: {=bool}, runs after a predecessor: {=bool}",
            name,
            disk.capacity() >> 11,
            disk.writable(),
            start.restarts > 0
        );
        let partitions = partitions(&mut disk).unwrap_or_else(|why| {
            defmt::error!("{=str}: {=str}", name, why.text());
            Vec::new()
        });
        let server = Server::new(&config, &partitions, &channels, now());
        for (number, client) in config.clients.iter().enumerate() {
            let (disk, kib) = (client.disk.name.as_str(), client.disk.blocks * 4);
            if server.has_disk(number) {
                defmt::info!("{=str}: {=str}, {=u32} KiB", name, disk, kib);
            } else {
                defmt::error!(
                    "{=str}: no partition is named {=str} and has {=u32} KiB: all its requests fail",
                    name,
                    disk,
                    kib
                );
            }
        }
        Ok((server, disk, clients))
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut server, mut disk, clients) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        let patience = time::cycles(PATIENCE);
        let mut reply = Message::default();
        // What came in before this life was signalled to a predecessor; who waits for its answers sleeps.
        for client in &clients {
            let _ = client.signal();
        }
        loop {
            server.serve(&mut disk, |client| {
                // A client that is gone needs no signal; its successor looks by itself.
                if let Some(client) = clients.get(client) {
                    let _ = client.signal();
                }
            });
            let deadline = match disk.waits_since() {
                Some(since) => since.saturating_add(patience),
                None => NEVER,
            };
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, deadline) {
                Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
                Ok(Event::Signal(_)) => Message::default(),
                Ok(Event::Timeout) => {
                    // An interrupt may have been lost: only what is not done at all counts.
                    assert!(disk.has_ended(), "the disk does not answer");
                    Message::default()
                }
                Err(status) => panic!("reply_recv: {}", status as u64),
            };
        }
    }
}
