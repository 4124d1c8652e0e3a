//! The server of one UART of one VM: wires [`device_uart::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    use device_uart::server::{Config, LINGER, Pages, Server, Signals};
    use ipc_schema::manifest::Device;
    use runtime::abi::{Tag, layout::slot, vm::PortAccess};
    use runtime::device::tell;
    use runtime::heart::reply_recv;
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, now, rpc, time};

    runtime::entry!(main);

    /// Whom to signal.
    struct Neighbours {
        vmm: Notification,
        manager: Notification,
    }

    impl Neighbours {
        #[inline(always)]
        fn signal(&self, signals: Signals) {
            // A neighbour that is gone needs no signal; its successor looks by itself.
            if signals.vmm {
                let _ = self.vmm.signal();
            }
            if signals.manager {
                let _ = self.manager.signal();
            }
        }
    }

    fn set_up(start: &'static StartInfo) -> Result<(Server<'static>, Neighbours), StartError> {
        let device: Device = start.config()?;
        let linger = time::cycles(LINGER);
        let config = Config {
            base: device.ports.first,
            gsi: u32::from(device.irq),
            linger,
        };
        let pages = Pages {
            irq: start.interrupt_page("irq")?,
            state: start.state_page("state")?,
            tx: start.ring("tx")?,
            rx: start.ring("rx")?,
        };
        let vmm = start.notification("vmm")?;
        let manager = start.notification("manager")?;
        let (server, was) = Server::new(config, &pages);
        let name = start.instance.as_str();
        defmt::info!(
            "{=str}: ports from {=u16:#x}, goes on after a predecessor: {=bool}",
            name,
            config.base,
            was
        );
        tell(name, server.past());
        Ok((server, Neighbours { vmm, manager }))
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut server, neighbours) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        let _ = server.wake(now);
        neighbours.signal(Signals {
            vmm: true,
            manager: true,
        });
        let mut reply = Message::default();
        loop {
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, server.deadline()) {
                Ok(Event::Call { message, .. }) if message.tag.label() == Tag::PORT => {
                    let [port, value, ..] = message.words;
                    let (value, signals) = server.access(PortAccess(port), value as u32, now);
                    neighbours.signal(signals);
                    Message::new(0, [u64::from(value), 0, 0, 0])
                }
                Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
                Ok(Event::Signal(_) | Event::Timeout) => {
                    neighbours.signal(server.wake(now));
                    Message::default()
                }
                Err(status) => panic!("reply_recv: {}", status as u64),
            };
        }
    }
}
