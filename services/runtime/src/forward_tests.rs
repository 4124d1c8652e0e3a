//! The desk between a server and forwarders, all played by the test.

use super::*;
use crate::ipc::Event;
use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

/// A line whose UTCB is a page of this test's.
fn line() -> &'static Line {
    // SAFETY: all zeroes are a `Utcb`.
    let page: &'static mut Utcb = Box::leak(unsafe { Box::new_zeroed().assume_init() });
    let utcb = core::ptr::from_mut(page).expose_provenance() as u64;
    Box::leak(Box::new(Line {
        mailbox: Mailbox::default(),
        endpoint: Endpoint(3),
        bell: Notification(1),
        wake: Notification(2),
        utcb,
    }))
}

fn payload(line: &Line) -> &'static mut [u8; Utcb::PAYLOAD] {
    // SAFETY: the test's own leaked page, which nobody else uses while this is alive.
    unsafe { &mut (*line.utcb()).payload }
}

fn call(badge: u64, word: u64) -> Event {
    let message = Message::new(5, [word, 0, 0, 0]);
    Event::Call { badge, message }
}

/// Puts the call where a forwarder would.
fn arrives(line: &Line, event: Event) {
    let Event::Call { badge, message } = event else {
        panic!()
    };
    line.mailbox.put(badge, &message);
}

/// The kernel's `reply_recv`: what it was asked, and what it answers.
#[derive(Default)]
struct Kernel {
    events: VecDeque<Event>,
    asked: Vec<(bool, Message, u64)>,
}

impl Kernel {
    fn turn(&mut self, desk: &mut Desk, reply: Message, deadline: u64) -> Event {
        let receive = |receives, reply, until| {
            self.asked.push((receives, reply, until));
            let next = self.events.front().copied();
            match next {
                // A call needs the Endpoint.
                Some(Event::Call { .. }) if !receives => Ok(Event::Timeout),
                Some(event) => {
                    self.events.pop_front();
                    Ok(event)
                }
                None if until == NEVER => panic!("it would sleep for ever"),
                None => Ok(Event::Timeout),
            }
        };
        desk.turn_for_test(reply, deadline, receive)
    }
}

impl Desk {
    /// Signals go nowhere on the host, which `answer` reports after it has answered.
    fn turn_for_test(
        &mut self,
        reply: Message,
        deadline: u64,
        receive: impl FnMut(bool, Message, u64) -> Result<Event, Status>,
    ) -> Event {
        if let Some(line) = self.serving.take() {
            assert_eq!(line.answer(&reply), Err(Status::Unsupported));
            return self.turn_after(true, deadline, receive);
        }
        self.turn(reply, deadline, || 1000, receive).unwrap()
    }

    /// The rest of a turn whose answer has been given.
    fn turn_after(
        &mut self,
        here: bool,
        deadline: u64,
        receive: impl FnMut(bool, Message, u64) -> Result<Event, Status>,
    ) -> Event {
        self.next_event(None, here, deadline, || 1000, receive)
            .unwrap()
    }
}

