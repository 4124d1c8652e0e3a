//! Callers on other processors.
//!
//! The kernel gives a call to a server's thread on the caller's own processor, and a server has its one thread on one processor. So
//! root gives a server that may be called from elsewhere one *forwarder* for each other processor: a thread of the same Space that
//! receives on the server's Endpoint there, puts what came into its [`Mailbox`], rings the server's bound Notification with
//! [`BELL`], waits for the answer, and replies. The server's loop sees such a call as any other: [`reply_recv`] here, which
//! [`crate::serve()`] uses, takes them in turn with those of its own processor.
//!
//! A forwarder has one call at a time, as every thread has, so one mailbox each is enough and nothing can overflow. It runs on its
//! caller's Budget until it has passed the call on, and sleeps then. A caller that gives up while the server works is gone for the
//! kernel: the forwarder's reply reaches nobody, and it goes on with the next. A forwarder that dies, dies with the whole server: its
//! faults go to the same supervisor.
//!
//! Payloads are copied from one thread's UTCB to the other's, within the Space. Replies carry capabilities, for the table is the
//! same; *requests do not*: what a caller elsewhere sends is refused by the kernel as if the server had opened no slots.
//!
//! Root has one on its own processor too, and receives by nothing else ([`crate::serve()`] on no Endpoint): what it does for a
//! caller it does on its own Budget, so that a server above that caller which runs for ever does not keep it from ending that server.
//!
//! Forwarders use neither heap nor log nor any static but their own line.

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ipc_schema::abi::{NEVER, Status, Tag, Utcb, layout};

use crate::ipc::{self, Endpoint, Event, Message, Notification};
use crate::slots::Slot;
use crate::{time, utcb};

/// Most forwarders of a server: one for each processor.
pub const MAX: usize = ipc_schema::manifest::MAX_CPUS as usize;
/// The bit of the server's bound Notification that forwarders ring. Nobody else may use it there.
pub const BELL: u64 = 1 << 7;
/// Distance of the forwarders' UTCBs: a stray access hits a hole.
const UTCB_STEP: u64 = 0x1_0000;

/// Where the UTCB of forwarder number `index` is.
#[must_use]
pub const fn utcb_at(index: u32) -> u64 {
    layout::UTCB + (index as u64 + 1) * UTCB_STEP
}

/// Slots of the capabilities that forwarders need: first the server's own Notification with the badge [`BELL`] (SEND), then for
/// each forwarder its Thread (CONTROL) and the Notification that wakes it (SEND, RECV).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// The first of these slots.
    pub first: Slot,
    /// How many forwarders there are.
    pub count: u32,
}

impl Grants {
    /// How many slots `count` forwarders take.
    #[must_use]
    pub const fn slots(count: u32) -> u32 {
        if count == 0 { 0 } else { 1 + 2 * count }
    }

    /// The bell.
    #[must_use]
    pub const fn bell(self) -> Slot {
        self.first
    }

    /// A forwarder's Thread.
    #[must_use]
    pub const fn thread(self, index: u32) -> Slot {
        self.first + 1 + 2 * index
    }

    /// The Notification that wakes a forwarder.
    #[must_use]
    pub const fn wake(self, index: u32) -> Slot {
        self.first + 2 + 2 * index
    }
}

/// Nothing is in it.
const EMPTY: u32 = 0;
/// A call is in it, which the server is to answer.
const CALL: u32 = 1;
/// The answer is in it.
const ANSWER: u32 = 2;

/// A call on its way to the server, or its answer on the way back. The forwarder writes while it is `EMPTY`, the server while it
/// is `CALL`; the state is stored last and loaded first, so each finds what the other has written.
#[derive(Default)]
struct Mailbox {
    state: AtomicU32,
    badge: AtomicU64,
    tag: AtomicU64,
    words: [AtomicU64; 4],
}

impl Mailbox {
    fn write(&self, message: &Message, state: u32) {
        self.tag.store(message.tag.0, Ordering::Relaxed);
        for (to, from) in self.words.iter().zip(message.words) {
            to.store(from, Ordering::Relaxed);
        }
        self.state.store(state, Ordering::Release);
    }

    fn read(&self, state: u32) -> Option<Message> {
        (self.state.load(Ordering::Acquire) == state).then(|| Message {
            tag: Tag(self.tag.load(Ordering::Relaxed)),
            words: core::array::from_fn(|i| {
                self.words.get(i).map_or(0, |w| w.load(Ordering::Relaxed))
            }),
        })
    }

