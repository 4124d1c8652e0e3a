//! Kills a server again and again while it works.
//!
//! A timer wakes this server, which is above the other: whatever instruction that is at, it does not go on.

use gauge::judge::Numbers;
use ipc_schema::proto::{RootRequest, RootResponse, ServerInfo, ServerState};
use runtime::{Endpoint, now, time};

use super::lab::{Lab, wait_until};

/// How often it is looked whether the server works, in microseconds.
const LOOK: u64 = 2_000;
/// It works if it used so much of that, in microseconds.
const BUSY: u64 = 40;
/// Within so many microseconds from then on it dies.
const WITHIN: u64 = 400;

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
    let mut numbers = Numbers::new(0x9e37_79b9_7f4a_7c15);
    let mut last = u64::MAX;
    let mut done = 0;
    while done < kills {
        wait_until(now() + time::cycles(LOOK));
        let Some(server) = look(lab.root, name) else {
            defmt::error!("REAP there is no {=str}", name);
            return;
        };
        let used = server.cpu_time.saturating_sub(last);
        last = server.cpu_time;
        if server.state != ServerState::Running || used < time::cycles(BUSY) {
            continue;
        }
        wait_until(now() + numbers.below(time::cycles(WITHIN)));
        let request = RootRequest::Restart {
            server: name.into(),
        };
        if matches!(lab.root.call_postcard(&request), Ok(RootResponse::Done)) {
            done += 1;
        }
    }
    defmt::info!("REAP done: {=u32} deaths of {=str}", done, name);
}
