//! What a driver relies on, register by register; then hostile guests.

use super::register::*;
use super::*;
use proptest::prelude::*;
use std::vec::Vec;

/// A UART as a driver sets it up: 8N1, FIFOs on with the trigger at 14, OUT2.
fn ready(ier: u8) -> Uart {
    let mut uart = Uart::default();
    uart.write(LCR, 0x03);
    uart.write(FCR, 0xc7);
    uart.write(MCR, 0x0b);
    uart.write(IER, ier);
    uart
}

fn drain(uart: &mut Uart) -> Vec<u8> {
    let mut buffer = [0; 32];
    let count = uart.take_output(&mut buffer);
    buffer[..count].to_vec()
}

#[test]
fn reset_values() {
    let mut uart = Uart::default();
    let all: Vec<u8> = (0..9).map(|offset| uart.read(offset)).collect();
    assert_eq!(all, [0, 0, 0x01, 0, 0, 0x60, 0xb0, 0, 0xff]);
    assert!(!uart.irq() && !uart.take_dirty());
}

/// The steps of Linux's `autoconfig`, from its documentation of what each UART answers.
#[test]
fn is_taken_for_a_16550a() {
    let mut uart = Uart::default();
    uart.write(IER, 0);
    assert_eq!(uart.read(IER), 0);
    uart.write(IER, 0x0f);
    assert_eq!(uart.read(IER), 0x0f);
    uart.write(IER, 0);
    // Loop-back: RTS and OUT2 come back as CTS and DCD.
    uart.write(MCR, 0x1a);
    assert_eq!(uart.read(MSR) & 0xf0, 0x90);
    uart.write(MCR, 0);
    // No enhanced feature register behind LCR = 0xbf.
    uart.write(LCR, 0xbf);
    uart.write(2, 0);
    uart.write(LCR, 0);
    uart.write(FCR, 0x01);
    assert_eq!(uart.read(IIR) >> 6, 3, "FIFOs work");
    uart.write(LCR, 0x80);
    assert_ne!(uart.read(2), 0, "no 16650");
    uart.write(FCR, 0x21);
    assert_eq!(uart.read(IIR) >> 5, 6, "no 64-byte FIFO of a 16750");
    uart.write(LCR, 0xe0);
    let page = uart.read(2);
    uart.write(LCR, 0);
    uart.write(MCR, 0x10);
    uart.write(LCR, 0xe0);
    assert_eq!(uart.read(2), page, "no second page of a 16552");
    uart.write(LCR, 0);
    uart.write(IER, 0x40);
    assert_eq!(uart.read(IER), 0, "no unit enable bit of an XScale");
    for value in [0x55, 0xaa] {
        uart.write(SCR, value);
        assert_eq!(uart.read(SCR), value);
    }
}

#[test]
fn divisor_latch() {
    let mut uart = ready(0);
    uart.write(LCR, 0x83);
    uart.write(DATA, 1);
    uart.write(IER, 2);
    assert_eq!((uart.read(DATA), uart.read(IER)), (1, 2));
    uart.write(LCR, 0x03);
    assert_eq!(
        (uart.read(DATA), uart.read(IER), uart.output_len()),
        (0, 0, 0)
    );
}

#[test]
fn transmitting() {
    let mut uart = ready(IER_TRANSMIT_EMPTY);
    assert!(
        uart.irq(),
        "enabling on an empty register raises the interrupt"
    );
    assert_eq!(uart.read(IIR), 0xc2);
    assert!(!uart.irq());
    assert_eq!(uart.read(IIR), 0xc1, "reading IIR has reset it");
    for byte in 0..20 {
        uart.write(DATA, byte);
    }
    assert_eq!(
        (uart.read(LSR), uart.irq()),
        (0, false),
        "back-pressure: not empty before it is taken"
    );
    let mut few = [0; 4];
    assert_eq!(uart.take_output(&mut few), 4);
    assert!(!uart.irq());
    assert_eq!(
        drain(&mut uart),
        (4..16).collect::<Vec<u8>>(),
        "what did not fit was lost"
    );
    assert!(uart.irq());
    assert_eq!(uart.read(LSR), 0x60);
    uart.write(DATA, b'x');
    assert!(!uart.irq(), "a write resets the interrupt");
    drain(&mut uart);
    // The test that Linux makes at start-up: off and on again must raise it again.
    assert_eq!(uart.read(IIR), 0xc2);
    uart.write(IER, 0);
    uart.write(IER, IER_TRANSMIT_EMPTY);
    assert_eq!(uart.read(IIR), 0xc2);
}