    fn put(&self, badge: u64, call: &Message) {
        self.badge.store(badge, Ordering::Relaxed);
        self.write(call, CALL);
    }

    fn take_answer(&self) -> Option<Message> {
        let answer = self.read(ANSWER)?;
        self.state.store(EMPTY, Ordering::Relaxed);
        Some(answer)
    }
}

/// One forwarder, as itself and its server see it.
pub struct Line {
    mailbox: Mailbox,
    endpoint: Endpoint,
    bell: Notification,
    wake: Notification,
    /// Address of its UTCB.
    utcb: u64,
}

impl Line {
    fn utcb(&self) -> *mut Utcb {
        core::ptr::with_exposed_provenance_mut(self.utcb as usize)
    }

    /// What a forwarder does all its life; comes back when one of its capabilities is no good.
    fn run(&self) -> Status {
        let mut reply = Message::default();
        loop {
            let event = match ipc::reply_recv(self.endpoint, reply, NEVER) {
                Ok(event) => event,
                Err(status) => return status,
            };
            reply = Message::default();
            // It has no bound Notification and no deadline.
            let Event::Call { badge, message } = event else {
                continue;
            };
            self.mailbox.put(badge, &message);
            if let Err(status) = self.bell.signal() {
                return status;
            }
            reply = loop {
                if let Some(answer) = self.mailbox.take_answer() {
                    break answer;
                }
                // A bit may be left of the last time: what counts is the mailbox.
                if let Err(status) = self.wake.wait(NEVER) {
                    return status;
                }
            };
        }
    }

    /// The server takes the call: its payload goes to the server's UTCB.
    fn take(&self) -> Option<Event> {
        let message = self.mailbox.read(CALL)?;
        // SAFETY: the forwarder's UTCB is mapped as long as the server lives. While its call is in the mailbox it does not touch it, and
        // the kernel does so only in its system calls with a message, of which `wait` is none.
        unsafe { utcb::take_from(self.utcb(), message.tag) };
        let badge = self.mailbox.badge.load(Ordering::Relaxed);
        Some(Event::Call { badge, message })
    }

    /// The server's answer, with payload and capabilities out of the server's UTCB.
    fn answer(&self, reply: &Message) -> Result<(), Status> {
        // SAFETY: as in `take`: the mailbox still holds the call.
        unsafe { utcb::give_to(self.utcb(), reply.tag) };
        self.mailbox.write(reply, ANSWER);
        self.wake.signal()
    }
}

/// Where the server meets its forwarders.
struct Desk {
    lines: [Option<&'static Line>; MAX],
    /// Whose call the server is working on.
    serving: Option<&'static Line>,
    /// Where the next look around begins, so that each gets its turn.
    next: usize,
}

impl Desk {
    const fn new() -> Self {
        Self {
            lines: [None; MAX],
            serving: None,
            next: 0,
        }
    }

    /// Whether a forwarder has a call, without taking it.
    fn waiting(&self) -> bool {
        let mut lines = self.lines.iter().flatten();
        lines.any(|line| line.mailbox.state.load(Ordering::Acquire) == CALL)
    }

    /// Takes the next forwarder's call.
    fn take(&mut self) -> Option<Event> {
        for step in 0..MAX {
            let number = (self.next + step) % MAX;
            let Some(line) = self.lines.get(number).copied().flatten() else {
                continue;
            };
            if let Some(call) = line.take() {
                self.next = (number + 1) % MAX;
                self.serving = Some(line);
                return Some(call);
            }
        }
        None
    }

    /// [`reply_recv`], with the kernel's own as `receive`: true if it is to receive too, the reply, and until when.
    fn turn(
        &mut self,
        reply: Message,
        deadline: u64,
        now: impl Fn() -> u64,
        receive: impl FnMut(bool, Message, u64) -> Result<Event, Status>,
    ) -> Result<Event, Status> {
        match self.serving.take() {
            Some(line) => {
                line.answer(&reply)?;
                // By turns: now those of this processor may come first.
                self.next_event(None, true, deadline, now, receive)
            }
            None => self.next_event(Some(reply), false, deadline, now, receive),
        }
    }

