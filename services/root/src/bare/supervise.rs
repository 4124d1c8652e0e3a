//! Starts, watches, records deaths, starts again.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use ipc_schema::abi::{ThreadRegs, Utcb, layout, thread_state};
use ipc_schema::proto::{
    Cause, DeathRecord, PendingCall, PlatformRequest, SchedulerRequest, ServerState, VmEnd,
};
use root::death::{self, Tail};
use root::plan::{self, Role, manager_bits};
use root::ram::PAGE;
use root::registry::Verdict;
use runtime::object::Pool;
use runtime::object::log::records;
use runtime::{now, time};

use super::build::{self, Built};
use super::machine::Machine;
use super::processors;
use super::{LOG, Root, complain};

/// How long the console may still write before the machine is switched off, in microseconds.
const FLUSH_MICROS: u64 = 300_000;
/// Addresses of a backtrace in one log record.
const ADDRESSES: usize = 12;

/// What root has left. What an earlier end left free must be free again: tests compare these figures.
struct Free {
    kib: u64,
    slots: u32,
    /// Free pages of root's own Pool, and Pools that root can yet make.
    own: (u64, u64),
}

impl Free {
    fn of(machine: &Machine) -> Self {
        let own = Pool(layout::slot::POOL).stat();
        Self {
            kib: machine.ram.free_bytes() >> 10,
            slots: machine.slots.free(),
            own: own.map_or((0, 0), |(pages, _, pools)| (pages, pools)),
        }
    }
}

impl defmt::Format for Free {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(
            f,
            "{=u64} KiB of RAM, {=u32} slots, {=u64} of root's own pages and {=u64} Pools are free",
            self.kib,
            self.slots,
            self.own.0,
            self.own.1
        );
    }
}

impl Root {
    /// Starts what the manifest says is to run.
    pub fn start_system(&mut self) {
        build::raise_root();
        let all: Vec<usize> = (0..self.registry.servers.len()).collect();
        for index in all {
            let role = self.registry.servers.get(index).map(|s| s.plan.role);
            if role.is_some_and(|r| r.vm().is_none()) {
                self.start(index);
            }
        }
        for vm in 0..self.system.vms.len() {
            if self.system.vms.get(vm).is_some_and(|v| v.autostart) {
                self.start_vm(vm);
            }
        }
        self.ring_manager();
    }

    fn scheduler_runs(&self) -> bool {
        let scheduler = self
            .registry
            .by_role(Role::Scheduler)
            .and_then(|i| self.registry.servers.get(i));
        scheduler.is_some_and(|s| s.state == ServerState::Running)
    }

    /// Builds and starts a server; a failure counts as a death. Whether it runs.
    pub fn start(&mut self, index: usize) -> bool {
        let scheduler_runs = self.scheduler_runs();
        let Some(server) = self.registry.servers.get(index) else {
            return false;
        };
        let role = server.plan.role;
        let restarts = server.restarts + u32::from(server.state == ServerState::Restarting);
        let function = match role {
            Role::SecondDisk => self.take_function(index),
            _ => Ok(()),
        };
        let Some(server) = self.registry.servers.get(index) else {
            return false;
        };
        let mut built = Built::default();
        let group_at = role.vm().and_then(|vm| self.cpu_of_vm(vm));
        let (machine, shared) = (&mut self.machine, &mut self.shared);
        let guest = match (role.vm(), server.plan.guest_memory) {
            (Some(vm), len @ 1..) => shared.take_guest(machine, vm, len),
            _ => Ok(()),
        };
        let done = guest.and(function).and_then(|()| {
            build::build(
                machine,
                shared,
                &server.plan,
                (server.id, restarts),
                (scheduler_runs, group_at),
                &mut built,
            )
        });
        if let Err(error) = done {
            complain!("{} cannot be started: {error}", server.plan.instance);
            build::take_down(machine, &mut built);
            let verdict = self.registry.failed_to_start(index, now());
            self.follow(verdict);
            return false;
        }
        let free = Free::of(&self.machine);
        defmt::info!(
            "{=str} runs: {=u64} KiB; {}",
            server.plan.instance.as_str(),
            built.bytes() >> 10,
            free
        );
        if let Some(place) = self.built.get_mut(index) {
            *place = Some(built);
        }
        self.registry.started(index);
        if let Some(Some(pulse)) = self.pulses.get_mut(index) {
            pulse.begin();
        }
        match role {
            Role::Scheduler => self.admit_all(),
            Role::Platform => {
                self.shared.route_irqs();
                self.shared.take_processors(&mut self.machine);
            }
            _ => {}
        }
        true
    }

    /// The processor that a VM's servers run on.
    pub fn cpu_of_vm(&self, vm: usize) -> Option<u32> {
        let of_vm = self.registry.of_vm(vm).into_iter();
        let built = |index: usize| self.built.get(index).and_then(Option::as_ref);
        of_vm.filter_map(built).map(|b| b.cpu).next()
    }

