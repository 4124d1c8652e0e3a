//! The server of one network card of one VM: wires [`device_virtio_net::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::boxed::Box;
    use device_virtio_net::patience::Patience;
    use device_virtio_net::server::{Parts, Server, begin, transmits};
    use ipc_schema::link::NetConfig;
    use runtime::StartInfo;
    use runtime::abi::vm::PortAccess;
    use runtime::device::{Neighbours, Ports, serve_ports, tell};
    use runtime::start::StartError;
    use runtime::time;
    use virtio::Signals;

    runtime::entry!(main);

    /// Doorbells follow each other closely if they are so many microseconds apart; and so many are they put off at most.
    const CLOSE_MICROS: u64 = 30;
    const MOST_MICROS: u64 = 300;
    /// So long a driver may wait for the interrupt for what it has sent.
    const ASK_MICROS: u64 = 1000;

    struct Whole {
        server: Server<'static>,
        neighbours: Neighbours,
        patience: Patience,
    }

    impl Ports for Whole {
        fn access(&mut self, access: PortAccess, value: u32) -> u32 {
            self.server.model_mut().clock(time::now());
            let (value, signals) = self.server.access(access, value);
            self.neighbours.signal(signals);
            value
        }

        fn signalled(&mut self, bits: u64) {
            let queue = bits.trailing_zeros() as u16;
            let bell = bits.is_power_of_two() && transmits(queue);
            let now = time::now();
            if bell && self.patience.rings(now) && self.server.hold(queue) {
                self.patience.begins(now);
            } else {
                self.wake(false);
            }
        }

        fn wake(&mut self, _late: bool) {
            let model = self.server.model_mut();
            model.clock(time::now());
            let before = model.sent();
            let signals = self.server.wake();
            self.neighbours.signal(signals);
            let frames = self.server.model().sent().wrapping_sub(before);
            self.patience.ends(time::now(), frames);
        }

        fn deadline(&mut self) -> u64 {
            let model = self.server.model();
            self.patience.deadline().min(model.deadline())
        }
    }

    fn set_up(start: &'static StartInfo) -> Result<Whole, StartError> {
        let config: &NetConfig = Box::leak(Box::new(start.config()?));
        let (mut server, was) = begin(&Parts {
            config,
            pages: start.virtio_pages()?,
            page: start.link("link")?,
            link: start.memory("link")?,
        });
        server.model_mut().put_off(time::cycles(ASK_MICROS));
        let name = start.instance.as_str();
        defmt::info!("{=str}: goes on after a predecessor: {=bool}", name, was);
        tell(name, server.past());
        let neighbours = Neighbours {
            vmm: start.notification("vmm")?,
            peer: Some(start.notification("switch")?),
        };
        let (close, most) = (time::cycles(CLOSE_MICROS), time::cycles(MOST_MICROS));
        Ok(Whole {
            server,
            neighbours,
            patience: Patience::new(close, most),
        })
    }

    fn main(start: &'static StartInfo) -> ! {
        let mut whole = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        whole.wake(false);
        whole.neighbours.signal(Signals::ALL);
        serve_ports(&mut whole)
    }
}
