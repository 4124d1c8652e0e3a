//! The loop of a server that answers typed requests.

use ipc_schema::abi::{CapTransfer, NEVER, Status, Tag};
use serde::{Serialize, de::DeserializeOwned};

use crate::forward::reply_recv;
use crate::ipc::{Endpoint, Event, Message};
use crate::{rpc, utcb};

/// Capabilities to go with a reply; at most four.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplyCaps {
    caps: [CapTransfer; 4],
    count: usize,
}

impl ReplyCaps {
    /// Adds one; `false` if there are four already.
    pub fn add(&mut self, cap: CapTransfer) -> bool {
        let Some(free) = self.caps.get_mut(self.count) else {
            return false;
        };
        *free = cap;
        self.count += 1;
        true
    }

    /// Those added.
    #[must_use]
    pub fn as_slice(&self) -> &[CapTransfer] {
        self.caps.get(..self.count).unwrap_or(&[])
    }
}

/// What a server does with what comes in.
pub trait Service {
    /// What clients may ask.
    type Request: DeserializeOwned;
    /// What they are answered.
    type Response: Serialize;

    /// Answers a request. `badge` says who asks; `received` capabilities came with it, in the slots opened with
    /// [`utcb::set_receive`]; `caps` go with the reply.
    fn request(
        &mut self,
        badge: u64,
        request: Self::Request,
        received: u64,
        caps: &mut ReplyCaps,
    ) -> Self::Response;

    /// Bits of the bound Notification have come.
    fn signal(&mut self, bits: u64) {
        let _ = bits;
    }

    /// The deadline has passed.
    fn timeout(&mut self) {}

    /// Until when (absolute TSC) to wait; asked before each wait.
    fn deadline(&self) -> u64 {
        NEVER
    }

    /// A request has come that is none, and is answered so.
    fn undecodable(&mut self, badge: u64) {
        let _ = badge;
    }

    /// Answers a message that is no postcard request: fault and port messages of the kernel, protocols in registers.
    fn message(&mut self, badge: u64, message: Message) -> Message {
        let _ = (badge, message);
        Message::new(rpc::BAD_REQUEST, [0; 4])
    }
}

/// Serves for ever, callers on other processors included if root gave forwarders ([`crate::forward`]); those alone on Endpoint 0.
/// Comes back only when the Endpoint is no good.
pub fn serve<S: Service>(endpoint: Endpoint, service: &mut S) -> Status {
    let mut reply = Message::default();
    loop {
        match reply_recv(endpoint, reply, service.deadline()) {
            Ok(event) => reply = answer(service, event),
            Err(status) => return status,
        }
    }
}

/// One turn of the loop: what to reply. After a signal or a timeout nobody waits for it.
pub fn answer<S: Service>(service: &mut S, event: Event) -> Message {
    match event {
        Event::Call { badge, message } if message.tag.label() == rpc::REQUEST => {
            // Decoded at once: the payload is only good until the next system call.
            let received = match message.tag.caps() {
                // Left of an earlier message.
                0 => 0,
                _ => utcb::received(),
            };
            let Ok(request) = utcb::decode::<S::Request>(message.tag.payload()) else {
                service.undecodable(badge);
                return Message::new(rpc::BAD_REQUEST, [0; 4]);
            };
            let mut caps = ReplyCaps::default();
            let response = service.request(badge, request, received, &mut caps);
            let Ok(len) = utcb::encode(&response) else {
                return Message::new(rpc::TOO_LONG, [0; 4]);
            };
            let count = utcb::set_send(caps.as_slice());
            let tag = Tag::new(rpc::RESPONSE).with_payload(len).with_caps(count);
            Message { tag, words: [0; 4] }
        }
        Event::Call { badge, message } => service.message(badge, message),
        Event::Signal(bits) => {
            service.signal(bits);
            Message::default()
        }
        Event::Timeout => {
            service.timeout();
            Message::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::String, vec, vec::Vec};

    #[derive(Default)]
    struct Doubler {
        bits: u64,
    }

    impl Service for Doubler {
        type Request = (u64, String);
        type Response = Vec<u8>;
        fn request(
            &mut self,
            badge: u64,
            request: (u64, String),
            _: u64,
            caps: &mut ReplyCaps,
        ) -> Vec<u8> {
            while caps.add(CapTransfer::default()) {}
            vec![badge as u8; request.0 as usize]
        }
        fn signal(&mut self, bits: u64) {
            self.bits |= bits;
        }
        fn undecodable(&mut self, badge: u64) {
            self.bits |= badge << 32;
        }
    }

    fn call(request: &impl Serialize) -> Event {
        let tag = Tag::new(rpc::REQUEST).with_payload(utcb::encode(request).unwrap());
        let message = Message { tag, words: [0; 4] };
        Event::Call { badge: 9, message }
    }

    fn ask(request: &impl Serialize) -> Message {
        answer(&mut Doubler::default(), call(request))
    }

    #[test]
    fn answers_and_refuses() {
        let good = ask(&(3u64, "x"));
        assert_eq!((good.tag.label(), good.tag.caps()), (rpc::RESPONSE, 4));
        assert_eq!(rpc::response::<Vec<u8>>(good.tag), Ok(vec![9; 3]));
        assert_eq!(ask(&7u8).tag, Tag::new(rpc::BAD_REQUEST));
        assert_eq!(ask(&(4000u64, "x")).tag, Tag::new(rpc::TOO_LONG));
        let mut service = Doubler::default();
        let message = Message::new(Tag::PORT, [1; 4]);
        let other = answer(&mut service, Event::Call { badge: 1, message });
        assert_eq!(other.tag, Tag::new(rpc::BAD_REQUEST));
        answer(&mut service, Event::Signal(6));
        assert_eq!(service.bits, 6);
        answer(&mut service, call(&7u8));
        assert_eq!(service.bits, 6 | 9 << 32);
    }
}
