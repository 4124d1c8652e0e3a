//! Messages: badges, words, payloads up to the edge of the page, capabilities, and the window that takes them.

use alloc::vec;
use alloc::vec::Vec;

use ipc_schema::abi::{CapTransfer, Kind, NEVER, Status, Syscall, Tag, Utcb, rights};
use runtime::{time, utcb};

use super::Special;
use crate::case::{Outcome, expect, same};
use crate::kernel::raw;
use crate::kit::Kit;
use crate::partner::{Act, Partner, Result};

pub(super) const CASES: &[Special] = &[
    ("a call brings badge, tag and words", words),
    ("payloads of every edge", payloads),
    ("a payload longer than the page", long_payload),
    ("a capability with a message", one_cap),
    ("four capabilities, and no fifth", many_caps),
    ("no window, no capability", no_window),
    ("a capability without GRANT stays", no_grant),
    ("capabilities up to the first bad one", bad_second),
    ("an occupied slot ends the window", occupied),
    ("a window outside the table", outside),
    ("a badge cannot be replaced by a message", badge_kept),
    ("a stale capability is not sent", stale),
    ("the reply brings payload and capabilities", reply),
    ("callers are served in order", in_order),
    ("bits come before a waiting call", bits_first),
    (
        "a waiting call comes before a past deadline",
        call_before_deadline,
    ),
    (
        "a reply is given though the deadline is past",
        reply_at_deadline,
    ),
    ("a wrong slot keeps the call", wrong_slot_keeps),
    ("a reply to nobody", reply_to_nobody),
];

const SLOT: u64 = 10;
/// What [`Act::Store`] leaves: as `recv_slot` and `recv_count` a window of 90 slots from 90 on.
const WINDOW: u64 = 0x5a;
/// Offset of `received` in the UTCB.
const RECEIVED: u64 = core::mem::offset_of!(Utcb, received) as u64;

/// A partner that receives at an Endpoint of its own.
fn server(kit: &mut Kit) -> Outcome<(Partner, u64)> {
    let endpoint = kit.make(Kind::Endpoint)?;
    let server = Partner::new(kit)?;
    server.give(endpoint, SLOT, rights::ALL, 0)?;
    Ok((server, endpoint))
}

/// This server calls with what is in its UTCB; nobody answers, and what the partner got is looked at.
fn deliver(to: &mut Partner, cap: u64, tag: Tag, words: [u64; 4]) -> Outcome<Result> {
    to.start(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER);
    let (status, _) = raw(Syscall::Call, cap, tag, words, time::after(1_000));
    expect(Status::Timeout, status)?;
    let got = to.finish()?;
    expect(Status::Ok, got.status)?;
    Ok(got)
}

fn open_window(server: &mut Partner) -> Outcome {
    server.do_act(Act::Store(server.utcb))?;
    server.do_act(Act::Store(server.utcb + 4))
}

fn send(caps: &[(u64, u32, u64)]) {
    let caps: Vec<CapTransfer> = (caps.iter())
        .map(|&(slot, rights, badge)| CapTransfer {
            slot: slot as u32,
            rights,
            badge,
        })
        .collect();
    utcb::set_send(&caps);
}

/// Sends these, and says how many came.
fn sent(kit: &mut Kit, open: bool, caps: &[(u64, u32, u64)]) -> Outcome<(Partner, u64)> {
    let (mut server, endpoint) = server(kit)?;
    if open {
        open_window(&mut server)?;
    }
    send(caps);
    deliver(&mut server, endpoint, Tag(0).with_caps(caps.len()), [0; 4])?;
    let received = server.byte(server.utcb + RECEIVED)?;
    Ok((server, received))
}

