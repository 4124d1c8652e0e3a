//! A day at the console.

mod answers;

use super::*;
use ipc_schema::proto::{
    Cause, CpuInfo, CpuState, DeathRecord, LogRecord, PendingCall, Refusal, Registers,
    RootResponse, ServerState, VmEnd, VmState,
};
use std::boxed::Box;
use std::string::String;
use std::vec;

fn vm(name: &str, state: VmState) -> VmInfo {
    VmInfo {
        name: name.into(),
        state,
        memory: 256 << 20,
        vcpus: 1,
        uptime: 2_500_000_000,
        cpu: (state != VmState::Stopped).then_some(1),
    }
}

pub(crate) fn both(a: VmState, b: VmState) -> Option<RootResponse> {
    Some(RootResponse::Vms {
        vms: vec![vm("a", a), vm("b", b)],
        total: 2,
    })
}

/// VMs of these names, each with a serial port and started with the system.
pub(crate) fn described<'a>(names: &[&'a str]) -> Vec<Described<'a>> {
    let vm = |name: &&'a str| Described {
        name,
        vm: name,
        port: Port::Bytes,
        autostart: true,
    };
    names.iter().map(vm).collect()
}

/// A console with the VMs a and b, and what a test has to say to it.
struct Bench(Console);

impl Bench {
    fn new() -> Self {
        let mut console = Console::new("Vireo 0.1", 1_000_000_000, &described(&["a", "b"]));
        let _ = console.take_actions();
        Self(console)
    }

    fn at_prompt() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.types("\x1d"), "\r\nvireo> ");
        bench
    }

    /// What the terminal shows; there must be no other action.
    fn shown(&mut self) -> String {
        let mut text = String::new();
        for action in self.0.take_actions() {
            match action {
                Action::Terminal(bytes) => text += core::str::from_utf8(&bytes).unwrap(),
                other => panic!("{other:?} after {text:?}"),
            }
        }
        text
    }

    fn types(&mut self, text: &str) -> String {
        self.0.input(text.as_bytes());
        self.shown()
    }

    /// Types a command that must lead to this request.
    fn asks(&mut self, line: &str, request: RootRequest) {
        self.0.input(line.as_bytes());
        self.0.input(b"\r");
        assert_eq!(
            self.0.take_actions().last(),
            Some(&Action::Ask(request)),
            "{line}"
        );
    }

    fn answers(&mut self, response: Option<RootResponse>) -> String {
        self.0.answer(response);
        self.shown()
    }
}

#[test]
fn starts_at_the_first_vm_and_passes_bytes() {
    let mut console = Console::new("Vireo 0.1", 1, &described(&["a", "b"]));
    let [Action::Terminal(text)] = &console.take_actions()[..] else {
        panic!()
    };
    assert_eq!(
        text,
        b"\r\nVireo 0.1\r\n[console of a; Ctrl-] leads to the manager]\r\n"
    );
    console.input(b"ls\r\x03");
    assert_eq!(
        console.take_actions(),
        [Action::ToVm(0, b"ls\r\x03".to_vec())]
    );
    console.vm_output(0, b"\x1b[1mx\xff");
    assert_eq!(
        console.take_actions(),
        [Action::Terminal(b"\x1b[1mx\xff".to_vec())]
    );
    console.vm_output(7, b"no such channel");
    assert_eq!(console.take_actions(), []);
    assert_eq!(
        Console::new("v", 1, &[]).take_actions(),
        [Action::Terminal(b"\r\nv\r\nvireo> ".to_vec())]
    );
}

#[test]
fn starts_at_a_vm_that_runs_and_can_speak() {
    let mut vms = described(&["later", "mute", "c"]);
    vms[0].autostart = false;
    vms[1].port = Port::None;
    let mut bench = Bench(Console::new("v", 1, &vms));
    assert_eq!(
        bench.shown(),
        "\r\nv\r\n[console of c; Ctrl-] leads to the manager]\r\n"
    );
    assert!(bench.0.shows(2));
    bench.types("\x1d");
    assert_eq!(
        bench.types("attach mute\r"),
        "attach mute\r\nmute has no console to attach to\r\nvireo> "
    );
    let mut nobody = Bench(Console::new("v", 1, &vms[..2]));
    assert_eq!(nobody.shown(), "\r\nv\r\nvireo> ");
}

