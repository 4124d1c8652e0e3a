//! Kills a server again and again while it works.
//!
//! Its guest begins something whenever [`BITS`] bits of the TSC are 0 (guests/exerciser, `mode=bursts`). A timer wakes this server a
//! little later, each time by as much more: whatever instruction the other is at, it does not go on.

use ipc_schema::proto::{RootRequest, RootResponse, ServerInfo, ServerState};
use runtime::{Endpoint, now, time};

use super::lab::{Lab, wait_until};

/// The guest's.
const BITS: u32 = 24;
/// By how much later each death comes, in TSC cycles, and when it begins anew: two of the guest's bursts are over by then.
const STEP: u64 = 199;
const RANGE: u64 = 24_000;
/// From one death to the next, in microseconds: not more often than root takes for a server that has gone wrong for good.
const LOOK: u64 = 600_000;

/// The server as root sees it.
fn look(root: Endpoint, name: &str) -> Option<ServerInfo> {
    let mut first = 0;
    loop {
        let answer = root.call_postcard(&RootRequest::Servers { first });
        let Ok(RootResponse::Servers { servers, total }) = answer else {
            return None;
        };
        if let Some(found) = servers.iter().find(|s| s.name == name) {
            return Some(found.clone());
        }
        first += u32::try_from(servers.len()).ok().filter(|&n| n > 0)?;
        if first >= total {
            return None;
        }
    }
}

/// Kills the server of this name so often.
pub fn all(lab: &Lab, name: &str, kills: u32) {
    let mut done = 0;
    defmt::info!("REAP begins");
    while done < kills {
        wait_until(now() + time::cycles(LOOK));
        let Some(server) = look(lab.root, name) else {
            defmt::error!("REAP there is no {=str}", name);
            return;
        };
        if server.state != ServerState::Running {
            continue;
        }
        let burst = ((now() >> BITS) + 2) << BITS;
        wait_until(burst + u64::from(done) * STEP % RANGE);
        let request = RootRequest::Restart {
            server: name.into(),
        };
        if matches!(lab.root.call_postcard(&request), Ok(RootResponse::Done)) {
            done += 1;
        }
    }
    defmt::info!("REAP done: {=u32} deaths of {=str}", done, name);
}
