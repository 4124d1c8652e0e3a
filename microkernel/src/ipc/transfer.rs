//! The part of a message that does not fit in registers: payload and capabilities, from UTCB to UTCB.

use crate::object::Thread;
use crate::object::cap::{Cap, cap_at};
use ipc_schema::abi::{Kind, Tag, Utcb, rights};

const PAYLOAD_WORD: usize = Utcb::PAYLOAD_OFFSET / 8;
const SEND_WORD: usize = 1;
const RECEIVED_WORD: usize = 9;

/// Copies what `tag` announces. What can't be copied (too long, no such capability, no room for it) is left out; `received` says how
/// many capabilities came.
#[inline(never)]
pub fn transfer(from: &Thread, to: &Thread, tag: Tag) {
    let (source, target) = (&from.utcb().0, &to.utcb().0);
    let bytes = tag.payload().min(Utcb::PAYLOAD);
    let pairs = source[PAYLOAD_WORD..].iter().zip(&target[PAYLOAD_WORD..]);
    for (s, t) in pairs.clone().take(bytes / 8) {
        t.set(s.get());
    }
    // Nothing beyond the last byte: what lies there belongs to another message.
    if let (Some((s, t)), 1..) = (pairs.clone().nth(bytes / 8), bytes % 8) {
        t.set(s.get() & ((1 << (bytes % 8 * 8)) - 1));
    }
    if tag.caps() == 0 {
        return;
    }
    let window = target[0].get();
    let (first, room) = (window & 0xffff_ffff, (window >> 32) as usize);
    let give = |i: usize| {
        let [slot_rights, badge] = [0, 1].map(|k| source[SEND_WORD + 2 * i + k].get());
        let cap = cap_at(from, slot_rights & 0xffff_ffff).ok()?;
        let cap = derive(cap, (slot_rights >> 32) as u32, badge)?;
        let slot = to.space.get().empty_slot(first + i as u64).ok()?;
        slot.set(cap);
        Some(())
    };
    let given = (0..tag.caps().min(4).min(room)).map_while(give).count();
    target[RECEIVED_WORD].set(given as u64);
}

/// A copy of a live capability for somebody else: fewer rights, and a badge if it has none yet and its kind takes one.
#[must_use]
pub fn derive(cap: Cap, keep: u32, badge: u64) -> Option<Cap> {
    cap.object().ok()?;
    if u32::from(cap.rights) & rights::GRANT == 0 {
        return None;
    }
    let badged = [Kind::Endpoint, Kind::Notification, Kind::Log];
    let badged = badged.iter().any(|&k| k as u32 == cap.kind());
    if badge != 0 && (cap.badge != 0 || !badged) {
        return None;
    }
    Some(Cap {
        rights: cap.rights & keep as u16,
        badge: if badge != 0 { badge } else { cap.badge },
        ..cap
    })
}
