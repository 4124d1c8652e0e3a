use super::*;
use proptest::prelude::*;

fn set_up(t: &mut Transport, queue: u32, vector: u32) {
    for (offset, width, value) in [
        (0x14, 1, 1),
        (0x14, 1, 3),
        (0x08, 4, 1),
        (0x0C, 4, 1),
        (0x14, 1, 11),
        (0x16, 2, queue),
        (0x18, 2, 16),
        (0x1A, 2, vector),
        (0x20, 4, 0x1000),
        (0x24, 4, 0x1),
        (0x28, 4, 0x2000),
        (0x30, 4, 0x3000),
    ] {
        let _ = t.write(offset, width, value);
    }
}

#[test]
fn a_driver_finds_its_way() {
    let mut t = Transport::new(feature::EVENT_IDX, 2, 100);
    assert_eq!((t.read(0x12, 2, &[]), t.read(0x18, 2, &[])), (2, 64));
    assert_eq!(t.read(0x04, 4, &[]), feature::EVENT_IDX as u32);
    let _ = t.write(0x00, 4, 1);
    assert_eq!(t.read(0x04, 4, &[]), 1, "VERSION_1");
    set_up(&mut t, 1, 2);
    assert_eq!(t.read(0x14, 1, &[]), 11);
    assert_eq!(t.read(0x1E, 2, &[]), 1, "queue 1 is notified at its place");
    assert_eq!(t.write(0x1C, 2, 1), Effect::QueueEnabled(1));
    assert_eq!(
        t.write(0x82, 2, 1),
        Effect::Nothing,
        "it does not drive yet"
    );
    assert_eq!(t.write(0x14, 1, 15), Effect::DriverOk);
    assert_eq!(t.write(0x82, 2, 1), Effect::Notify(1));
    assert_eq!(t.write(0x80, 2, 0), Effect::Nothing, "not on");
    assert_eq!(t.write(0xBE, 2, 31), Effect::Nothing, "not there");
    let place = t.queue(1).unwrap().place;
    assert_eq!((place.size, place.descriptors), (16, 0x1_0000_1000));
    assert_eq!(t.interrupt(1), Interrupt::Vector(2));
    assert!(!t.pin());
    assert_eq!(t.interrupt(0), Interrupt::Pin);
    assert!(t.pin());
    assert_eq!((t.read(0x40, 1, &[]), t.pin()), (1, false));
    let config = Effect::Config {
        offset: 4,
        width: 2,
        value: 7,
    };
    assert_eq!(t.write(0xC4, 2, 7), config);
    assert_eq!(t.read(0xC1, 2, &[1, 2, 3]), 0x0302);
    assert_eq!(t.read(0xC2, 4, &[1, 2, 3]), 3);
    assert_eq!(t.config_changed(), Interrupt::Pin);
    assert_eq!((t.read(0x15, 1, &[]), t.read(0x40, 4, &[])), (1, 2));
    assert_eq!(t.needs_reset(), Some(Interrupt::Pin));
    assert_eq!(t.needs_reset(), None, "told once");
    assert!(!t.running());
    assert_eq!(t.write(0x82, 2, 1), Effect::Nothing);
    assert_eq!(t.write(0x14, 1, 0), Effect::Reset);
    let mut new = Transport::new(feature::EVENT_IDX, 2, 64);
    new.generation = 1;
    assert!(t.take_changed());
    assert_eq!(t, new, "but for the generation, which only goes on");
}

#[test]
fn agreement_is_two_sided() {
    let mut t = Transport::new(0, 1, 64);
    let _ = t.write(0x14, 1, 11);
    assert_eq!(t.read(0x14, 1, &[]), 3, "without VERSION_1");
    assert_eq!(t.write(0x1C, 2, 1), Effect::Nothing, "no queue before");
    set_up(&mut t, 0, 5);
    assert_eq!(t.read(0x1A, 2, &[]), 0xFFFF, "no such vector");
    t.refuse();
    assert_eq!(t.read(0x14, 1, &[]), 3);
    assert_eq!(t.write(0x14, 1, 15), Effect::FeaturesOk(feature::VERSION_1));
    assert!(!t.running(), "one after the other");
    let _ = t.write(0x0C, 4, 0);
    assert_eq!(t.features(), feature::VERSION_1, "they are agreed on");
    let _ = t.write(0x14, 1, 0);
    let _ = t.write(0x08, 4, 0);
    let _ = t.write(0x0C, 4, 1);
    assert_eq!(t.write(0x14, 1, 11), Effect::Nothing, "not offered");
    assert_eq!(t.read(0x14, 1, &[]), 3);
}

