//! The server of one entropy source of one VM: wires [`device_virtio_rng::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    use device_virtio_rng::server::Server;
    use runtime::abi::{NEVER, Tag, layout::slot, vm::PortAccess};
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, now, reply_recv, rpc};

    runtime::entry!(main);

    /// What this machine has of entropy: its generator's words (Intel SDM vol. 1, 7.3.17), if it has one, and the time.
    struct Source {
        rdrand: bool,
    }

    impl Source {
        fn new() -> Self {
            /// CPUID leaf 1, ecx.
            const RDRAND: u32 = 1 << 30;
            let most = __cpuid(0).eax;
            let rdrand = most >= 1 && __cpuid_count(1, 0).ecx & RDRAND != 0;
            if !rdrand {
                defmt::warn!(
                    "no RDRAND: what the guest gets comes from the time of its requests alone"
                );
            }
            Self { rdrand }
        }

        fn word(&self) -> u64 {
            let mut word = 0u64;
            let mut there = 0u8;
            for _ in 0..10 {
                if self.rdrand && there == 0 {
                    // SAFETY: CPUID says that the instruction is there; it writes a register and flags.
                    unsafe {
                        core::arch::asm!("rdrand {}", "setc {}", out(reg) word, out(reg_byte) there, options(nomem, nostack));
                    }
                }
            }
            word ^ now()
        }

        fn words(&self) -> [u64; 4] {
            core::array::from_fn(|_| self.word())
        }
    }

    fn set_up(start: &'static StartInfo) -> Result<(Server<'static>, Notification), StartError> {
        let memory = start.guest_memory()?;
        let (irq, state) = (start.interrupt_page("irq")?, start.state_page("state")?);
        let vmm = start.notification("vmm")?;
        let (server, was) = Server::new(memory, irq, state);
        let name = start.instance.as_str();
        defmt::info!("{=str}: goes on after a predecessor: {=bool}", name, was);
        Ok((server, vmm))
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut server, vmm) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        let source = Source::new();
        server.mix(source.words());
        // A VMM that is gone needs no signal; its successor looks by itself.
        let signal = |wanted: bool| {
            if wanted {
                let _ = vmm.signal();
            }
        };
        let _ = server.wake();
        signal(true);
        let mut reply = Message::default();
        loop {
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, NEVER) {
                Ok(Event::Call { message, .. }) if message.tag.label() == Tag::PORT => {
                    let [port, value, ..] = message.words;
                    let (value, wanted) = server.access(PortAccess(port), value as u32);
                    signal(wanted);
                    Message::new(0, [u64::from(value), 0, 0, 0])
                }
                Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
                Ok(Event::Signal(_) | Event::Timeout) => {
                    server.mix(source.words());
                    signal(server.wake());
                    Message::default()
                }
                Err(status) => panic!("reply_recv: {}", status as u64),
            };
        }
    }
}
