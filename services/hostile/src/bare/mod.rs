//! The rounds: build, let them attack, serve them meanwhile, destroy, look whether all is well.

extern crate alloc;

mod arena;
mod attacker;
mod keeper;
mod look;

use core::sync::atomic::Ordering::Relaxed;

use hostile::args::{self, Args};
use hostile::code;
use hostile::ops::OPS;
use hostile::report::Total;
use hostile::rng::Rng;
use ipc_schema::manifest::Server;
use runtime::abi::layout::slot;
use runtime::abi::{NEVER, Status, Tag};
use runtime::object::Pool;
use runtime::power::power_off;
use runtime::text::Text;
use runtime::{Endpoint, Event, Message, Notification, StartInfo, reply_recv, sys, time};

use arena::{Arena, FAULTS};

runtime::entry!(main);

/// Label of the `Log` operation that runs the kernel's invariant checker, where it has one (microkernel, `checker::CHECK`).
const CHECK: u64 = 0x6368_6563_6b21;
/// Faults after which a thread is left alone for the round: its Space is beyond use.
const PATIENCE: u32 = 200;
/// Microseconds between two looks at who gets on.
const SLICE: u64 = 500;
/// Looks in a row at which nobody had got on, after which a round is over.
const IDLE: u32 = 8;
/// How often in a round a thread that does not get on is helped.
const PRODS: u32 = 12;

fn main(start: &'static StartInfo) -> ! {
    let server: Server = start.config().unwrap_or_else(|e| panic!("{e}"));
    let args = args::parse(&server.args).unwrap_or_else(|word| panic!("args: `{word}`?"));
    if args.look > 0 {
        look::Looker::default().all(start, args.look);
        finish(start, &args);
    }
    let seed = args.seed.unwrap_or_else(|| {
        let micros = start.wall_clock.unix_micros(time::now(), start.tsc_hz);
        micros ^ time::now() << 40
    });
    defmt::info!(
        "HOSTILE seed {=u64:#x} threads {=u64} cpus {=u64} restarts {=u32}",
        seed,
        args.threads,
        args.cpus,
        start.restarts
    );
    let mut run = Run {
        arena: Arena::new(start, args.threads * args.cpus, args.cpus, args.code)
            .unwrap_or_else(|s| panic!("no arena: {s:?}")),
        args,
        seed,
        total: Total::default(),
        faults: [0; 33],
        served: 0,
        steps: 0,
        checks: 0,
        checker: true,
    };
    let rounds = run.all().unwrap_or_else(|s| panic!("{s:?}"));
    run.report(rounds);
    finish(start, &args)
}

/// The work is done.
fn finish(start: &StartInfo, args: &Args) -> ! {
    if args.power_off {
        power_off(start, 0);
    }
    loop {
        let _ = Notification(slot::NOTIFICATION).wait(NEVER);
    }
}

struct Run {
    arena: Arena,
    args: Args,
    seed: u64,
    total: Total,
    /// Faults by vector; the last: a vector that no processor has.
    faults: [u64; 33],
    /// Calls of attackers that this server has answered.
    served: u64,
    /// Most steps that a round's end took.
    steps: u64,
    checks: u64,
    /// Whether the kernel has a checker.
    checker: bool,
}

