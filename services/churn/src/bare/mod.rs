//! The rounds, and the figures before and after.

mod rounds;

use churn::args;
use ipc_schema::manifest::Server;
use runtime::abi::Status;
use runtime::abi::layout::slot;
use runtime::object::{Cpu, Pool};
use runtime::power::power_off;
use runtime::{Notification, StartInfo, time};

use rounds::Rounds;

runtime::entry!(main);

/// Rounds before the figures are taken: pages that hold slots stay, and every kind has its own by then.
const WARM: u64 = 40;
/// Microseconds between reports of one that stays.
const PAUSE: u64 = 1_000_000;

fn main(start: &'static StartInfo) -> ! {
    let server: Server = start.config().unwrap_or_else(|e| panic!("{e}"));
    let args = args::parse(&server.args).unwrap_or_else(|word| panic!("args: `{word}`?"));
    let mut rounds = Rounds::new(start).unwrap_or_else(|s| panic!("it cannot begin: {s:?}"));
    loop {
        let left =
            churn(&mut rounds, args.spaces, args.guests).unwrap_or_else(|s| panic!("churn: {s:?}"));
        if !args.stay {
            power_off(start, u32::from(left != 0));
        }
        let _ = Notification(slot::NOTIFICATION).wait(time::after(PAUSE));
    }
}

/// All rounds; answers how many pages are missing.
fn churn(rounds: &mut Rounds, spaces: u64, guests: u64) -> Result<u64, Status> {
    for i in 0..WARM {
        rounds.space(i)?;
        rounds.guest(i)?;
    }
    let before = Pool(slot::POOL).stat()?;
    for i in 0..spaces {
        rounds.space(i)?;
    }
    for i in 0..guests {
        rounds.guest(i)?;
    }
    let after = Pool(slot::POOL).stat()?;
    let left = before.0.saturating_sub(after.0);
    let stat = Cpu(slot::CPU).stat()?;
    defmt::info!(
        "CHURN {=u64} spaces, {=u64} guests: {=u64} pages free of {=u64}, before {=u64}, {=u64} left; interrupts off for {=u64} at most",
        spaces,
        guests,
        after.0,
        after.1,
        before.0,
        left,
        stat.longest_off
    );
    // More than before would be as wrong.
    Ok(left | u64::from(after != before))
}
