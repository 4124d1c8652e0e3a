//! The start, and what to do.

extern crate alloc;

mod accounts;
mod guests;
mod lab;
mod reaper;
mod roam;
mod roamer;
mod shares;
mod stale;
mod workers;

use gauge::args;
use ipc_schema::manifest::Server;
use runtime::abi::layout::slot;
use runtime::abi::{NEVER, Status};
use runtime::power::power_off;
use runtime::{Notification, StartInfo};

use lab::Lab;

runtime::entry!(main);

fn main(start: &'static StartInfo) -> ! {
    let server: Server = start.config().unwrap_or_else(|e| panic!("{e}"));
    let args = args::parse(&server.args).unwrap_or_else(|word| panic!("args: `{word}`?"));
    work(start, &args).unwrap_or_else(|status| panic!("gauge: {status:?}"));
    if args.power_off {
        power_off(start, 0);
    }
    // Nobody signals this server: its work is done.
    loop {
        let _ = Notification(slot::NOTIFICATION).wait(NEVER);
    }
}

fn work(start: &'static StartInfo, args: &args::Args<'_>) -> Result<(), Status> {
    let mut lab = Lab::new(start)?;
    if args.shares {
        shares::all(&mut lab)?;
    }
    if args.accounts > 0 {
        accounts::all(&mut lab, args.accounts)?;
    }
    if args.roam > 0 {
        roam::all(&mut lab, args.roam)?;
    }
    if args.stale > 0 {
        stale::all(&mut lab, args.stale)?;
    }
    if let Some(name) = args.reap {
        reaper::all(&lab, name, args.kills);
    }
    Ok(())
}
