//! Where all the time of the processors goes: to Budgets, to idleness, and a little to nobody.

use super::alloc::vec::Vec;

use ipc_schema::proto::{Account, RootRequest, RootResponse};
use runtime::abi::Status;
use runtime::{now, time};

use super::lab::{LOAD, Lab, Result, wait_until};
use super::workers;

/// Length of a window, in microseconds.
const WINDOW: u64 = 200_000;
/// Until a guest has begun, in microseconds.
const START: u64 = 100_000;

/// The accounts now, this server's own Budgets included.
fn take(lab: &Lab) -> Result<Vec<Account>> {
    let answer = lab.root.call_postcard(&RootRequest::Accounts);
    let Ok(RootResponse::Accounts(mut accounts)) = answer else {
        return Err(Status::Unsupported);
    };
    for account in &mut accounts {
        let own = lab.budgets.iter().filter(|(cpu, _)| *cpu == account.cpu);
        for (_, budget) in own {
            account.budgets += budget.stat()?.used;
        }
    }
    Ok(accounts)
}

/// One window: a line for each processor.
fn window(lab: &Lab, what: &str) -> Result<()> {
    let before = take(lab)?;
    wait_until(now() + time::cycles(WINDOW));
    for (a, b) in before.iter().zip(take(lab)?) {
        defmt::info!(
            "ACCOUNT {=str}, processor {=u32}: {=u64} cycles, Budgets {=u64}, idle {=u64}, the kernel's own {=u64}",
            what,
            a.cpu,
            b.time - a.time,
            b.budgets - a.budgets,
            b.idle - a.idle,
            b.unattributed - a.unattributed
        );
    }
    Ok(())
}

/// Windows of what runs beside this server, and windows with calls going on on each processor.
pub fn all(lab: &mut Lab, windows: u32) -> Result<()> {
    wait_until(now() + time::cycles(START));
    for _ in 0..windows {
        window(lab, "as it is")?;
    }
    for (cpu, _) in lab.cpus.clone() {
        let endpoint = u64::from(lab.endpoint()?.0);
        lab.load(cpu, LOAD, workers::answer, endpoint)?;
        lab.load(cpu, LOAD, workers::call, endpoint)?;
    }
    for _ in 0..windows {
        window(lab, "under calls")?;
    }
    let calls = workers::CALLS.load(core::sync::atomic::Ordering::Relaxed);
    defmt::info!("ACCOUNTS done: {=u64} calls", calls);
    Ok(())
}
