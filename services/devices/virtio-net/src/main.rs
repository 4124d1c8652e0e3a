//! The server of one network card of one VM: wires [`device_virtio_net::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::boxed::Box;
    use device_virtio_net::server::{Parts, Server, begin};
    use ipc_schema::link::NetConfig;
    use runtime::abi::vm::PortAccess;
    use runtime::device::{Ports, serve_ports};
    use runtime::start::StartError;
    use runtime::{Notification, StartInfo};
    use virtio::Signals;
    use virtio::device::Pages;

    runtime::entry!(main);

    struct Whole {
        server: Server<'static>,
        vmm: Notification,
        switch: Notification,
    }

    impl Whole {
        fn signal(&self, signals: Signals) {
            // Who is gone needs no signal; a successor looks by itself.
            if signals.peer {
                let _ = self.switch.signal();
            }
            if signals.vmm {
                let _ = self.vmm.signal();
            }
        }
    }

    impl Ports for Whole {
        fn access(&mut self, access: PortAccess, value: u32) -> u32 {
            let (value, signals) = self.server.access(access, value);
            self.signal(signals);
            value
        }

        fn wake(&mut self, _late: bool) {
            let signals = self.server.wake();
            self.signal(signals);
        }
    }

    fn set_up(start: &'static StartInfo) -> Result<Whole, StartError> {
        let config: &NetConfig = Box::leak(Box::new(start.config()?));
        let (server, was) = begin(&Parts {
            config,
            pages: Pages {
                memory: start.guest_memory()?,
                irq: start.interrupt_page("irq")?,
                state: start.state_page("state")?,
            },
            page: start.link("link")?,
            link: start.memory("link")?,
        });
        let name = start.instance.as_str();
        defmt::info!("{=str}: goes on after a predecessor: {=bool}", name, was);
        let (vmm, switch) = (start.notification("vmm")?, start.notification("switch")?);
        Ok(Whole {
            server,
            vmm,
            switch,
        })
    }

    fn main(start: &'static StartInfo) -> ! {
        let mut whole = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        whole.wake(false);
        whole.signal(Signals::ALL);
        serve_ports(&mut whole)
    }
}