impl Run {
    /// All rounds; answers how many.
    fn all(&mut self) -> Result<u64, Status> {
        let before = Pool(slot::POOL).stat()?;
        let end = match self.args.seconds {
            0 => NEVER,
            s => time::after(s * 1_000_000),
        };
        self.check();
        for round in 0.. {
            let mut rng = Rng::part(self.seed, round);
            self.arena.build(&mut rng)?;
            self.attack(&mut rng)?;
            let steps = self.arena.destroy()?;
            self.steps = self.steps.max(steps);
            for i in 0..self.arena.attackers() {
                // SAFETY: the attackers are gone; the desk's bytes are plain numbers, whatever they wrote.
                self.total.add(unsafe { &(*self.arena.desk(i)).counts });
            }
            self.check();
            let now = Pool(slot::POOL).stat()?;
            assert!(now == before, "pages are missing: {now:?}, not {before:?}");
            let (calls, ok, unknown) = self.total.sums();
            // One attacker may have written another's registers while that made a call.
            assert!(
                unknown <= self.total.ok("thread.write_regs"),
                "{unknown} calls had a result that there is not"
            );
            if round.is_power_of_two() || round % 256 == 0 {
                defmt::info!(
                    "HOSTILE round {=u64}: {=u64} calls, {=u64} ok",
                    round,
                    calls,
                    ok
                );
            }
            let enough = self.args.calls != 0 && calls >= self.args.calls;
            if enough || time::now() >= end {
                return Ok(round + 1);
            }
        }
        Ok(0)
    }

    /// Has the kernel check itself; it stops the machine if something is wrong.
    fn check(&mut self) {
        if !self.checker {
            return;
        }
        // SAFETY: asking changes nothing of this server's.
        let answer = unsafe { sys::invoke(slot::LOG, CHECK, [self.args.check, 0, 0, 0]) };
        match answer {
            Ok([objects, calls, checks, _]) => {
                if self.checks == 0 {
                    defmt::info!(
                        "HOSTILE checker: {=u64} objects after {=u64} calls",
                        objects,
                        calls
                    );
                }
                // That many before this one.
                self.checks = checks + 1;
            }
            Err(_) => {
                defmt::info!("HOSTILE this kernel has no checker");
                self.checker = false;
            }
        }
    }

    /// Lets them attack for a round's time, or until nobody gets on any more.
    fn attack(&mut self, rng: &mut Rng) -> Result<(), Status> {
        let mut patience = [PATIENCE; args::MAX_THREADS as usize + 1];
        let code = self.arena.attackers();
        self.arena.brief(u64::from(PATIENCE));
        for i in 0..self.arena.threads.len() as u64 {
            if i == code {
                self.write_code(rng);
            }
            // Those that run already may have destroyed it.
            let _ = self.arena.start(i);
        }
        let until = time::after(self.args.ms * 1000);
        let mut reply = Message::default();
        let mut restart = None;
        let mut look = time::now();
        let (mut calls, mut idle) = ([(0, PRODS); args::MAX_THREADS as usize], 0);
        while time::now() < until
            && idle < IDLE
            && calls.iter().map(|c| c.0).sum::<u64>() < self.args.round
        {
            if time::now() >= look {
                look = time::after(SLICE);
                idle = if self.prod(&mut calls) { 0 } else { idle + 1 };
                self.meddle(rng);
            }
            let event = reply_recv(Endpoint(slot::ENDPOINT), reply, look.min(until));
            // It has been stopped by the reply.
            if let Some(i) = restart.take() {
                if i == code {
                    self.write_code(rng);
                }
                // An attacker may have started, suspended or destroyed it.
                let _ = self.arena.start(i);
            }
            reply = Message::default();
            let Event::Call { badge, message } = event? else {
                continue;
            };
            let fault = message.tag.label() == Tag::FAULT;
            // Whoever calls itself a fault is stopped.
            reply = Message::new(u64::from(fault), message.words);
            let i = badge.wrapping_sub(FAULTS);
            if !fault || i >= self.arena.threads.len() as u64 {
                self.served += 1;
                continue;
            }
            let vector = (message.words[0] as usize).min(32);
            let seen: u64 = self.faults.iter().sum();
            if seen < 8 {
                let [v, error, at, rip] = message.words;
                defmt::debug!(
                    "HOSTILE thread {=u64}: vector {=u64} error {=u64:#x} at {=u64:#x} rip {=u64:#x}",
                    i,
                    v,
                    error,
                    at,
                    rip
                );
            }
            self.faults[vector] += 1;
            if let Some(left) = patience.get_mut(i as usize)
                && *left > 0
            {
                *left -= u32::from(i != code);
                restart = Some(i);
            }
        }
        Ok(())
    }

