//! The server of one console of one VM: wires [`device_virtio_console::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::boxed::Box;
    use alloc::format;
    use alloc::vec::Vec;
    use device_virtio_console::port::Rings;
    use device_virtio_console::server::{Parts, Server, Signals};
    use ipc_schema::manifest::{Device, DeviceKind, Ports};
    use runtime::abi::{Tag, layout::slot, vm::PortAccess};
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, reply_recv, rpc};

    runtime::entry!(main);

    type Made = (Server<'static>, Notification, Notification);

    fn set_up(start: &'static StartInfo) -> Result<Made, StartError> {
        let memory = start.guest_memory()?;
        let device: Device = start.config()?;
        let (ports, rows_first) = match device.kind {
            DeviceKind::VirtioConsole {
                ports, rows_first, ..
            } => (ports, rows_first),
            _ => (Ports::default(), false),
        };
        let ports: &Ports = Box::leak(Box::new(ports));
        let rings = |port: usize| {
            Ok(Rings {
                tx: start.ring(&format!("tx:{port}"))?,
                rx: start.ring(&format!("rx:{port}"))?,
            })
        };
        let rings: Vec<Rings<'_>> = (0..ports.count()).map(rings).collect::<Result<_, _>>()?;
        let (server, was) = Server::new(&Parts {
            ports,
            rows_first,
            memory,
            irq: start.interrupt_page("irq")?,
            state: start.state_page("state")?,
            rings: rings.leak(),
        });
        let name = start.instance.as_str();
        defmt::info!("{=str}: goes on after a predecessor: {=bool}", name, was);
        let (vmm, manager) = (start.notification("vmm")?, start.notification("manager")?);
        Ok((server, vmm, manager))
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut server, vmm, manager) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        // Who is gone needs no signal; a successor looks by itself.
        let signal = |signals: Signals| {
            if signals.manager {
                let _ = manager.signal();
            }
            if signals.vmm {
                let _ = vmm.signal();
            }
        };
        let _ = server.wake();
        signal(Signals {
            vmm: true,
            manager: true,
        });
        let mut reply = Message::default();
        loop {
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, server.deadline()) {
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
