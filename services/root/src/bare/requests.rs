//! What root is asked: by the manager and by further servers, and by the kernel about faults.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ipc_schema::abi::{NEVER, Tag};
use ipc_schema::proto::{
    Cause, LogRecord, MAX_LOG_BYTES, Refusal, RootRequest, RootResponse, ServerInfo, ServerState,
    VmEnd, VmInfo,
};
use root::plan::{Role, vmm_bits, vmm_instance};
use runtime::{Message, ReplyCaps, Service, now, rpc, serve};

use super::Root;
use super::supervise::read_log;

/// Bytes that a log record costs in a message beside its own.
const RECORD: usize = 4;
/// Most events in one answer: each is at most two names long.
const EVENTS: usize = 24;

impl Root {
    /// Serves for ever.
    pub fn run(&mut self) -> ! {
        let status = serve(self.shared.own, self);
        panic!("root's endpoint: {status:?}")
    }

    fn vm(&self, name: &str) -> Result<usize, Refusal> {
        self.registry.vm_by_name(name).ok_or(Refusal::Unknown)
    }

    fn running_vm(&self, name: &str) -> Result<usize, Refusal> {
        let vm = self.vm(name)?;
        if self.registry.vm_runs(vm) {
            Ok(vm)
        } else {
            Err(Refusal::NotRunning)
        }
    }

    fn server(&self, name: &str) -> Result<usize, Refusal> {
        self.registry.by_name(name).ok_or(Refusal::Unknown)
    }

    fn vms(&self) -> Vec<VmInfo> {
        let both = self.system.vms.iter().zip(&self.registry.vms);
        both.map(|(description, vm)| VmInfo {
            name: description.name.clone(),
            state: vm.state,
            memory: description.memory,
            vcpus: description.vcpus,
            uptime: if vm.runs() {
                now().saturating_sub(vm.started)
            } else {
                0
            },
        })
        .collect()
    }

    fn servers(&self) -> Vec<ServerInfo> {
        let both = self.registry.servers.iter().zip(&self.built);
        both.map(|(server, built)| ServerInfo {
            id: server.id,
            name: server.plan.instance.clone(),
            state: server.state,
            restarts: server.restarts,
            memory_bytes: built.as_ref().map_or(0, |b| b.bytes()),
            cpu_time: server
                .used_before
                .saturating_add(built.as_ref().map_or(0, |b| b.used())),
        })
        .collect()
    }

    fn answer(&mut self, request: RootRequest) -> Result<RootResponse, Refusal> {
        Ok(match request {
            RootRequest::Vms { first } => RootResponse::vms(&self.vms(), first),
            RootRequest::Servers { first } => RootResponse::servers(&self.servers(), first),
            RootRequest::Start { vm } => {
                let vm = self.vm(&vm)?;
                if self.registry.vm_runs(vm) {
                    return Err(Refusal::Busy);
                }
                if !self.start_vm(vm) {
                    return Err(Refusal::Failed);
                }
                RootResponse::Done
            }
            RootRequest::Stop { vm } => {
                let index = self.running_vm(&vm)?;
                self.registry.vm_stopping(index);
                self.shared
                    .signal(&mut self.machine, &vmm_instance(&vm), vmm_bits::POWER);
                RootResponse::Done
            }
            RootRequest::Kill { vm } => {
                let vm = self.running_vm(&vm)?;
                self.stop_vm(vm, VmEnd::Killed);
                RootResponse::Done
            }
            RootRequest::Ended { vm, end } => {
                let vm = self.running_vm(&vm)?;
                self.stop_vm(vm, end);
                if end == VmEnd::Reset {
                    self.power_off = None;
                    self.start_vm(vm);
                }
                RootResponse::Done
            }
            RootRequest::Death { server } => {
                let index = self.server(&server)?;
                RootResponse::Death(
                    self.registry
                        .servers
                        .get(index)
                        .and_then(|s| s.death.clone()),
                )
            }
            RootRequest::Restart { server } => {
                let index = self.server(&server)?;
                let server = self.registry.servers.get(index).ok_or(Refusal::Unknown)?;
                match (server.plan.role, server.state) {
                    (Role::Manager, _) => return Err(Refusal::Unsupported),
                    (Role::Vmm(vm), ServerState::Running) => {
                        self.stop_vm(vm, VmEnd::Killed);
                        self.power_off = None;
                        self.start_vm(vm);
                    }
                    (_, ServerState::Running) => self.end(index, Cause::Killed),
                    (role, ServerState::Dead) if role.vm().is_none() => {
                        self.start(index);
                    }
                    _ => return Err(Refusal::NotRunning),
                }
                RootResponse::Done
            }
            RootRequest::LogTail { records } => log_tail(records),
            RootRequest::Log { position } => log_from(position),
            RootRequest::Events => RootResponse::Events(self.registry.take_events(EVENTS)),
            RootRequest::PowerOff { code } => {
                self.switch_off(code);
                return Err(Refusal::Failed);
            }
        })
    }
}

fn log_tail(count: u32) -> RootResponse {
    let mut tail: VecDeque<LogRecord> = VecDeque::new();
    let mut bytes = 0;
    let (next, lost) = read_log(0, |source, frame| {
        bytes += frame.len() + RECORD;
        tail.push_back(LogRecord {
            source,
            frame: frame.to_vec(),
        });
        while bytes > MAX_LOG_BYTES || tail.len() > count as usize {
            match tail.pop_front() {
                Some(old) => bytes -= old.frame.len() + RECORD,
                None => break,
            }
        }
        true
    });
    RootResponse::Log {
        records: tail.into(),
        next,
        lost,
    }
}

fn log_from(position: u64) -> RootResponse {
    let mut records = Vec::new();
    let mut bytes = 0;
    let (next, lost) = read_log(position, |source, frame| {
        bytes += frame.len() + RECORD;
        let fits = bytes <= MAX_LOG_BYTES;
        if fits {
            records.push(LogRecord {
                source,
                frame: frame.to_vec(),
            });
        }
        fits
    });
    RootResponse::Log {
        records,
        next,
        lost,
    }
}

impl Service for Root {
    type Request = RootRequest;
    type Response = RootResponse;

    /// Only those who may ask for everything have a capability that gets here: the manager and further servers.
    fn request(
        &mut self,
        _badge: u64,
        request: RootRequest,
        _received: u64,
        _caps: &mut ReplyCaps,
    ) -> RootResponse {
        self.housekeeping();
        let response = self.answer(request).unwrap_or_else(RootResponse::Refused);
        self.ring_manager();
        response
    }

    fn message(&mut self, badge: u64, message: Message) -> Message {
        if message.tag.label() == Tag::FAULT {
            // Its thread is destroyed here, so that the reply reaches nobody.
            self.faulted(badge, message.words);
            return Message::default();
        }
        Message::new(rpc::BAD_REQUEST, [0; 4])
    }

    fn timeout(&mut self) {
        self.housekeeping();
    }

    fn deadline(&self) -> u64 {
        let next = self.next_deadline();
        if next == NEVER { NEVER } else { next.max(1) }
    }
}
