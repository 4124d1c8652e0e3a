//! Consoles: the ports of virtio consoles, and which of a VM's devices lead to the operator.

use alloc::{format, string::String, vec::Vec};
use core::fmt;
use serde::{Deserialize, Serialize};

use super::{DeviceKind, Vm};

/// Most ports of a virtio console: two queues each, and two for control.
pub const MAX_CONSOLE_PORTS: usize = 8;
/// Longest name of a port in bytes; with its VM's before a dot it is a name of [`super::MAX_NAME`] bytes at most.
pub const MAX_PORT_NAME: usize = 15;

/// The name of a virtio console's port, or none: zeroes behind it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortName([u8; MAX_PORT_NAME]);

impl PortName {
    /// No port.
    pub const NONE: Self = Self([0; MAX_PORT_NAME]);

    /// A name; `None` if it is empty, too long, or holds more than `a-z A-Z 0-9 - _`.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; MAX_PORT_NAME];
        bytes
            .get_mut(..name.len())?
            .copy_from_slice(name.as_bytes());
        let port = Self(bytes);
        (port.is_sound() && port.as_str() == name).then_some(port)
    }

    /// The name; empty for no port, and for one that is not sound.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        self.0
            .get(..end)
            .and_then(|name| core::str::from_utf8(name).ok())
            .unwrap_or("")
    }

    /// Whether it is a name, with nothing behind it.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let name = self.as_str();
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !name.is_empty()
            && name.bytes().all(good)
            && self.0.iter().skip(name.len()).all(|&b| b == 0)
    }
}

impl fmt::Debug for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// The ports of a virtio console: the first is the guest's console, the others are for whatever the guest likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports([PortName; MAX_CONSOLE_PORTS]);

impl Ports {
    /// Ports of these names, in order; `None` if there are none or too many.
    #[must_use]
    pub fn new(names: &[PortName]) -> Option<Self> {
        let mut ports = [PortName::NONE; MAX_CONSOLE_PORTS];
        ports.get_mut(..names.len())?.copy_from_slice(names);
        (!names.is_empty()).then_some(Self(ports))
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> &[PortName] {
        self.0.get(..self.count()).unwrap_or(&[])
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        let mut count = 0;
        // A `const fn` has no iterators; `count` is below the array's length.
        while count < MAX_CONSOLE_PORTS && self.0[count].0[0] != 0 {
            count += 1;
        }
        count
    }

    /// Whether there is one, all are names, and no two are the same.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let (names, rest) = self.0.split_at(self.count());
        let sound = |(i, name): (usize, &PortName)| {
            name.is_sound() && !names.iter().take(i).any(|other| other == name)
        };
        !names.is_empty()
            && names.iter().enumerate().all(sound)
            && rest.iter().all(|name| *name == PortName::NONE)
    }
}

/// A way between the operator and a VM: bytes in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// What the operator calls it: the VM's name for its serial port, `VM.PORT` for the port of a virtio console.
    pub name: String,
    /// The device, by its number in [`Vm::devices`].
    pub device: usize,
    /// The port of a virtio console.
    pub port: Option<usize>,
}

impl Channel {
    /// Whether its guest can be told the size of the operator's window.
    #[must_use]
    pub fn sized(&self) -> bool {
        self.port == Some(0)
    }
}

impl Vm {
    /// The VM's channels: its first serial port, then the ports of its virtio consoles.
    #[must_use]
    pub fn channels(&self) -> Vec<Channel> {
        let uart = self.devices.iter().position(|d| d.kind == DeviceKind::Uart);
        let uart = uart.map(|device| Channel {
            name: self.name.clone(),
            device,
            port: None,
        });
        let ports = self.devices.iter().enumerate().flat_map(|(device, d)| {
            let names = match &d.kind {
                DeviceKind::VirtioConsole { ports, .. } => ports.names(),
                _ => &[],
            };
            names.iter().enumerate().map(move |(port, name)| Channel {
                name: format!("{}.{}", self.name, name.as_str()),
                device,
                port: Some(port),
            })
        });
        uart.into_iter().chain(ports).collect()
    }

    /// Whether no two ports of its virtio consoles have the same name.
    pub(super) fn port_names_differ(&self) -> bool {
        let channels = self.channels();
        let name = |(i, channel): (usize, &Channel)| {
            !channels.iter().take(i).any(|c| c.name == channel.name)
        };
        channels.iter().enumerate().all(name)
    }
}
