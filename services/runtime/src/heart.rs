//! The answer to root's question whether a server is alive.
//!
//! Root sets a bit of the Notification that ends [`reply_recv`]; who waits there, or comes there again, counts a word of its state page
//! up and waits on. So an answer says that the server has come round its loop, and says nothing else: a wake-up that was lost stays
//! lost, for a test to find. A server that is asked for nothing pays one test a signal, and a call nothing.

use core::sync::atomic::{AtomicPtr, Ordering};

use ipc_schema::abi::Status;
use ipc_schema::state_page::{ASKED, StatePage};

use crate::ipc::{self, Endpoint, Event, Message};

static PAGE: AtomicPtr<StatePage> = AtomicPtr::new(core::ptr::null_mut());

/// Has answers written there.
#[cfg_attr(
    not(target_os = "none"),
    allow(dead_code, reason = "the entry calls it")
)]
pub(crate) fn answer_in(page: &'static StatePage) {
    PAGE.store(core::ptr::from_ref(page).cast_mut(), Ordering::Relaxed);
}

#[cold]
fn answer() {
    // SAFETY: null, or what was a shared reference for the program's life; nothing is written but through its atomics.
    if let Some(page) = unsafe { PAGE.load(Ordering::Relaxed).as_ref() } {
        page.answer();
    }
}

/// What there is to do about bits that came: `None` if they were root's question alone.
#[inline(always)]
fn heard(bits: u64) -> Option<u64> {
    if bits & ASKED == 0 {
        return Some(bits);
    }
    answer();
    let others = bits & !ASKED;
    (others != 0).then_some(others)
}

/// [`ipc::reply_recv`] that answers root's question on the way.
#[inline(always)]
pub fn reply_recv(endpoint: Endpoint, mut reply: Message, deadline: u64) -> Result<Event, Status> {
    loop {
        let event = ipc::reply_recv(endpoint, reply, deadline)?;
        let Event::Signal(bits) = event else {
            return Ok(event);
        };
        if let Some(others) = heard(bits) {
            return Ok(Event::Signal(others));
        }
        reply = Message::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_and_nothing_else_is_lost() {
        let page: &'static StatePage = alloc::boxed::Box::leak(alloc::boxed::Box::default());
        let answers = || {
            let word = core::ptr::from_ref(page).cast::<u64>();
            // SAFETY: the page's second word; nobody else has it.
            unsafe { word.add(1).read_volatile() }
        };
        assert_eq!(heard(ASKED), None, "there is no page: nobody hears it");
        answer_in(page);
        assert_eq!((heard(5), answers()), (Some(5), 0));
        assert_eq!((heard(ASKED), answers()), (None, 1));
        assert_eq!((heard(ASKED | 5), answers()), (Some(5), 2));
    }
}
