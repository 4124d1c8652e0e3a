//! Datagrams between two VMs.

use crate::report::{fail, measure, must, say};
use crate::sys::{Address, File, sleep, udp};

/// Bytes of a datagram that fills a frame of 1,514 bytes.
const FULL: usize = 1472;
/// Bytes of a short one.
const SHORT: usize = 64;
/// How many go in a burst.
const BURST: u32 = 32;
const PORT: u16 = 5001;
const SENDER: [u8; 4] = [10, 0, 0, 1];
const RECEIVER: [u8; 4] = [10, 0, 0, 2];

/// What a datagram's first byte asks of the receiver.
mod ask {
    pub const NOTHING: u8 = 0;
    /// A datagram as long.
    pub const ECHO: u8 = 1;
    /// A short one that says how many came since the last.
    pub const COUNT: u8 = 2;
    pub const END: u8 = 3;
}

/// `struct ifreq`, with an address or flags.
#[repr(C)]
struct Interface {
    name: [u8; 16],
    value: [u8; 24],
}

impl Interface {
    fn new() -> Self {
        let mut name = [0; 16];
        name[..4].copy_from_slice(b"eth0");
        Self {
            name,
            value: [0; 24],
        }
    }
    fn of(ip: [u8; 4]) -> Self {
        let mut this = Self::new();
        this.value[0] = 2;
        this.value[4..8].copy_from_slice(&ip);
        this
    }
}

const SIOCGIFFLAGS: usize = 0x8913;
const SIOCSIFFLAGS: usize = 0x8914;
const SIOCSIFADDR: usize = 0x8916;
const SIOCSIFNETMASK: usize = 0x891c;

/// A socket on the interface, which is given this address and switched on.
fn up(ip: [u8; 4]) -> File {
    let socket = must("socket", udp());
    let mut flags = Interface::new();
    let mut tries = 0;
    while let Err(error) = socket.control_with(SIOCGIFFLAGS, &mut flags) {
        tries += 1;
        if tries == 200 {
            fail("no eth0", error);
        }
        sleep(10_000);
    }
    must(
        "address",
        socket.control_with(SIOCSIFADDR, &mut Interface::of(ip)),
    );
    let mut mask = Interface::of([255, 255, 255, 0]);
    must("mask", socket.control_with(SIOCSIFNETMASK, &mut mask));
    must("flags", socket.control_with(SIOCGIFFLAGS, &mut flags));
    // IFF_UP | IFF_RUNNING
    flags.value[0] |= 0x41;
    must("up", socket.control_with(SIOCSIFFLAGS, &mut flags));
    must("bind", socket.bind(&Address::new([0; 4], PORT)));
    socket
}

/// Answers until it is told to end.
pub fn receiver() {
    let socket = up(RECEIVER);
    let mut bytes = [0; 2048];
    let mut got = 0_u32;
    say(format_args!("COSTS-RECEIVER"));
    loop {
        let Ok((len, from)) = socket.receive(&mut bytes, false) else {
            continue;
        };
        got += 1;
        match bytes[0] {
            ask::ECHO => {
                let _ = socket.send(&bytes[..len], &from);
            }
            ask::COUNT => {
                bytes[4..8].copy_from_slice(&got.to_le_bytes());
                got = 0;
                let _ = socket.send(&bytes[..SHORT], &from);
            }
            ask::END => return,
            _ => {}
        }
    }
}

/// The rows.
pub fn sender() {
    let socket = up(SENDER);
    let to = Address::new(RECEIVER, PORT);
    let mut bytes = [0; 2048];
    must("time limit", socket.wait_at_most(200_000));
    meet(socket, &to, &mut bytes);
    let mut lost = 0;
    // There and back.
    measure::<9>("net_packet_pingpong", 2 * 64, || {
        for _ in 0..64 {
            bytes[0] = ask::ECHO;
            must("sendto", socket.send(&bytes[..FULL], &to));
            let back = socket.receive(&mut bytes, false);
            lost += u32::from(!back.is_ok_and(|(len, _)| len == FULL));
        }
    });
    measure::<9>("net_packet_burst", 4 * u64::from(BURST), || {
        for _ in 0..4 {
            for i in 1..=BURST {
                bytes[0] = if i == BURST { ask::COUNT } else { ask::NOTHING };
                must("sendto", socket.send(&bytes[..FULL], &to));
            }
            lost += match socket.receive(&mut bytes, false) {
                Ok(_) => {
                    BURST - u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]).min(BURST)
                }
                Err(_) => BURST,
            };
        }
    });
    say(format_args!("LOST {lost}"));
    bytes[0] = ask::END;
    for _ in 0..3 {
        let _ = socket.send(&bytes[..SHORT], &to);
        sleep(20_000);
    }
}

/// Waits until the receiver answers, and until no answer is under way.
fn meet(socket: File, to: &Address, bytes: &mut [u8]) {
    for _ in 0..600 {
        bytes[0] = ask::COUNT;
        let _ = socket.send(&bytes[..SHORT], to);
        if socket.receive(bytes, false).is_ok() {
            sleep(300_000);
            while socket.receive(bytes, true).is_ok() {}
            bytes[0] = ask::COUNT;
            let _ = socket.send(&bytes[..SHORT], to);
            let _ = socket.receive(bytes, false);
            return;
        }
    }
    fail("nobody answers", 0)
}