fn desk(lines: &[&'static Line]) -> Desk {
    let mut desk = Desk::new();
    for (place, line) in desk.lines.iter_mut().zip(lines) {
        *place = Some(line);
    }
    desk
}

const REPLY: Message = Message::new(7, [70, 71, 72, 73]);

#[test]
fn a_call_and_its_answer() {
    let line = line();
    let (mut desk, mut kernel) = (desk(&[line]), Kernel::default());
    payload(line)[..5].copy_from_slice(b"hello");
    let message = Message {
        tag: Tag::new(1).with_payload(5).with_caps(2),
        words: [1, 2, 3, 4],
    };
    utcb::set_receive(20, 2);
    line.mailbox.put(9, &message);
    kernel.events.push_back(Event::Signal(BELL));
    let got = kernel.turn(&mut desk, Message::default(), NEVER);
    assert_eq!(got, Event::Call { badge: 9, message });
    let mut bytes = [0; 5];
    utcb::read(&mut bytes);
    assert_eq!((&bytes, utcb::received()), (b"hello", 0));
    assert_eq!(line.mailbox.take_answer(), None, "not answered yet");

    utcb::write(b"world!").unwrap();
    let reply = Message {
        tag: Tag::new(0).with_payload(6),
        words: [4, 3, 2, 1],
    };
    kernel.events.push_back(Event::Signal(4));
    assert_eq!(kernel.turn(&mut desk, reply, NEVER), Event::Signal(4));
    assert_eq!(&payload(line)[..6], b"world!");
    assert_eq!(line.mailbox.take_answer(), Some(reply));
    assert_eq!(line.mailbox.take_answer(), None);
    assert!(!desk.waiting());
    // The kernel's part saw no reply that was not for it.
    assert!(
        kernel
            .asked
            .iter()
            .all(|(_, r, _)| *r == Message::default())
    );
}

#[test]
fn capabilities_go_with_an_answer() {
    let line = line();
    let (mut desk, mut kernel) = (desk(&[line]), Kernel::default());
    arrives(line, call(1, 1));
    kernel.turn(&mut desk, Message::default(), NEVER);
    let cap = ipc_schema::abi::CapTransfer {
        slot: 33,
        rights: 8,
        badge: 5,
    };
    utcb::set_send(&[cap]);
    kernel.events.push_back(Event::Signal(1));
    let reply = Message {
        tag: Tag::new(0).with_caps(1),
        words: [0; 4],
    };
    kernel.turn(&mut desk, reply, NEVER);
    // SAFETY: the test's own page.
    let sent = unsafe { (*line.utcb()).send[0] };
    assert_eq!((sent.slot, sent.rights, sent.badge), (33, 8, 5));
}

/// Callers here and there get every other turn; those there one after the other.
#[test]
fn by_turns() {
    let lines = [line(), line(), line()];
    let (mut desk, mut kernel) = (desk(&lines), Kernel::default());
    let mut order = vec![];
    let mut reply = Message::default();
    for (i, line) in lines.iter().enumerate() {
        arrives(line, call(100 + i as u64, 0));
    }
    for _ in 0..9 {
        kernel.events.push_back(call(1, 0));
    }
    for _ in 0..9 {
        let Event::Call { badge, .. } = kernel.turn(&mut desk, reply, NEVER) else {
            panic!()
        };
        order.push(badge);
        reply = REPLY;
        // Who has been answered calls again at once.
        for (i, line) in lines.iter().enumerate() {
            if line.mailbox.take_answer().is_some() {
                arrives(line, call(100 + i as u64, 0));
            }
        }
    }
    assert_eq!(order, [100, 1, 101, 1, 102, 1, 100, 1, 101]);
    // Each local caller got its reply, by a system call that did not sleep.
    let replies = kernel.asked.iter().filter(|(_, r, _)| *r == REPLY);
    assert_eq!(replies.count(), 4);
    assert!(kernel.asked.iter().all(|(_, _, until)| *until == 0));
}

#[test]
fn deadlines_and_other_signals() {
    let line = line();
    let (mut desk, mut kernel) = (desk(&[line]), Kernel::default());
    // Nobody there: it sleeps until the deadline.
    assert_eq!(kernel.turn(&mut desk, REPLY, 5000), Event::Timeout);
    assert_eq!(kernel.asked, [(true, REPLY, 5000)]);
    // A ring for a call that has been seen already is nothing.
    kernel
        .events
        .extend([Event::Signal(BELL), Event::Signal(BELL | 2)]);
    let got = kernel.turn(&mut desk, Message::default(), NEVER);
    assert_eq!(got, Event::Signal(2));
    // Time that is up comes before a call from elsewhere, and time that is not does not.
    arrives(line, call(3, 0));
    assert_eq!(
        kernel.turn(&mut desk, Message::default(), 1000),
        Event::Timeout
    );
    assert_eq!(kernel.turn(&mut desk, Message::default(), 1001), call(3, 0));
}

#[test]
fn slots_and_addresses() {
    let grants = Grants {
        first: 30,
        count: 7,
    };
    let mut slots = vec![grants.bell()];
    for i in 0..grants.count {
        slots.extend([grants.thread(i), grants.wake(i)]);
    }
    let want: Vec<u32> = (30..30 + Grants::slots(7)).collect();
    assert_eq!(slots, want);
    assert_eq!(Grants::slots(0), 0);
    assert!(utcb_at(0) > layout::UTCB && utcb_at(MAX as u32) < layout::START_INFO);
}
