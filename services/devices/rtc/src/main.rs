//! The server of one RTC of one VM: wires [`device_rtc::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    use device_rtc::Clock;
    use device_rtc::server::{Config, Server};
    use ipc_schema::manifest::Device;
    use runtime::abi::{Tag, layout::slot, vm::PortAccess};
    use runtime::device::tell;
    use runtime::heart::reply_recv;
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, now, rpc};

    runtime::entry!(main);

    fn set_up(start: &'static StartInfo) -> Result<(Server<'static>, Notification), StartError> {
        let device: Device = start.config()?;
        let config = Config {
            base: device.ports.first,
            gsi: u32::from(device.irq),
        };
        let wall = start.wall_clock;
        let unix_seconds = i64::try_from(wall.unix_seconds).unwrap_or(0);
        let clock = Clock {
            unix_seconds,
            tsc: wall.at_tsc,
            hz: start.tsc_hz,
        };
        let (irq, state) = (start.interrupt_page("irq")?, start.state_page("state")?);
        let vmm = start.notification("vmm")?;
        let (server, was) = Server::new(config, clock, irq, state);
        let name = start.instance.as_str();
        defmt::info!(
            "{=str}: ports from {=u16:#x}, goes on after a predecessor: {=bool}",
            name,
            config.base,
            was
        );
        tell(name, server.past());
        Ok((server, vmm))
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut server, vmm) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        // A VMM that is gone needs no signal; its successor looks by itself.
        let signal = |rose: bool| {
            if rose {
                let _ = vmm.signal();
            }
        };
        let _ = server.wake(now());
        signal(true);
        let mut reply = Message::default();
        loop {
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, server.deadline()) {
                Ok(Event::Call { message, .. }) if message.tag.label() == Tag::PORT => {
                    let [port, value, ..] = message.words;
                    let (value, rose) = server.access(PortAccess(port), value as u32, now());
                    signal(rose);
                    Message::new(0, [u64::from(value), 0, 0, 0])
                }
                Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
                Ok(Event::Signal(_) | Event::Timeout) => {
                    signal(server.wake(now()));
                    Message::default()
                }
                Err(status) => panic!("reply_recv: {}", status as u64),
            };
        }
    }
}
