//! The server of one UART of the machine: wires [`driver_uart::Driver`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    use driver_uart::{Driver, Ports, Progress};
    use ipc_schema::manifest;
    use ipc_schema::ring::{Consumer, Producer};
    use runtime::abi::{NEVER, Status, layout::slot};
    use runtime::start::StartError;
    use runtime::{Notification, StartInfo, object, time};

    runtime::entry!(main);

    /// Most rounds of work before the bell is looked at.
    const ROUNDS: usize = 64;
    /// The longest wait, in microseconds, for the interrupt of a busy transmitter. 16 bytes take 1,389; some UARTs are
    /// known to forget the interrupt.
    const PATIENCE: u64 = 20_000;

    /// The UART's ports, by system call.
    struct MachinePorts {
        ports: object::Ports,
        first: u16,
    }

    impl Ports for MachinePorts {
        fn inb(&mut self, offset: u8) -> u8 {
            // Ports that are not ours read as an empty bus: the driver then finds no UART and says so.
            self.ports
                .in8(self.first.wrapping_add(u16::from(offset)))
                .unwrap_or(0xff)
        }

        fn outb(&mut self, offset: u8, value: u8) {
            let _ = self
                .ports
                .out8(self.first.wrapping_add(u16::from(offset)), value);
        }

        fn outb_all(&mut self, offset: u8, bytes: &[u8]) {
            let _ = self
                .ports
                .out_bytes(self.first.wrapping_add(u16::from(offset)), bytes);
        }
    }

    struct Server {
        driver: Driver<MachinePorts>,
        /// Bytes received.
        tx: Producer<'static>,
        /// Bytes to be sent.
        rx: Consumer<'static>,
        manager: Notification,
    }

    fn set_up(start: &'static StartInfo) -> Result<Server, StartError> {
        let config: manifest::Driver = start.config()?;
        let ports = object::Ports(start.cap("ports")?);
        let first = config.ports.first;
        let tx = Producer::new(start.ring("tx")?);
        let rx = Consumer::new(start.ring("rx")?);
        let manager = start.notification("manager")?;
        let driver = Driver::new(MachinePorts { ports, first })
            .unwrap_or_else(|_| panic!("no 16550 UART answers at port {first:#x}"));
        defmt::info!(
            "{=str}: a 16550A at {=u16:#x}, 115200 baud",
            start.instance.as_str(),
            first
        );
        Ok(Server {
            driver,
            tx,
            rx,
            manager,
        })
    }

    impl Server {
        /// Moves bytes until neither the UART nor the ring has anything to do; says until when to wait.
        fn work(&mut self) -> u64 {
            for _ in 0..ROUNDS {
                let mut progress = self.driver.interrupt(&mut self.tx, &mut self.rx);
                progress = progress.merge(self.driver.kick(&mut self.tx, &mut self.rx));
                self.signal(progress);
                // With the transmitter busy its interrupt wakes us; idle, the manager must.
                if self.driver.busy() {
                    return time::after(PATIENCE);
                }
                if self.rx.prepare_sleep() {
                    return NEVER;
                }
            }
            time::now()
        }

        fn signal(&mut self, progress: Progress) {
            let received = progress.received && self.tx.needs_signal();
            let sent = progress.sent && self.rx.needs_signal();
            if received || sent {
                let _ = self.manager.signal();
            }
        }
    }

    fn main(start: &'static StartInfo) -> ! {
        let mut server = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        let _ = server.manager.signal();
        loop {
            let until = server.work();
            match Notification(slot::NOTIFICATION).wait(until) {
                Ok(_) | Err(Status::Timeout) => {}
                Err(status) => panic!("wait: {}", status as u64),
            }
        }
    }
}
