//! The loop of a device server: a call is a routed access to a port, all else is a reason to look.

use crate::abi::{NEVER, Tag, layout::slot, vm::PortAccess};
use crate::heart::reply_recv;
use crate::{Endpoint, Event, Message, Notification, rpc};
#[cfg(target_os = "none")]
use ipc_schema::state_page::Past;
use virtio::Signals;

/// Says in the log what has become of a predecessor's record, if anything has.
#[cfg(target_os = "none")]
pub fn tell(name: &str, past: Past) {
    match past {
        Past::Nothing | Past::Whole { mended: None } => {}
        Past::Whole { mended: Some(slot) } => defmt::warn!(
            "{=str}: slot {=u8} of its state page is damaged or half written, and mended from the other: nothing is lost",
            name,
            slot
        ),
        Past::Configuration { from } => defmt::error!(
            "{=str}: its state page is damaged; slot {=u8} has what the guest has set, and places come out of queues and rings",
            name,
            from
        ),
        Past::Lost => defmt::error!(
            "{=str}: both slots of its state page are damaged: what its guest has set is lost, and it begins anew",
            name
        ),
    }
}

/// What has ports.
pub trait Ports {
    /// A routed access; gives the value of an IN. Whom it concerns is signalled before the answer.
    fn access(&mut self, access: PortAccess, value: u32) -> u32;

    /// A doorbell rang, a neighbour has done something, or it is `late`: the deadline has passed.
    fn wake(&mut self, late: bool);

    /// These bits of the server's Notification were signalled.
    fn signalled(&mut self, bits: u64) {
        let _ = bits;
        self.wake(false);
    }

    /// When to be woken if nothing happens.
    fn deadline(&mut self) -> u64 {
        NEVER
    }
}

/// Whom a virtio device's server signals.
pub struct Neighbours {
    /// The VMM.
    pub vmm: Notification,
    /// Who answers the model, if anybody does.
    pub peer: Option<Notification>,
}

impl Neighbours {
    /// Who is gone needs no signal; a successor looks by itself.
    pub fn signal(&self, signals: Signals) {
        if signals.peer
            && let Some(peer) = self.peer
        {
            let _ = peer.signal();
        }
        if signals.vmm {
            let _ = self.vmm.signal();
        }
    }
}

/// Serves for ever.
pub fn serve_ports(server: &mut impl Ports) -> ! {
    let mut reply = Message::default();
    loop {
        reply = match reply_recv(Endpoint(slot::ENDPOINT), reply, server.deadline()) {
            Ok(Event::Call { message, .. }) if message.tag.label() == Tag::PORT => {
                let [port, value, ..] = message.words;
                let value = server.access(PortAccess(port), value as u32);
                Message::new(0, [u64::from(value), 0, 0, 0])
            }
            Ok(Event::Call { .. }) => Message::new(rpc::BAD_REQUEST, [0; 4]),
            Ok(Event::Signal(bits)) => {
                server.signalled(bits);
                Message::default()
            }
            Ok(Event::Timeout) => {
                server.wake(true);
                Message::default()
            }
            Err(status) => panic!("reply_recv: {}", status as u64),
        };
    }
}