    /// A new scheduler knows nobody.
    fn admit_all(&mut self) {
        build::give_processors(&self.shared);
        for (server, built) in self.registry.servers.iter().zip(&mut self.built) {
            if let Some(built) = built {
                let at = Some(built.cpu);
                build::admit(&self.shared, &server.plan, built, true, at);
            }
        }
    }

    /// Builds a VM's servers. Whether it runs.
    pub fn start_vm(&mut self, vm: usize) -> bool {
        self.registry.vm_starting(vm);
        if let Some(description) = self.system.vms.get(vm) {
            let name = description.name.as_str();
            defmt::info!("VM {=str}: start at TSC {=u64}", name, now());
            for key in plan::volatile_pages(description) {
                if let Some(page) = self.shared.pages.get(&key).copied()
                    && let Err(error) = self.machine.clear(page)
                {
                    complain!("{key}: {error}");
                }
            }
        }
        for index in self.registry.of_vm(vm) {
            if !self.start(index) {
                // A device that will be tried again is reason enough to give up: the VM has not run yet.
                if self.registry.vm_runs(vm) {
                    self.stop_vm(vm, VmEnd::Failed);
                }
                return false;
            }
        }
        self.registry.vm_started(vm, now());
        true
    }

    /// Takes a VM's servers down, the VMM first.
    pub fn stop_vm(&mut self, vm: usize, end: VmEnd) {
        for index in self.registry.of_vm(vm).into_iter().rev() {
            self.take_down(index);
            self.registry.stopped(index);
        }
        self.shared.give_guest(&mut self.machine, vm);
        defmt::info!("VM {=usize} is down: {}", vm, Free::of(&self.machine));
        if let Some(code) = self.registry.vm_ended(vm, end) {
            self.power_off
                .get_or_insert((time::after(FLUSH_MICROS), code));
        }
    }

    /// Destroys a server's objects, if there are any.
    fn take_down(&mut self, index: usize) {
        let Some(mut built) = self.built.get_mut(index).and_then(Option::take) else {
            return;
        };
        if let Some(server) = self.registry.servers.get_mut(index) {
            server.used_before = server.used_before.saturating_add(built.used());
        }
        let scheduler_lives =
            self.registry.by_role(Role::Scheduler) != Some(index) && self.scheduler_runs();
        if let Some(number) = built.admitted.take().filter(|_| scheduler_lives) {
            build::ask_scheduler(&self.shared, &SchedulerRequest::Release { number }, None);
        }
        build::take_down(&mut self.machine, &mut built);
    }

    /// A server has faulted: `words` are the fault message's.
    pub fn faulted(&mut self, badge: u64, words: [u64; 4]) {
        let (id, forwarder) = processors::faulting(badge);
        match self.registry.by_id(id) {
            Some(index) => {
                let code = self.code_at(index, words[3]);
                self.end_by(index, forwarder, death::cause(words, code));
            }
            None => complain!("a fault of nobody: badge {badge:#x}"),
        }
    }

    /// Ends a server: records its death, destroys it, and does what follows.
    pub fn end(&mut self, index: usize, cause: Cause) {
        self.end_by(index, None, cause);
    }

    /// [`Root::end`], because of one of its forwarders if not of its first thread.
    fn end_by(&mut self, index: usize, forwarder: Option<usize>, cause: Cause) {
        self.record(index, forwarder, cause);
        self.take_down(index);
        let verdict = self.registry.died(index, cause, now());
        self.follow(verdict);
        self.ring_manager();
    }

    fn follow(&mut self, verdict: Verdict) {
        match verdict {
            // The loop takes it up when it is due.
            Verdict::Restart => {}
            Verdict::GiveUp => complain!("a server is given up: too many deaths"),
            Verdict::StopVm(vm) => self.stop_vm(vm, VmEnd::Failed),
        }
    }

    /// The two bytes at an instruction pointer in a server's image.
    fn code_at(&mut self, index: usize, rip: u64) -> Option<[u8; 2]> {
        let built = self.built.get(index)?.as_ref()?;
        let (pages, parts) = (built.pages?, built.parts?);
        let offset = rip
            .checked_sub(layout::IMAGE)
            .filter(|o| *o < parts.image)?;
        self.machine.window(pages, |w| w.read(offset)).ok()?
    }