#[test]
fn a_reset_leaves_the_operator_where_he_is() {
    let mut bench = Bench::new();
    bench.0.reset("a");
    assert_eq!(
        bench.shown(),
        "\r\n[a starts again: it asked for a reset]\r\n"
    );
    assert!(bench.0.shows(0));
    bench.0.reset("b");
    assert_eq!(bench.shown(), "", "not in the middle of a's console");
    assert_eq!(
        bench.types("\x1d"),
        "\r\n[b starts again: it asked for a reset]\r\nvireo> "
    );
}

#[test]
fn editing() {
    let mut bench = Bench::at_prompt();
    assert_eq!(bench.types("hx\x7fel\x08"), "hx\x08 \x08el\x08 \x08");
    assert_eq!(
        bench.types("\x15\x7f"),
        "\x08 \x08\x08 \x08",
        "nothing to erase any more"
    );
    assert_eq!(bench.types("versio\x03"), "versio^C\r\nvireo> ");
    assert_eq!(
        bench.types("version\r\n"),
        "version\r\nVireo 0.1\r\nvireo> ",
        "CR LF is one end of line"
    );
    assert_eq!(bench.types("\n"), "\r\nvireo> ");
    assert_eq!(bench.types("\t\u{e9}"), "\x07\x07\x07");
    assert_eq!(bench.types("\x1b[A"), "version");
    assert_eq!(bench.types("\x1b[A"), "\x07", "no older line");
    assert_eq!(bench.types("\x1b[B\x1b[3~\x1bx"), "\x08 \x08".repeat(7));
    let long = bench.types(&"y".repeat(200));
    assert_eq!(long, "y".repeat(128) + &"\x07".repeat(72));
}

#[test]
fn unknown_commands_and_bad_arguments() {
    let mut bench = Bench::at_prompt();
    for (line, text) in [
        ("hlep", "unknown command `hlep`; `help` lists all"),
        ("hlep x y", "unknown command `hlep`; `help` lists all"),
        ("start", "usage: start NAME"),
        ("kill a b", "usage: kill NAME"),
        ("vms a", "usage: vms"),
        ("servers a b", "usage: servers, or servers NAME"),
        ("log x", "usage: log [COUNT]"),
        (
            "stop a/b",
            "`a/b` is no name: a-z A-Z 0-9 - _ . only, at most 32",
        ),
        ("attach c", "there is no VM `c`; `vms` lists all"),
    ] {
        assert_eq!(
            bench.types(&format!("{line}\r")),
            format!("{line}\r\n{text}\r\nvireo> ")
        );
    }
    let help = bench.types("help\r");
    for word in [
        "vms", "attach", "start", "stop", "kill", "servers", "restart", "log", "version",
    ] {
        assert!(
            help.contains(&format!("\r\n  {word}")),
            "{word} is missing in {help}"
        );
    }
}

#[test]
fn vms_are_ruled() {
    let mut bench = Bench::at_prompt();
    bench.asks("vms", RootRequest::Vms { first: 0 });
    let table = bench.answers(both(VmState::Running, VmState::Stopped));
    assert!(
        table.contains("* a                running   256.0 MiB    1      1    2.500 s\r\n"),
        "{table}"
    );
    assert!(
        table.contains("  b                stopped   256.0 MiB    1      -    -\r\nvireo> "),
        "{table}"
    );
    bench.asks("start b", RootRequest::Start { vm: "b".into() });
    assert_eq!(
        bench.answers(Some(RootResponse::Done)),
        "b is being started\r\nvireo> "
    );
    bench.asks("stop b", RootRequest::Stop { vm: "b".into() });
    assert_eq!(
        bench.answers(Some(RootResponse::Done)),
        "the power button of b has been pressed\r\nvireo> "
    );
    bench.asks("kill b", RootRequest::Kill { vm: "b".into() });
    let text = bench.answers(Some(RootResponse::Refused(Refusal::NotRunning)));
    assert_eq!(text, "refused: it does not run\r\nvireo> ");
    bench.asks(
        "restart a.uart0",
        RootRequest::Restart {
            server: "a.uart0".into(),
        },
    );
    assert_eq!(bench.answers(None), "root does not answer\r\nvireo> ");
    bench.asks(
        "hang a.uart0",
        RootRequest::Hang {
            server: "a.uart0".into(),
        },
    );
    assert_eq!(
        bench.answers(Some(RootResponse::Done)),
        "a.uart0 is suspended; `restart a.uart0` ends that\r\nvireo> "
    );
    bench.asks(
        "spin a.uart0",
        RootRequest::Spin {
            server: "a.uart0".into(),
        },
    );
    assert_eq!(
        bench.answers(Some(RootResponse::Done)),
        "a.uart0 runs in a circle\r\nvireo> "
    );
    for (line, all) in [("scribble a.uart0", false), ("scribble a.uart0 all", true)] {
        let server = "a.uart0".into();
        bench.asks(line, RootRequest::Scribble { server, all });
        assert_eq!(
            bench.answers(Some(RootResponse::Done)),
            "a.uart0 has scribbled over its memory and goes on\r\nvireo> "
        );
    }
    bench.asks("kill b", RootRequest::Kill { vm: "b".into() });
    let text = bench.answers(Some(RootResponse::Death(None)));
    assert_eq!(text, "root's answer makes no sense\r\nvireo> ");
}

