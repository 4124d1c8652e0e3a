//! The manager: wires [`manager::relay::Relay`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::format;
    use alloc::vec::Vec;
    use ipc_schema::manifest::{Channel, System};
    use ipc_schema::proto::{Refusal, RootRequest, RootResponse, VmmReport, VmmReportResponse};
    use manager::relay::{Pages, Relay};
    use manager::{Described, Port};
    use runtime::abi::{NEVER, layout::slot};
    use runtime::start::StartError;
    use runtime::{Endpoint, Notification, ReplyCaps, Service, StartInfo, serve, time};

    runtime::entry!(main);

    const VERSION: &str = concat!("Vireo ", env!("CARGO_PKG_VERSION"));
    /// The longest wait for root's answer, in microseconds: it may be starting a VM.
    const PATIENCE: u64 = 30_000_000;

    struct Manager {
        relay: Relay<'static>,
        root: Endpoint,
        driver: Notification,
        /// The Notification of the device at the end of each channel.
        devices: Vec<Option<Notification>>,
        /// There is more to do at once.
        more: bool,
    }

    /// Asks root; `None` if there is no answer.
    fn ask(root: Endpoint, request: &RootRequest) -> Option<RootResponse> {
        match root.call_postcard_with(request, &[], time::after(PATIENCE)) {
            Ok(response) => Some(response),
            Err(error) => {
                defmt::warn!("root does not answer: {=str}", format!("{error}").as_str());
                None
            }
        }
    }

    fn set_up(start: &'static StartInfo) -> Result<Manager, StartError> {
        let system: System = start.config()?;
        let root = start.endpoint("root")?;
        let driver = start.notification("driver")?;
        let terminal = Pages {
            tx: start.ring("serial-tx")?,
            rx: start.ring("serial-rx")?,
        };
        let channels: Vec<(usize, Channel)> = (0..)
            .zip(&system.vms)
            .flat_map(|(v, vm)| vm.channels().into_iter().map(move |c| (v, c)))
            .collect();
        let (mut described, mut devices) = (Vec::new(), Vec::new());
        for (v, vm) in system.vms.iter().enumerate() {
            let own: Vec<&Channel> = channels.iter().filter(|c| c.0 == v).map(|c| &c.1).collect();
            let mut push = |name, port, pages, device| {
                let channel = Described {
                    name,
                    vm: vm.name.as_str(),
                    port,
                    autostart: vm.autostart,
                };
                described.push((channel, pages));
                devices.push(device);
            };
            // The console knows of a VM without any that it has none.
            if own.is_empty() {
                push(vm.name.as_str(), Port::None, None, None);
            }
            for channel in own {
                let name = channel.name.as_str();
                let pages = Pages {
                    tx: start.ring(&format!("tx:{name}"))?,
                    rx: start.ring(&format!("rx:{name}"))?,
                };
                let port = if channel.sized() {
                    Port::Terminal
                } else {
                    Port::Bytes
                };
                let device = start.notification(&format!("device:{name}"))?;
                push(name, port, Some(pages), Some(device));
            }
        }
        let relay = Relay::new(VERSION, start.tsc_hz, &terminal, &described);
        defmt::info!(
            "{=usize} VMs in system {=str}",
            system.vms.len(),
            system.name.as_str()
        );
        Ok(Manager {
            relay,
            root,
            driver,
            devices,
            more: false,
        })
    }

    impl Manager {
        fn work(&mut self) {
            let root = self.root;
            self.more = self.relay.work(|request| ask(root, request));
            let signals = self.relay.take_signals();
            // A neighbour that is gone needs no signal; its successor looks by itself.
            if signals.terminal {
                let _ = self.driver.signal();
            }
            for channel in signals.channels {
                if let Some(Some(device)) = self.devices.get(channel) {
                    let _ = device.signal();
                }
            }
        }
    }

    /// The bit with which root says that it has events.
    const ROOT_BIT: u64 = 2;

    impl Service for Manager {
        type Request = VmmReport;
        type Response = VmmReportResponse;

        fn request(
            &mut self,
            badge: u64,
            report: VmmReport,
            _: u64,
            _: &mut ReplyCaps,
        ) -> VmmReportResponse {
            let root = self.root;
            let known = self
                .relay
                .report(badge, report, |request| ask(root, request));
            self.work();
            if known {
                VmmReportResponse::Done
            } else {
                VmmReportResponse::Refused(Refusal::Unknown)
            }
        }

        fn signal(&mut self, bits: u64) {
            if bits & ROOT_BIT != 0 {
                let root = self.root;
                self.relay.events(|request| ask(root, request));
            }
            self.work();
        }

        fn timeout(&mut self) {
            self.work();
        }

        fn deadline(&self) -> u64 {
            if self.more { time::now() } else { NEVER }
        }
    }

    fn main(start: &'static StartInfo) -> ! {
        let mut manager = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        manager.work();
        let status = serve(Endpoint(slot::ENDPOINT), &mut manager);
        panic!("reply_recv: {}", status as u64);
    }
}
