//! The driver of the machine's serial port: hardware that answers anything, and a manager that scribbles over the rings.
#![no_main]

use driver_uart::{Driver, Ports};
use fuzz::{Bytes, scribble, target};
use ipc_schema::ring::{CAPACITY, Consumer, Producer, RingPage};

target!(run, seeds);

fn seeds() -> Vec<Vec<u8>> {
    // A UART that is there: what the scratch register was given comes back, then a byte is received.
    vec![vec![1, 0, 0, 0, 4, 1, b'x', 0, 0xc1], vec![0; 16]]
}

/// Registers that answer from the input.
struct Hardware<'a> {
    bytes: Bytes<'a>,
    scratch: u8,
    honest: bool,
    accesses: u32,
}

impl Ports for Hardware<'_> {
    fn inb(&mut self, offset: u8) -> u8 {
        assert!(offset < 8);
        self.accesses += 1;
        if self.honest && offset == 7 {
            self.scratch
        } else {
            self.bytes.u8()
        }
    }
    fn outb(&mut self, offset: u8, value: u8) {
        assert!(offset < 8);
        self.accesses += 1;
        if offset == 7 {
            self.scratch = value;
        }
    }
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let honest = bytes.flag();
    let half = bytes.0.len() / 2;
    let hardware = Hardware {
        bytes: Bytes(bytes.take(half)),
        scratch: 0,
        honest,
        accesses: 0,
    };
    let Ok(mut driver) = Driver::new(hardware) else {
        return;
    };
    let (rx, tx) = (Box::new(RingPage::new()), Box::new(RingPage::new()));
    let (mut input, mut output) = (Producer::new(&rx), Consumer::new(&tx));
    let (mut typed, mut screen) = (Consumer::new(&rx), Producer::new(&tx));
    let mut sane = true;
    let mut steps = 0;
    let mut buffer = [0; 128];
    let (mut taken, mut given) = (0u64, 0u64);
    while !bytes.is_empty() && steps < 300 {
        steps += 1;
        let before = driver.figures();
        match bytes.u8() % 6 {
            0 | 1 => {
                let _ = driver.interrupt(&mut input, &mut output);
            }
            2 => {
                let _ = driver.kick(&mut input, &mut output);
            }
            3 => {
                let len = bytes.below(100);
                given += screen.push(bytes.take(len)) as u64;
            }
            4 => taken += typed.pop(&mut buffer) as u64,
            _ => {
                sane = false;
                scribble(if bytes.flag() { &*rx } else { &*tx }, &mut bytes);
            }
        }
        let after = driver.figures();
        assert!(after.received >= before.received && after.sent >= before.sent);
        assert!(
            after.received - before.received <= 4096 && after.sent - before.sent <= 4096,
            "no end"
        );
        if sane {
            // What was sent was asked for; what was taken had been received.
            assert!(after.sent <= given && taken <= after.received);
            assert!(given - after.sent <= CAPACITY as u64);
        }
    }
}