#[test]
fn attaching_and_what_was_missed() {
    let mut bench = Bench::new();
    bench.0.vm_output(1, b"hello from b");
    assert_eq!(bench.shown(), "");
    assert_eq!(bench.types("\x1d"), "\r\nvireo> ");
    bench.0.vm_output(0, b"and a");
    bench.asks("attach b", RootRequest::Vms { first: 0 });
    assert_eq!(
        bench.answers(both(VmState::Running, VmState::Running)),
        "[console of b; Ctrl-] leads to the manager]\r\nhello from b"
    );
    assert!(bench.0.shows(1) && !bench.0.shows(0));
    bench.0.input(b"x");
    assert_eq!(bench.0.take_actions(), [Action::ToVm(1, b"x".to_vec())]);
    // Ctrl-] to and fro.
    assert_eq!(bench.types("\x1d"), "\r\nvireo> ");
    bench.0.vm_output(1, &[b'z'; 9000]);
    bench.0.input(b"\x1d");
    assert_eq!(
        bench.0.take_actions()[1],
        Action::Ask(RootRequest::Vms { first: 0 })
    );
    let text = bench.answers(both(VmState::Running, VmState::Running));
    assert!(text.ends_with(&format!("[808 bytes skipped]\r\n{}", "z".repeat(8192))));
    // What is typed before root has answered is not lost, and the rest goes to the VM.
    bench.0.input(b"\x1dattach a\rls\r");
    let _ = bench.0.take_actions();
    bench.0.answer(both(VmState::Running, VmState::Running));
    let actions = bench.0.take_actions();
    assert_eq!(actions.last(), Some(&Action::ToVm(0, b"ls\r".to_vec())));
}

#[test]
fn a_stopped_vm_is_not_attached() {
    let mut bench = Bench::at_prompt();
    bench.0.vm_output(1, b"bye");
    bench.asks("attach b", RootRequest::Vms { first: 0 });
    assert_eq!(
        bench.answers(both(VmState::Running, VmState::Stopped)),
        "b does not run; `start b` starts it\r\nits last output was:\r\nbye\r\nvireo> "
    );
}

#[test]
fn the_attached_vm_stops() {
    let mut bench = Bench::new();
    bench.0.event(&RootEvent::VmStopped {
        vm: "b".into(),
        end: VmEnd::Reset,
    });
    assert_eq!(bench.shown(), "", "not in the middle of a's console");
    bench.0.event(&RootEvent::VmStopped {
        vm: "a".into(),
        end: VmEnd::PowerOff,
    });
    assert_eq!(
        bench.0.take_actions(),
        [
            Action::Terminal(b"\r\n[a has stopped: it powered itself off]\r\n".to_vec()),
            Action::Ask(RootRequest::Vms { first: 0 })
        ]
    );
    assert_eq!(
        bench.answers(both(VmState::Stopped, VmState::Stopping)),
        "[still running: b; `attach NAME` shows one]\r\n[b has stopped: it asked for a reset]\r\nvireo> "
    );
    let mut bench = Bench::new();
    bench.0.event(&RootEvent::VmStopped {
        vm: "a".into(),
        end: VmEnd::DebugExit(3),
    });
    let _ = bench.0.take_actions();
    assert_eq!(
        bench.answers(both(VmState::Stopped, VmState::Stopped)),
        "[no VM is running now]\r\nvireo> "
    );
}

