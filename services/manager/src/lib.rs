//! The operator's console, and the manager's part in the life of VMs.
//!
//! Job: connects the machine's serial terminal to one channel of a VM at a time (its serial port, or a port of a virtio console), or to the prompt `vireo> `, where the
//! operator sees and rules VMs and servers. Place: the `manager` server, between `drivers/uart`, the VMs' UART models
//! and root, which carries out what is asked for. Trust: bytes from the terminal and from VMs are hostile: all
//! buffers are bounded. VM output is passed on as it is, so a guest can paint anything on the terminal it is attached
//! to. Root is trusted, the manager depends on it.
//!
//! [`Console`] is pure: bytes, answers and events in, [`Action`]s out.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod answers;
mod command;
mod editor;
#[cfg(test)]
mod noise_tests;
pub mod relay;
mod render;
mod scrollback;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use command::Command;
use editor::{Editor, Typed};
use ipc_schema::proto::{RootEvent, RootRequest, ServerInfo, VmInfo};
use scrollback::Scrollback;

/// The key that leads from a VM to the prompt, and back: Ctrl-].
pub const ESCAPE_KEY: u8 = 0x1d;
/// The prompt.
pub const PROMPT: &str = "vireo> ";

/// Bytes typed while root has not answered yet; more are dropped.
const MAX_TYPED_AHEAD: usize = 256;
/// Notices that wait until the operator looks; older ones are dropped.
const MAX_NOTICES: usize = 16;
/// Most pieces of one long answer.
const MAX_PIECES: u32 = 256;

/// What the manager is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send these bytes to the terminal.
    Terminal(Vec<u8>),
    /// Send these bytes to the VM's end of the channel with this number.
    ToVm(usize, Vec<u8>),
    /// Tell the VM behind this channel how large the window is: columns and rows.
    Resize(usize, (u16, u16)),
    /// Ask root; its answer goes to [`Console::answer`].
    Ask(RootRequest),
}

/// What an answer of root is wanted for.
#[derive(Clone, Debug)]
enum Wanted {
    VmTable(Vec<VmInfo>),
    /// Attach to this channel if its VM runs.
    Attach(usize, Vec<VmInfo>),
    /// Tell which VMs still run.
    Others(Vec<VmInfo>),
    ServerTable(Vec<ServerInfo>),
    CpuTable,
    Death(String),
    /// Say this when it is done.
    Done(String),
    Log(u32),
}

struct Channel {
    name: String,
    vm: String,
    port: Port,
    unseen: Scrollback,
}

/// What is at a VM's end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Nothing: the VM has no console at all.
    None,
    /// A serial port, or what else is not a terminal.
    Bytes,
    /// A terminal, whose size the guest can be told.
    Terminal,
}

/// A channel, as the console knows it from the system's description. Those of a VM stand together, its main one first.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its VM's name.
    pub vm: &'a str,
    /// What is at the VM's end.
    pub port: Port,
    /// The VM is started with the system.
    pub autostart: bool,
}

/// What an operator reads first at a VM's console.
fn intro(channel: &str) -> String {
    format!("[console of {channel}; Ctrl-] leads to the manager]\r\n")
}

/// The console.
pub struct Console {
    version: String,
    tsc_hz: u64,
    channels: Vec<Channel>,
    /// The channel whose console the terminal is, or was last.
    attached: Option<usize>,
    /// The operator is at the prompt.
    at_prompt: bool,
    editor: Editor,
    wanted: Option<Wanted>,
    pieces: u32,
    typed_ahead: VecDeque<u8>,
    notices: VecDeque<String>,
    actions: Vec<Action>,
}

impl Console {
    /// A console attached to the first of `channels` whose VM is started with the system and has something there; at the prompt if
    /// there is none.
    #[must_use]
    pub fn new(version: &str, tsc_hz: u64, channels: &[Described<'_>]) -> Self {
        let channel = |channel: &Described<'_>| Channel {
            name: channel.name.to_string(),
            vm: channel.vm.to_string(),
            port: channel.port,
            unseen: Scrollback::default(),
        };
        let starts = |c: &Described<'_>| c.port != Port::None && c.autostart;
        let first = channels.iter().position(starts);
        let mut console = Self {
            version: version.to_string(),
            tsc_hz,
            channels: channels.iter().map(channel).collect(),
            attached: first,
            at_prompt: first.is_none(),
            editor: Editor::default(),
            wanted: None,
            pieces: 0,
            typed_ahead: VecDeque::new(),
            notices: VecDeque::new(),
            actions: Vec::new(),
        };
        console.print(&format!("\r\n{version}\r\n"));
        match first.and_then(|first| channels.get(first)) {
            Some(channel) => console.print(&intro(channel.name)),
            None => console.prompt(),
        }
        console
    }

    /// Takes the actions that are due.
    #[must_use]
    pub fn take_actions(&mut self) -> Vec<Action> {
        core::mem::take(&mut self.actions)
    }

