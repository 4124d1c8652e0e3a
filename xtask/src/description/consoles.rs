//! Virtio consoles: the names of their ports.

use ipc_schema::manifest::{DeviceKind, MAX_CONSOLE_PORTS, MAX_PORT_NAME, PortName, Ports};
use toml::Spanned;

use super::check::Context;
use super::{Mistake, raw};

/// The port of a console that names none: as Linux calls it.
const DEFAULT: &str = "hvc0";

/// Only a virtio console has what they have, and its ports have sound names.
pub fn check(cx: &Context<'_>, spanned: &Spanned<raw::Device>) -> Result<(), Mistake> {
    let device = spanned.get_ref();
    let own = device.ports.as_ref().map(Spanned::span);
    let own = own.or(device.rows_first.as_ref().map(Spanned::span));
    if device.kind != raw::DeviceKind::VirtioConsole {
        return match own {
            Some(span) => {
                let what =
                    "`ports` and `rows_first` are of virtio-console, and this device is none";
                Err(cx.mistake(span.start, what.to_owned(), "leave them out"))
            }
            None => Ok(()),
        };
    }
    let Some(ports) = &device.ports else {
        return Ok(());
    };
    let at = ports.span().start;
    if let Some(bad) = ports.get_ref().iter().find(|n| PortName::new(n).is_none()) {
        let what = format!("`{bad}` cannot be the name of a port");
        let remedy = format!("use at most {MAX_PORT_NAME} of the characters a-z A-Z 0-9 - _");
        return Err(cx.mistake(at, what, remedy));
    }
    if named(device).is_none_or(|ports| !ports.is_sound()) {
        let what =
            format!("a virtio console has 1 to {MAX_CONSOLE_PORTS} ports of different names");
        let remedy = "write for example ports = [\"hvc0\", \"data\"], or leave `ports` out";
        return Err(cx.mistake(at, what, remedy));
    }
    Ok(())
}

fn named(device: &raw::Device) -> Option<Ports> {
    let names: Vec<PortName> = match &device.ports {
        Some(names) => names
            .get_ref()
            .iter()
            .filter_map(|name| PortName::new(name))
            .collect(),
        None => PortName::new(DEFAULT).into_iter().collect(),
    };
    Ports::new(&names)
}

/// What the console is; what [`check`] refuses is anything.
pub fn kind(device: &raw::Device, slot: u8) -> DeviceKind {
    DeviceKind::VirtioConsole {
        slot,
        rows_first: device.rows_first.as_ref().is_some_and(|r| *r.get_ref()),
        ports: named(device).unwrap_or_default(),
        packed: device.packed(),
    }
}
