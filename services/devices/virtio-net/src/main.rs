//! The server of one network card of one VM: wires [`device_virtio_net::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::boxed::Box;
    use alloc::vec::Vec;
    use device_virtio_net::server::{Parts, Server, Signals};
    use ipc_schema::link::NetConfig;
    use runtime::abi::{NEVER, Tag, layout::slot, vm::PortAccess};
    use runtime::start::{Region, StartError};
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, reply_recv, rpc};
    use virtio::Memory;
    use virtio::memory::Range;

    runtime::entry!(main);

    /// Guest-physical address of the memory that did not fit below PCI's.
    const HIGH_RAM: u64 = 1 << 32;

    type Made = (Server<'static>, Notification, Notification);

    fn set_up(start: &'static StartInfo) -> Result<Made, StartError> {
        let low = start.region("guest")?;
        let high = start.region("guest-high").ok();
        let ranges = [Some((0, low)), high.map(|high| (HIGH_RAM, high))];
        let range = |(gpa, region): (u64, &Region)| Range {
            gpa,
            len: region.len,
            host: region.as_ptr(),
        };
        let ranges: Vec<Range> = ranges.into_iter().flatten().map(range).collect();
        // SAFETY: root has mapped each region here, readable and writable, for as long as this server lives; it is the guest's memory
        // and holds nothing of ours.
        let memory = Box::leak(Box::new(unsafe { Memory::new(&ranges) }));
        let config: &NetConfig = Box::leak(Box::new(start.config()?));
        let region = start.region("link")?;
        let range = Range {
            gpa: 0,
            len: region.len,
            host: region.as_ptr(),
        };
        // SAFETY: root has mapped the region here, readable and writable, for as long as this server lives. What of it is taken for a Rust
        // object is the first page, of atomics, which no offset of a lane reaches.
        let link = Box::leak(Box::new(unsafe { Memory::new(&[range]) }));
        let (server, was) = Server::new(&Parts {
            config,
            memory,
            irq: start.interrupt_page("irq")?,
            state: start.state_page("state")?,
            page: start.link("link")?,
            link,
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
