//! What root's answers mean for the operator.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use ipc_schema::proto::{LogRecord, RootRequest, RootResponse, VmInfo, VmState};

use crate::{Channel, Console, Wanted, render};

impl Console {
    /// Root's answer to the last [`Action::Ask`]; `None` if root could not be asked.
    pub fn answer(&mut self, response: Option<RootResponse>) {
        let Some(wanted) = self.wanted.take() else {
            return;
        };
        match (wanted, response) {
            (_, None) => self.print("root does not answer\r\n"),
            (Wanted::Attach(..), Some(RootResponse::Refused(refusal))) => {
                self.print(&format!("cannot attach: {}\r\n", render::refusal(refusal)));
            }
            (_, Some(RootResponse::Refused(refusal))) => {
                self.print(&format!("refused: {}\r\n", render::refusal(refusal)));
            }
            (Wanted::Done(text), Some(RootResponse::Done)) => self.print(&text),
            (Wanted::VmTable(sofar), Some(RootResponse::Vms { vms, total })) => {
                if let Some(vms) = self.gather(sofar, vms, total, Wanted::VmTable) {
                    self.print(&render::vms(&vms, self.attached_vm(), self.tsc_hz));
                }
            }
            (Wanted::Others(sofar), Some(RootResponse::Vms { vms, total })) => {
                if let Some(vms) = self.gather(sofar, vms, total, Wanted::Others) {
                    self.tell_others(&vms);
                }
            }
            (Wanted::Attach(channel, sofar), Some(RootResponse::Vms { vms, total })) => {
                if let Some(vms) =
                    self.gather(sofar, vms, total, |vms| Wanted::Attach(channel, vms))
                {
                    self.attach_if_running(channel, &vms);
                }
            }
            (Wanted::ServerTable(mut sofar), Some(RootResponse::Servers { servers, total })) => {
                let more = !servers.is_empty();
                sofar.extend(servers);
                match next_piece(sofar.len(), total, more) {
                    Some(first) => {
                        self.ask(RootRequest::Servers { first }, Wanted::ServerTable(sofar))
                    }
                    None => {
                        let mut vms: Vec<&str> =
                            self.channels.iter().map(|c| c.vm.as_str()).collect();
                        // A VM's channels stand together.
                        vms.dedup();
                        let text = render::servers(&sofar, &vms, self.tsc_hz);
                        self.print(&text);
                    }
                }
            }
            (Wanted::CpuTable, Some(RootResponse::Cpus(cpus))) => {
                self.print(&render::cpus(&cpus));
            }
            (Wanted::Death(_), Some(RootResponse::Death(Some(record)))) => {
                self.print(&render::death(&record, self.tsc_hz));
            }
            (Wanted::Death(server), Some(RootResponse::Death(None))) => {
                self.print(&format!("{server} has not died since the start\r\n"));
            }
            (
                Wanted::Log(left),
                Some(RootResponse::Log {
                    records,
                    next,
                    lost,
                }),
            ) => {
                self.log(left, &records, next, lost);
            }
            (_, Some(_)) => self.print("root's answer makes no sense\r\n"),
        }
        if self.wanted.is_none() {
            self.settle();
        }
    }

    fn attach_if_running(&mut self, channel: usize, vms: &[VmInfo]) {
        let Some(Channel {
            name, vm, unseen, ..
        }) = self.channels.get_mut(channel)
        else {
            return;
        };
        let state = vms.iter().find(|v| v.name == *vm).map(|vm| vm.state);
        let (dropped, text) = unseen.take();
        let intro = match state {
            None => format!("there is no VM `{vm}`; `vms` lists all\r\n"),
            Some(VmState::Stopped | VmState::Failed) => {
                format!("{vm} does not run; `start {vm}` starts it\r\n")
            }
            Some(_) => crate::intro(name),
        };
        let runs = !matches!(state, None | Some(VmState::Stopped | VmState::Failed));
        self.print(&intro);
        if runs {
            self.attached = Some(channel);
            self.at_prompt = false;
        } else if !text.is_empty() {
            self.print("its last output was:\r\n");
        }
        if dropped != 0 {
            self.print(&format!("[{dropped} bytes skipped]\r\n"));
        }
        self.terminal(&text);
        if !runs && !text.is_empty() {
            self.print("\r\n");
        }
    }

    fn tell_others(&mut self, vms: &[VmInfo]) {
        let mut text = String::new();
        for vm in vms
            .iter()
            .filter(|vm| !matches!(vm.state, VmState::Stopped | VmState::Failed))
        {
            text += if text.is_empty() {
                "[still running: "
            } else {
                ", "
            };
            text += &vm.name;
        }
        text += if text.is_empty() {
            "[no VM is running now"
        } else {
            "; `attach NAME` shows one"
        };
        self.print(&(text + "]\r\n"));
    }

    fn log(&mut self, left: u32, records: &[LogRecord], next: u64, lost: u64) {
        if lost != 0 {
            self.print(&format!("[{lost} bytes of log were overwritten]\r\n"));
        }
        for record in records {
            self.print(&render::frame(record.source, &record.frame));
        }
        let shown = u32::try_from(records.len()).unwrap_or(u32::MAX);
        let left = left.saturating_sub(shown);
        // The log goes on growing while it is shown; the number asked for is the end.
        if left != 0 && shown != 0 {
            self.ask(RootRequest::Log { position: next }, Wanted::Log(left));
        }
    }

    /// Adds a piece of the list of VMs; gives the list when it is whole, asks for more otherwise.
    fn gather(
        &mut self,
        mut sofar: Vec<VmInfo>,
        piece: Vec<VmInfo>,
        total: u32,
        wanted: impl FnOnce(Vec<VmInfo>) -> Wanted,
    ) -> Option<Vec<VmInfo>> {
        let more = !piece.is_empty();
        sofar.extend(piece);
        match next_piece(sofar.len(), total, more) {
            Some(first) => {
                self.ask(RootRequest::Vms { first }, wanted(sofar));
                None
            }
            None => Some(sofar),
        }
    }
}

/// Where a list that comes in pieces goes on, unless it is whole.
fn next_piece(have: usize, total: u32, more: bool) -> Option<u32> {
    let have = u32::try_from(have).ok()?;
    (more && have < total).then_some(have)
}
