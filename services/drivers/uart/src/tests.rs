//! The driver against the device model, and against broken hardware.

use super::*;
use device_uart::Uart;
use ipc_schema::ring::{CAPACITY, RingPage};
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

#[derive(Clone, Default)]
struct Model(Rc<RefCell<Uart>>);

impl Ports for Model {
    fn inb(&mut self, offset: u8) -> u8 {
        self.0.borrow_mut().read(offset)
    }
    fn outb(&mut self, offset: u8, value: u8) {
        self.0.borrow_mut().write(offset, value);
    }
}

impl Model {
    /// What leaves on the line.
    fn take(&self) -> Vec<u8> {
        let mut buffer = [0; 32];
        let count = self.0.borrow_mut().take_output(&mut buffer);
        buffer[..count].to_vec()
    }
    fn irq(&self) -> bool {
        self.0.borrow().irq()
    }
}

/// Ports where every read gives the same byte.
struct Stuck(u8);

impl Ports for Stuck {
    fn inb(&mut self, offset: u8) -> u8 {
        if offset == SCRATCH {
            self.0
        } else {
            self.0 & !IIR_NONE | LSR_DATA_READY & self.0
        }
    }
    fn outb(&mut self, _: u8, _: u8) {}
}

#[test]
fn sets_the_line_up() {
    let model = Model::default();
    let _driver = Driver::new(model.clone()).unwrap();
    let mut uart = model.0.borrow_mut();
    assert_eq!(
        (uart.read(IER), uart.read(LCR), uart.read(MCR)),
        (0x07, 0x03, 0x0b)
    );
    uart.write(LCR, LCR_DLAB);
    assert_eq!((uart.read(0), uart.read(1)), (1, 0));
}

#[test]
fn no_uart_no_driver() {
    assert_eq!(Driver::new(Stuck(0xff)).err(), Some(NotPresent));
    assert_eq!(Driver::new(Stuck(0x5a)).err(), Some(NotPresent));
}

#[test]
fn a_long_text_goes_out_by_interrupts_alone() {
    let (input, output) = (RingPage::new(), RingPage::new());
    let (mut to_manager, mut from_manager) = (Producer::new(&input), Consumer::new(&output));
    let mut manager = Producer::new(&output);
    let model = Model::default();
    let mut driver = Driver::new(model.clone()).unwrap();
    driver.interrupt(&mut to_manager, &mut from_manager);
    assert!(!model.irq(), "idle");
    let text: Vec<u8> = (0..1000).map(|i| i as u8).collect();
    assert_eq!(manager.push(&text), 1000);
    assert!(!driver.busy());
    assert!(driver.kick(&mut to_manager, &mut from_manager).sent && driver.busy());
    assert!(
        !driver.kick(&mut to_manager, &mut from_manager).sent,
        "busy: nothing is lost by a second kick"
    );
    let mut line = model.take();
    while model.irq() {
        driver.interrupt(&mut to_manager, &mut from_manager);
        let bytes = model.take();
        assert!(bytes.len() <= 16);
        line.extend(bytes);
    }
    assert_eq!(line, text);
    assert!(!driver.busy());
    assert_eq!(driver.figures().sent, 1000);
}

#[test]
fn what_comes_in_reaches_the_ring_until_it_is_full() {
    let (input, output) = (RingPage::new(), RingPage::new());
    let (mut to_manager, mut from_manager) = (Producer::new(&input), Consumer::new(&output));
    let mut manager = Consumer::new(&input);
    let model = Model::default();
    let mut driver = Driver::new(model.clone()).unwrap();
    let text: Vec<u8> = (0..CAPACITY + 100).map(|i| i as u8).collect();
    for chunk in text.chunks(13) {
        assert_eq!(model.0.borrow_mut().input(chunk), chunk.len());
        driver.interrupt(&mut to_manager, &mut from_manager);
        assert!(!model.irq());
    }
    let mut buffer = [0; CAPACITY * 2];
    let count = manager.pop(&mut buffer);
    assert_eq!(&buffer[..count], &text[..CAPACITY]);
    assert_eq!(
        (driver.figures().received, driver.figures().dropped),
        (CAPACITY as u64, 100)
    );
}

#[test]
fn bytes_before_the_start_are_dropped() {
    let model = Model::default();
    assert_eq!(model.0.borrow_mut().input(b"x"), 1);
    let _driver = Driver::new(model.clone()).unwrap();
    assert_eq!(model.0.borrow_mut().read(LSR), 0x60);
}

proptest! {
    /// A UART that answers noise costs bounded work and no panic.
    #[test]
    fn broken_hardware_is_survived(noise in proptest::collection::vec(any::<u8>(), 1..50)) {
        struct Noise { bytes: Vec<u8>, at: usize, accesses: usize, scratch: u8 }
        impl Ports for Noise {
            fn inb(&mut self, offset: u8) -> u8 {
                self.at += 1;
                self.accesses += 1;
                if offset == SCRATCH { self.scratch } else { self.bytes[self.at % self.bytes.len()] }
            }
            fn outb(&mut self, offset: u8, value: u8) {
                self.accesses += 1;
                if offset == SCRATCH { self.scratch = value }
            }
        }
        let (input, output) = (RingPage::new(), RingPage::new());
        let (mut to_manager, mut from_manager) = (Producer::new(&input), Consumer::new(&output));
        let mut driver = Driver::new(Noise { bytes: noise, at: 0, accesses: 0, scratch: 0 }).unwrap();
        driver.interrupt(&mut to_manager, &mut from_manager);
        driver.kick(&mut to_manager, &mut from_manager);
        prop_assert!(driver.ports.accesses <= 20 + ROUNDS * (1 + 2 * ROUNDS) + 3 * ROUNDS);
    }
}
