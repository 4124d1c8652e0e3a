//! Network cards in the manifest: bytes, faults.

use super::*;

#[test]
fn golden_bytes_of_cards() {
    let card = |pairs| {
        let kind = DeviceKind::VirtioNet {
            slot: 9,
            network: 1,
            mac: [2, 0, 0, 0, 0, 3],
            rate: 5,
            packed: true,
            pairs,
        };
        device("a.net0", kind, 0, 0)
    };
    let want =
        b"\x06a.net0\x05\x09\x01\x02\0\0\0\0\x03\x05\x01\x02\x15bin/device-virtio-net\0\0\0\0\0";
    assert_eq!(postcard::to_allocvec(&card(2)).unwrap(), want);
    // Frames both ways for each pair, and one for control.
    assert_eq!(card(2).kind.queues(), 5);
    assert!(card(MAX_PAIRS).kind.queues() <= MAX_QUEUES);
    for (pairs, sound) in [
        (0, false),
        (1, true),
        (MAX_PAIRS, true),
        (MAX_PAIRS + 1, false),
    ] {
        let mut s = system();
        s.vms[0].devices = vec![card(pairs)];
        let fault = s.check().err().map(|e| e.fault);
        assert_eq!(fault, (!sound).then_some(Fault::BadQueues), "{pairs}");
    }
}

/// Two VMs' network cards.
#[test]
fn addresses_are_one_cards_in_a_network() {
    let check = |macs: [[u8; 6]; 2], networks: [u32; 2]| {
        let mut system = system();
        system.vms = [("x", 0), ("y", 1)]
            .map(|(name, i)| {
                let kind = DeviceKind::VirtioNet {
                    slot: 9,
                    network: networks[i],
                    mac: macs[i],
                    rate: 0,
                    packed: true,
                    pairs: 1,
                };
                let mut vm = vm(name);
                vm.devices = vec![device(&format!("{name}.net0"), kind, 0, 0)];
                vm
            })
            .into();
        system.check().err()
    };
    let (one, two) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    assert_eq!(check([one, two], [0, 0]), None);
    assert_eq!(check([one, one], [0, 1]), None);
    let fault = |place, fault| Some(CheckError { place, fault });
    let taken = Fault::MacTaken(Place::Device(0, 0));
    assert_eq!(check([one, one], [3, 3]), fault(Place::Device(1, 0), taken));
    for bad in [[0; 6], [1, 0, 0, 0, 0, 1], [0xff; 6]] {
        let is = check([bad, two], [0, 0]);
        assert_eq!(is, fault(Place::Device(0, 0), Fault::BadMac));
    }
}