#[test]
fn enabling_twice_raises_once() {
    let mut uart = ready(IER_TRANSMIT_EMPTY);
    assert_eq!(uart.read(IIR), 0xc2);
    uart.write(IER, IER_TRANSMIT_EMPTY | IER_RECEIVED);
    assert!(!uart.irq());
}

#[test]
fn receiving_with_trigger_and_time_out() {
    let mut uart = ready(IER_RECEIVED);
    assert_eq!(uart.input(b"abc"), 3);
    assert!(uart.irq());
    assert_eq!(uart.read(IIR), 0xcc, "below the trigger it is a time-out");
    assert_eq!(uart.input(&[b'x'; 20]), 13, "no more than the FIFO holds");
    assert_eq!(uart.input_room(), 0);
    assert_eq!(uart.read(IIR), 0xc4);
    assert_eq!(uart.read(IIR), 0xc4, "reading IIR does not reset it");
    assert_eq!(uart.read(DATA), b'a');
    for level in [(0x01u8, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] {
        uart.write(FCR, level.0 | FCR_RESET_RECEIVE);
        assert_eq!(uart.read(IIR), 0xc1);
        let bytes = [0; 16];
        assert_eq!(uart.input(&bytes[..level.1 - 1]), level.1 - 1);
        assert_eq!(uart.read(IIR), if level.1 == 1 { 0xc1 } else { 0xcc });
        assert_eq!(uart.input(&bytes[..1]), 1);
        assert_eq!(uart.read(IIR), 0xc4);
    }
    uart.write(IER, 0);
    assert_eq!((uart.irq(), uart.read(LSR)), (false, 0x61));
}

#[test]
fn without_fifos_one_byte_fits() {
    let mut uart = ready(IER_RECEIVED);
    assert_eq!(uart.input(b"lost"), 4);
    uart.write(FCR, 0);
    assert_eq!(uart.read(LSR), 0x60, "switching FIFOs clears them");
    assert_eq!(uart.input(b"ab"), 1);
    assert_eq!(
        (uart.read(IIR), uart.read(DATA), uart.read(DATA)),
        (0x04, b'a', 0)
    );
    // Reset bits without the enable bit do nothing.
    uart.write(DATA, 1);
    uart.write(FCR, FCR_RESET_TRANSMIT);
    assert_eq!(drain(&mut uart), [1]);
}

#[test]
fn priorities() {
    let mut uart = ready(0x0f);
    uart.write(MCR, 0x1b);
    for byte in 0..17 {
        uart.write(DATA, byte);
    }
    assert!(!uart.irq(), "loop-back closes OUT2's gate");
    assert_eq!(uart.read(IIR), 0xc6, "overrun first");
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(LSR), 0x61, "reading LSR has reset it");
    assert_eq!(uart.read(IIR), 0xc4);
    for byte in 0..16 {
        assert_eq!(uart.read(DATA), byte, "the overrun lost the newest");
    }
    assert_eq!(uart.read(IIR), 0xc2);
    uart.write(MCR, 0x1a);
    assert_eq!(uart.read(IIR), 0xc0, "modem status last");
    assert_eq!(
        uart.read(MSR),
        0x92,
        "DTR fell: DSR is low, and its delta is set"
    );
    assert_eq!(uart.read(IIR), 0xc1);
}

