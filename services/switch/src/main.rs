//! The switch's server: wires [`switch::switch::Switch`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::boxed::Box;
    use alloc::format;
    use alloc::vec::Vec;
    use ipc_schema::link::{LinkPage, SwitchConfig};
    use runtime::abi::{NEVER, layout::slot};
    use runtime::heart::reply_recv;
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, now, rpc, time};
    use switch::switch::Switch;
    use virtio::Memory;

    runtime::entry!(main);

    fn set_up(
        start: &'static StartInfo,
    ) -> Result<(Switch<'static>, Vec<Notification>), StartError> {
        let config: &SwitchConfig = Box::leak(Box::new(start.config()?));
        let mut links: Vec<(&LinkPage, &Memory)> = Vec::new();
        let mut clients = Vec::new();
        for n in 0..config.ports.len() {
            let name = format!("link:{n}");
            links.push((start.link(&name)?, start.memory(&name)?));
            clients.push(start.notification(&format!("port:{n}"))?);
        }
        let parts = config.ports.iter().zip(links);
        let parts = parts.map(|(config, (page, memory))| (config, page, memory));
        let second = time::after(1_000_000).wrapping_sub(now());
        defmt::info!("{=usize} ports", config.ports.len());
        Ok((Switch::new(parts, now(), second), clients))
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut switch, clients) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        let mut reply = Message::default();
        loop {
            let until = switch.serve(now(), |port| {
                // A device that is gone needs no signal; its successor looks by itself.
                if let Some(client) = clients.get(port) {
                    let _ = client.signal();
                }
            });
            let until = until.unwrap_or(NEVER);
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, until) {
                Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
                Ok(Event::Signal(_) | Event::Timeout) => Message::default(),
                Err(status) => panic!("reply_recv: {}", status as u64),
            };
        }
    }
}
