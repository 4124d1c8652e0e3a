//! The operator's commands.

use alloc::format;
use alloc::string::{String, ToString};
use ipc_schema::manifest::name_ok;

/// Log records that `log` shows without a number.
pub const LOG_RECORDS: u32 = 50;

/// A command, its names not yet looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// An empty line.
    Nothing,
    Help,
    Vms,
    /// Without a name: back to the VM that was attached last.
    Attach(Option<String>),
    /// The size of a channel's window: columns and rows.
    Resize(String, (u16, u16)),
    Start(String),
    Stop(String),
    Kill(String),
    Servers,
    Cpus,
    Death(String),
    Restart(String),
    Hang(String),
    Spin(String),
    /// Over all of its state page?
    Scribble(String, bool),
    Log(u32),
    Version,
}

/// Usage and meaning of each command: what `help` shows.
const COMMANDS: [(&str, &str); 16] = [
    ("help", "this list"),
    ("vms", "the virtual machines"),
    (
        "attach [NAME]",
        "this terminal becomes NAME's console (or the last one's); Ctrl-] leads back here",
    ),
    (
        "resize NAME COLUMNSxROWS",
        "tells the guest how large the window of its console NAME is, as resize linux.hvc0 132x43",
    ),
    ("start NAME", "starts a virtual machine"),
    (
        "stop NAME",
        "presses its power button: the guest shuts down by itself",
    ),
    ("kill NAME", "ends it at once"),
    ("servers", "all servers with memory and CPU time"),
    ("servers NAME", "how that server died last"),
    ("cpus", "the processors: how busy, and what they share"),
    (
        "restart NAME",
        "kills a server; it is started again with its state",
    ),
    (
        "hang NAME",
        "suspends a server, to see what hangs on it: for tests",
    ),
    (
        "spin NAME",
        "has a server run in a circle, to see who notices: for tests",
    ),
    (
        "scribble NAME [all]",
        "has a server write noise over its heap, its data and one slot or all of its state page, and go on: for tests",
    ),
    (
        "log [COUNT]",
        "the last log records (50); `cargo xtask run` puts them into words",
    ),
    ("version", "what is running here"),
];

/// The list that `help` shows.
pub fn help() -> String {
    let mut text = String::new();
    for (usage, meaning) in COMMANDS {
        text.push_str(&format!("  {usage:<24} {meaning}\r\n"));
    }
    text
}

/// Understands a line; the error is what to tell the operator.
pub fn parse(line: &str) -> Result<Command, String> {
    let mut words = line.split_ascii_whitespace();
    let Some(word) = words.next() else {
        return Ok(Command::Nothing);
    };
    let argument = words.next();
    let second = words.next();
    let seconds = match word {
        "resize" => second.is_some() == argument.is_some(),
        "scribble" => second.is_none_or(|second| second == "all"),
        _ => second.is_none(),
    };
    if words.next().is_some() || !seconds {
        return Err(usage(word));
    }
    let name = || match argument {
        Some(name) if name_ok(name) => Ok(name.to_string()),
        Some(name) => Err(format!(
            "`{name}` is no name: a-z A-Z 0-9 - _ . only, at most 32"
        )),
        None => Err(usage(word)),
    };
    let alone = |command| {
        if argument.is_none() {
            Ok(command)
        } else {
            Err(usage(word))
        }
    };
    match word {
        "help" | "?" => alone(Command::Help),
        "vms" => alone(Command::Vms),
        "attach" if argument.is_none() => Ok(Command::Attach(None)),
        "attach" => Ok(Command::Attach(Some(name()?))),
        "resize" => match second.and_then(size) {
            Some(size) => Ok(Command::Resize(name()?, size)),
            None => Err(usage(word)),
        },
        "start" => Ok(Command::Start(name()?)),
        "stop" => Ok(Command::Stop(name()?)),
        "kill" => Ok(Command::Kill(name()?)),
        "servers" if argument.is_none() => Ok(Command::Servers),
        "servers" => Ok(Command::Death(name()?)),
        "cpus" => alone(Command::Cpus),
        "restart" => Ok(Command::Restart(name()?)),
        "hang" => Ok(Command::Hang(name()?)),
        "spin" => Ok(Command::Spin(name()?)),
        "scribble" => Ok(Command::Scribble(name()?, second.is_some())),
        "log" => match argument.map(str::parse) {
            None => Ok(Command::Log(LOG_RECORDS)),
            Some(Ok(count)) => Ok(Command::Log(count)),
            Some(Err(_)) => Err(usage(word)),
        },
        "version" => alone(Command::Version),
        _ => Err(format!("unknown command `{word}`; `help` lists all")),
    }
}

/// Columns and rows, as `132x43`; neither is 0.
fn size(text: &str) -> Option<(u16, u16)> {
    let (columns, rows) = text.split_once('x')?;
    let size = (columns.parse().ok()?, rows.parse().ok()?);
    (size.0 != 0 && size.1 != 0).then_some(size)
}

/// How a command is used, from the list.
fn usage(word: &str) -> String {
    let same = |usage: &&str| usage.split(' ').next() == Some(word);
    let mut usages = COMMANDS.iter().map(|(usage, _)| *usage).filter(same);
    let Some(first) = usages.next() else {
        return format!("unknown command `{word}`; `help` lists all");
    };
    let text = format!("usage: {first}");
    usages.fold(text, |text, usage| text + ", or " + usage)
}
