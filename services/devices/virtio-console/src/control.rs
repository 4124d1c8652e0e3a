//! Control messages (virtio 1.2, 5.3.6.2): what each port has been told, and what it is still owed.
//!
//! What is owed is a few bits a port and no list, so that a guest that asks without reading the answers makes nothing grow, and all of
//! it fits into the state page.

use crate::Size;

/// Events.
pub mod event {
    /// The driver knows control messages.
    pub const DEVICE_READY: u16 = 0;
    /// There is a port.
    pub const DEVICE_ADD: u16 = 1;
    /// A port is gone. Never said: ports are what the system's description says.
    pub const DEVICE_REMOVE: u16 = 2;
    /// The driver has set a port up.
    pub const PORT_READY: u16 = 3;
    /// A port is a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// The window has another size.
    pub const RESIZE: u16 = 5;
    /// One side has opened a port, or closed it.
    pub const PORT_OPEN: u16 = 6;
    /// A port's name.
    pub const PORT_NAME: u16 = 7;
}

/// Bytes of a message without what follows it.
pub const HEADER: usize = 8;
/// Most bytes of a message: one with a name.
pub const MOST: usize = HEADER + ipc_schema::manifest::MAX_PORT_NAME;

/// A message without what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The port.
    pub port: u32,
    /// What it is.
    pub event: u16,
    /// Its value.
    pub value: u16,
}

impl Message {
    /// From its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// As bytes, with what follows it behind; how many.
    #[must_use]
    pub fn bytes(self, rest: &[u8]) -> ([u8; MOST], usize) {
        let mut bytes = [0; MOST];
        let all = self.port.to_le_bytes().into_iter();
        let all = all.chain(self.event.to_le_bytes());
        let all = all.chain(self.value.to_le_bytes());
        let mut len = 0;
        for (to, from) in bytes.iter_mut().zip(all.chain(rest.iter().copied())) {
            *to = from;
            len += 1;
        }
        (bytes, len)
    }
}

/// What a port of the console is to be told, in this order.
const OWED: [u16; 5] = [
    event::DEVICE_ADD,
    event::CONSOLE_PORT,
    event::PORT_NAME,
    event::PORT_OPEN,
    event::RESIZE,
];
const ALL: u8 = (1 << OWED.len()) - 1;

/// The bit of an event in [`Status::owed`].
fn bit(event: u16) -> u8 {
    let place = OWED.iter().position(|&e| e == event);
    place.map_or(0, |place| 1 << place)
}

/// A port as its driver knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Events that it is to be told.
    owed: u8,
    /// Its driver has set it up.
    ready: bool,
    /// Its driver reads it.
    open: bool,
}

impl Status {
    /// As a word.
    #[must_use]
    pub fn word(self) -> u64 {
        u64::from(self.owed) | u64::from(self.ready) << 8 | u64::from(self.open) << 9
    }

    /// From a word; `None` if it is none.
    #[must_use]
    pub fn from_word(word: u64) -> Option<Self> {
        let status = Self {
            owed: word as u8,
            ready: word >> 8 & 1 != 0,
            open: word >> 9 & 1 != 0,
        };
        (status.owed & !ALL == 0 && status.word() == word).then_some(status)
    }

    /// Whether its driver reads what it receives.
    #[must_use]
    pub const fn open(self) -> bool {
        self.open
    }

    /// The driver has said that it knows control messages: it is told of the port.
    pub fn announce(&mut self) {
        self.owed |= bit(event::DEVICE_ADD);
    }

    /// The driver has sent a message about the port; `console`: it is the guest's console.
    pub fn heard(&mut self, message: Message, console: bool) {
        match (message.event, message.value) {
            (event::PORT_READY, 1) => {
                self.ready = true;
                self.owed |= bit(event::PORT_NAME) | bit(event::PORT_OPEN);
                if console {
                    self.owed |= bit(event::CONSOLE_PORT) | bit(event::RESIZE);
                }
            }
            // The driver could not set it up.
            (event::PORT_READY, _) => *self = Self::default(),
            (event::PORT_OPEN, value) => self.open = value != 0,
            _ => {}
        }
    }

    /// The window of a console has another size.
    pub fn resized(&mut self) {
        if self.ready {
            self.owed |= bit(event::RESIZE);
        }
    }

    /// What it is to be told next, if anything; nothing of its size while that is not known.
    #[must_use]
    pub fn next(self, size: Size) -> Option<u16> {
        let known = size != Size::default();
        let told = |&event: &u16| self.owed & bit(event) != 0 && (event != event::RESIZE || known);
        OWED.into_iter().find(|event| told(event))
    }

    /// It has been told.
    pub fn told(&mut self, event: u16) {
        self.owed &= !bit(event);
    }
}

/// The bytes of a message to the driver; how many.
#[must_use]
pub fn message(
    port: u32,
    event: u16,
    name: &str,
    size: Size,
    rows_first: bool,
) -> ([u8; MOST], usize) {
    let value = u16::from(
        event != event::DEVICE_ADD && event != event::RESIZE && event != event::PORT_NAME,
    );
    let message = Message { port, event, value };
    match event {
        event::PORT_NAME => message.bytes(name.as_bytes()),
        event::RESIZE => {
            let Size { columns, rows } = size;
            let [a, b] = if rows_first {
                [rows, columns]
            } else {
                [columns, rows]
            };
            let ([a, b], [c, d]) = (a.to_le_bytes(), b.to_le_bytes());
            message.bytes(&[a, b, c, d])
        }
        _ => message.bytes(&[]),
    }
}
