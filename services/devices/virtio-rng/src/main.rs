//! The server of one entropy source of one VM: wires [`device_virtio_rng::server::Server`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    use core::sync::atomic::{Ordering, fence};
    use device_virtio_rng::Memory;
    use device_virtio_rng::server::Server;
    use runtime::abi::{NEVER, Tag, layout::slot, vm::PortAccess};
    use runtime::start::{Region, StartError};
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, now, reply_recv, rpc};

    runtime::entry!(main);

    /// Guest-physical address of the memory that did not fit below PCI's.
    const HIGH_RAM: u64 = 1 << 32;

    /// The guest's memory as root has mapped it here: where it begins for the guest, and the region.
    struct Guest([Option<(u64, &'static Region)>; 2]);

    impl Guest {
        /// Where `len` bytes at `gpa` are mapped.
        fn place(&self, gpa: u64, len: usize) -> Option<*mut u8> {
            let find = |&(first, region): &(u64, &Region)| {
                let offset = gpa.checked_sub(first)?;
                let end = offset.checked_add(len as u64)?;
                // SAFETY: `offset` is inside the region, which is one mapped run.
                (end <= region.len).then(|| unsafe { region.as_ptr().add(offset as usize) })
            };
            self.0.iter().flatten().find_map(find)
        }
    }

    /// Copies by the integer that `len` and both addresses are of, if there is one, else by bytes.
    ///
    /// # Safety
    /// `len` bytes can be read at `from` and written at `to`, and they do not overlap.
    unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
        macro_rules! whole {
            ($($t:ty),*) => {$(
                if len == size_of::<$t>()
                    && to.cast::<$t>().is_aligned()
                    && from.cast::<$t>().is_aligned()
                {
                    // SAFETY: by the contract; both are aligned.
                    return unsafe { to.cast::<$t>().write_volatile(from.cast::<$t>().read_volatile()) };
                }
            )*};
        }
        whole!(u16, u32, u64);
        for i in 0..len {
            // SAFETY: by the contract.
            unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        }
    }

    impl Memory for Guest {
        fn read(&self, gpa: u64, to: &mut [u8]) -> Option<()> {
            let mut word = [0u64];
            let from = self.place(gpa, to.len())?;
            // An integer goes through an aligned one, so that it is read at once.
            if to.len() <= 8 {
                // SAFETY: `place` has checked the source; `word` is as large.
                unsafe { copy(word.as_mut_ptr().cast(), from, to.len()) };
                let [word] = word;
                for (to, byte) in to.iter_mut().zip(word.to_le_bytes()) {
                    *to = byte;
                }
                return Some(());
            }
            // SAFETY: `place` has checked the source; `to` is no guest memory, to which nobody has references.
            unsafe { copy(to.as_mut_ptr(), from, to.len()) };
            Some(())
        }

        fn write(&self, gpa: u64, from: &[u8]) -> Option<()> {
            let to = self.place(gpa, from.len())?;
            let mut bytes = [0; 8];
            if let Some(part) = bytes.get_mut(..from.len()) {
                part.copy_from_slice(from);
                let word = [u64::from_le_bytes(bytes)];
                // SAFETY: `place` has checked the target; `word` is as large.
                unsafe { copy(to, word.as_ptr().cast(), from.len()) };
                return Some(());
            }
            // SAFETY: `place` has checked the target; `from` is no guest memory.
            unsafe { copy(to, from.as_ptr(), from.len()) };
            Some(())
        }

        fn fence(&self) {
            fence(Ordering::SeqCst);
        }
    }

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

    type Rng = Server<'static, Guest>;

    fn set_up(start: &'static StartInfo) -> Result<(Rng, Notification), StartError> {
        let low = start.region("guest")?;
        let high = start.region("guest-high").ok();
        let memory = Guest([Some((0, low)), high.map(|high| (HIGH_RAM, high))]);
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