fn words(kit: &mut Kit) -> Outcome {
    let (mut server, endpoint) = server(kit)?;
    let badged = kit.badged(endpoint, rights::SEND, 0x1234_5678_9abc_def0)?;
    let got = deliver(
        &mut server,
        badged,
        Tag::new(0xffff_ffff_0000),
        [1, u64::MAX, 3, 4],
    )?;
    same("badge", &0x1234_5678_9abc_def0, &got.value)?;
    same("tag", &Tag::new(0xffff_ffff_0000), &got.tag)?;
    same("words", &[1, u64::MAX, 3, 4], &got.words)?;
    let got = deliver(&mut server, endpoint, Tag(0), [0; 4])?;
    same("no badge", &0, &got.value)
}

fn payloads(kit: &mut Kit) -> Outcome {
    let (mut server, endpoint) = server(kit)?;
    let payload = server.utcb + Utcb::PAYLOAD_OFFSET as u64;
    for (fill, len) in (1u8..).zip([1, 7, 8, 9, 1024, Utcb::PAYLOAD - 1, Utcb::PAYLOAD]) {
        let _ = utcb::write(&vec![fill; Utcb::PAYLOAD]);
        let got = deliver(&mut server, endpoint, Tag(0).with_payload(len), [0; 4])?;
        same("length", &len, &got.tag.payload())?;
        let ends = [
            server.byte(payload)?,
            server.byte(payload + len as u64 - 1)?,
        ];
        same("first and last byte", &[u64::from(fill); 2], &ends)?;
        // Whole words are copied, no more.
        let after = len.next_multiple_of(8) as u64;
        if after < Utcb::PAYLOAD as u64 {
            same(
                "the byte behind",
                &true,
                &(server.byte(payload + after)? != u64::from(fill)),
            )?;
        }
    }
    Ok(())
}

fn long_payload(kit: &mut Kit) -> Outcome {
    let (mut server, endpoint) = server(kit)?;
    let payload = server.utcb + Utcb::PAYLOAD_OFFSET as u64;
    for (fill, len) in [(0x31, Utcb::PAYLOAD + 1), (0x32, 4095)] {
        let _ = utcb::write(&vec![fill; Utcb::PAYLOAD]);
        deliver(&mut server, endpoint, Tag(0).with_payload(len), [0; 4])?;
        let last = server.byte(payload + Utcb::PAYLOAD as u64 - 1)?;
        same("last byte", &u64::from(fill), &last)?;
    }
    server.lives()
}

fn one_cap(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let (mut server, received) = sent(kit, true, &[(notification, rights::SEND, 5)])?;
    same("received", &1, &received)?;
    let signalled = server.call(Syscall::Signal, WINDOW, Tag(0), [0; 4], 0)?;
    expect(Status::Ok, signalled.status)?;
    let waited = server.call(Syscall::Wait, WINDOW, Tag(0), [0; 4], 0)?;
    expect(Status::MissingRight, waited.status)?;
    let (status, r) = raw(Syscall::Wait, notification, Tag(0), [0; 4], 0);
    expect(Status::Signal, status)?;
    same("bits", &5, &r.value)
}

fn many_caps(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let cap = (notification, rights::SEND, 0);
    let (mut server, received) = sent(kit, true, &[cap; 4])?;
    same("received", &4, &received)?;
    let (mut other, endpoint) = self::server(kit)?;
    open_window(&mut other)?;
    send(&[cap; 4]);
    deliver(&mut other, endpoint, Tag(0).with_caps(15), [0; 4])?;
    same("received of 15", &4, &other.byte(other.utcb + RECEIVED)?)?;
    for partner in [&mut server, &mut other] {
        for (slot, status) in [(WINDOW + 3, Status::Ok), (WINDOW + 4, Status::InvalidCap)] {
            let got = partner.call(Syscall::Signal, slot, Tag(0), [0; 4], 0)?;
            expect(status, got.status)?;
        }
    }
    Ok(())
}

fn no_window(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let (_, received) = sent(kit, false, &[(notification, rights::SEND, 0)])?;
    same("received", &0, &received)
}

fn no_grant(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let bare = kit.copy(notification, rights::ALL & !rights::GRANT)?;
    let (_, received) = sent(kit, true, &[(bare, rights::SEND, 0)])?;
    same("received", &0, &received)
}

