//! The relay between real rings, with a driver, two UARTs and root at their other ends.

use super::*;
use crate::Port;
use ipc_schema::proto::{Cause, LogRecord, Refusal, VmInfo, VmState};
use proptest::prelude::*;
use std::format;
use std::vec;

/// The far end of two rings.
struct End {
    tx: &'static RingPage,
    rx: &'static RingPage,
}

impl End {
    fn new() -> Self {
        let page = || -> &'static RingPage { std::boxed::Box::leak(std::boxed::Box::default()) };
        Self {
            tx: page(),
            rx: page(),
        }
    }
    fn pages(&self) -> Pages<'static> {
        Pages {
            tx: self.tx,
            rx: self.rx,
        }
    }
    /// Sends to the relay; true if it must be signalled.
    fn sends(&self, bytes: &[u8]) -> bool {
        let mut producer = Producer::new(self.rx);
        assert_eq!(producer.push(bytes), bytes.len());
        producer.needs_signal()
    }
    /// Takes what the relay sent.
    fn takes(&self) -> String {
        let mut buffer = [0; CAPACITY];
        let count = Consumer::new(self.tx).pop(&mut buffer);
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }
}

struct Bench {
    relay: Relay<'static>,
    terminal: End,
    a: End,
    b: End,
    asked: Vec<RootRequest>,
    states: [VmState; 2],
    events: Vec<RootEvent>,
}

impl Bench {
    fn new() -> Self {
        let (terminal, a, b) = (End::new(), End::new(), End::new());
        let vm = |name, pages: Option<Pages<'static>>| {
            let described = Described {
                name,
                vm: name,
                port: pages.map_or(Port::None, |_| Port::Bytes),
                autostart: true,
            };
            (described, pages)
        };
        let vms = [
            vm("a", Some(a.pages())),
            vm("b", Some(b.pages())),
            vm("mute", None),
        ];
        let relay = Relay::new("Vireo", 1000, &terminal.pages(), &vms);
        let mut bench = Self {
            relay,
            terminal,
            a,
            b,
            asked: vec![],
            states: [VmState::Running; 2],
            events: vec![],
        };
        bench.works();
        assert_eq!(
            bench.relay.take_signals(),
            Signals {
                terminal: true,
                channels: vec![0, 1]
            },
            "the first signal"
        );
        assert!(
            bench
                .terminal
                .takes()
                .contains("[console of a; Ctrl-] leads to the manager]")
        );
        bench
    }

    fn works(&mut self) {
        let (asked, states) = (&mut self.asked, &self.states);
        while self.relay.work(|request| answer(asked, states, request)) {}
    }

    fn reports(&mut self, vm: u64, report: VmmReport) -> bool {
        let (asked, states) = (&mut self.asked, &self.states);
        let known = self
            .relay
            .report(vm, report, |request| answer(asked, states, request));
        self.works();
        known
    }

    /// Types on the terminal and shows what comes back.
    fn types(&mut self, text: &str) -> String {
        self.terminal.sends(text.as_bytes());
        self.works();
        self.terminal.takes()
    }
}

fn answer(
    asked: &mut Vec<RootRequest>,
    states: &[VmState; 2],
    request: &RootRequest,
) -> Option<RootResponse> {
    asked.push(request.clone());
    match request {
        RootRequest::Vms { .. } => {
            let vm = |(name, state): (&str, &VmState)| VmInfo {
                name: name.into(),
                state: *state,
                memory: 0,
                vcpus: 1,
                uptime: 0,
                cpu: None,
            };
            Some(RootResponse::Vms {
                vms: ["a", "b"].into_iter().zip(states).map(vm).collect(),
                total: 2,
            })
        }
        _ => Some(RootResponse::Done),
    }
}

#[test]
fn bytes_go_both_ways_with_one_signal_each() {
    let mut bench = Bench::new();
    assert!(bench.a.sends(b"login: "), "the relay sleeps");
    assert!(
        Consumer::new(bench.terminal.tx).prepare_sleep(),
        "so does the driver"
    );
    bench.works();
    assert_eq!(
        bench.relay.take_signals(),
        Signals {
            terminal: true,
            channels: vec![]
        }
    );
    assert_eq!(bench.terminal.takes(), "login: ");
    assert!(Consumer::new(bench.a.tx).prepare_sleep());
    assert!(bench.terminal.sends(b"root\r"));
    bench.works();
    assert_eq!(
        bench.relay.take_signals(),
        Signals {
            terminal: false,
            channels: vec![0]
        }
    );
    assert_eq!(bench.a.takes(), "root\r");
    bench.works();
    assert_eq!(bench.relay.take_signals(), Signals::default());
}

