//! The server of one block device of one VM: wires [`device_virtio_blk::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::boxed::Box;
    use device_virtio_blk::server::{Parts, Server, begin};
    use ipc_schema::disk::BlkConfig;
    use ipc_schema::proto::{RootRequest, RootResponse};
    use runtime::abi::{NEVER, vm::PortAccess};
    use runtime::device::{Neighbours, Ports, serve_ports, tell};
    use runtime::start::StartError;
    use runtime::{Endpoint, Notification, StartInfo, now, time};
    use virtio::Signals;

    runtime::entry!(main);

    /// How long `store` may take for an answer, in microseconds, and root.
    const PATIENCE: u64 = 1_000_000;
    const ROOT_PATIENCE: u64 = 100_000;

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

    struct Whole {
        server: Server<'static>,
        neighbours: Neighbours,
        watch: Watch,
    }

    impl Ports for Whole {
        fn access(&mut self, access: PortAccess, value: u32) -> u32 {
            let (value, signals) = self.server.access(access, value);
            self.neighbours.signal(signals);
            value
        }

        fn wake(&mut self, late: bool) {
            let signals = self.server.wake();
            self.neighbours.signal(signals);
            if late && self.watch.late(self.server.model().waits()) {
                self.watch.complain();
            }
        }

        fn deadline(&mut self) -> u64 {
            self.watch.deadline(self.server.model().waits())
        }
    }

    fn set_up(start: &'static StartInfo) -> Result<Whole, StartError> {
        let config: &BlkConfig = Box::leak(Box::new(start.config()?));
        let content: &'static mut [u8] = match start.region("pages") {
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
        let (server, was) = begin(Parts {
            config,
            pages: start.virtio_pages()?,
            channel: start.disk_channel("channel")?,
            content,
            image,
        });
        let name = start.instance.as_str();
        defmt::info!("{=str}: goes on after a predecessor: {=bool}", name, was);
        tell(name, server.past());
        let store = start.notification("store")?;
        let watch = Watch {
            store,
            root: start.endpoint("root")?,
            patience: time::cycles(PATIENCE),
            answers: 0,
            due: NEVER,
        };
        let neighbours = Neighbours {
            vmm: start.notification("vmm")?,
            peer: Some(store),
        };
        Ok(Whole {
            server,
            neighbours,
            watch,
        })
    }

    fn main(start: &'static StartInfo) -> ! {
        let mut whole = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        whole.wake(false);
        whole.neighbours.signal(Signals::ALL);
        serve_ports(&mut whole)
    }
}