fn bad_second(kit: &mut Kit) -> Outcome {
    let good = (kit.make(Kind::Notification)?, rights::SEND, 0);
    for bad in [
        kit.empty,
        0,
        kit.table,
        0xffff_ffff,
        kit.stale(Kind::Memory),
    ] {
        let (_, received) = sent(kit, true, &[good, (bad, rights::ALL, 0), good])?;
        same("received", &1, &received)?;
    }
    Ok(())
}

fn occupied(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let (mut server, endpoint) = server(kit)?;
    open_window(&mut server)?;
    server.give(notification, WINDOW + 1, 0, 0)?;
    send(&[(notification, rights::SEND, 0); 3]);
    deliver(&mut server, endpoint, Tag(0).with_caps(3), [0; 4])?;
    same("received", &1, &server.byte(server.utcb + RECEIVED)?)?;
    // What was there is there.
    let got = server.call(Syscall::Signal, WINDOW + 1, Tag(0), [0; 4], 0)?;
    expect(Status::MissingRight, got.status)
}

fn outside(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let (mut server, endpoint) = server(kit)?;
    open_window(&mut server)?;
    for byte in 1..4 {
        // Slot 0x5a5a, 0x5a5a5a, 0x5a5a5a5a.
        server.do_act(Act::Store(server.utcb + byte))?;
        send(&[(notification, rights::SEND, 0)]);
        deliver(&mut server, endpoint, Tag(0).with_caps(1), [0; 4])?;
        same("received", &0, &server.byte(server.utcb + RECEIVED)?)?;
    }
    server.lives()
}

fn badge_kept(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let badged = kit.badged(notification, rights::ALL, 2)?;
    let (_, received) = sent(kit, true, &[(badged, rights::SEND, 4)])?;
    same("received", &0, &received)
}

fn stale(kit: &mut Kit) -> Outcome {
    for kind in [Kind::Pool, Kind::Thread, Kind::Notification] {
        let stale = kit.stale(kind);
        let (_, received) = sent(kit, true, &[(stale, rights::ALL, 0)])?;
        same("received", &0, &received)?;
    }
    Ok(())
}

/// A partner calls this server, which answers with a payload and a capability.
fn reply(kit: &mut Kit) -> Outcome {
    let notification = kit.make(Kind::Notification)?;
    let endpoint = kit.make(Kind::Endpoint)?;
    let mut client = Partner::new(kit)?;
    client.give(endpoint, SLOT, rights::SEND, 77)?;
    open_window(&mut client)?;
    client.start(Syscall::Call, SLOT, Tag::new(3), [9; 4], NEVER);
    let (status, r) = raw(Syscall::ReplyRecv, endpoint, Tag(0), [0; 4], 0);
    expect(Status::Ok, status)?;
    same("badge", &77, &r.value)?;
    same("words", &[9; 4], &r.words)?;
    let _ = utcb::write(&[0x77; 16]);
    send(&[(notification, rights::SEND, 0)]);
    let tag = Tag::new(4).with_payload(16).with_caps(1);
    let (status, _) = raw(Syscall::ReplyRecv, endpoint, tag, [8; 4], 0);
    expect(Status::Timeout, status)?;
    let got = client.finish()?;
    expect(Status::Ok, got.status)?;
    same("tag", &tag, &got.tag)?;
    same("answer", &[8; 4], &got.words)?;
    let at = client.utcb + Utcb::PAYLOAD_OFFSET as u64;
    same("payload", &0x77, &client.byte(at + 15)?)?;
    same("received", &1, &client.byte(client.utcb + RECEIVED)?)?;
    let signalled = client.call(Syscall::Signal, WINDOW, Tag(0), [0; 4], 0)?;
    expect(Status::Ok, signalled.status)
}

