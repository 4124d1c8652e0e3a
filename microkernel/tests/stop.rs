//! The stop, and signals whose Notification moves meanwhile, under every interleaving of two and three processors, on the model checker's
//! atomics. What is touched without a lock is in the checker's cells: two at a time, one of them writing, are an error.

/// In place of the kernel's.
mod atomic {
    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
    macro_rules! constant {
        ($(#[$m:meta])* $v:vis fn $($rest:tt)*) => { $(#[$m])* $v fn $($rest)* };
    }
    pub(crate) use constant;
}
#[allow(dead_code, reason = "not everything is tested here")]
#[path = "../src/mail.rs"]
mod mail;
#[allow(dead_code, reason = "processors are there from the beginning")]
#[path = "../src/stop.rs"]
mod stop;

use atomic::{AtomicBool, AtomicU32, Ordering, spin_loop};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use mail::{Letter, Mail, Mailbox};
use std::ptr::NonNull;
use stop::Stop;

/// As much of a Notification as takes part.
struct Bell {
    bits: AtomicU64,
    home: UnsafeCell<usize>,
    letter: Letter<Bell>,
}
impl Mail for Bell {
    fn letter(&self) -> &Letter<Self> {
        &self.letter
    }
}

/// A processor.
struct Cpu {
    stop: Stop,
    mail: Mailbox<Bell>,
    /// Interrupted by another one, and has not looked since.
    called: AtomicBool,
    /// What it alone has, but for errands.
    extended: UnsafeCell<u32>,
}

/// A machine.
struct Machine {
    cpus: Vec<Cpu>,
    running: usize,
    objects: AtomicBool,
    ended: AtomicU32,
    /// What fast paths read without a lock, and operations change under a stop.
    object: UnsafeCell<u32>,
    bell: Bell,
    /// The bits that have arrived.
    got: UnsafeCell<u64>,
}

// SAFETY: the model checker finds out whether it is so.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

impl Machine {
    /// `running` of the processors run; the others are idle, and join no stop.
    fn new(running: usize, cpus: usize, home: usize) -> Arc<Self> {
        let cpu = |_| Cpu {
            stop: Stop::new(0),
            mail: Mailbox::new(),
            called: AtomicBool::new(false),
            extended: UnsafeCell::new(0),
        };
        Arc::new(Self {
            cpus: (0..cpus).map(cpu).collect(),
            running,
            objects: AtomicBool::new(false),
            ended: AtomicU32::new(0),
            object: UnsafeCell::new(0),
            bell: Bell {
                bits: AtomicU64::new(0),
                home: UnsafeCell::new(home),
                letter: Letter::default(),
            },
            got: UnsafeCell::new(0),
        })
    }

    fn others(&self, me: usize) -> impl Iterator<Item = &Cpu> {
        let all = self.cpus.iter().enumerate().take(self.running);
        all.filter(move |(n, _)| *n != me).map(|(_, c)| c)
    }

    /// As `sync::join`.
    fn join(&self, me: usize) {
        let cpu = &self.cpus[me];
        if let Some(number) = cpu.stop.wanted() {
            // SAFETY: this processor's own.
            let errand = || cpu.extended.with_mut(|e| unsafe { *e += 1 });
            cpu.stop.join(number, &self.ended, errand);
        }
    }

    /// As `sync::Operation`, stopped from the beginning: `work`, and then its end.
    fn operation(&self, me: usize, work: impl FnOnce()) {
        while self.objects.swap(true, Ordering::Acquire) {
            self.join(me);
            spin_loop();
        }
        let number = self.ended.load(Ordering::Relaxed).wrapping_add(1);
        self.others(me).for_each(|c| c.stop.ask(number));
        for c in self.others(me) {
            while !c.stop.has_joined(number) {
                spin_loop();
            }
        }
        work();
        self.ended.fetch_add(1, Ordering::Release);
        self.objects.store(false, Ordering::Release);
    }

    /// The kernel's door: stops, and if it was called what was signalled.
    fn door(&self, me: usize) {
        self.join(me);
        if self.cpus[me].called.swap(false, Ordering::AcqRel) {
            self.collect(me);
        }
    }

    /// At user level from now on: joins what is still to come of so many stops in all.
    fn finish(&self, me: usize, stops: u32) {
        while self.ended.load(Ordering::Acquire) < stops {
            self.join(me);
            spin_loop();
        }
    }

    /// As `sync::give_up_fpu`.
    fn give_up(&self, c: &Cpu) {
        c.stop.send();
        while !c.stop.is_back() {
            spin_loop();
        }
    }

    fn home(&self) -> usize {
        // SAFETY: changed under a stop only.
        self.bell.home.with(|h| unsafe { *h })
    }

    /// As `ipc::signal`.
    fn signal(&self, me: usize, bits: u64) {
        self.bell.bits.fetch_or(bits, Ordering::Release);
        if self.home() != me {
            self.post();
        }
    }

    /// As `ipc::post`.
    fn post(&self) {
        let home = &self.cpus[self.home()];
        // SAFETY: the machine outlives its mailboxes.
        if unsafe { home.mail.push(NonNull::from(&self.bell)) } {
            home.called.store(true, Ordering::Release);
        }
    }

    /// As `ipc::collect`.
    fn collect(&self, me: usize) {
        self.cpus[me].mail.take(|_| {
            if self.home() != me {
                self.post();
            } else {
                self.take();
            }
        });
    }

    /// Who waits gets the bits. At home.
    fn take(&self) {
        let bits = self.bell.bits.swap(0, Ordering::Acquire);
        // SAFETY: the home's own, and whoever moves it there has stopped the last.
        self.got.with_mut(|g| unsafe { *g |= bits });
    }
}

fn check(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 20_000;
    model.check(f);
}

/// What a processor does.
type Part = Box<dyn FnOnce(&Machine, usize) + Send>;

/// Has each processor do its part; `stops` come of it.
fn run(m: &Arc<Machine>, stops: u32, parts: Vec<Part>) {
    let mut parts = parts.into_iter().enumerate();
    let (_, first) = parts.next().unwrap();
    let threads: Vec<_> = parts
        .map(|(n, part)| {
            let m = m.clone();
            thread::spawn(move || {
                part(&m, n);
                m.finish(n, stops);
            })
        })
        .collect();
    first(m, 0);
    m.finish(0, stops);
    threads.into_iter().for_each(|t| t.join().unwrap());
}

/// A fast path: what it reads does not change while it looks.
fn fast(m: &Machine, me: usize) {
    // SAFETY: changed under a stop only.
    m.object.with(|o| unsafe { *o });
    m.join(me);
}

/// An operation.
fn change(m: &Machine, me: usize) {
    // SAFETY: nobody else looks.
    m.operation(me, || m.object.with_mut(|o| unsafe { *o += 1 }));
}

#[test]
fn what_changes_under_a_stop_meets_no_fast_path() {
    check(4, || {
        let m = Machine::new(2, 2, 0);
        run(
            &m,
            2,
            vec![
                Box::new(|m, me| {
                    change(m, me);
                    fast(m, me);
                    change(m, me);
                }),
                Box::new(|m, me| {
                    fast(m, me);
                    fast(m, me);
                }),
            ],
        );
        assert_eq!(m.ended.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn two_processors_stop_each_other_and_a_third() {
    check(4, || {
        let m = Machine::new(2, 2, 0);
        run(&m, 2, vec![Box::new(change), Box::new(change)]);
        // SAFETY: all others are gone.
        assert_eq!(m.object.with(|o| unsafe { *o }), 2);
    });
    // Who spins gives way as often as it likes: more would take hours.
    check(0, || {
        let m = Machine::new(3, 3, 0);
        run(
            &m,
            2,
            vec![Box::new(change), Box::new(change), Box::new(fast)],
        );
        // SAFETY: all others are gone.
        assert_eq!(m.object.with(|o| unsafe { *o }), 2);
    });
}

#[test]
fn an_errand_is_run_by_its_processor_while_that_stands_still() {
    check(3, || {
        let m = Machine::new(2, 2, 0);
        run(
            &m,
            1,
            vec![
                Box::new(|m, me| {
                    m.operation(me, || {
                        m.give_up(&m.cpus[1]);
                        // SAFETY: its processor stands still.
                        assert_eq!(m.cpus[1].extended.with(|e| unsafe { *e }), 11);
                    });
                }),
                Box::new(|m, me| {
                    // SAFETY: this processor's own.
                    m.cpus[me].extended.with_mut(|e| unsafe { *e += 10 });
                    m.door(me);
                    // SAFETY: as above.
                    m.cpus[me].extended.with(|e| unsafe { *e });
                }),
            ],
        );
    });
}

/// A Notification's home moves from processor `home` to 0, which then waits for it, while processor 1 does its part: every bit arrives,
/// wherever it was met. `sent` before that by processor 2, which has nothing more to do and is called in the end.
fn moves(home: usize, sent: u64, part: fn(&Machine, usize), all: u64) {
    check(4, move || {
        let m = Machine::new(2, 3, home);
        if sent != 0 {
            m.signal(2, sent);
        }
        let parts: Vec<Part> = vec![
            Box::new(|m, me| {
                // As `ipc::bring_home`, and `ipc::wait` after it.
                // SAFETY: nobody else looks.
                m.operation(me, || m.bell.home.with_mut(|h| unsafe { *h = me }));
                m.take();
            }),
            Box::new(part),
        ];
        run(&m, 1, parts);
        // Whoever has been called looks; nobody else does.
        for n in [1, 2, 0] {
            m.door(n);
        }
        // SAFETY: all others are gone.
        assert_eq!(m.got.with(|g| unsafe { *g }), all);
        assert_eq!(m.home(), 0);
        for c in &m.cpus {
            c.mail
                .take(|_| panic!("it is in a mailbox that nobody looks into"));
        }
    });
}

#[test]
fn a_signal_in_flight_follows_its_notification_home() {
    // Signalled while the home moves, without and with a signal before it; and twice.
    moves(2, 0, |m, me| m.signal(me, 2), 2);
    moves(1, 1, |m, me| m.signal(me, 2), 3);
    moves(
        2,
        0,
        |m, me| {
            m.signal(me, 1);
            m.signal(me, 2);
        },
        3,
    );
    // The old home looks while it moves.
    moves(1, 1, |m, me| m.door(me), 1);
}