    /// Whether output of this channel goes straight to the terminal. If not, it is kept for later, so a VM that nobody
    /// looks at is never held up: its ring is to be emptied all the same.
    #[must_use]
    pub fn shows(&self, channel: usize) -> bool {
        !self.at_prompt && self.attached == Some(channel)
    }

    /// Whether a channel of this VM is shown.
    fn shows_vm(&self, vm: &str) -> bool {
        !self.at_prompt && self.attached_vm() == Some(vm)
    }

    /// Bytes from the terminal.
    pub fn input(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.wanted.is_none() {
                self.key(byte);
            } else if self.typed_ahead.len() < MAX_TYPED_AHEAD {
                self.typed_ahead.push_back(byte);
            }
        }
    }

    /// Bytes from a VM's console.
    pub fn vm_output(&mut self, channel: usize, bytes: &[u8]) {
        if self.shows(channel) {
            self.terminal(bytes);
        } else if let Some(channel) = self.channels.get_mut(channel) {
            channel.unseen.push(bytes);
        }
    }

    /// Something happened. Output that the VM still had is to be delivered first.
    pub fn event(&mut self, event: &RootEvent) {
        match event {
            RootEvent::VmStopped { vm, end } => {
                let notice = format!("[{vm} has stopped: {}]", render::end(*end));
                if !self.shows_vm(vm) || self.wanted.is_some() {
                    return self.notice(notice);
                }
                self.at_prompt = true;
                self.print(&format!("\r\n{notice}\r\n"));
                self.ask(RootRequest::Vms { first: 0 }, Wanted::Others(Vec::new()));
            }
            RootEvent::VmStarted { vm } => self.notice(format!("[{vm} has started]")),
            RootEvent::ServerDied { server, cause } => {
                self.notice(format!(
                    "[{server} has died: {}; `servers {server}` tells more]",
                    render::cause(*cause)
                ));
            }
            RootEvent::ServerRestarted { server } => self.notice(format!("[{server} runs again]")),
        }
    }

    /// A VM has ended by its own wish to be started again, and has been: whoever is attached stays so. Output that it
    /// still had is to be delivered first.
    pub fn reset(&mut self, vm: &str) {
        let notice = format!("[{vm} starts again: it asked for a reset]");
        if self.shows_vm(vm) {
            self.print(&format!("\r\n{notice}\r\n"));
        } else {
            self.notice(notice);
        }
    }

    /// After a command: shows the prompt, and takes what was typed meanwhile.
    fn settle(&mut self) {
        self.pieces = 0;
        if self.at_prompt {
            self.show_notices();
            self.prompt();
        }
        while self.wanted.is_none()
            && let Some(byte) = self.typed_ahead.pop_front()
        {
            self.key(byte);
        }
    }

    fn key(&mut self, byte: u8) {
        if !self.at_prompt {
            if byte == ESCAPE_KEY {
                self.at_prompt = true;
                self.print("\r\n");
                self.show_notices();
                return self.prompt();
            }
            if let Some(channel) = self.attached {
                return match self.actions.last_mut() {
                    Some(Action::ToVm(to, bytes)) if *to == channel => bytes.push(byte),
                    _ => self.actions.push(Action::ToVm(channel, Vec::from([byte]))),
                };
            }
        }
        if byte == ESCAPE_KEY {
            self.editor.clear();
            self.print("\r\n");
            return self.run(Command::Attach(None));
        }
        let mut echo = Vec::new();
        let typed = self.editor.feed(byte, &mut echo);
        self.terminal(&echo);
        match typed {
            Typed::Nothing => {}
            Typed::GivenUp => self.prompt(),
            Typed::Line(line) => match command::parse(&line) {
                Ok(command) => self.run(command),
                Err(text) => {
                    self.print(&format!("{text}\r\n"));
                    self.prompt();
                }
            },
        }
    }

    fn run(&mut self, command: Command) {
        let done = |text: String| Wanted::Done(text + "\r\n");
        match command {
            Command::Nothing => {}
            Command::Help => self.print(&command::help()),
            Command::Version => {
                let text = format!("{}\r\n", self.version);
                self.print(&text);
            }
            Command::Vms => self.ask(RootRequest::Vms { first: 0 }, Wanted::VmTable(Vec::new())),
            Command::Attach(name) => self.attach(name.as_deref()),
            Command::Resize(name, size) => self.resize(&name, size),
            Command::Start(vm) => {
                let text = format!("{vm} is being started");
                self.ask(RootRequest::Start { vm }, done(text));
            }
            Command::Stop(vm) => {
                let text = format!("the power button of {vm} has been pressed");
                self.ask(RootRequest::Stop { vm }, done(text));
            }
            Command::Kill(vm) => {
                let text = format!("{vm} has been killed");
                self.ask(RootRequest::Kill { vm }, done(text));
            }
            Command::Servers => self.ask(
                RootRequest::Servers { first: 0 },
                Wanted::ServerTable(Vec::new()),
            ),
            Command::Cpus => self.ask(RootRequest::Cpus, Wanted::CpuTable),
            Command::Death(server) => {
                self.ask(
                    RootRequest::Death {
                        server: server.clone(),
                    },
                    Wanted::Death(server),
                );
            }
            Command::Restart(server) => {
                let text = format!("{server} has been killed and is started again");
                self.ask(RootRequest::Restart { server }, done(text));
            }
            Command::Spin(server) => {
                let text = format!("{server} runs in a circle");
                self.ask(RootRequest::Spin { server }, done(text));
            }
            Command::Scribble(server, all) => {
                let text = format!("{server} has scribbled over its memory and goes on");
                self.ask(RootRequest::Scribble { server, all }, done(text));
            }
            Command::Hang(server) => {
                let text = format!("{server} is suspended; `restart {server}` ends that");
                self.ask(RootRequest::Hang { server }, done(text));
            }
            Command::Log(records) => {
                self.ask(RootRequest::LogTail { records }, Wanted::Log(records))
            }
        }
        if self.wanted.is_none() {
            self.settle();
        }
    }

    fn attach(&mut self, name: Option<&str>) {
        let channel = match name {
            Some(name) => self.channel(name),
            None => self.attached,
        };
        let portless = channel.and_then(|channel| self.channels.get(channel));
        if let Some(channel) = portless.filter(|channel| channel.port == Port::None) {
            let text = format!("{} has no console to attach to\r\n", channel.name);
            return self.print(&text);
        }
        match (channel, name) {
            (Some(channel), _) => {
                self.ask(
                    RootRequest::Vms { first: 0 },
                    Wanted::Attach(channel, Vec::new()),
                );
            }
            (None, Some(name)) => self.unknown(name),
            (None, None) => self.print("no VM was attached before; usage: attach NAME\r\n"),
        }
    }

    /// There is no such channel: names those of the VM, if it is one of a VM's.
    fn unknown(&mut self, name: &str) {
        let vm = name.split('.').next().unwrap_or(name);
        let names = self.channels.iter().filter(|channel| channel.vm == vm);
        let names: Vec<&str> = names.map(|channel| channel.name.as_str()).collect();
        let text = if names.is_empty() {
            format!("there is no VM `{name}`; `vms` lists all\r\n")
        } else {
            format!("there is no `{name}`, but: {}\r\n", names.join(", "))
        };
        self.print(&text);
    }

    fn resize(&mut self, name: &str, (columns, rows): (u16, u16)) {
        let Some(number) = self.channel(name) else {
            return self.unknown(name);
        };
        let channel = self.channels.get(number);
        let port = channel.map_or(Port::None, |channel| channel.port);
        let name = channel.map_or(name, |channel| &channel.name);
        if port != Port::Terminal {
            let text = format!("{name} is no terminal whose guest could be told its size\r\n");
            return self.print(&text);
        }
        let text = format!("{name} is told that it has {columns} columns and {rows} rows\r\n");
        self.actions.push(Action::Resize(number, (columns, rows)));
        self.print(&text);
    }

    fn ask(&mut self, request: RootRequest, wanted: Wanted) {
        self.pieces += 1;
        if self.pieces > MAX_PIECES {
            return self.print("[the answer is too long]\r\n");
        }
        self.wanted = Some(wanted);
        self.actions.push(Action::Ask(request));
    }

    /// The channel of this name; or the main one of the VM of this name.
    fn channel(&self, name: &str) -> Option<usize> {
        let by = |matches: fn(&Channel, &str) -> bool| {
            self.channels.iter().position(|c| matches(c, name))
        };
        by(|c, name| c.name == name).or_else(|| by(|c, name| c.vm == name))
    }

    fn attached_vm(&self) -> Option<&str> {
        self.channels
            .get(self.attached?)
            .map(|channel| channel.vm.as_str())
    }

    /// Tells the operator now if he is at the prompt, else when he comes there.
    fn notice(&mut self, notice: String) {
        if self.notices.len() >= MAX_NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
        if self.at_prompt && self.wanted.is_none() {
            self.print("\r\n");
            self.show_notices();
            self.prompt();
            let line = self.editor.line().to_vec();
            self.terminal(&line);
        }
    }

    fn show_notices(&mut self) {
        while let Some(notice) = self.notices.pop_front() {
            self.print(&notice);
            self.print("\r\n");
        }
    }

    fn prompt(&mut self) {
        self.print(PROMPT);
    }

    fn print(&mut self, text: &str) {
        self.terminal(text.as_bytes());
    }

    fn terminal(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.actions.last_mut() {
            Some(Action::Terminal(earlier)) => earlier.extend_from_slice(bytes),
            _ => self.actions.push(Action::Terminal(bytes.to_vec())),
        }
    }
}