fn in_order(kit: &mut Kit) -> Outcome {
    let (mut server, endpoint) = server(kit)?;
    let mut clients = Vec::new();
    for i in 0..3 {
        let mut client = Partner::new(kit)?;
        client.give(endpoint, SLOT, rights::ALL, 0)?;
        client.start(Syscall::Call, SLOT, Tag(0), [i; 4], NEVER);
        clients.push(client);
    }
    for (i, client) in (0..).zip(&clients) {
        let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [100 + i; 4], NEVER)?;
        same("who is next", &[i; 4], &got.words)?;
        same("not answered yet", &false, &client.done())?;
    }
    let last = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [103; 4], 0)?;
    expect(Status::Timeout, last.status)?;
    for (i, client) in (101..).zip(&clients) {
        same("answer", &[i; 4], &client.finish()?.words)?;
    }
    Ok(())
}

fn bits_first(kit: &mut Kit) -> Outcome {
    let (mut server, endpoint) = server(kit)?;
    let notification = kit.make(Kind::Notification)?;
    let mut client = Partner::new(kit)?;
    client.give(endpoint, SLOT, rights::ALL, 0)?;
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
    let words = [server.budget, kit.supervisor, 0, notification];
    crate::kernel::ask(server.thread, ipc_schema::abi::op::thread::CONFIGURE, words)?;
    let _ = raw(Syscall::Signal, notification, Tag(0), [0; 4], 0);
    let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER)?;
    expect(Status::Signal, got.status)?;
    same("bits", &1, &got.value)?;
    let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], NEVER)?;
    expect(Status::Ok, got.status)?;
    same("blocked", &false, &client.done())
}

fn call_before_deadline(kit: &mut Kit) -> Outcome {
    let (mut server, endpoint) = server(kit)?;
    let mut client = Partner::new(kit)?;
    client.give(endpoint, SLOT, rights::ALL, 0)?;
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
    let got = server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], 0)?;
    expect(Status::Ok, got.status)
}

fn reply_at_deadline(kit: &mut Kit) -> Outcome {
    for slot in [SLOT, 0] {
        let (mut server, endpoint) = server(kit)?;
        let mut client = Partner::new(kit)?;
        client.give(endpoint, SLOT, rights::ALL, 0)?;
        client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
        server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], 0)?;
        let got = server.call(Syscall::ReplyRecv, slot, Tag(0), [55; 4], 0)?;
        expect(Status::Timeout, got.status)?;
        same("answer", &[55; 4], &client.finish()?.words)?;
    }
    Ok(())
}

fn wrong_slot_keeps(kit: &mut Kit) -> Outcome {
    let (mut server, endpoint) = server(kit)?;
    server.give(endpoint, SLOT + 1, rights::SEND, 0)?;
    server.give(kit.live(Kind::Notification), SLOT + 2, rights::ALL, 0)?;
    let mut client = Partner::new(kit)?;
    client.give(endpoint, SLOT, rights::ALL, 0)?;
    client.start(Syscall::Call, SLOT, Tag(0), [1; 4], NEVER);
    server.call(Syscall::ReplyRecv, SLOT, Tag(0), [0; 4], 0)?;
    for (slot, status) in [
        (99, Status::InvalidCap),
        (1 << 40, Status::InvalidCap),
        (SLOT + 1, Status::MissingRight),
        (SLOT + 2, Status::WrongType),
    ] {
        let got = server.call(Syscall::ReplyRecv, slot, Tag(0), [66; 4], 0)?;
        expect(status, got.status)?;
        same("blocked", &false, &client.done())?;
    }
    server.call(Syscall::ReplyRecv, SLOT, Tag(0), [55; 4], 0)?;
    same("answer", &[55; 4], &client.finish()?.words)
}

fn reply_to_nobody(kit: &mut Kit) -> Outcome {
    let (mut server, endpoint) = server(kit)?;
    let tag = Tag(0xffff);
    let got = server.call(Syscall::ReplyRecv, SLOT, tag, [66; 4], 0)?;
    expect(Status::Timeout, got.status)?;
    let got = deliver(&mut server, endpoint, Tag::new(1), [1; 4])?;
    same("words", &[1; 4], &got.words)
}
