//! The mailboxes under every interleaving of two senders and the owner, on the model checker's atomics.

/// In place of the kernel's.
mod atomic {
    pub use loom::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
    macro_rules! constant {
        ($(#[$m:meta])* $v:vis fn $($rest:tt)*) => { $(#[$m])* $v fn $($rest)* };
    }
    pub(crate) use constant;
}
#[allow(dead_code, reason = "not everything is tested here")]
#[path = "../src/mail.rs"]
mod mail;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use mail::{Letter, Mail, Mailbox};
use std::ptr::NonNull;

/// As much of a Notification as takes part.
struct Bell {
    bits: AtomicU64,
    letter: Letter<Bell>,
}
impl Mail for Bell {
    fn letter(&self) -> &Letter<Self> {
        &self.letter
    }
}
impl Bell {
    fn new() -> Self {
        Self {
            bits: AtomicU64::new(0),
            letter: Letter::default(),
        }
    }
    /// As `ipc::signal` from another processor; answers whether it would interrupt the owner.
    fn signal(&self, to: &Mailbox<Self>, bits: u64) -> bool {
        self.bits.fetch_or(bits, Ordering::Release);
        // SAFETY: the test's bells outlive its mailbox.
        unsafe { to.push(NonNull::from(self)) }
    }
}

/// The owner's part, as `ipc::collect`: all bits of the bells that came.
fn collect(from: &Mailbox<Bell>) -> u64 {
    let mut got = 0;
    from.take(|b| {
        // SAFETY: as above.
        got |= unsafe { b.as_ref() }.bits.swap(0, Ordering::Acquire);
    });
    got
}

/// However two signals of one bell and the owner's look interleave: every bit arrives, and the owner has been told.
#[test]
fn no_signal_is_lost() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new());
        let bell = Arc::new(Bell::new());
        let senders: Vec<_> = [1, 2]
            .into_iter()
            .map(|bits| {
                let (mailbox, bell) = (mailbox.clone(), bell.clone());
                thread::spawn(move || bell.signal(&mailbox, bits))
            })
            .collect();
        let early = collect(&mailbox);
        let told = senders
            .into_iter()
            .map(|s| s.join().unwrap())
            .filter(|&t| t)
            .count();
        let late = collect(&mailbox);
        assert_eq!(early | late, 3);
        assert!(told >= 1, "nobody told the owner");
        assert_eq!(collect(&mailbox), 0);
    });
}

/// Two different bells at once, and the owner.
#[test]
fn two_bells_share_a_mailbox() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new());
        let bells = Arc::new([Bell::new(), Bell::new()]);
        let other = {
            let (mailbox, bells) = (mailbox.clone(), bells.clone());
            thread::spawn(move || bells[0].signal(&mailbox, 1))
        };
        bells[1].signal(&mailbox, 2);
        let early = collect(&mailbox);
        other.join().unwrap();
        assert_eq!(early | collect(&mailbox), 3);
    });
}
