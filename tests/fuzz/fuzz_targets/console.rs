//! The operator's console: any keys, any output of guests, any answer of root; the rings scribbled over.
#![no_main]

use fuzz::{Bytes, scribble, target};
use ipc_schema::proto::{RootRequest, RootResponse, VmEnd, VmmReport, decode, encode};
use ipc_schema::ring::{Consumer, Producer, RingPage};
use manager::relay::{Pages, Relay};
use manager::{Action, Console, Described, ESCAPE_KEY, Port};

target!(run, seeds);

const KEYS: [&str; 18] = [
    "\x1d",
    "vms\r",
    "attach a\r",
    "attach\r",
    "start a\r",
    "stop b\r",
    "kill a\r",
    "servers\r",
    "servers a\r",
    "log\r",
    "version\r",
    "help\r",
    "\x03",
    "\x1b[A",
    "\x7f",
    "\x15",
    "resize a 132x43\r",
    "resize a.hvc0 99999x0\r",
];

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for of in 0..2 {
        for key in 0..KEYS.len() as u8 {
            seeds.push(vec![of, 0, 0, 0, key, 2, 3, 1, 0, 0, 2, 1, 1, 4, 0]);
        }
    }
    seeds
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    if bytes.flag() {
        console(bytes)
    } else {
        relay(bytes)
    }
}

/// What is typed: one of the commands, or bytes.
fn keys<'a>(bytes: &mut Bytes<'a>) -> &'a [u8] {
    if bytes.flag() {
        let len = bytes.below(40);
        bytes.take(len)
    } else {
        KEYS[bytes.below(KEYS.len())].as_bytes()
    }
}

/// An answer: some message, or none.
fn answer(bytes: &mut Bytes<'_>) -> Option<RootResponse> {
    let len = bytes.below(120);
    decode(bytes.take(len)).ok()
}

/// A VM that is started with the system.
fn described(name: &str, port: Port) -> Described<'_> {
    Described {
        name,
        vm: name,
        port,
        autostart: true,
    }
}

/// The console by itself: one question at a time, and it always comes back to its prompt.
fn console(mut bytes: Bytes<'_>) {
    let mut console = Console::new(
        "Vireo",
        1_000_000_000,
        &[described("a", Port::Terminal), described("b", Port::None)],
    );
    let mut asked = 0;
    let mut steps = 0;
    let take = |console: &mut Console, asked: &mut u32| {
        for action in console.take_actions() {
            match action {
                Action::Terminal(text) => assert!(!text.is_empty()),
                Action::ToVm(channel, typed) => assert!(channel < 2 && !typed.is_empty()),
                Action::Resize(channel, _) => assert!(channel < 2),
                Action::Ask(request) => {
                    assert!(
                        encode(&request, &mut [0; 256]).is_ok(),
                        "a question that cannot be sent"
                    );
                    *asked += 1;
                }
            }
        }
        assert!(*asked <= 1, "asked again before the answer");
    };
    while !bytes.is_empty() && steps < 200 {
        steps += 1;
        match bytes.u8() % 4 {
            0 | 1 => console.input(keys(&mut bytes)),
            2 => {
                let (channel, len) = (bytes.below(3), bytes.below(60));
                console.vm_output(channel, bytes.take(len));
            }
            _ => {
                let response = answer(&mut bytes);
                if let Some(RootResponse::Events(events)) = &response {
                    events.iter().for_each(|event| console.event(event));
                }
                asked = 0;
                console.answer(response);
            }
        }
        take(&mut console, &mut asked);
    }
    // Answered often enough it listens again: Ctrl-C, then a command that needs nobody.
    for _ in 0..20 {
        console.answer(None);
    }
    let _ = console.take_actions();
    if console.shows(0) || console.shows(1) {
        console.input(&[ESCAPE_KEY]);
    }
    for _ in 0..20 {
        console.answer(None);
    }
    console.input(b"\x1b[A\x03");
    let _ = console.take_actions();
    console.input(b"version\r");
    let said = b"version\r\nVireo\r\nvireo> ".to_vec();
    assert_eq!(console.take_actions(), [Action::Terminal(said)]);
}

/// The console with its rings: peers may write anything into their pages, and the relay comes to rest each time.
fn relay(mut bytes: Bytes<'_>) {
    let pages: Vec<RingPage> = (0..4).map(|_| RingPage::new()).collect();
    let terminal = Pages {
        tx: &pages[0],
        rx: &pages[1],
    };
    let vm = Pages {
        tx: &pages[2],
        rx: &pages[3],
    };
    let mut relay = Relay::new(
        "Vireo",
        1_000_000_000,
        &terminal,
        &[
            (described("a", Port::Terminal), Some(vm)),
            (described("b", Port::None), None),
        ],
    );
    let (mut typing, mut screen) = (Producer::new(&pages[1]), Consumer::new(&pages[0]));
    let mut guest = Producer::new(&pages[3]);
    let mut sink = [0; 512];
    let mut steps = 0;
    while !bytes.is_empty() && steps < 200 {
        steps += 1;
        match bytes.u8() % 7 {
            0 => {
                typing.push(keys(&mut bytes));
            }
            1 => {
                let len = bytes.below(100);
                guest.push(bytes.take(len));
            }
            2 => {
                let _ = screen.pop(&mut sink);
            }
            3 => {
                let end = [VmmReport::Running, VmmReport::Ended(VmEnd::Failed)][bytes.below(2)];
                let number = u64::from(bytes.u8() % 4);
                let _ = relay.report(number, end, |_| answer(&mut bytes));
            }
            4 => relay.events(|_| answer(&mut bytes)),
            5 => scribble(&pages[bytes.below(4)], &mut bytes),
            _ => {}
        }
        let mut asked = 0;
        let _ = relay.work(|request: &RootRequest| {
            asked += 1;
            assert!(asked < 3000, "questions without end");
            assert!(encode(request, &mut [0; 256]).is_ok());
            answer(&mut bytes)
        });
        assert!(relay.take_signals().channels.iter().all(|c| *c < 2));
    }
}
