//! Network cards: networks by name, addresses, limits.

use ipc_schema::manifest::DeviceKind;
use toml::Spanned;

use super::check::Context;
use super::{Mistake, parse_size, raw};

/// The network of a card that names none.
const DEFAULT: &str = "lan";

fn named(device: &raw::Device) -> &str {
    device.network.as_ref().map_or(DEFAULT, |n| n.get_ref())
}

/// The networks of a system by number: each that a card names, once.
pub fn networks(raw: &raw::System) -> Vec<&str> {
    let devices = raw
        .vm
        .iter()
        .flat_map(|vm| vm.get_ref().device.iter().flatten());
    let cards = devices
        .map(Spanned::get_ref)
        .filter(|d| d.kind == raw::DeviceKind::VirtioNet);
    let mut all: Vec<&str> = Vec::new();
    for network in cards.map(named) {
        if !all.contains(&network) {
            all.push(network);
        }
    }
    all
}

/// Six bytes in hexadecimal, between colons.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let byte = |part: &str| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?;
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes?.try_into().ok()
}

/// An address of its own for a card without one: locally administered, made of its name, so that it is the same each time.
fn address(card: &str) -> [u8; 6] {
    // FNV-1a: a collision is found by the check of the whole system.
    let hash = card.bytes().fold(0x811c_9dc5u32, |h, b| {
        (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
    });
    let [a, b, c, d] = hash.to_be_bytes();
    [0x02, 0x56, a, b, c, d]
}

/// Only a network card has what network cards have, and it is well formed.
pub fn check(cx: &Context<'_>, spanned: &Spanned<raw::Device>) -> Result<(), Mistake> {
    let device = spanned.get_ref();
    let own = [&device.network, &device.mac, &device.limit];
    if device.kind != raw::DeviceKind::VirtioNet {
        return match own.into_iter().flatten().next() {
            Some(own) => {
                let what =
                    "`network`, `mac` and `limit` are of virtio-net, and this device is none";
                Err(cx.mistake(own.span().start, what.to_owned(), "leave them out"))
            }
            None => Ok(()),
        };
    }
    if let Some(mac) = device
        .mac
        .as_ref()
        .filter(|m| parse_mac(m.get_ref()).is_none())
    {
        let what = format!("`{}` is no Ethernet address", mac.get_ref());
        return Err(cx.mistake(
            mac.span().start,
            what,
            "write it as mac = \"02:00:00:00:00:01\"",
        ));
    }
    if let Some(limit) = &device.limit
        && cx.size(limit)? == 0
    {
        let what = "a limit of 0 bytes per second".to_owned();
        return Err(cx.mistake(limit.span().start, what, "leave `limit` out for none"));
    }
    Ok(())
}

/// What the card is; what [`check`] refuses is anything.
pub fn kind(device: &raw::Device, slot: u8, card: &str, networks: &[&str]) -> DeviceKind {
    let mac = device.mac.as_ref().and_then(|m| parse_mac(m.get_ref()));
    let network = networks.iter().position(|n| *n == named(device));
    let rate = device.limit.as_ref().and_then(|l| parse_size(l.get_ref()));
    DeviceKind::VirtioNet {
        slot,
        network: network.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        mac: mac.unwrap_or_else(|| address(card)),
        rate: rate.unwrap_or(0),
        packed: device.packed(),
        pairs: device.queues.as_ref().map_or(1, |q| *q.get_ref()),
    }
}
