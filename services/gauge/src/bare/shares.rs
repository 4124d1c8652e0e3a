//! What threads get that burn their Budgets: no more than budget / period, and no less, whatever they do and whoever else wants to run.

use core::sync::atomic::Ordering;

use gauge::judge::off_by;
use runtime::{now, time};

use super::guests::{self, Guest};
use super::lab::{COMPETITOR, LOAD, Lab, Result, SUBJECT, Worker, wait_until};
use super::workers;

/// Budget and period in microseconds, and how many periods.
const USUAL: (u64, u64, u64) = (1_000, 5_000, 10);
/// Less than the longest time that the kernel holds interrupts off in a period counts here.
const SMALL: (u64, u64, u64) = (50, 1_000, 50);

/// One that burns.
struct Burner {
    name: &'static str,
    worker: Worker,
}

fn burner(
    lab: &mut Lab,
    name: &'static str,
    entry: extern "sysv64" fn(u64) -> !,
    argument: u64,
) -> Result<Burner> {
    let worker = lab.worker(0)?;
    worker.start(entry, argument)?;
    // As long as it is not measured.
    worker.thread.suspend()?;
    Ok(Burner { name, worker })
}

/// Measures one.
fn measure(lab: &Lab, b: &Burner, beside: &str, of: (u64, u64, u64)) -> Result<()> {
    let (budget, period, periods) = (time::cycles(of.0), time::cycles(of.1), of.2);
    let cpu = lab.cpu(0)?;
    let before = b.worker.budget.stat()?.used;
    b.worker.thread.resume()?;
    let from = now();
    b.worker.budget.configure(cpu, SUBJECT, budget, period)?;
    // Before the next period begins, which was set a little later than `from`.
    wait_until(from + periods * period);
    let used = b.worker.budget.stat()?.used - before;
    let took = now() - from;
    b.worker.thread.suspend()?;
    // A call that was being served ends before the next measurement.
    wait_until(now() + 2 * period);
    defmt::info!(
        "SHARE {=str}, {=str}: {=u64} of {=u64} cycles in {=u64} periods, off by {=i64} in 10000, {=u64} cycles late",
        b.name,
        beside,
        used,
        periods * budget,
        periods,
        off_by(used, periods * budget),
        took - periods * period
    );
    Ok(())
}

/// Measures all, alone and beside a competitor of lower priority.
pub fn all(lab: &mut Lab) -> Result<()> {
    let polled = lab.notification()?;
    let bell = lab.notification()?;
    let served = lab.endpoint()?;
    lab.load(0, LOAD, workers::work, u64::from(served.0))?;
    let guests = [
        Guest::new(lab, 0, guests::SPIN)?,
        Guest::new(lab, 1, guests::BELL)?,
        Guest::new(lab, 2, guests::CPUID)?,
    ];
    let [spins, rings, asks] = &guests;
    rings.space.doorbell(guests::PORT, 1, bell, None)?;
    let ram = u64::from(lab.ram.0);
    let burners = [
        burner(lab, "in a loop", workers::spin, 0)?,
        burner(lab, "in short calls", workers::poll, u64::from(polled.0))?,
        burner(lab, "in long calls", workers::map, ram)?,
        burner(lab, "in a server", workers::call, u64::from(served.0))?,
        burner(lab, "in a guest", workers::guest, spins.argument())?,
        burner(lab, "in a guest's exits", workers::guest, rings.argument())?,
        burner(lab, "in a VMM", workers::guest, asks.argument())?,
    ];
    for b in &burners {
        measure(lab, b, "alone", USUAL)?;
    }
    let [loops, short, long, ..] = &burners;
    for b in [loops, short, long] {
        measure(lab, b, "alone, little", SMALL)?;
    }
    let competitor = lab.load(0, COMPETITOR, workers::spin, 0)?;
    for b in &burners {
        let before = competitor.budget.stat()?.used;
        measure(lab, b, "beside another", USUAL)?;
        let got = competitor.budget.stat()?.used - before;
        defmt::info!("SHARE the other got {=u64} cycles", got);
    }
    competitor.end()?;
    defmt::info!(
        "SHARES done: {=u64} answers, {=u64} calls, strange exits: {=u64}, rung: {=bool}",
        workers::ANSWERED.load(Ordering::Relaxed),
        workers::CALLS.load(Ordering::Relaxed),
        workers::STRANGE.load(Ordering::Relaxed),
        bell.wait(0).is_ok()
    );
    Ok(())
}
