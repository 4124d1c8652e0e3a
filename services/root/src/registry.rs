//! What root knows of each server and VM, and what it decides when one dies.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use ipc_schema::manifest::{Idle, System};
use ipc_schema::proto::{Cause, DeathRecord, RootEvent, ServerState, VmEnd, VmState};

use crate::plan::{Plan, Role};
use crate::refusals::Refusals;

/// Deaths within [`WINDOW_SECONDS`] after which a server is given up.
pub const MAX_DEATHS: usize = 20;
/// See [`MAX_DEATHS`].
pub const WINDOW_SECONDS: u64 = 10;
/// So many restarts within the window do not wait: a guest should hardly feel them. The next waits
/// [`FIRST_DELAY_MS`], and each further one twice as long, up to [`LAST_DELAY_MS`].
pub const AT_ONCE: usize = 4;
/// See [`AT_ONCE`].
pub const FIRST_DELAY_MS: u64 = 10;
/// See [`AT_ONCE`].
pub const LAST_DELAY_MS: u64 = 320;
/// Most events kept for the manager.
pub const MAX_EVENTS: usize = 64;
/// The number of the first server; 0 is the kernel, 1 is root.
pub const FIRST_ID: u8 = 2;
/// The machine's exit code when a VM has failed and the system powers off when idle.
pub const FAILED_CODE: u32 = 0x6f;

/// A server.
#[derive(Debug)]
pub struct Server {
    /// Its number.
    pub id: u8,
    /// How to build it.
    pub plan: Plan,
    /// Its state.
    pub state: ServerState,
    /// How often it was started again.
    pub restarts: u32,
    /// TSC cycles that its predecessors used.
    pub used_before: u64,
    /// Its last death.
    pub death: Option<Box<DeathRecord>>,
    /// How often root has refused what it asked.
    pub refusals: Refusals,
    /// When it died last, oldest first.
    deaths: VecDeque<u64>,
    /// When to start it again.
    due: Option<u64>,
}

/// A VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its state.
    pub state: VmState,
    /// When it was started: TSC.
    pub started: u64,
    /// How it ended last.
    pub end: Option<VmEnd>,
}

/// What to do after a death. The dead server's objects are to be destroyed in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing now: it is due later (see [`Registry::take_due`]), perhaps at once.
    Restart,
    /// It died too often; nothing hangs on it but itself.
    GiveUp,
    /// Its VM cannot go on: stop it.
    StopVm(usize),
}

/// All servers and VMs.
#[derive(Debug)]
pub struct Registry {
    /// Servers; number `FIRST_ID + index`.
    pub servers: Vec<Server>,
    /// VMs, as in the manifest.
    pub vms: Vec<Vm>,
    tsc_hz: u64,
    idle: Idle,
    events: VecDeque<RootEvent>,
    names: Vec<String>,
}

impl Registry {
    /// All stopped.
    #[must_use]
    pub fn new(system: &System, plans: Vec<Plan>, tsc_hz: u64) -> Self {
        let server = |(id, plan)| Server {
            id,
            plan,
            state: ServerState::Stopped,
            restarts: 0,
            used_before: 0,
            death: None,
            refusals: Refusals::default(),
            deaths: VecDeque::new(),
            due: None,
        };
        let vm = Vm {
            state: VmState::Stopped,
            started: 0,
            end: None,
        };
        Self {
            servers: (FIRST_ID..u8::MAX).zip(plans).map(server).collect(),
            vms: system.vms.iter().map(|_| vm).collect(),
            tsc_hz,
            idle: system.idle,
            events: VecDeque::new(),
            names: system.vms.iter().map(|v| v.name.clone()).collect(),
        }
    }

    /// Index of the server with this number.
    #[must_use]
    pub fn by_id(&self, id: u64) -> Option<usize> {
        self.servers.iter().position(|s| u64::from(s.id) == id)
    }

    /// Index of the server of this instance.
    #[must_use]
    pub fn by_name(&self, instance: &str) -> Option<usize> {
        self.servers
            .iter()
            .position(|s| s.plan.instance == instance)
    }

    /// Index of the server in this role.
    #[must_use]
    pub fn by_role(&self, role: Role) -> Option<usize> {
        self.servers.iter().position(|s| s.plan.role == role)
    }

