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
    use device_virtio_console::server::{Parts, Server, begin};
    use ipc_schema::manifest::{self, DeviceKind};
    use runtime::StartInfo;
    use runtime::abi::vm::PortAccess;
    use runtime::device::{Neighbours, Ports, serve_ports, tell};
    use runtime::start::StartError;
    use virtio::Signals;

    runtime::entry!(main);

    struct Whole {
        server: Server<'static>,
        neighbours: Neighbours,
    }

    impl Ports for Whole {
        fn access(&mut self, access: PortAccess, value: u32) -> u32 {
            let (value, signals) = self.server.access(access, value);
            self.neighbours.signal(signals);
            value
        }

        fn wake(&mut self, _late: bool) {
            let signals = self.server.wake();
            self.neighbours.signal(signals);
        }

        fn deadline(&mut self) -> u64 {
            self.server.model().deadline()
        }
    }

    fn set_up(start: &'static StartInfo) -> Result<Whole, StartError> {
        let device: manifest::Device = start.config()?;
        let packed = device.kind.packed();
        let (ports, rows_first) = match device.kind {
            DeviceKind::VirtioConsole {
                ports, rows_first, ..
            } => (ports, rows_first),
            _ => (manifest::Ports::default(), false),
        };
        let ports: &manifest::Ports = Box::leak(Box::new(ports));
        let rings = |port: usize| {
            Ok(Rings {
                tx: start.ring(&format!("tx:{port}"))?,
                rx: start.ring(&format!("rx:{port}"))?,
            })
        };
        let rings: Vec<Rings<'_>> = (0..ports.count()).map(rings).collect::<Result<_, _>>()?;
        let (server, was) = begin(&Parts {
            ports,
            rows_first,
            packed,
            pages: start.virtio_pages()?,
            rings: rings.leak(),
        });
        let name = start.instance.as_str();
        defmt::info!("{=str}: goes on after a predecessor: {=bool}", name, was);
        tell(name, server.past());
        let neighbours = Neighbours {
            vmm: start.notification("vmm")?,
            peer: Some(start.notification("manager")?),
        };
        Ok(Whole { server, neighbours })
    }

    fn main(start: &'static StartInfo) -> ! {
        let mut whole = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        whole.wake(false);
        whole.neighbours.signal(Signals::ALL);
        serve_ports(&mut whole)
    }
}
