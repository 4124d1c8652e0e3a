//! The server of one entropy source of one VM: wires [`device_virtio_rng::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    use device_virtio_rng::server::{Server, begin};
    use runtime::abi::vm::PortAccess;
    use runtime::device::{Neighbours, Ports, serve_ports, tell};
    use runtime::start::StartError;
    use runtime::{StartInfo, now};
    use virtio::Signals;

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

    struct Whole {
        server: Server<'static>,
        source: Source,
        neighbours: Neighbours,
    }

    impl Ports for Whole {
        fn access(&mut self, access: PortAccess, value: u32) -> u32 {
            let (value, signals) = self.server.access(access, value);
            self.neighbours.signal(signals);
            value
        }

        fn wake(&mut self, _late: bool) {
            self.server.model_mut().mix(self.source.words());
            let signals = self.server.wake();
            self.neighbours.signal(signals);
        }
    }

    fn set_up(start: &'static StartInfo) -> Result<Whole, StartError> {
        let (server, was) = begin(start.virtio_pages()?);
        let name = start.instance.as_str();
        defmt::info!("{=str}: goes on after a predecessor: {=bool}", name, was);
        tell(name, server.past());
        let neighbours = Neighbours {
            vmm: start.notification("vmm")?,
            peer: None,
        };
        Ok(Whole {
            server,
            source: Source::new(),
            neighbours,
        })
    }

    fn main(start: &'static StartInfo) -> ! {
        let mut whole = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        whole.wake(false);
        whole.neighbours.signal(Signals::ALL);
        serve_ports(&mut whole)
    }
}
