//! The server of all disks: wires [`store::server::Store`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::format;
    use alloc::vec::Vec;
    use ipc_schema::disk::StoreConfig;
    use runtime::abi::{NEVER, layout::slot};
    use runtime::heart::reply_recv;
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, now, rpc};
    use store::server::Store;

    runtime::entry!(main);

    type Parts = (Store<'static>, Vec<Notification>, StoreConfig);

    fn set_up(start: &'static StartInfo) -> Result<Parts, StartError> {
        let config: StoreConfig = start.config()?;
        let (mut maps, mut channels, mut clients) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..config.disks.len() {
            maps.push(start.words(&format!("map:{n}"))?);
        }
        for n in 0..config.clients.len() {
            channels.push(start.disk_channel(&format!("channel:{n}"))?);
            clients.push(start.notification(&format!("client:{n}"))?);
        }
        let made = Store::new(&config, &maps, &channels, now());
        let (store, reports) = made.ok_or(StartError::BadConfig)?;
        for (disk, report) in config.disks.iter().zip(reports) {
            defmt::info!(
                "disk {=str}: {=u32} KiB, taken over: {=bool}",
                disk.name.as_str(),
                disk.blocks.saturating_mul(4),
                !report.new
            );
            if report.mended != 0 || report.lost != 0 {
                defmt::error!(
                    "disk {=str}: {=u32} words of its map were wrong and are mended, {=u32} blocks are lost",
                    disk.name.as_str(),
                    report.mended,
                    report.lost
                );
            }
        }
        Ok((store, clients, config))
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut store, clients, config) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        let mut told = alloc::vec![false; config.disks.len()];
        let mut reply = Message::default();
        // What came in before this life was signalled to a predecessor.
        loop {
            store.serve(|client| {
                // A client that is gone needs no signal; its successor looks by itself.
                if let Some(client) = clients.get(client) {
                    let _ = client.signal();
                }
            });
            if let Some(disk) = store.take_full()
                && let (Some(told), Some(disk)) = (told.get_mut(disk), config.disks.get(disk))
                && !core::mem::replace(told, true)
            {
                defmt::warn!(
                    "disk {=str}: all {=u32} KiB of its memory are used, writes fail",
                    disk.name.as_str(),
                    disk.pages.saturating_mul(4)
                );
            }
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, NEVER) {
                Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
                Ok(Event::Signal(_) | Event::Timeout) => Message::default(),
                Err(status) => panic!("reply_recv: {}", status as u64),
            };
        }
    }
}