    /// Has attackers that have made no call since the last look do so: what they wait for would come late, or never. Answers whether
    /// anyone has made one.
    fn prod(&mut self, calls: &mut [(u64, u32)]) -> bool {
        let mut any = false;
        for ((i, (last, left)), &(thread, _)) in (0..).zip(calls).zip(&self.arena.threads) {
            if i >= self.arena.attackers() {
                break;
            }
            // SAFETY: one word of the desk, which its attacker may be writing: only compared.
            let now = unsafe { (&raw const (*self.arena.desk(i)).calls).read_volatile() };
            if core::mem::replace(last, now) != now {
                any = true;
            } else if *left > 0 {
                *left -= 1;
                // Attackers may have destroyed it.
                let _ = thread.suspend().and_then(|()| thread.resume());
            }
        }
        any
    }

    fn write_code(&mut self, rng: &mut Rng) {
        // SAFETY: a page of this server's view that only it writes; the thread that executes it is stopped.
        // Its first bytes: few instructions come before the next fault.
        let page = unsafe { core::slice::from_raw_parts_mut(self.arena.code_page(), 96) };
        code::fill(rng, page);
    }

    /// What only this server can do, for it has a Cpu: Budgets, vectors; and its threads, from outside. Any of it may fail, since
    /// attackers destroy what it is done to.
    fn meddle(&mut self, rng: &mut Rng) {
        let any = rng.below(self.arena.threads.len() as u64) as usize;
        let Some(&(thread, budget)) = self.arena.threads.get(any) else {
            return;
        };
        let other = rng.below(self.arena.threads.len() as u64) as usize;
        let cpu = self.arena.cpu(any);
        match rng.below(8) {
            0..=2 => {
                // At least 20 µs in at most 2 ms, or all of it; random bytes at most half.
                let period = time::cycles(20 + rng.below(2_000));
                let part = match rng.once_in(3) {
                    _ if any as u64 == self.arena.attackers() => 1 + rng.below(period / 2),
                    true => period,
                    false => 1 + rng.below(period),
                };
                let _ = budget.configure(cpu, rng.below(arena::PRIORITY + 1), part, period);
            }
            3 => {
                if let Ok(dest) = self.arena.slot()
                    && let Ok((irq, _)) = cpu.create_irq(dest, self.arena.pool)
                {
                    let _ = irq.bind(Some(Notification(slot::NOTIFICATION)));
                }
            }
            4 => {
                let _ = thread.suspend();
            }
            5 => {
                let _ = thread.resume();
            }
            6 => {
                let _ = thread.read_regs();
            }
            _ => {
                // Its Budget to another, its own taken away: whoever it has lent it to must go on.
                let _ = thread.configure(None, None, 0, None);
                if let Some(&(o, _)) = self.arena.threads.get(other) {
                    let _ = o.configure(Some(budget), None, 0, None);
                }
            }
        }
    }

    fn report(&self, rounds: u64) {
        for row in 0..OPS.len() {
            let mut text = Text::<200>::new();
            // What does not fit is cut off.
            let _ = self.total.row(row, &mut text);
            defmt::info!("HOSTILE {=str}", text.as_str());
        }
        for (vector, count) in self.faults.iter().enumerate().filter(|(_, c)| **c > 0) {
            defmt::info!("HOSTILE faults of vector {=usize}: {=u64}", vector, *count);
        }
        for name in self.total.never_ok() {
            defmt::debug!("HOSTILE never ok: {=str}", name);
        }
        let (calls, ok, _) = self.total.sums();
        defmt::info!(
            "HOSTILE done: seed {=u64:#x}, {=u64} rounds, {=u64} calls, {=u64} ok, {=u64} served, {=u64} checks, {=u64} steps",
            self.seed,
            rounds,
            calls,
            ok,
            self.served + keeper::ANSWERED.load(Relaxed),
            self.checks,
            self.steps
        );
    }
}