#[test]
fn notices_do_not_eat_the_line() {
    let mut bench = Bench::at_prompt();
    bench.types("serv");
    let cause = Cause::Fault {
        vector: 14,
        error: 6,
        address: 0x10,
    };
    bench.0.event(&RootEvent::ServerDied {
        server: "a.uart0".into(),
        cause,
    });
    assert_eq!(
        bench.shown(),
        "\r\n[a.uart0 has died: #PF page fault, vector 14, error code 0x6, address 0x10; `servers a.uart0` tells \
         more]\r\nvireo> serv"
    );
    bench.asks("ers", RootRequest::Servers { first: 0 });
    bench.0.event(&RootEvent::ServerRestarted {
        server: "a.uart0".into(),
    });
    assert_eq!(bench.shown(), "", "not before the answer");
    let text = bench.answers(Some(RootResponse::Servers {
        servers: vec![],
        total: 0,
    }));
    assert!(text.ends_with("\r\n[a.uart0 runs again]\r\nvireo> "));
}

/// A VM with a serial port, and a virtio console of two ports; and one that has a console only.
fn with_ports() -> Bench {
    let channel = |name, vm, port| Described {
        name,
        vm,
        port,
        autostart: true,
    };
    let channels = [
        channel("a", "a", Port::Bytes),
        channel("a.hvc0", "a", Port::Terminal),
        channel("a.data", "a", Port::Bytes),
        channel("b.hvc0", "b", Port::Terminal),
    ];
    let mut bench = Bench(Console::new("v", 1, &channels));
    let _ = bench.shown();
    bench
}

#[test]
fn ports_are_attached_by_name() {
    let mut bench = with_ports();
    bench.0.vm_output(2, b"from the second port");
    let _ = bench.types("\x1d");
    bench.asks("attach a.data", RootRequest::Vms { first: 0 });
    assert_eq!(
        bench.answers(both(VmState::Running, VmState::Running)),
        "[console of a.data; Ctrl-] leads to the manager]\r\nfrom the second port"
    );
    bench.0.input(b"x");
    assert_eq!(bench.0.take_actions(), [Action::ToVm(2, b"x".to_vec())]);
    let _ = bench.types("\x1d");
    bench.asks("vms", RootRequest::Vms { first: 0 });
    let table = bench.answers(both(VmState::Running, VmState::Running));
    assert!(table.contains("* a  "), "{table}");
    // A VM's name alone leads to its main channel, whatever that is.
    bench.asks("attach b", RootRequest::Vms { first: 0 });
    let text = bench.answers(both(VmState::Running, VmState::Running));
    assert!(text.starts_with("[console of b.hvc0;"), "{text}");
    // The end of a VM is the end of each of its channels.
    bench.0.event(&RootEvent::VmStopped {
        vm: "b".into(),
        end: VmEnd::PowerOff,
    });
    let stopped = Action::Terminal(b"\r\n[b has stopped: it powered itself off]\r\n".to_vec());
    assert_eq!(bench.0.take_actions().first(), Some(&stopped));
    let _ = bench.answers(both(VmState::Running, VmState::Stopped));
    let text = bench.types("attach a.nope\r");
    assert!(
        text.contains("there is no `a.nope`, but: a, a.hvc0, a.data"),
        "{text}"
    );
    bench.asks("attach b.hvc0", RootRequest::Vms { first: 0 });
    let text = bench.answers(both(VmState::Running, VmState::Stopped));
    assert!(
        text.starts_with("b does not run; `start b` starts it"),
        "{text}"
    );
}

#[test]
fn terminals_have_sizes() {
    let mut bench = with_ports();
    let _ = bench.types("\x1d");
    bench.0.input(b"resize a.hvc0 132x43\r");
    let actions = bench.0.take_actions();
    assert!(
        actions.contains(&Action::Resize(1, (132, 43))),
        "{actions:?}"
    );
    for (line, text) in [
        (
            "resize a 80x25",
            "a is no terminal whose guest could be told its size",
        ),
        ("resize c 80x25", "there is no VM `c`; `vms` lists all"),
        ("resize a.hvc0 80", "usage: resize NAME COLUMNSxROWS"),
        ("resize a.hvc0 0x25", "usage: resize NAME COLUMNSxROWS"),
        ("resize a.hvc0 80x65536", "usage: resize NAME COLUMNSxROWS"),
        ("resize a.hvc0", "usage: resize NAME COLUMNSxROWS"),
        ("resize", "usage: resize NAME COLUMNSxROWS"),
        ("resize a.hvc0 80x25 x", "usage: resize NAME COLUMNSxROWS"),
        ("attach a.hvc0 80x25", "usage: attach [NAME]"),
    ] {
        assert_eq!(
            bench.types(&format!("{line}\r")),
            format!("{line}\r\n{text}\r\nvireo> ")
        );
    }
}
