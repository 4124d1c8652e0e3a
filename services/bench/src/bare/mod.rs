//! The start, and what to do.

extern crate alloc;

mod entries;
mod figures;
mod partner;
mod probes;

use bench::args;
use ipc_schema::manifest::Server;
use runtime::abi::NEVER;
use runtime::abi::layout::slot;
use runtime::power::power_off;
use runtime::{Notification, StartInfo};

use partner::Partner;

runtime::entry!(main);

fn main(start: &'static StartInfo) -> ! {
    let server: Server = start.config().unwrap_or_else(|e| panic!("{e}"));
    let args = args::parse(&server.args).unwrap_or_else(|word| panic!("args: `{word}`?"));
    let mut partner = Partner::new(start)
        .unwrap_or_else(|status| panic!("the partner cannot be built: {status:?}"));
    if args.bench {
        figures::measure(&mut partner).unwrap_or_else(|status| panic!("bench: {status:?}"));
    }
    let failed = if args.probe {
        probes::all(start, &mut partner)
    } else {
        0
    };
    let failed = failed + usize::from(args.entries && !entries::refused(start, args.bochs));
    if args.power_off {
        power_off(start, u32::from(failed > 0));
    }
    // Nobody signals this server: its work is done.
    loop {
        let _ = Notification(slot::NOTIFICATION).wait(NEVER);
    }
}
