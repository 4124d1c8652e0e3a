//! The UART of a VM: any accesses, peers that scribble, restarts at any time; and no byte lost between polite ends.
#![no_main]

use device_uart::server::{Config, Pages, Server};
use device_uart::{PORTS, Uart};
use fuzz::{Bytes, scribble, target};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::InterruptPage;
use ipc_schema::ring::{Consumer, Producer, RingPage};
use ipc_schema::state_page::StatePage;

target!(run);

const BASE: u16 = 0x3f8;
const CONFIG: Config = Config {
    base: BASE,
    gsi: 4,
    linger: 100,
};

/// The four pages of a UART.
#[derive(Default)]
struct Shared {
    irq: InterruptPage,
    state: StatePage,
    tx: RingPage,
    rx: RingPage,
}

impl Shared {
    fn server(&self) -> Server<'_> {
        let pages = Pages {
            irq: &self.irq,
            state: &self.state,
            tx: &self.tx,
            rx: &self.rx,
        };
        Server::new(CONFIG, &pages).0
    }
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    match bytes.u8() % 3 {
        0 => model(bytes),
        1 => hostile(bytes),
        _ => polite(bytes),
    }
}

/// The model by itself: its state is whole at every moment, and nothing else is a state.
fn model(mut bytes: Bytes<'_>) {
    let mut uart = Uart::default();
    let mut sink = [0; 64];
    while !bytes.is_empty() {
        let (what, offset) = (bytes.u8(), bytes.u8() % 10);
        match what % 6 {
            0 => {
                let _ = uart.read(offset);
            }
            1 => uart.write(offset, bytes.u8()),
            2 => {
                let width = bytes.width(false);
                let value = uart.read_wide(offset, width);
                assert_eq!(u64::from(value) >> (8 * u32::from(width)), 0);
            }
            3 => {
                let len = bytes.below(40);
                let input = bytes.take(len);
                let room = uart.input_room();
                assert_eq!(uart.input(input), input.len().min(room));
            }
            4 => {
                let waiting = uart.output_len();
                let room = bytes.below(64);
                assert_eq!(uart.take_output(&mut sink[..room]), waiting.min(room));
            }
            _ => {
                let words: Vec<u64> = (0..6).map(|_| bytes.number()).collect();
                if let Some(other) = Uart::restore(&words) {
                    assert_eq!(other.state()[..], words[..], "a state that is another one");
                    uart = other;
                }
            }
        }
        assert!(uart.output_len() <= 16 && uart.input_room() <= 16);
        let again = Uart::restore(&uart.state()).expect("its own state");
        assert_eq!(again.state(), uart.state());
        assert_eq!(again.irq(), uart.irq());
    }
}

/// A guest that does anything, and a manager and a VMM that write anywhere.
fn hostile(mut bytes: Bytes<'_>) {
    let shared = Box::<Shared>::default();
    let mut server = shared.server();
    let mut now = 0u64;
    while !bytes.is_empty() {
        match bytes.u8() % 8 {
            0..4 => {
                let access = PortAccess::new(
                    BASE.wrapping_add(bytes.u16() % 12),
                    bytes.width(false),
                    bytes.flag(),
                );
                let _ = server.access(access, bytes.u32(), || now);
            }
            4 => {
                let _ = server.wake(|| now);
            }
            5 => now = now.saturating_add(bytes.number()),
            6 => match bytes.u8() % 4 {
                0 => scribble(&shared.irq, &mut bytes),
                1 => scribble(&shared.state, &mut bytes),
                2 => scribble(&shared.tx, &mut bytes),
                _ => scribble(&shared.rx, &mut bytes),
            },
            _ => server = shared.server(),
        }
        let _ = server.deadline();
    }
}

/// A guest that looks before it writes or reads, and a manager that keeps to the ring: with servers dying between any two
/// accesses, what one end sends is what the other gets.
fn polite(mut bytes: Bytes<'_>) {
    let shared = Box::<Shared>::default();
    let mut server = shared.server();
    let (mut typing, mut screen) = (Producer::new(&shared.rx), Consumer::new(&shared.tx));
    let mut now = 0u64;
    let (mut sent, mut shown) = (Vec::new(), Vec::new());
    let (mut typed, mut got) = (Vec::new(), Vec::new());
    let input = |offset| PortAccess::new(BASE + offset, 1, true);
    let output = |offset| PortAccess::new(BASE + offset, 1, false);
    // FIFOs or not, interrupts or not.
    let set = bytes.u8();
    let _ = server.access(output(2), u32::from(set & 1), || now);
    let _ = server.access(output(1), u32::from(set >> 1 & 3), || now);
    let _ = server.access(output(4), 0x0b, || now);
    let mut buffer = [0; 256];
    let mut steps = 0;
    while !bytes.is_empty() || steps == 0 {
        steps += 1;
        now += 10;
        match bytes.u8() % 7 {
            0 | 1 => {
                let (status, _) = server.access(input(5), 0, || now);
                if status & 0x20 != 0 {
                    let byte = bytes.u8();
                    let _ = server.access(output(0), byte.into(), || now);
                    sent.push(byte);
                }
            }
            2 | 3 => {
                let (status, _) = server.access(input(5), 0, || now);
                assert_eq!(
                    status & 2,
                    0,
                    "overrun, though nothing was sent to a full FIFO"
                );
                if status & 1 != 0 {
                    got.push(server.access(input(0), 0, || now).0 as u8);
                }
            }
            4 => {
                let len = bytes.below(40);
                let new = bytes.take(len);
                let count = typing.push(new);
                typed.extend_from_slice(&new[..count]);
                let _ = server.wake(|| now);
            }
            5 => {
                let room = bytes.below(buffer.len());
                let count = screen.pop(&mut buffer[..room]);
                shown.extend_from_slice(&buffer[..count]);
                let _ = server.wake(|| now);
            }
            _ => {
                server = shared.server();
                let _ = server.wake(|| now);
            }
        }
        assert!(sent.starts_with(&shown) && typed.starts_with(&got));
    }
    // Everything still on its way arrives.
    for _ in 0..3000 {
        now += 1000;
        let _ = server.wake(|| now);
        let count = screen.pop(&mut buffer);
        shown.extend_from_slice(&buffer[..count]);
        let (status, _) = server.access(input(5), 0, || now);
        if status & 1 != 0 {
            got.push(server.access(input(0), 0, || now).0 as u8);
        } else if shown.len() == sent.len() {
            break;
        }
    }
    assert_eq!((shown, got), (sent, typed));
    assert_eq!(PORTS, 8);
}
