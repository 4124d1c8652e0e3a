//! The bytes' ways: terminal, console and VMs, through the rings; still pure.
//!
//! A VM that the operator looks at is held up by a slow terminal, as by a real serial line. The others never are: what
//! they print is taken at once and kept for later. Nothing here waits.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use ipc_schema::proto::{RootEvent, RootRequest, RootResponse, VmEnd, VmmReport};
use ipc_schema::ring::{CAPACITY, Consumer, Producer, RingPage};

use crate::{Action, Console, Described};

/// Bytes for the terminal that wait, beyond which a VM's output stays in its ring.
const FULL: usize = 2048;
/// Bytes typed for a VM that does not take them; more are dropped.
const MAX_TYPED: usize = 4096;
/// Rounds in one go; then calls are served before it goes on.
const ROUNDS: usize = 16;

/// The two rings that lead to a neighbour.
#[derive(Clone, Copy)]
pub struct Pages<'a> {
    /// The ring that we write.
    pub tx: &'a RingPage,
    /// The ring that we read.
    pub rx: &'a RingPage,
}

/// A neighbour's rings, and what we could not write yet.
struct Link<'a> {
    tx: Producer<'a>,
    rx: Consumer<'a>,
    waiting: VecDeque<u8>,
    /// We have written or read: the neighbour may have to be signalled.
    signal: bool,
}

impl<'a> Link<'a> {
    fn new(pages: &Pages<'a>) -> Self {
        // The first signal is for what a predecessor may have left unsaid.
        Self {
            tx: Producer::new(pages.tx),
            rx: Consumer::new(pages.rx),
            waiting: VecDeque::new(),
            signal: true,
        }
    }

    fn read(&mut self, into: &mut [u8]) -> usize {
        let count = self.rx.pop(into);
        self.signal |= count != 0 && self.rx.needs_signal();
        count
    }

    /// Writes what waits, as far as there is room.
    fn flush(&mut self) {
        let mut count = 0;
        let (front, back) = self.waiting.as_slices();
        for part in [front, back] {
            count += self.tx.push(part);
        }
        if count != 0 {
            self.waiting.drain(..count);
            self.signal |= self.tx.needs_signal();
        }
    }

    /// Announces that we sleep until there is something to read; `false`: there is.
    fn sleep_for_bytes(&self) -> bool {
        self.rx.prepare_sleep()
    }

    /// Announces that we sleep until there is room for what waits; `false`: there is.
    fn sleep_for_room(&self) -> bool {
        self.waiting.is_empty() || self.tx.prepare_sleep()
    }
}

struct Vm {
    name: String,
    /// The operator knows that it has stopped.
    told: bool,
}

/// A channel's rings, if there is anything at the VM's end, and the number of its VM.
struct Way<'a> {
    vm: usize,
    link: Option<Link<'a>>,
}

/// Whom to signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The terminal's driver.
    pub terminal: bool,
    /// Devices of VMs, by their channels' numbers.
    pub channels: Vec<usize>,
}

/// Terminal, console and VMs.
pub struct Relay<'a> {
    console: Console,
    terminal: Link<'a>,
    ways: Vec<Way<'a>>,
    vms: Vec<Vm>,
    /// A question to root that waits until the terminal has taken what earlier answers made.
    deferred: Option<RootRequest>,
}

impl<'a> Relay<'a> {
    /// Joins all. `channels`: the description and, if there is anything at the VM's end, the rings of each. VMs are numbered in the order
    /// of their channels, of which each has one at least.
    #[must_use]
    pub fn new(
        version: &str,
        tsc_hz: u64,
        terminal: &Pages<'a>,
        channels: &[(Described<'_>, Option<Pages<'a>>)],
    ) -> Self {
        let described: Vec<Described<'_>> = channels.iter().map(|(channel, _)| *channel).collect();
        let (mut vms, mut ways) = (Vec::<Vm>::new(), Vec::new());
        for (channel, pages) in channels {
            if vms.last().is_none_or(|vm| vm.name != channel.vm) {
                let name = channel.vm.to_string();
                vms.push(Vm { name, told: false });
            }
            ways.push(Way {
                vm: vms.len().saturating_sub(1),
                link: pages.as_ref().map(Link::new),
            });
        }
        Self {
            console: Console::new(version, tsc_hz, &described),
            terminal: Link::new(terminal),
            ways,
            vms,
            deferred: None,
        }
    }

