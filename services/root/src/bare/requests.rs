//! What root is asked: by the manager and by further servers, and by the kernel about faults.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ipc_schema::abi::layout::slot;
use ipc_schema::abi::{NEVER, Tag, thread_state};
use ipc_schema::proto::{
    Account, Cause, LogRecord, MAX_LOG_BYTES, Refusal, RootRequest, RootResponse, ServerInfo,
    ServerState, VmEnd, VmInfo,
};
use root::plan::{Role, vmm_bits, vmm_instance};
use root::refusals::{self, Refusals};
use runtime::object::{Budget, Cpu};
use runtime::{Endpoint, Message, ReplyCaps, Service, now, rpc, serve, time};

use super::processors::{self, FIRST};
use super::supervise::read_log;
use super::{Root, complain};

/// Root receives on no Endpoint itself.
const NOBODY: Endpoint = Endpoint(0);
/// Bytes that a log record costs in a message beside its own.
const RECORD: usize = 4;
/// A server that has run for less, in microseconds, and serves nobody is still starting.
const YOUNG_MICROS: u64 = 50_000;
/// So is one that has used less of a processor than this, in microseconds, and would go on.
const START_MICROS: u64 = 500;
/// How long `store` is to have been seen not to get on, in microseconds. So it is ended less often than would have it given up.
const SUSPECT_MICROS: u64 = 900_000;
/// Label of the reply to a fault that leaves the thread stopped.
const STAY_STOPPED: u64 = 1;
/// Most events in one answer: each is at most two names long.
const EVENTS: usize = 24;

impl Root {
    /// Serves for ever, its forwarders alone: on a caller's Budget it would not get through to end a server above that caller.
    pub fn run(&mut self) -> ! {
        let status = serve(NOBODY, self);
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

    pub(super) fn server(&self, name: &str) -> Result<usize, Refusal> {
        self.registry.by_name(name).ok_or(Refusal::Unknown)
    }

    fn vms(&self) -> Vec<VmInfo> {
        let both = self.system.vms.iter().zip(&self.registry.vms);
        let numbered = both.enumerate();
        numbered
            .map(|(number, (description, vm))| VmInfo {
                name: description.name.clone(),
                state: vm.state,
                memory: description.memory,
                vcpus: description.vcpus,
                uptime: if vm.runs() {
                    now().saturating_sub(vm.started)
                } else {
                    0
                },
                cpu: self.cpu_of_vm(number),
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
            cpu: built.as_ref().map(|b| b.cpu),
            kinds: built
                .as_ref()
                .map_or_else(Default::default, |b| b.kinds(&server.plan)),
            // There are fewer VMs than servers.
            vm: server.plan.role.vm().map(|vm| vm as u32),
        })
        .collect()
    }

    /// A VMM says that a device of its VM does not answer. Root looks for itself: one that waits for calls is well, and
    /// one that has only just been started is another than the VMM means.
    fn hung(&mut self, vm: usize, device: u32) -> Result<RootResponse, Refusal> {
        let device = usize::try_from(device).map_err(|_| Refusal::Unknown)?;
        let index = self
            .registry
            .by_role(Role::Device(vm, device))
            .ok_or(Refusal::Unknown)?;
        let built = self
            .built
            .get(index)
            .and_then(Option::as_ref)
            .ok_or(Refusal::NotRunning)?;
        let thread = built.thread.ok_or(Refusal::NotRunning)?;
        let (_, doing) = thread.read_regs().map_err(|_| Refusal::Failed)?;
        let age = now().saturating_sub(built.started);
        // On a busy machine it may not have had its turn yet: what counts is its own time, too.
        let starting = age < time::cycles(YOUNG_MICROS)
            || (doing.state == thread_state::READY && built.used() < time::cycles(START_MICROS));
        if doing.state == thread_state::WAITING || (starting && !doing.serving) {
            return Err(Refusal::Busy);
        }
        self.end(index, Cause::Hung);
        Ok(RootResponse::Done)
    }

    /// A client of `store`, or of the second disk's driver, has waited for its answer for long. Many use it, so that one of them cannot have it ended as it likes: root
    /// must have seen twice, a second apart, that it does not wait for requests, and that it is stopped or has done nothing but run.
    fn unanswered(&mut self, vm: usize, device: usize) -> Result<RootResponse, Refusal> {
        let device = self.system.vms.get(vm).and_then(|v| v.devices.get(device));
        let disk = device.and_then(|d| d.kind.disk());
        let disk = disk.and_then(|d| self.system.disks.get(d as usize));
        let role = match disk.ok_or(Refusal::Unknown)?.on_second_disk() {
            false => Role::Store,
            true => Role::SecondDisk,
        };
        let index = self.registry.by_role(role).ok_or(Refusal::Unknown)?;
        let built = self
            .built
            .get(index)
            .and_then(Option::as_ref)
            .ok_or(Refusal::NotRunning)?;
        let thread = built.thread.ok_or(Refusal::NotRunning)?;
        let (_, doing) = thread.read_regs().map_err(|_| Refusal::Failed)?;
        if doing.state == thread_state::WAITING {
            self.suspect = None;
            return Err(Refusal::Busy);
        }
        let (time, used) = (now(), built.used());
        let looked = (time, used, built.started);
        let Some((before, then, _)) = self.suspect.filter(|s| s.2 == looked.2) else {
            self.suspect = Some(looked);
            return Err(Refusal::Busy);
        };
        let (since, ran) = (time.saturating_sub(before), used.saturating_sub(then));
        if since < time::cycles(SUSPECT_MICROS) {
            return Err(Refusal::Busy);
        }
        self.suspect = Some(looked);
        // What was seen long ago says nothing.
        let soon = since < time::cycles(3 * SUSPECT_MICROS);
        let idle = doing.state == thread_state::READY && ran < since / 2;
        if !soon || idle {
            return Err(Refusal::Busy);
        }
        self.end(index, Cause::Hung);
        Ok(RootResponse::Done)
    }

    /// Something that the caller of this badge asked is refused: too often, and it is ended.
    fn refused(&mut self, badge: u64) {
        let index = self.registry.by_id(badge);
        let server = index.and_then(|i| self.registry.servers.get_mut(i));
        let (Some(index), Some(server)) = (index, server) else {
            return;
        };
        if commands(server.plan.role) {
            return;
        }
        if server
            .refusals
            .another(now(), time::cycles(refusals::WINDOW_MICROS))
        {
            server.refusals = Refusals::default();
            complain!("{} asks root in vain, over and over", server.plan.instance);
            self.end(index, Cause::Killed);
        }
    }

    /// Where the processors' time has gone.
    fn accounts(&self) -> Vec<Account> {
        let servers = self.built.iter().flatten();
        let forwarders = servers.clone().flat_map(|b| &b.forwarders);
        let forwarders = forwarders.chain(&self.shared.forwarders);
        let all = [(FIRST, Budget(slot::BUDGET))].into_iter();
        let all = all
            .chain(servers.filter_map(|b| Some((b.cpu, b.budget?))))
            .chain(forwarders.map(|f| (f.cpu, f.budget)));
        let on = |cpu: (u32, Cpu)| {
            let there = all.clone().filter(move |(number, _)| *number == cpu.0);
            processors::account(cpu, there.map(|(_, budget)| budget))
        };
        self.shared.processors.online().filter_map(on).collect()
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
                    if !self.start_vm(vm) {
                        return Err(Refusal::Failed);
                    }
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
            RootRequest::Hung { .. } | RootRequest::Unanswered => return Err(Refusal::Forbidden),
            RootRequest::Hang { server } => self.hang(&server)?,
            RootRequest::Spin { server } => self.spin(&server)?,
            RootRequest::Scribble { server, all } => self.scribble(&server, all)?,
            RootRequest::Cpus => RootResponse::Cpus(self.shared.processors.figures()),
            RootRequest::Accounts => RootResponse::Accounts(self.accounts()),
        })
    }
}

