//! Frames between ports, with the devices' side written out.

use super::*;
use ipc_schema::link::{LINK_BYTES, MAX_FRAME};

struct Host {
    page: LinkPage,
    memory: Memory,
    config: PortConfig,
}

fn hosts(networks: &[u32], rate: u64) -> Vec<Host> {
    let host = |network: &u32| Host {
        page: LinkPage::new(),
        memory: Memory::owned(&[(0, LINK_BYTES)]),
        config: PortConfig {
            name: "port".into(),
            network: *network,
            rate,
        },
    };
    networks.iter().map(host).collect()
}

fn switch(hosts: &[Host]) -> Switch<'_> {
    let ports = hosts.iter().map(|h| (&h.config, &h.page, &h.memory));
    Switch::new(ports, 0, 1_000_000)
}

const fn mac(n: u8) -> Mac {
    [2, 0, 0, 0, 0, n]
}

/// Puts a frame of so many bytes into a host's lane.
fn send(host: &Host, (to, from): (Mac, Mac), len: u32, fill: u8) {
    let mut sender = Sender::new(&host.page, Way::FromDevice);
    assert!(sender.room() >= packet(len));
    let mut bytes = header(len, Offload::default()).to_vec();
    bytes.extend(to);
    bytes.extend(from);
    bytes.resize((HEADER + len) as usize, fill);
    let mut at = 0;
    for (place, part) in sender.spans(0, HEADER + len) {
        let part = &bytes[at..at + part as usize];
        host.memory.write(place, part).unwrap();
        at += part.len();
    }
    let _ = sender.send(len);
}

/// What a host finds: lengths, senders and the last byte.
fn received(host: &Host) -> Vec<(u32, u8, u8)> {
    let mut receiver = Receiver::new(&host.page, Way::ToDevice);
    let mut all = Vec::new();
    while receiver.available() > 0 {
        let read = |receiver: &Receiver<'_>, offset, len: usize| {
            let mut bytes = vec![0; len];
            let mut at = 0;
            for (place, part) in receiver.spans(offset, len as u32) {
                host.memory
                    .read(place, &mut bytes[at..at + part as usize])
                    .unwrap();
                at += part as usize;
            }
            bytes
        };
        let head = read(&receiver, 0, 16).try_into().unwrap();
        let (len, _) = parse(head).unwrap();
        let frame = read(&receiver, HEADER, len as usize);
        all.push((len, frame[11], *frame.last().unwrap()));
        let _ = receiver.done(len);
    }
    all
}

#[test]
fn to_all_until_it_is_known_and_never_to_another_network() {
    let hosts = hosts(&[1, 1, 1, 2], 0);
    let mut s = switch(&hosts);
    let mut signalled = Vec::new();
    assert_eq!(s.serve(0, |p| signalled.push(p)), None);
    assert_eq!(signalled, [0, 1, 2, 3], "as it begins");
    send(&hosts[0], (mac(1), mac(0)), 60, 7);
    signalled.clear();
    s.serve(0, |p| signalled.push(p));
    assert_eq!(received(&hosts[1]), [(60, 0, 7)]);
    assert_eq!(received(&hosts[2]), [(60, 0, 7)]);
    assert_eq!((received(&hosts[0]), received(&hosts[3])), (vec![], vec![]));
    // The answer goes to one.
    send(&hosts[1], (mac(0), mac(1)), 61, 8);
    s.serve(0, |_| {});
    send(&hosts[0], (mac(1), mac(0)), 62, 9);
    s.serve(0, |_| {});
    assert_eq!(received(&hosts[0]), [(61, 1, 8)]);
    assert_eq!(received(&hosts[1]), [(62, 0, 9)]);
    assert_eq!(received(&hosts[2]), []);
    // To many; to oneself; from another network to an address of this one.
    send(&hosts[2], ([0xff; 6], mac(2)), 63, 1);
    send(&hosts[0], (mac(0), mac(0)), 64, 1);
    send(&hosts[3], (mac(0), mac(9)), 65, 1);
    s.serve(0, |_| {});
    assert_eq!(received(&hosts[0]), [(63, 2, 1)]);
    assert_eq!(received(&hosts[1]), [(63, 2, 1)]);
    assert_eq!((received(&hosts[2]), received(&hosts[3])), (vec![], vec![]));
}

