//! The server of one test device of one VM: wires [`device_testdev::server::Server`] to the kernel, and dies on demand.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    use device_testdev::Action;
    use device_testdev::server::{Config, Server, Todo};
    use ipc_schema::manifest::Device;
    use ipc_schema::proto::{RootRequest, RootResponse};
    use runtime::abi::{NEVER, Tag, layout::slot, vm::PortAccess};
    use runtime::device::tell;
    use runtime::heart::reply_recv;
    use runtime::start::StartError;
    use runtime::{Endpoint, Event, Message, Notification, StartInfo, now, rpc};

    runtime::entry!(main);

    fn set_up(
        start: &'static StartInfo,
    ) -> Result<(Server<'static>, Notification, Endpoint), StartError> {
        let device: Device = start.config()?;
        let config = Config {
            base: device.ports.first,
            gsi: u32::from(device.irq),
        };
        let (irq, state) = (start.interrupt_page("irq")?, start.state_page("state")?);
        let vmm = start.notification("vmm")?;
        let (server, was) = Server::new(config, irq, state);
        let name = start.instance.as_str();
        defmt::info!(
            "{=str}: ports from {=u16:#x}, goes on after a predecessor: {=bool}",
            name,
            config.base,
            was
        );
        tell(name, server.past());
        Ok((server, vmm, start.endpoint("root")?))
    }

    /// Does what the guest asked for: none of it may come back.
    fn die(action: Action, root: Endpoint) -> ! {
        match action {
            Action::Flood => loop {
                // It has no disk.
                let _ = root.call_postcard::<_, RootResponse>(&RootRequest::Unanswered);
            },
            Action::Crash => poke(0x1234_5000),
            Action::TouchKernel => poke(0xffff_8000_0000_0000),
            Action::TouchFpu => {
                // SAFETY: the kernel runs servers with CR0.TS set, so this raises #NM. Were it not so, it would clear a
                // register that no code of a soft-float server uses.
                unsafe { core::arch::asm!("xorps xmm0, xmm0", options(nomem, nostack)) }
            }
            Action::TouchPort => {
                // SAFETY: user level has no I/O privilege, so this raises #GP. Were it not so, port 0x80 has no effect.
                unsafe { core::arch::asm!("out 0x80, al", options(nomem, nostack)) }
            }
            Action::Hang
            | Action::CommitAndHang(_)
            | Action::Reply(_)
            | Action::PulseAndReply(..) => {}
        }
        // An emulator that counts instructions stops at each `pause`: seldom, for that is slow, and not never, for there it gives the
        // other processors their turn.
        loop {
            (0..256).map(core::hint::black_box).for_each(drop);
            core::hint::spin_loop();
        }
    }

    /// Writes to an address that is not ours.
    fn poke(address: usize) {
        // SAFETY: the instruction faults, which is what it is for. Were the page mapped, the store would be to memory
        // of which this server's Rust code knows nothing: asm, so that the compiler assumes nothing about it.
        unsafe { core::arch::asm!("mov byte ptr [{}], 1", in(reg) address, options(nostack)) }
    }

    fn main(start: &'static StartInfo) -> ! {
        let (mut server, vmm, root) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        // A VMM that is gone needs no signal; its successor looks by itself.
        let _ = vmm.signal();
        let mut reply = Message::default();
        loop {
            reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, NEVER) {
                Ok(Event::Call { message, .. }) if message.tag.label() == Tag::PORT => {
                    let [port, value, ..] = message.words;
                    match server.access(PortAccess(port), value as u32, now) {
                        Todo::Reply { value, rose } => {
                            if rose {
                                let _ = vmm.signal();
                            }
                            Message::new(0, [u64::from(value), 0, 0, 0])
                        }
                        Todo::Die(action) => die(action, root),
                    }
                }
                Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
                Ok(Event::Signal(_)) => {
                    server.doorbell();
                    Message::default()
                }
                Ok(Event::Timeout) => Message::default(),
                Err(status) => panic!("reply_recv: {}", status as u64),
            };
        }
    }
}
