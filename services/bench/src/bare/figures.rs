//! What things cost.

use super::alloc::vec::Vec;

use bench::samples::{SAMPLES, figure, name_hash};
use runtime::abi::layout::{self, slot};
use runtime::abi::rights::{READ, WRITE};
use runtime::abi::{NEVER, Status};
use runtime::object::{Cpu, Pool, Space};
use runtime::{Message, Notification, now, time};

use super::partner::{self, Partner, Result, SPARE_OFFSET, address};

/// Rounds before the first sample: what is done once only is done then.
const WARM_UP: usize = 16;
/// Microseconds in which the system has started.
const SETTLED: u64 = 200_000;
/// Where a page is mapped, beside one that stays, so that the tables are there.
const SCRATCH: u64 = layout::SHARED;
/// Pages behind it that are mapped in turn.
const MAPPED: u64 = 64;

/// Rows that take no shared lock, on however many processors: IPC touches one processor's data only.
const LOCKLESS: [&str; 5] = [
    "ipc_call_reply",
    "ipc_call_reply_4w",
    "null_call",
    "signal",
    "signal_wake",
];

/// Shared locks that this processor has taken, the one for this question included.
fn locks() -> Result<u64> {
    Ok(Cpu(slot::CPU).stat()?.locks)
}

/// Where a debugger finds the sample that it traces (`cargo xtask bench --trace`): called before it with the hash of the
/// row's name, and after it with 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bench_trace(row: u64) {
    core::hint::black_box(row);
}

/// A figure's name, and what it costs to measure.
struct Bench {
    empty: u64,
}

impl Bench {
    /// Takes samples of `timed`, each after an `untimed` and before another, and logs the figure.
    #[inline(always)]
    fn measure<C>(
        &self,
        name: &str,
        context: &mut C,
        mut before: impl FnMut(&mut C) -> Result<()>,
        mut timed: impl FnMut(&mut C) -> Result<()>,
        mut after: impl FnMut(&mut C) -> Result<()>,
    ) -> Result<()> {
        let mut samples = Vec::with_capacity(SAMPLES);
        let locks_before = locks()?;
        for round in 0..WARM_UP + SAMPLES {
            before(context)?;
            let traced = round == WARM_UP + SAMPLES / 2;
            if traced {
                bench_trace(name_hash(name));
            }
            let from = now();
            let done = timed(context);
            let to = now();
            if traced {
                bench_trace(0);
            }
            done?;
            after(context)?;
            if round >= WARM_UP {
                samples.push(to.wrapping_sub(from));
            }
        }
        let taken = locks()?.wrapping_sub(locks_before + 1);
        assert!(
            taken == 0 || !LOCKLESS.contains(&name),
            "{name}: {taken} shared locks were taken"
        );
        let f = figure(samples, self.empty).ok_or(Status::InvalidArg)?;
        defmt::info!(
            "BENCH {=str} instructions {=u64} {=u64} {=u64}",
            name,
            f.min,
            f.median,
            f.max
        );
        Ok(())
    }
}

/// The cost of reading the TSC twice: the least of many.
fn empty() -> u64 {
    let once = |_| {
        let from = now();
        let to = now();
        to.wrapping_sub(from)
    };
    (0..SAMPLES).map(once).min().unwrap_or(0)
}

/// Measures everything.
pub fn measure(p: &mut Partner) -> Result<()> {
    // The console has said all that it says at the start: on a serial line with a speed that takes interrupts.
    let quiet = Notification(slot::NOTIFICATION).wait(time::after(SETTLED));
    if quiet != Err(Status::Timeout) {
        return Err(Status::InvalidArg);
    }
    let bench = Bench { empty: empty() };
    let nothing = |_: &mut ()| Ok(());
    p.start_echo()?;
    let endpoint = p.endpoint;
    // What came back is looked at when the clock has stopped.
    let call = |words: [u64; 4]| {
        move |reply: &mut [u64; 4]| {
            *reply = endpoint.call(Message::new(1, words))?.words;
            Ok(())
        }
    };
    let forget = |reply: &mut [u64; 4]| {
        *reply = [0; 4];
        Ok(())
    };
    let check = |words: [u64; 4]| {
        move |reply: &mut [u64; 4]| {
            if *reply == words {
                Ok(())
            } else {
                Err(Status::InvalidArg)
            }
        }
    };
    let mut reply = [0; 4];
    bench.measure(
        "ipc_call_reply",
        &mut reply,
        forget,
        |_| endpoint.call(Message::new(1, [0; 4])).map(|_| ()),
        check([0; 4]),
    )?;
    let words = [1, 2, 3, 4];
    bench.measure(
        "ipc_call_reply_4w",
        &mut reply,
        forget,
        call(words),
        check(words),
    )?;

    // Polls an empty Notification, as seL4's figure does.
    let own = Notification(slot::NOTIFICATION);
    let signal = |_: &mut ()| own.signal();
    let wait = |_: &mut ()| own.wait(NEVER).map(|_| ());
    let poll = |_: &mut ()| match own.wait(0) {
        Err(Status::Timeout) => Ok(()),
        _ => Err(Status::InvalidArg),
    };
    bench.measure("null_call", &mut (), nothing, poll, nothing)?;
    bench.measure("signal", &mut (), nothing, signal, wait)?;
    let stat = |_: &mut ()| Pool(slot::POOL).stat().map(|_| ());
    bench.measure("invoke", &mut (), nothing, stat, nothing)?;

    p.start_waiter()?;
    let bell = p.notification;
    bench.measure("signal_wake", &mut (), nothing, |_| bell.signal(), nothing)?;

    p.start_actor(address(&partner::bench_fault), 0)?;
    p.next_fault(NEVER)?;
    bench.measure(
        "user_fault",
        p,
        |_| Ok(()),
        |p| p.next_fault(NEVER).map(|_| ()),
        |_| Ok(()),
    )?;
    p.stop()?;

    let own = Space(slot::SPACE);
    let ram = p.ram;
    let page = 4096;
    own.map(SCRATCH, ram, READ | WRITE, SPARE_OFFSET, page)?;
    // At another page each time, of those that the table is there for: the way to a Mapping differs with its address, and with what else
    // the Space has mapped (the sizes of this program's segments).
    let map = |at: &mut u64| own.map(*at, ram, READ | WRITE, SPARE_OFFSET + page, page);
    let unmap = |at: &mut u64| {
        // SAFETY: nothing refers to the scratch pages.
        unsafe { own.unmap(*at) }?;
        *at = SCRATCH + page + (*at - SCRATCH) % (MAPPED * page);
        Ok(())
    };
    bench.measure("map_page", &mut (SCRATCH + page), |_| Ok(()), map, unmap)?;
    // SAFETY: as above.
    unsafe { own.unmap(SCRATCH) }
}
