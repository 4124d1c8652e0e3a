//! The server of one block device of one VM: wires [`device_virtio_blk::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::boxed::Box;
    use device_virtio_blk::server::{Parts, Server, Signals};
    use ipc_schema::disk::BlkConfig;
    use ipc_schema::proto::{RootRequest, RootResponse};
    use runtime::abi::{NEVER, Tag, layout::slot, vm::PortAccess};
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, now, reply_recv, rpc, time};

    runtime::entry!(main);

    /// How long `store` may take for an answer, in microseconds, and root.
    const PATIENCE: u64 = 1_000_000;
    const ROOT_PATIENCE: u64 = 100_000;

    type Made = (Server<'static>, Notification, Notification);

    /// Sees whether `store` answers.
    struct Watch {
        store: Notification,
        root: Endpoint,
        patience: u64,
        answers: u32,
        /// When there is to be an answer.
        due: u64,
    }

    impl Watch {
        /// Until when to wait.
        fn deadline(&mut self, (waits, answers): (bool, u32)) -> u64 {
            if !waits {
                self.due = NEVER;
            } else if self.due == NEVER || self.answers != answers {
                (self.due, self.answers) = (now().saturating_add(self.patience), answers);
            }
            self.due
        }

        /// Whether it has not even answered by now.
        const fn late(&self, (waits, answers): (bool, u32)) -> bool {
            waits && answers == self.answers
        }

        /// It has not answered in time: it is signalled again, and root looks for itself.
        fn complain(&mut self) {
            self.due = NEVER;
            let _ = self.store.signal();
            let until = time::after(ROOT_PATIENCE);
            let request = RootRequest::Unanswered;
            let _ = self
                .root
                .call_postcard_with::<_, RootResponse>(&request, &[], until);
        }
    }

    fn set_up(start: &'static StartInfo) -> Result<Made, StartError> {
        let memory = start.guest_memory()?;
        let config: &BlkConfig = Box::leak(Box::new(start.config()?));
        let pages: &'static mut [u8] = match start.region("pages") {
            // SAFETY: root has mapped the region here, readable and writable, for as long as this server lives, and in no other server
            // that lives; this is the only reference to it.
            Ok(pages) => unsafe {
                core::slice::from_raw_parts_mut(pages.as_ptr(), pages.len as usize)
            },
            Err(_) => &mut [],
        };
        let image = match config.disk.image {
            0 => &[],
            _ => start.file("image")?,
        };
        let (server, was) = Server::new(Parts {
            config,
            memory,
            irq: start.interrupt_page("irq")?,
            state: start.state_page("state")?,
            channel: start.disk_channel("channel")?,
            pages,
            image,
        });
        let name = start.instance.as_str();
        defmt::info!("{=str}: goes on after a predecessor: {=bool}", name, was);
        let (vmm, store) = (start.notification("vmm")?, start.notification("store")?);
        Ok((server, vmm, store))
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut server, vmm, store) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        // Who is gone needs no signal; a successor looks by itself.
        let signal = |signals: Signals| {
            if signals.store {
                let _ = store.signal();
            }
            if signals.vmm {
                let _ = vmm.signal();
            }
        };
        let _ = server.wake();
        signal(Signals {
            vmm: true,
            store: true,
        });
        let mut watch = Watch {
            store,
            root: start.endpoint("root").unwrap_or_else(|e| panic!("{e}")),
            patience: time::cycles(PATIENCE),
            answers: 0,
            due: NEVER,
        };
        let mut reply = Message::default();
        loop {
            let deadline = watch.deadline(server.waits());
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, deadline) {
                Ok(Event::Call { message, .. }) if message.tag.label() == Tag::PORT => {
                    let [port, value, ..] = message.words;
                    let (value, signals) = server.access(PortAccess(port), value as u32);
                    signal(signals);
                    Message::new(0, [u64::from(value), 0, 0, 0])
                }
                Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
                Ok(event) => {
                    signal(server.wake());
                    if event == Event::Timeout && watch.late(server.waits()) {
                        watch.complain();
                    }
                    Message::default()
                }
                Err(status) => panic!("reply_recv: {}", status as u64),
            };
        }
    }
}