#[test]
fn a_packed_queue_has_any_size() {
    for (features, size, taken) in [(4, 7, 7), (0, 7, 64), (4, 0, 64), (4, 65, 64), (0, 8, 8)] {
        let mut t = Transport::new(feature::RING_PACKED, 1, 64);
        let _ = t.write(0x08, 4, 1);
        let _ = t.write(0x0C, 4, features | 1);
        let _ = t.write(0x18, 2, 7);
        assert_eq!(t.read(0x18, 2, &[]), 64, "nothing is agreed on yet");
        let _ = t.write(0x14, 1, 11);
        let _ = t.write(0x18, 2, size);
        assert_eq!(t.read(0x18, 2, &[]), taken);
        let mut new = Transport::new(feature::RING_PACKED, 1, 64);
        assert!(new.restore(&t.save()));
        // Where it is not agreed on, so many are not possible.
        let mut words = t.save();
        words[0] &= !feature::RING_PACKED;
        assert_eq!(new.restore(&words), taken != 7);
    }
}

#[test]
fn one_queue_is_reset_where_that_is_agreed() {
    for (offered, effect) in [
        (feature::RING_RESET, Effect::QueueReset(0)),
        (0, Effect::Nothing),
    ] {
        let mut t = Transport::new(offered, 1, 64);
        let _ = t.write(0x08, 4, 1);
        let _ = t.write(0x0C, 4, (offered >> 32) as u32 | 1);
        let _ = t.write(0x14, 1, 11);
        let _ = t.write(0x1C, 2, 1);
        let _ = t.write(0x20, 4, 0x5000);
        assert_eq!(t.read(0x20, 4, &[]), 0, "it is on");
        assert_eq!(t.write(0x3A, 2, 1), effect);
        assert_eq!(t.read(0x1C, 2, &[]), u32::from(offered == 0));
    }
}

proptest! {
    /// Any accesses and interrupts: they end, a width is a width, what changes says so, and a successor is the same device.
    #[test]
    fn any_accesses(
        queues in 0u16..40, size: u16,
        steps in prop::collection::vec((any::<bool>(), 0u16..0x110, 0u32..3, any::<u32>(), 0u32..4), 0..200)
    ) {
        let features = feature::RING_RESET | feature::EVENT_IDX | feature::RING_PACKED;
        let mut t = Transport::new(features, queues, size);
        for (input, offset, width, value, small) in steps {
            let width = 1u8 << width;
            let before = t.save();
            match value % 16 {
                0 => drop(t.interrupt((value >> 8) as u16 % 4)),
                1 => drop(t.config_changed()),
                2 => drop(t.needs_reset()),
                _ => {}
            }
            // Small numbers are likelier to mean something.
            let value = if small > 0 { value % 16 } else { value };
            if input {
                let value = t.read(offset, width, &[0xA5; 20]);
                prop_assert!(width == 4 || value >> (8 * width) == 0);
            } else if let Effect::Notify(q) | Effect::QueueEnabled(q) | Effect::QueueReset(q) = t.write(offset, width, value) {
                prop_assert!(q < queues.min(32));
            }
            prop_assert!(t.take_changed() || t.save() == before);
            prop_assert!(!t.running() || t.features() & feature::VERSION_1 != 0);
            let mut new = Transport::new(features, queues, size);
            prop_assert!(new.restore(&t.save()));
            prop_assert_eq!(&new, &t);
        }
    }

    /// Any words: taken as they are, or not at all.
    #[test]
    fn any_state(words in prop::collection::vec(any::<u64>(), 0..12), ranges in prop::collection::vec(0u32..64, 12)) {
        let words: Vec<u64> = words.iter().zip(ranges).map(|(w, r)| w >> r).collect();
        let old = Transport::new(0, 2, 64);
        let mut t = old.clone();
        if t.restore(&words) {
            prop_assert_eq!(t.save(), words);
        } else {
            prop_assert_eq!(t, old);
        }
    }
}