    /// `reply` is for a caller of this processor, who gets it by the first system call. While calls from elsewhere wait none of
    /// them sleeps, and they receive nothing unless it is the turn of those `here`.
    fn next_event(
        &mut self,
        mut reply: Option<Message>,
        mut here: bool,
        deadline: u64,
        now: impl Fn() -> u64,
        mut receive: impl FnMut(bool, Message, u64) -> Result<Event, Status>,
    ) -> Result<Event, Status> {
        loop {
            let waiting = self.waiting();
            let until = if waiting { 0 } else { deadline };
            let event = receive(!waiting || here, reply.take().unwrap_or_default(), until)?;
            here = false;
            match event {
                Event::Call { .. } => return Ok(event),
                Event::Signal(bits) if bits & !BELL != 0 => {
                    return Ok(Event::Signal(bits & !BELL));
                }
                Event::Timeout if !waiting || now() >= deadline => return Ok(Event::Timeout),
                Event::Signal(_) | Event::Timeout => {}
            }
            if let Some(call) = self.take() {
                return Ok(call);
            }
        }
    }
}

struct FirstThread(UnsafeCell<Desk>);

// SAFETY: only the server's first thread comes here (the contract of `Thread::start`); forwarders know their line alone.
unsafe impl Sync for FirstThread {}

static DESK: FirstThread = FirstThread(UnsafeCell::new(Desk::new()));

/// As [`ipc::reply_recv`], for a server that may have forwarders: calls from other processors come as any others do.
pub fn reply_recv(endpoint: Endpoint, reply: Message, deadline: u64) -> Result<Event, Status> {
    // SAFETY: the first thread's alone, and `turn` does not come back here.
    let desk = unsafe { &mut *DESK.0.get() };
    if desk.lines.iter().all(Option::is_none) {
        return ipc::reply_recv(endpoint, reply, deadline);
    }
    desk.turn(reply, deadline, time::now, |receives, reply, deadline| {
        let from = if receives { endpoint } else { Endpoint(0) };
        ipc::reply_recv(from, reply, deadline)
    })
}

/// Words of a forwarder's stack: it calls a system call, and copies a message.
#[cfg(target_os = "none")]
const STACK_WORDS: usize = 256;

/// Starts a forwarder that root gave, which receives on `endpoint`. To be called once for each, by the first thread, whose bound
/// Notification is the one that the bell rings.
pub fn start(grants: Grants, index: u32, endpoint: Endpoint) -> Result<(), Status> {
    // SAFETY: as in `reply_recv`.
    let desk = unsafe { &mut *DESK.0.get() };
    let place = desk.lines.get_mut(index as usize);
    let place = place.ok_or(Status::OutOfRange)?;
    let line: &'static Line = Box::leak(Box::new(Line {
        mailbox: Mailbox::default(),
        endpoint,
        bell: Notification(grants.bell()),
        wake: Notification(grants.wake(index)),
        utcb: utcb_at(index),
    }));
    launch(line, grants.thread(index))?;
    *place = Some(line);
    Ok(())
}

#[cfg(target_os = "none")]
fn launch(line: &'static Line, thread: Slot) -> Result<(), Status> {
    let stack: &'static mut [u128; STACK_WORDS] = Box::leak(Box::new([0; STACK_WORDS]));
    let top = stack.as_mut_ptr_range().end.expose_provenance() as u64;
    let argument = core::ptr::from_ref(line).expose_provenance() as u64;
    let entry = entry as *const () as usize as u64;
    // SAFETY: `entry` needs a stack of its own, which is leaked to it, and the address of a `Line` that lives for ever; what it runs
    // uses neither heap nor log nor the first thread's UTCB.
    unsafe { crate::object::Thread(thread).start(entry, top, argument) }
}

/// There are no threads to start on the host.
#[cfg(not(target_os = "none"))]
fn launch(line: &'static Line, thread: Slot) -> Result<(), Status> {
    let _ = (line, thread, Line::run);
    Err(Status::Unsupported)
}

/// A forwarder's first instruction: rdi is its line. The outermost frame has rbp = 0.
#[cfg(target_os = "none")]
#[unsafe(naked)]
extern "C" fn entry() -> ! {
    core::arch::naked_asm!("xor ebp, ebp", "call {run}", "ud2", run = sym run)
}

#[cfg(target_os = "none")]
extern "C" fn run(line: u64) -> ! {
    // SAFETY: `launch` gave the address of a line that lives for ever, and that is shared only.
    let line = unsafe { &*core::ptr::with_exposed_provenance::<Line>(line as usize) };
    line.run();
    // A server without its forwarder would never answer there: it is dead as a whole.
    crate::rt::abort()
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
