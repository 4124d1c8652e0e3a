//! The scheduler server: wires [`scheduler::Scheduler`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::vec::Vec;
    use ipc_schema::proto::{Refusal, SchedulerRequest, SchedulerResponse};
    use runtime::abi::layout::slot;
    use runtime::abi::{NEVER, Status, rights};
    use runtime::object::{Budget, Cpu, Space};
    use runtime::{
        Endpoint, Notification, ReplyCaps, Service, Slots, StartInfo, forward, serve, time, utcb,
    };
    use scheduler::placement::FIRST;
    use scheduler::policy::Setting;
    use scheduler::server::{Decision, Outcome, Slot};
    use scheduler::{Kernel, Scheduler};

    runtime::entry!(main);

    const SPACE: Space = Space(slot::SPACE);
    const _: () = assert!(forward::BELL == 1 << scheduler::server::FORWARD);
    /// Until what is in a call is tried again, in microseconds.
    const RETRY_US: u64 = 10_000;

    /// The Budgets' capabilities, and the processors'.
    struct Budgets {
        slots: Slots,
        /// By number.
        cpus: Vec<(u32, Cpu)>,
        /// This server's own Notification, to be handed out.
        events: Option<Notification>,
    }

    impl Kernel for Budgets {
        fn configure(&mut self, budget: Slot, cpu: u32, setting: Setting) -> Outcome {
            let Some((_, cpu)) = self.cpus.iter().find(|(number, _)| *number == cpu) else {
                return Outcome::Refused;
            };
            let cycles = time::cycles(setting.budget_us).max(1);
            // Equal stays equal: a Budget that is never exhausted.
            let period = time::cycles(setting.period_us).max(cycles);
            match Budget(budget).configure(*cpu, u64::from(setting.priority), cycles, period) {
                Ok(()) => Outcome::Done,
                Err(Status::Busy) => Outcome::Busy,
                Err(status) => {
                    defmt::warn!("a Budget cannot be set: status {=u64}", status as u64);
                    Outcome::Refused
                }
            }
        }

        fn processor(&mut self, number: u32, cpu: Slot) {
            defmt::info!("processor {=u32} is in use", number);
            self.cpus.push((number, Cpu(cpu)));
        }

        fn watch(&mut self, budget: Slot, bits: u64) {
            let (Some(events), Some(slot)) = (self.events, self.slots.take()) else {
                return;
            };
            let watched = SPACE
                .copy_cap(events.0, slot, rights::SEND, bits)
                .and_then(|()| Budget(budget).bind_event(Some(Notification(slot))));
            if let Err(status) = watched {
                defmt::warn!("a Budget cannot be watched: status {=u64}", status as u64);
            }
            // The kernel keeps a copy.
            self.forget(slot);
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
                Decision::Set(cpu, s) if s.budget_us == s.period_us => defmt::info!(
                    "{=str}: processor {=u32}, priority {=u8}, turns of {=u64} us",
                    name,
                    cpu,
                    s.priority,
                    s.budget_us
                ),
                Decision::Set(cpu, s) => defmt::info!(
                    "{=str}: processor {=u32}, priority {=u8}, {=u64} us every {=u64} us",
                    name,
                    cpu,
                    s.priority,
                    s.budget_us,
                    s.period_us
                ),
                Decision::NoSuchProcessor(cpu) => {
                    defmt::warn!(
                        "{=str}: there is no processor {=u32}, another is taken",
                        name,
                        cpu
                    );
                }
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
                Decision::Exhausted(periods) => defmt::info!(
                    "{=str}: used up its budget in {=u64} periods so far",
                    name,
                    periods
                ),
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
            let cap = match received {
                0 => None,
                _ => self.window.take(),
            };
            let response = self.scheduler.request(request, cap);
            if self.window.is_none() {
                self.open();
            }
            response
        }

        fn signal(&mut self, bits: u64) {
            self.scheduler.exhausted(bits);
        }

        fn timeout(&mut self) {
            self.scheduler.retry();
        }

        fn deadline(&self) -> u64 {
            if self.scheduler.pending() {
                time::after(RETRY_US)
            } else {
                NEVER
            }
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
            cpus: Vec::from([(FIRST, Cpu(slot::CPU))]),
            events: start.notification("events").ok(),
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
