//! The scheduler server: wires [`scheduler::Scheduler`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    use ipc_schema::proto::{Refusal, SchedulerRequest, SchedulerResponse};
    use runtime::abi::layout::slot;
    use runtime::object::{Budget, Cpu, Space};
    use runtime::{Endpoint, ReplyCaps, Service, Slots, StartInfo, serve, time, utcb};
    use scheduler::policy::Setting;
    use scheduler::server::{Decision, Slot};
    use scheduler::{Kernel, Scheduler};

    runtime::entry!(main);

    const SPACE: Space = Space(slot::SPACE);
    const CPU: Cpu = Cpu(slot::CPU);

    /// The Budgets' capabilities.
    struct Budgets {
        slots: Slots,
    }

    impl Kernel for Budgets {
        fn configure(&mut self, budget: Slot, setting: Setting) -> bool {
            let cycles = time::cycles(setting.budget_us).max(1);
            // Equal stays equal: a Budget that is never exhausted.
            let period = time::cycles(setting.period_us).max(cycles);
            let set = Budget(budget).configure(CPU, u64::from(setting.priority), cycles, period);
            if let Err(status) = set {
                defmt::warn!("a Budget cannot be set: status {=u64}", status as u64);
            }
            set.is_ok()
        }

        fn alive(&mut self, budget: Slot) -> bool {
            Budget(budget).stat().is_ok()
        }

        fn forget(&mut self, budget: Slot) {
            // The slot is this server's and in its table: it cannot fail.
            let _ = SPACE.drop_cap(budget);
            self.slots.give_back(budget);
        }

        fn log(&mut self, name: &str, what: Decision) {
            match what {
                Decision::Set(s) if s.budget_us == s.period_us => defmt::info!(
                    "{=str}: priority {=u8}, turns of {=u64} us",
                    name,
                    s.priority,
                    s.budget_us
                ),
                Decision::Set(s) => defmt::info!(
                    "{=str}: priority {=u8}, {=u64} us every {=u64} us",
                    name,
                    s.priority,
                    s.budget_us,
                    s.period_us
                ),
                Decision::Refused(why) => {
                    let why = match why {
                        Refusal::Busy => "the reservations would exceed the processor",
                        Refusal::Malformed => "the demand makes no sense",
                        Refusal::NoMemory => "too many Budgets",
                        Refusal::Unsupported => "its class can have no reservation",
                        _ => "the kernel does not take it",
                    };
                    defmt::error!("{=str}: refused, {=str}", name, why);
                }
                Decision::Gone => defmt::info!("{=str}: gone", name),
            }
        }
    }

    struct Server {
        scheduler: Scheduler<Budgets>,
        /// The slot that is open for the next capability; `None`: the table is full.
        window: Option<Slot>,
    }

    impl Server {
        fn open(&mut self) {
            self.window = self.scheduler.kernel().slots.take();
            match self.window {
                Some(slot) => utcb::set_receive(slot, 1),
                None => utcb::set_receive(0, 0),
            }
        }
    }

    impl Service for Server {
        type Request = SchedulerRequest;
        type Response = SchedulerResponse;

        fn request(
            &mut self,
            _badge: u64,
            request: SchedulerRequest,
            received: u64,
            _caps: &mut ReplyCaps,
        ) -> SchedulerResponse {
            let budget = match received {
                0 => None,
                _ => self.window.take(),
            };
            let response = self.scheduler.request(request, budget);
            if self.window.is_none() {
                self.open();
            }
            response
        }
    }

    fn main(start: &'static StartInfo) -> ! {
        if start.restarts > 0 {
            defmt::warn!(
                "started anew: Budgets stay as they were set until they are admitted again"
            );
        }
        let kernel = Budgets {
            slots: start.free_slots(),
        };
        let mut server = Server {
            scheduler: Scheduler::new(kernel),
            window: None,
        };
        server.open();
        let status = serve(Endpoint(slot::ENDPOINT), &mut server);
        panic!("the Endpoint is gone: {status:?}")
    }
}