/// Two channels of one VM: a size goes to the one that is meant, and all of its last words are heard.
#[test]
fn a_size_is_left_beside_the_ring() {
    let (terminal, serial, hvc) = (End::new(), End::new(), End::new());
    let channel = |name, port, end: &End| {
        let described = Described {
            name,
            vm: "a",
            port,
            autostart: true,
        };
        (described, Some(end.pages()))
    };
    let channels = [
        channel("a", Port::Bytes, &serial),
        channel("a.hvc0", Port::Terminal, &hvc),
    ];
    let mut relay = Relay::new("Vireo", 1000, &terminal.pages(), &channels);
    let (mut asked, states) = (vec![], [VmState::Running; 2]);
    let work = |relay: &mut Relay<'_>, asked: &mut Vec<RootRequest>| {
        while relay.work(|request| answer(asked, &states, request)) {}
    };
    work(&mut relay, &mut asked);
    let _ = relay.take_signals();
    terminal.sends(b"\x1dresize a.hvc0 132x43\r");
    work(&mut relay, &mut asked);
    assert_eq!(relay.take_signals().channels, [1]);
    assert_eq!(Consumer::new(hvc.tx).note(), 132 | 43 << 16);
    assert_eq!(Consumer::new(serial.tx).note(), 0);
    hvc.sends(b"last words");
    assert!(
        relay.report(0, VmmReport::Ended(VmEnd::PowerOff), |request| answer(
            &mut asked, &states, request
        ))
    );
    assert!(!relay.report(1, VmmReport::Running, |_| None), "one VM");
    let _ = terminal.takes();
    terminal.sends(b"attach a.hvc0\r");
    work(&mut relay, &mut asked);
    let text = terminal.takes();
    assert!(
        text.ends_with("[console of a.hvc0; Ctrl-] leads to the manager]\r\nlast words"),
        "{text}"
    );
}

#[test]
fn a_slow_terminal_holds_up_only_who_is_looked_at() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        for end in [&bench.a, &bench.b] {
            let mut producer = Producer::new(end.rx);
            producer.push(&[b'x'; 1000]);
        }
        bench.works();
    }
    assert_eq!(
        Producer::new(bench.b.rx).room(),
        CAPACITY,
        "b is not held up"
    );
    assert_eq!(Producer::new(bench.a.rx).room(), 0, "a is");
    // The driver takes a little: everything moves on, and a, asleep for room, is woken.
    assert!(Producer::new(bench.a.rx).prepare_sleep());
    let _ = bench.relay.take_signals();
    let mut total = 0;
    loop {
        let count = bench.terminal.takes().len();
        bench.works();
        total += count;
        if count == 0 {
            break;
        }
    }
    assert!(bench.relay.take_signals().channels.contains(&0));
    assert_eq!(Producer::new(bench.a.rx).room(), CAPACITY);
    assert!(total > 2 * CAPACITY);
}

#[test]
fn the_operator_is_told_of_an_end_once() {
    let mut bench = Bench::new();
    bench.a.sends(b"reboot: Power down\r\n");
    bench.states[0] = VmState::Stopped;
    assert!(bench.reports(0, VmmReport::Ended(VmEnd::PowerOff)));
    assert_eq!(
        bench.terminal.takes(),
        "reboot: Power down\r\n\r\n[a has stopped: it powered itself off]\r\n[still running: b; `attach NAME` shows \
         one]\r\nvireo> "
    );
    assert_eq!(
        bench.asked[0],
        RootRequest::Ended {
            vm: "a".into(),
            end: VmEnd::PowerOff
        }
    );
    // Root says so too.
    bench.events = vec![RootEvent::VmStopped {
        vm: "a".into(),
        end: VmEnd::PowerOff,
    }];
    let events = core::mem::take(&mut bench.events);
    bench
        .relay
        .events(|_| Some(RootResponse::Events(events.clone())));
    bench.works();
    assert_eq!(bench.terminal.takes(), "");
    assert!(!bench.reports(9, VmmReport::Running) && !bench.reports(u64::MAX, VmmReport::Running));
}

#[test]
fn a_reset_keeps_the_terminal_at_its_vm() {
    let mut bench = Bench::new();
    bench.a.sends(b"reboot: Restarting system\r\n");
    assert!(bench.reports(0, VmmReport::Ended(VmEnd::Reset)));
    let events = vec![
        RootEvent::VmStopped {
            vm: "a".into(),
            end: VmEnd::Reset,
        },
        RootEvent::VmStarted { vm: "a".into() },
    ];
    bench
        .relay
        .events(|_| Some(RootResponse::Events(events.clone())));
    assert!(bench.reports(0, VmmReport::Running));
    bench.a.sends(b"BIOS\r\n");
    bench.works();
    assert_eq!(
        bench.terminal.takes(),
        "reboot: Restarting system\r\n\r\n[a starts again: it asked for a reset]\r\nBIOS\r\n"
    );
    assert_eq!(bench.types("ls\r"), "");
    assert_eq!(bench.a.takes(), "ls\r");
}