/// Every length, over the lanes' edges; a successor goes on in the middle.
#[test]
fn nothing_is_lost_that_there_is_room_for() {
    let hosts = hosts(&[1, 1], 0);
    let mut s = switch(&hosts);
    let mut got = Vec::new();
    let mut sent = Vec::new();
    for n in 0..600u32 {
        let len = 14 + (n * 7919) % (MAX_FRAME - 14);
        send(&hosts[0], ([0xff; 6], mac(0)), len, n as u8);
        sent.push((len, 0, if len > 14 { n as u8 } else { 0 }));
        if n % 50 == 0 {
            s = switch(&hosts);
        }
        s.serve(0, |_| {});
        got.extend(received(&hosts[1]));
    }
    assert_eq!(got, sent);
}

#[test]
fn a_port_that_takes_nothing_delays_nobody() {
    let hosts = hosts(&[1, 1, 1], 0);
    let mut s = switch(&hosts);
    for n in 0..100 {
        send(&hosts[0], ([0xff; 6], mac(0)), 9000, n);
        s.serve(0, |_| {});
        assert_eq!(received(&hosts[2]), [(9000, 0, n)]);
    }
    assert_eq!(received(&hosts[1]).len(), 14, "a lane full");
    assert_eq!(s.counts(1).unwrap().dropped, 86);
    assert_eq!(s.counts(0).unwrap().received, 100);
}

#[test]
fn limits() {
    // 1 MB a second: 128 KiB at once, then a byte per microsecond.
    let hosts = hosts(&[1, 1], 1_000_000);
    let mut s = switch(&hosts);
    let mut got = 0;
    for _ in 0..14 {
        send(&hosts[0], ([0xff; 6], mac(0)), 9000, 0);
    }
    assert_eq!(s.serve(0, |_| {}), None);
    got += received(&hosts[1]).len();
    for _ in 0..3 {
        send(&hosts[0], ([0xff; 6], mac(0)), 9000, 0);
    }
    let later = s.serve(0, |_| {}).unwrap();
    got += received(&hosts[1]).len();
    assert_eq!((got, later), (14, 9000 - (131_072 - 14 * 9000)));
    assert_eq!(s.serve(later - 1, |_| {}), Some(later));
    assert_eq!(s.serve(later, |_| {}), Some(later + 9000));
    assert_eq!(s.serve(later + 18_000, |_| {}), None);
    assert_eq!(received(&hosts[1]).len(), 3);
}

#[test]
fn what_is_no_packet_is_dropped_with_all_behind_it() {
    let hosts = hosts(&[1, 1], 0);
    let mut s = switch(&hosts);
    for bad in [
        header(13, Offload::default()),
        header(70_000, Offload::default()),
        header(200, Offload::default()),
        [0xff; 16],
    ] {
        send(&hosts[0], ([0xff; 6], mac(0)), 60, 0);
        let sender = Sender::new(&hosts[0].page, Way::FromDevice);
        let [(at, _), _] = sender.spans(0u32.wrapping_sub(packet(60)), 16);
        hosts[0].memory.write(at, &bad).unwrap();
        s.serve(0, |_| {});
        assert_eq!(received(&hosts[1]), []);
        send(&hosts[0], ([0xff; 6], mac(0)), 60, 1);
        s.serve(0, |_| {});
        assert_eq!(received(&hosts[1]), [(60, 0, 1)]);
    }
    assert_eq!(s.counts(0).unwrap().garbled, 4);
}