#[test]
fn loop_back_without_fifos_replaces() {
    let mut uart = Uart::default();
    uart.write(MCR, 0x10);
    uart.write(DATA, 1);
    uart.write(DATA, 2);
    assert_eq!(
        (uart.read(LSR), uart.read(DATA), uart.output_len()),
        (0x63, 2, 0)
    );
    assert_eq!(uart.input(b"x"), 0, "the line is cut off");
}

#[test]
fn ring_counts_on_its_trailing_edge() {
    let mut uart = Uart::default();
    uart.write(MCR, 0x10);
    assert_eq!(uart.read(MSR), 0x0b, "carrier, DSR and CTS fell");
    uart.write(MCR, 0x14);
    assert_eq!(uart.read(MSR), 0x40);
    uart.write(MCR, 0x10);
    assert_eq!((uart.read(MSR), uart.read(MSR)), (0x04, 0));
}

#[test]
fn out2_gates_the_line() {
    let mut uart = ready(IER_TRANSMIT_EMPTY);
    uart.write(MCR, 0x03);
    assert!(!uart.irq());
    uart.write(MCR, 0x08);
    assert!(uart.irq());
}

#[test]
fn wide_accesses_are_split() {
    let mut uart = ready(0);
    uart.write_wide(6, 4, 0x1122_3344);
    assert_eq!((uart.read(SCR), uart.read_wide(7, 4)), (0x33, 0xffff_ff33));
    uart.write_wide(0, 2, u32::from(b'z'));
    assert_eq!(
        (drain(&mut uart), uart.read_wide(0, 1)),
        (Vec::from(*b"z"), 0)
    );
}

#[derive(Clone, Debug)]
enum Step {
    Read(u8, u8),
    Write(u8, u8, u32),
    Input(Vec<u8>),
    Output(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..10, 0u8..6).prop_map(|(offset, width)| Step::Read(offset, width)),
        (0u8..10, 0u8..6, any::<u32>())
            .prop_map(|(offset, width, value)| Step::Write(offset, width, value)),
        (0u8..8, any::<u8>()).prop_map(|(offset, value)| Step::Write(offset, 1, u32::from(value))),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Step::Input),
        (0usize..20).prop_map(Step::Output),
    ]
}

proptest! {
    /// Whatever a guest does, the state can be stored and restored, and "not dirty" means "not changed".
    #[test]
    fn any_history_survives_a_restart(steps in proptest::collection::vec(step(), 0..80)) {
        let mut uart = Uart::default();
        for step in steps {
            let before = uart.state();
            match step {
                Step::Read(offset, width) => { uart.read_wide(offset, width); }
                Step::Write(offset, width, value) => uart.write_wide(offset, width, value),
                Step::Input(bytes) => {
                    let room = uart.input_room();
                    prop_assert_eq!(uart.input(&bytes), bytes.len().min(room));
                }
                Step::Output(limit) => {
                    let waiting = uart.output_len();
                    let mut buffer = std::vec![0; limit];
                    prop_assert_eq!(uart.take_output(&mut buffer), waiting.min(limit));
                }
            }
            let dirty = uart.take_dirty();
            prop_assert!(dirty || uart.state() == before);
            let restored = Uart::restore(&uart.state());
            prop_assert_eq!(restored.as_ref(), Some(&uart));
        }
    }

    /// A scribbled record gives no UART, or one that still behaves.
    #[test]
    fn noise_is_refused_or_harmless(words: [u64; 6], lengths in 0u64..0x2020, registers in 0u64..) {
        for words in [words, [registers & 0xffff_1fff_c90f, lengths & 0x1f1f, 0, 0, 0, 0]] {
            if let Some(mut uart) = Uart::restore(&words) {
                prop_assert_eq!(uart.state(), words);
                prop_assert!(uart.input_room() <= 16 && uart.output_len() <= 16);
                prop_assert!(drain(&mut uart).len() <= 16);
            }
        }
        prop_assert!(Uart::restore(&words[..5]).is_none());
    }
}