#[test]
fn a_reset_that_fails_is_told() {
    let mut bench = Bench::new();
    let refused = |_: &RootRequest| Some(RootResponse::Refused(Refusal::Failed));
    assert!(
        bench
            .relay
            .report(0, VmmReport::Ended(VmEnd::Reset), refused)
    );
    bench.works();
    assert_eq!(bench.terminal.takes(), "", "root says it");
    bench.states[0] = VmState::Failed;
    let events = vec![
        RootEvent::VmStopped {
            vm: "a".into(),
            end: VmEnd::Reset,
        },
        RootEvent::VmStopped {
            vm: "a".into(),
            end: VmEnd::Failed,
        },
    ];
    bench
        .relay
        .events(|_| Some(RootResponse::Events(events.clone())));
    bench.works();
    assert!(
        bench
            .terminal
            .takes()
            .contains("[a has stopped: its VMM could not go on; the log tells why]")
    );
}

#[test]
fn kill_and_start() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.types("\x1dkill b\r"),
        "\r\nvireo> kill b\r\nb has been killed\r\nvireo> "
    );
    let events = vec![
        RootEvent::VmStopped {
            vm: "b".into(),
            end: VmEnd::Killed,
        },
        RootEvent::ServerDied {
            server: "a.uart0".into(),
            cause: Cause::Hung,
        },
    ];
    bench
        .relay
        .events(|_| Some(RootResponse::Events(events.clone())));
    bench.works();
    let text = bench.terminal.takes();
    assert!(
        !text.contains("b has stopped") && text.contains("a.uart0 has died"),
        "{text}"
    );
    assert_eq!(
        bench.types("start b\r"),
        "start b\r\nb is being started\r\nvireo> "
    );
    assert!(bench.reports(1, VmmReport::Running));
    assert_eq!(bench.terminal.takes(), "", "the operator knows");
    assert!(bench.reports(1, VmmReport::Ended(VmEnd::TripleFault)));
    assert!(
        bench
            .terminal
            .takes()
            .contains("[b has stopped: triple fault")
    );
}

#[test]
fn a_long_log_goes_at_the_terminals_pace() {
    let mut bench = Bench::new();
    bench.terminal.sends(b"\x1dlog 1000\r");
    let mut given = 0u64;
    let mut shown = String::new();
    for _ in 0..2000 {
        let mut page = |request: &RootRequest| {
            assert!(matches!(
                request,
                RootRequest::LogTail { records: 1000 } | RootRequest::Log { .. }
            ));
            given += 10;
            let records = vec![
                LogRecord {
                    source: 1,
                    frame: vec![0; 50]
                };
                10
            ];
            Some(RootResponse::Log {
                records,
                next: given,
                lost: 0,
            })
        };
        while bench.relay.work(&mut page) {}
        assert!(bench.relay.terminal.waiting.len() < 2 * FULL);
        shown += &bench.terminal.takes();
    }
    assert_eq!((given, shown.matches("\x1eL1 0000").count()), (1000, 1000));
    assert!(shown.ends_with("vireo> "));
}

#[test]
fn two_ends_at_once() {
    let mut bench = Bench::new();
    let stopped = |vm: &str| RootEvent::VmStopped {
        vm: vm.into(),
        end: VmEnd::Failed,
    };
    bench.states = [VmState::Failed; 2];
    bench
        .relay
        .events(|_| Some(RootResponse::Events(vec![stopped("a"), stopped("b")])));
    bench.works();
    let text = bench.terminal.takes();
    assert!(
        !text.contains("root") && text.contains("a has stopped") && text.contains("b has stopped"),
        "{text}"
    );
    assert!(
        text.contains("[no VM is running now]") && text.ends_with("vireo> "),
        "{text}"
    );
}

#[test]
fn a_deaf_vm_does_not_eat_memory() {
    let mut bench = Bench::new();
    for _ in 0..50 {
        bench.types(&"y".repeat(1000));
    }
    let link = bench.relay.ways[0].link.as_ref().unwrap();
    assert_eq!(link.waiting.len(), MAX_TYPED);
    assert_eq!(bench.a.takes().len(), CAPACITY);
}

proptest! {
    /// Noise from everywhere: no panic, and bounded memory.
    #[test]
    fn survives_noise(steps in proptest::collection::vec((0u8..5, proptest::collection::vec(any::<u8>(), 0..600)), 0..60)) {
        let mut bench = Bench::new();
        for (step, bytes) in steps {
            match step {
                0 => { Producer::new(bench.terminal.rx).push(&bytes); }
                1 => { Producer::new(bench.a.rx).push(&bytes); }
                2 => { Producer::new(bench.b.rx).push(&bytes); }
                3 => { bench.terminal.takes(); }
                _ => {
                    bench.reports(u64::from(bytes.len() as u8 % 4), VmmReport::Ended(VmEnd::Failed));
                }
            }
            bench.works();
            prop_assert!(bench.relay.terminal.waiting.len() < 64 * 1024, "{}", format!("step {step}"));
        }
    }
}