    /// Number of the VM of this name.
    #[must_use]
    pub fn vm_by_name(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// Indices of a VM's servers: devices, then the VMM, as they are to be started.
    #[must_use]
    pub fn of_vm(&self, vm: usize) -> Vec<usize> {
        let all = self.servers.iter().enumerate();
        all.filter(|(_, s)| s.plan.role.vm() == Some(vm))
            .map(|(i, _)| i)
            .collect()
    }

    /// A server runs now. After a death that is told as a restart.
    pub fn started(&mut self, index: usize) {
        let Some(server) = self.servers.get_mut(index) else {
            return;
        };
        if server.state == ServerState::Restarting {
            server.restarts = server.restarts.saturating_add(1);
            let name = server.plan.instance.clone();
            server.state = ServerState::Running;
            self.tell(RootEvent::ServerRestarted { server: name });
        } else {
            server.state = ServerState::Running;
        }
        server_due(&mut self.servers, index, None);
    }

    /// A server has died, or has been killed to be restarted.
    pub fn died(&mut self, index: usize, cause: Cause, now: u64) -> Verdict {
        let hz = self.tsc_hz;
        let Some(server) = self.servers.get_mut(index) else {
            return Verdict::GiveUp;
        };
        let name = server.plan.instance.clone();
        let verdict = if let Role::Vmm(vm) = server.plan.role {
            server.state = ServerState::Dead;
            Verdict::StopVm(vm)
        } else {
            match server.next_start(now, hz) {
                Some(at) => {
                    server.state = ServerState::Restarting;
                    server.due = Some(at);
                    Verdict::Restart
                }
                None => {
                    server.state = ServerState::Dead;
                    server.due = None;
                    server
                        .plan
                        .role
                        .vm()
                        .map_or(Verdict::GiveUp, Verdict::StopVm)
                }
            }
        };
        self.tell(RootEvent::ServerDied {
            server: name,
            cause,
        });
        verdict
    }

    /// A server could not be started: as if it had died at once.
    pub fn failed_to_start(&mut self, index: usize, now: u64) -> Verdict {
        self.died(index, Cause::Exited(1), now)
    }

    /// A server has been taken down on purpose.
    pub fn stopped(&mut self, index: usize) {
        if let Some(server) = self.servers.get_mut(index) {
            // What was given up stays marked so until it is started again.
            if server.state != ServerState::Dead {
                server.state = ServerState::Stopped;
            }
            server.due = None;
        }
    }

    /// A server that is due at `now` to be started again.
    pub fn take_due(&mut self, now: u64) -> Option<usize> {
        let index = self
            .servers
            .iter()
            .position(|s| s.due.is_some_and(|at| at <= now))?;
        server_due(&mut self.servers, index, None);
        Some(index)
    }

    /// When the next server is due.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.servers.iter().filter_map(|s| s.due).min()
    }

    /// A VM's servers are about to be built: their deaths are forgotten.
    pub fn vm_starting(&mut self, vm: usize) {
        if let Some(v) = self.vms.get_mut(vm) {
            v.state = VmState::Starting;
        }
        for server in self
            .servers
            .iter_mut()
            .filter(|s| s.plan.role.vm() == Some(vm))
        {
            server.deaths.clear();
            server.due = None;
            server.state = ServerState::Stopped;
        }
    }

    /// A VM runs now.
    pub fn vm_started(&mut self, vm: usize, now: u64) {
        if let Some(v) = self.vms.get_mut(vm) {
            (v.state, v.started, v.end) = (VmState::Running, now, None);
            let name = self.names.get(vm).cloned().unwrap_or_default();
            self.tell(RootEvent::VmStarted { vm: name });
        }
    }

    /// A VM's power button has been pressed.
    pub fn vm_stopping(&mut self, vm: usize) {
        if let Some(v) = self.vms.get_mut(vm) {
            v.state = VmState::Stopping;
        }
    }

    /// Whether the VM has servers that run.
    #[must_use]
    pub fn vm_runs(&self, vm: usize) -> bool {
        self.vms.get(vm).is_some_and(Vm::runs)
    }

    /// A VM has ended. Answers the code to switch the machine off with, if it was the last and the system is to end
    /// with it.
    pub fn vm_ended(&mut self, vm: usize, end: VmEnd) -> Option<u32> {
        let v = self.vms.get_mut(vm)?;
        let bad = matches!(end, VmEnd::TripleFault | VmEnd::Failed);
        v.state = if bad {
            VmState::Failed
        } else {
            VmState::Stopped
        };
        v.end = Some(end);
        let name = self.names.get(vm).cloned().unwrap_or_default();
        self.tell(RootEvent::VmStopped { vm: name, end });
        if self.idle != Idle::PowerOff || self.vms.iter().any(Vm::runs) {
            return None;
        }
        // The first code that is not 0 speaks for all.
        let codes = self.vms.iter().filter_map(|v| v.end.map(exit_code));
        Some(codes.fold(0, |code, next| if code == 0 { next } else { code }))
    }

    fn tell(&mut self, event: RootEvent) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Whether there are events to be fetched.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Takes the oldest events, at most `limit`.
    pub fn take_events(&mut self, limit: usize) -> Vec<RootEvent> {
        let count = self.events.len().min(limit);
        self.events.drain(..count).collect()
    }
}

fn server_due(servers: &mut [Server], index: usize, due: Option<u64>) {
    if let Some(server) = servers.get_mut(index) {
        server.due = due;
    }
}

fn exit_code(end: VmEnd) -> u32 {
    match end {
        VmEnd::DebugExit(code) => code,
        VmEnd::TripleFault | VmEnd::Failed => FAILED_CODE,
        VmEnd::PowerOff | VmEnd::Reset | VmEnd::Killed => 0,
    }
}

impl Vm {
    /// Whether its servers are there, or being built.
    #[must_use]
    pub fn runs(&self) -> bool {
        matches!(
            self.state,
            VmState::Starting | VmState::Running | VmState::Stopping
        )
    }
}

impl Server {
    /// When to start it again after a death at `now`; `None`: never.
    fn next_start(&mut self, now: u64, hz: u64) -> Option<u64> {
        let window = hz.saturating_mul(WINDOW_SECONDS);
        self.deaths.retain(|at| now.saturating_sub(*at) < window);
        self.deaths.push_back(now);
        let earlier = self.deaths.len() - 1;
        if earlier >= MAX_DEATHS {
            return None;
        }
        let delay = match earlier.checked_sub(AT_ONCE) {
            None => 0,
            // At most 2^20: the limit ends it before.
            Some(n) => (FIRST_DELAY_MS << n)
                .min(LAST_DELAY_MS)
                .saturating_mul(hz / 1000),
        };
        Some(now.saturating_add(delay))
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
