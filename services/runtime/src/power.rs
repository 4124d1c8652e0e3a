//! The end of a machine whose work a server has done: test and measuring servers ask root for it.

use ipc_schema::abi::Status;
use ipc_schema::abi::layout::slot;
use ipc_schema::proto::{RootRequest, RootResponse};

use crate::{CallError, Endpoint, StartInfo};

/// Has root, the server's capability `root`, switch the machine off; an emulator ends with `code`. Comes back only if that cannot be
/// done, which the log then says.
pub fn power_off(start: &StartInfo, code: u32) {
    let root = start.endpoint("root").unwrap_or(Endpoint(slot::NULL));
    let answer: Result<RootResponse, _> = root.call_postcard(&RootRequest::PowerOff { code });
    let status = match answer {
        Err(CallError::Kernel(status)) => status,
        _ => Status::Unsupported,
    };
    defmt::error!("the machine cannot be switched off: {=u64}", status as u64);
}