/// Whether root does what a server in this role asks.
fn commands(role: Role) -> bool {
    matches!(role, Role::Manager | Role::Extra(_))
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

    /// The badge is the caller's number: what it may ask depends on what it is.
    fn request(
        &mut self,
        badge: u64,
        request: RootRequest,
        _received: u64,
        _caps: &mut ReplyCaps,
    ) -> RootResponse {
        self.housekeeping();
        let index = self.registry.by_id(badge);
        let role = index
            .and_then(|i| self.registry.servers.get(i))
            .map(|s| s.plan.role);
        let answer = match (role, request) {
            (Some(Role::Vmm(vm)), RootRequest::Hung { device }) => self.hung(vm, device),
            // Only those who have a disk can call.
            (Some(Role::Device(vm, device)), RootRequest::Unanswered) => {
                self.unanswered(vm, device)
            }
            (Some(role), request) if commands(role) => self.answer(request),
            _ => Err(Refusal::Forbidden),
        };
        if answer.is_err() {
            self.refused(badge);
        }
        self.ring_manager();
        answer.unwrap_or_else(RootResponse::Refused)
    }

    fn message(&mut self, badge: u64, message: Message) -> Message {
        if message.tag.label() == Tag::FAULT {
            // Its thread is destroyed here, so that the reply reaches nobody; if it lives, it must not go on.
            self.faulted(badge, message.words);
            return Message::new(STAY_STOPPED, [0; 4]);
        }
        self.refused(badge);
        Message::new(rpc::BAD_REQUEST, [0; 4])
    }

    fn undecodable(&mut self, badge: u64) {
        self.refused(badge);
    }

    fn timeout(&mut self) {
        self.housekeeping();
    }

    fn deadline(&self) -> u64 {
        let next = self.next_deadline();
        if next == NEVER { NEVER } else { next.max(1) }
    }
}