    fn link(&mut self, channel: usize) -> Option<&mut Link<'a>> {
        self.ways.get_mut(channel)?.link.as_mut()
    }

    /// Moves everything that can be moved. `ask` asks root. True if there is more to do at once; if not, everybody
    /// knows that we sleep.
    #[must_use]
    pub fn work(&mut self, mut ask: impl FnMut(&RootRequest) -> Option<RootResponse>) -> bool {
        for _ in 0..ROUNDS {
            self.move_bytes(&mut ask);
            let full = self.full();
            let mut idle =
                (full || self.terminal.sleep_for_bytes()) && self.terminal.sleep_for_room();
            for (number, way) in self.ways.iter().enumerate() {
                let Some(link) = &way.link else { continue };
                let held_up = full && self.console.shows(number);
                idle &= (held_up || link.sleep_for_bytes()) && link.sleep_for_room();
            }
            if idle {
                return false;
            }
        }
        true
    }

    /// Whom to signal for what was moved.
    #[must_use]
    pub fn take_signals(&mut self) -> Signals {
        let mut signals = Signals {
            terminal: core::mem::take(&mut self.terminal.signal),
            channels: Vec::new(),
        };
        for (number, way) in self.ways.iter_mut().enumerate() {
            let link = way.link.as_mut();
            if link.is_some_and(|link| core::mem::take(&mut link.signal)) {
                signals.channels.push(number);
            }
        }
        signals
    }

    /// A VMM's report. False if there is no such VM. Root is told of an end.
    pub fn report(
        &mut self,
        vm: u64,
        report: VmmReport,
        mut ask: impl FnMut(&RootRequest) -> Option<RootResponse>,
    ) -> bool {
        let Some((number, name)) = self.named(vm) else {
            return false;
        };
        match report {
            VmmReport::Running => self.started(&name),
            VmmReport::Ended(end) => {
                self.drain(number);
                let answer = ask(&RootRequest::Ended {
                    vm: name.clone(),
                    end,
                });
                match (end, answer) {
                    (VmEnd::Reset, Some(RootResponse::Done)) => self.console.reset(&name),
                    // Root tells why it could not be started again.
                    (VmEnd::Reset, Some(RootResponse::Refused(_))) => {}
                    _ => self.stopped(&name, end),
                }
            }
        }
        true
    }

    /// Takes what root has to tell.
    pub fn events(&mut self, mut ask: impl FnMut(&RootRequest) -> Option<RootResponse>) {
        let Some(RootResponse::Events(events)) = ask(&RootRequest::Events) else {
            return;
        };
        for event in &events {
            match event {
                RootEvent::VmStarted { vm } => self.started(vm),
                // It was told of by the VMM's report, and starts again.
                RootEvent::VmStopped {
                    end: VmEnd::Reset, ..
                } => {}
                RootEvent::VmStopped { vm, end } => {
                    if let Some(number) = self.number(vm) {
                        self.drain(number);
                    }
                    self.stopped(vm, *end);
                }
                RootEvent::ServerDied { .. } | RootEvent::ServerRestarted { .. } => {
                    self.console.event(event)
                }
            }
        }
    }

    fn named(&self, number: u64) -> Option<(usize, String)> {
        let number = usize::try_from(number).ok()?;
        self.vms.get(number).map(|vm| (number, vm.name.clone()))
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.vms.iter().position(|vm| vm.name == name)
    }

    /// A VM runs, whoever says so.
    fn started(&mut self, name: &str) {
        if let Some(vm) = self.vms.iter_mut().find(|vm| vm.name == name) {
            // The operator asked for it or saw the system start: nothing to tell, unless it came back by itself.
            if core::mem::take(&mut vm.told) {
                self.console.event(&RootEvent::VmStarted {
                    vm: name.to_string(),
                });
            }
        }
    }

    /// A VM has stopped; the operator is told once, whoever says so first.
    fn stopped(&mut self, name: &str, end: VmEnd) {
        let Some(vm) = self.vms.iter_mut().find(|vm| vm.name == name) else {
            return;
        };
        if !core::mem::replace(&mut vm.told, true) {
            self.console.event(&RootEvent::VmStopped {
                vm: name.to_string(),
                end,
            });
        }
    }

    /// Takes the last words of a VM that has ended.
    fn drain(&mut self, number: usize) {
        let mut bytes = [0; CAPACITY];
        for (channel, way) in self.ways.iter_mut().enumerate() {
            let Some(link) = way.link.as_mut().filter(|_| way.vm == number) else {
                continue;
            };
            let count = link.read(&mut bytes);
            // What was typed for it is for nobody now.
            link.waiting.clear();
            self.console
                .vm_output(channel, bytes.get(..count).unwrap_or(&[]));
        }
    }

    fn move_bytes(&mut self, ask: &mut impl FnMut(&RootRequest) -> Option<RootResponse>) {
        let mut bytes = [0; 512];
        if !self.full() {
            if let Some(request) = self.deferred.take() {
                self.ask_root(request, ask);
            }
            // A little at a time, for a short command can have a long answer.
            let mut typed = [0; 64];
            let count = self.terminal.read(&mut typed);
            self.console.input(typed.get(..count).unwrap_or(&[]));
        }
        self.act(ask);
        for number in 0..self.ways.len() {
            if self.full() && self.console.shows(number) {
                continue;
            }
            let Some(link) = self.link(number) else {
                continue;
            };
            let count = link.read(&mut bytes);
            self.console
                .vm_output(number, bytes.get(..count).unwrap_or(&[]));
            self.act(ask);
            if let Some(link) = self.link(number) {
                link.flush();
            }
        }
        self.terminal.flush();
    }

    /// Carries out what the console wants, with root's answers, until it wants nothing more.
    fn act(&mut self, ask: &mut impl FnMut(&RootRequest) -> Option<RootResponse>) {
        loop {
            let actions = self.console.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Terminal(bytes) => self.terminal.waiting.extend(bytes),
                    Action::ToVm(number, bytes) => {
                        if let Some(link) = self.link(number) {
                            let room = MAX_TYPED.saturating_sub(link.waiting.len());
                            link.waiting.extend(bytes.iter().take(room));
                            link.flush();
                        }
                    }
                    Action::Resize(number, (columns, rows)) => {
                        if let Some(link) = self.link(number) {
                            let size = u32::from(columns) | u32::from(rows) << 16;
                            link.tx.set_note(size);
                            link.signal = true;
                        }
                    }
                    Action::Ask(request) if self.full() => self.deferred = Some(request),
                    Action::Ask(request) => self.ask_root(request, ask),
                }
            }
        }
    }

    fn ask_root(
        &mut self,
        request: RootRequest,
        ask: &mut impl FnMut(&RootRequest) -> Option<RootResponse>,
    ) {
        let response = ask(&request);
        let done = response == Some(RootResponse::Done);
        self.console.answer(response);
        match request {
            // Who asked for it has his answer: the event tells him nothing new.
            RootRequest::Kill { vm } if done => self.knows(&vm, true),
            RootRequest::Start { vm } if done => self.knows(&vm, false),
            _ => {}
        }
    }

    /// The operator knows whether this VM has stopped.
    fn knows(&mut self, name: &str, stopped: bool) {
        if let Some(vm) = self.vms.iter_mut().find(|vm| vm.name == name) {
            vm.told = stopped;
        }
    }

    /// The terminal has enough to do.
    fn full(&self) -> bool {
        self.terminal.waiting.len() >= FULL
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
