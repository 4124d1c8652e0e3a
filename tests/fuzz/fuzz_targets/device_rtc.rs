//! The RTC and the test device of a VM: any accesses at any time, restored from any words.
#![no_main]

use device_rtc::{Clock, PORT_INDEX, Rtc, server};
use device_testdev::TestDev;
use fuzz::{Bytes, scribble, target};
use ipc_schema::abi::vm::PortAccess;
use ipc_schema::interrupt_page::InterruptPage;
use ipc_schema::state_page::StatePage;

target!(run);

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    match bytes.u8() % 3 {
        0 => model(bytes),
        1 => whole(bytes),
        _ => test_device(bytes),
    }
}

fn clock(bytes: &mut Bytes<'_>) -> Clock {
    // Root's, which is trusted: some year until 3058, a rate of 100 MHz or more.
    Clock {
        unix_seconds: (bytes.number() >> 29) as i64,
        tsc: bytes.number(),
        hz: bytes.u32().max(100_000_000).into(),
    }
}

fn model(mut bytes: Bytes<'_>) {
    let mut rtc = Rtc::new(clock(&mut bytes));
    let mut now = 0u64;
    while !bytes.is_empty() {
        let port = PORT_INDEX + u16::from(bytes.u8() % 3);
        match bytes.u8() % 8 {
            0 => {
                let _ = rtc.read(port, now);
            }
            1..3 => rtc.write(port, bytes.u8(), now),
            3 => {
                let value = rtc.read_wide(port, bytes.width(false), now);
                rtc.write_wide(port, bytes.width(false), value, now);
            }
            4 => rtc.set_nvram(bytes.u8(), bytes.u8()),
            5 => now = now.saturating_add(bytes.number()),
            6 => {
                if let Some(at) = rtc.next_deadline() {
                    now = now.max(at);
                    rtc.tick(now);
                    // What was due has happened, or is due later: a server that waits for it does not spin.
                    assert!(
                        rtc.next_deadline().is_none_or(|next| next > now) || now == u64::MAX,
                        "a storm"
                    );
                }
            }
            _ => {
                let words: Vec<u64> = (0..rtc.state().len()).map(|_| bytes.number()).collect();
                if let Some(other) = Rtc::restore(&words) {
                    assert_eq!(other.state()[..], words[..], "a state that is another one");
                    rtc = other;
                }
            }
        }
        let again = Rtc::restore(&rtc.state()).expect("its own state");
        assert_eq!(again.state(), rtc.state());
        assert_eq!(
            (again.irq(), again.next_deadline()),
            (rtc.irq(), rtc.next_deadline())
        );
    }
}

fn whole(mut bytes: Bytes<'_>) {
    let (irq, state) = (Box::new(InterruptPage::new()), Box::new(StatePage::new()));
    let config = server::Config { base: 0x70, gsi: 8 };
    let clock = clock(&mut bytes);
    let start = || server::Server::new(config, clock, &irq, &state).0;
    let mut server = start();
    let mut now = 0u64;
    while !bytes.is_empty() {
        match bytes.u8() % 6 {
            0..3 => {
                let port = 0x70u16
                    .wrapping_add(u16::from(bytes.u8() % 5))
                    .wrapping_sub(1);
                let access = PortAccess::new(port, bytes.width(false), bytes.flag());
                let _ = server.access(access, bytes.u32(), now);
            }
            3 => {
                now = now.max(server.deadline().min(now.saturating_add(1 << 40)));
                let _ = server.wake(now);
            }
            4 => scribble(&*state, &mut bytes),
            _ => {
                now = now.saturating_add(bytes.number());
                server = start();
            }
        }
    }
}

fn test_device(mut bytes: Bytes<'_>) {
    let mut device = TestDev::default();
    while !bytes.is_empty() {
        let (offset, width) = (bytes.u16() % 20, bytes.width(false));
        match bytes.u8() % 4 {
            0 => {
                let _ = device.read(offset, width);
            }
            1 => {
                let _ = device.write(offset, width, bytes.u32());
            }
            2 => device.doorbell(),
            _ => {
                if let Some(other) = TestDev::restore(&[bytes.number(), bytes.number()]) {
                    device = other;
                }
            }
        }
        let again = TestDev::restore(&device.state()).expect("its own state");
        assert_eq!((again.state(), again.irq()), (device.state(), device.irq()));
    }
}