    fn record(&mut self, index: usize, forwarder: Option<usize>, cause: Cause) {
        let time = now();
        let built = self.built.get(index).and_then(Option::as_ref);
        let thread = built.and_then(|b| match forwarder {
            Some(number) => b.forwarders.get(number).map(|f| f.thread),
            None => b.thread,
        });
        let Some(thread) = thread else {
            return;
        };
        let (mut regs, doing) = match thread.read_regs() {
            Ok((regs, doing)) => (regs, Some(doing)),
            Err(status) => {
                complain!("read registers: {status:?}");
                (ThreadRegs::default(), None)
            }
        };
        if matches!(cause, Cause::Killed | Cause::Hung)
            && let Err(status) = thread.suspend()
        {
            complain!("suspend: {status:?}");
        }
        let serving = doing.is_some_and(|d| d.serving);
        let waits =
            doing.is_some_and(|d| matches!(d.state, thread_state::CALLING | thread_state::WAITING));
        if waits || regs.rip.wrapping_sub(layout::STUB) < PAGE {
            // In a system call: the stub's return address says where from.
            regs.rip = self.stack_word(index, regs.gpr[4]).unwrap_or(regs.rip);
        }
        let backtrace = self.backtrace(index, &regs);
        let Some(server) = self.registry.servers.get_mut(index) else {
            return;
        };
        let name = server.plan.instance.clone();
        let taken = if serving {
            ", in a call it had taken"
        } else {
            ""
        };
        complain!(
            "{name} ends: {cause:x?} at rip {:#x}, rsp {:#x}{taken}",
            regs.rip,
            regs.gpr[4]
        );
        for part in backtrace.chunks(ADDRESSES) {
            let mut line = String::new();
            // Writing to a String does not fail.
            let _ = write!(line, "bt: @{name}");
            for address in part {
                let _ = write!(line, " {address:x}");
            }
            defmt::error!("{=str}", line.as_str());
        }
        let last_log = last_log(server.id);
        server.death = Some(Box::new(DeathRecord {
            id: server.id,
            name,
            cause,
            time,
            registers: death::registers(&regs),
            backtrace,
            last_log,
            pending: doing.filter(|d| d.serving).map(|d| {
                let [badge, tag, words @ ..] = d.call;
                PendingCall { badge, tag, words }
            }),
        }));
    }

    fn stack_word(&mut self, index: usize, va: u64) -> Option<u64> {
        let built = self.built.get(index)?.as_ref()?;
        let (pages, parts) = (built.pages?, built.parts?);
        let offset = va
            .checked_sub(layout::STACK_TOP - parts.stack_len)
            .filter(|o| *o < parts.stack_len)?;
        self.machine
            .window(pages, |w| w.read(parts.stack + offset))
            .ok()?
            .map(u64::from_le_bytes)
    }

    fn backtrace(&mut self, index: usize, regs: &ThreadRegs) -> Vec<u64> {
        let built = self.built.get(index).and_then(Option::as_ref);
        let Some((pages, parts)) = built.and_then(|b| Some((b.pages?, b.parts?))) else {
            return Vec::new();
        };
        let bottom = layout::STACK_TOP - parts.stack_len;
        let walk = self.machine.window(pages, |w| {
            death::backtrace(regs, |va| {
                let offset = va.checked_sub(bottom).filter(|o| *o < parts.stack_len)?;
                w.read(parts.stack + offset).map(u64::from_le_bytes)
            })
        });
        walk.unwrap_or_else(|error| {
            complain!("backtrace: {error}");
            Vec::new()
        })
    }

    /// Tells the manager that there are events.
    pub fn ring_manager(&mut self) {
        if self.registry.has_events() {
            self.shared
                .signal(&mut self.machine, "manager", manager_bits::EVENTS);
        }
    }

    /// What is due: restarts, and the end of the machine.
    pub fn housekeeping(&mut self) {
        while let Some(index) = self.registry.take_due(now()) {
            self.start(index);
            self.ring_manager();
        }
        self.beat();
        if let Some((_, code)) = self.power_off.take_if(|(at, _)| *at <= now()) {
            self.switch_off(code);
        }
    }

    /// Switches the machine off.
    pub fn switch_off(&mut self, code: u32) {
        defmt::info!("power off, code {=u32}", code);
        let answer = self
            .shared
            .ask_platform(&PlatformRequest::PowerOff { code });
        complain!("the machine cannot be switched off: {answer:?}");
    }

    /// When [`Root::housekeeping`] has something to do next.
    pub fn next_deadline(&self) -> u64 {
        let power_off = self.power_off.map(|(at, _)| at);
        let next = [self.registry.next_due(), power_off, self.next_beat()];
        let next = next.into_iter().flatten().min();
        next.unwrap_or(ipc_schema::abi::NEVER)
    }
}

/// Calls `f` with every record in the log ring; answers where it ends.
pub fn read_log(mut from: u64, mut f: impl FnMut(u8, &[u8]) -> bool) -> (u64, u64) {
    let mut buffer = Box::new([0; Utcb::PAYLOAD]);
    let mut lost = 0u64;
    loop {
        match LOG.read(from, &mut buffer) {
            Ok(read) => {
                lost = lost.saturating_add(read.lost);
                let mut end = from.saturating_add(read.lost);
                for (source, record) in records(buffer.get(..read.len).unwrap_or(&[])) {
                    if !f(source, record) {
                        return (end, lost);
                    }
                    end = end.saturating_add(record.len() as u64 + 3);
                }
                if read.len == 0 || read.next == from {
                    return (read.next, lost);
                }
                from = read.next;
            }
            Err(status) => {
                complain!("read the log: {status:?}");
                return (from, lost);
            }
        }
    }
}

fn last_log(id: u8) -> Vec<Vec<u8>> {
    let mut tail = Tail::default();
    read_log(0, |source, record| {
        if source == id {
            tail.add(record);
        }
        true
    });
    tail.into_frames()
}
