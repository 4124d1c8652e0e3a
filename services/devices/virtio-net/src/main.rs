//! The server of one network card of one VM: wires [`device_virtio_net::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::boxed::Box;
    use device_virtio_net::server::{Parts, Server, Signals};
    use ipc_schema::link::NetConfig;
    use runtime::abi::{NEVER, Tag, layout::slot, vm::PortAccess};
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, reply_recv, rpc};

    runtime::entry!(main);

    type Made = (Server<'static>, Notification, Notification);

    fn set_up(start: &'static StartInfo) -> Result<Made, StartError> {
        let memory = start.guest_memory()?;
        let config: &NetConfig = Box::leak(Box::new(start.config()?));
        let (server, was) = Server::new(&Parts {
            config,
            memory,
            irq: start.interrupt_page("irq")?,
            state: start.state_page("state")?,
            page: start.link("link")?,
            link: start.memory("link")?,
        });
        let name = start.instance.as_str();
        defmt::info!("{=str}: goes on after a predecessor: {=bool}", name, was);
        let (vmm, switch) = (start.notification("vmm")?, start.notification("switch")?);
        Ok((server, vmm, switch))
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut server, vmm, switch) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        // Who is gone needs no signal; a successor looks by itself.
        let signal = |signals: Signals| {
            if signals.switch {
                let _ = switch.signal();
            }
            if signals.vmm {
                let _ = vmm.signal();
            }
        };
        let _ = server.wake();
        signal(Signals {
            vmm: true,
            switch: true,
        });
        let mut reply = Message::default();
        loop {
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, NEVER) {
                Ok(Event::Call { message, .. }) if message.tag.label() == Tag::PORT => {
                    let [port, value, ..] = message.words;
                    let (value, signals) = server.access(PortAccess(port), value as u32);
                    signal(signals);
                    Message::new(0, [u64::from(value), 0, 0, 0])
                }
                Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
                Ok(Event::Signal(_) | Event::Timeout) => {
                    signal(server.wake());
                    Message::default()
                }
                Err(status) => panic!("reply_recv: {}", status as u64),
            };
        }
    }
}
