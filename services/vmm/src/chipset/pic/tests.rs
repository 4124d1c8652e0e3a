//! The 8259A pair against its datasheet.

use super::*;

/// Initialised as Linux does: vectors 0x30 and 0x38, everything unmasked.
fn pair() -> Pic {
    let mut pic = Pic::new(1 << 9);
    for (port, icws) in [
        (0x20, [0x11, 0x30, 0x04, 0x01]),
        (0xA0, [0x11, 0x38, 0x02, 0x01]),
    ] {
        let [icw1, rest @ ..] = icws;
        pic.write(port, icw1);
        rest.into_iter().for_each(|icw| pic.write(port + 1, icw));
    }
    pic
}

fn take(pic: &mut Pic) -> Option<u8> {
    let vector = pic.pending()?;
    pic.accept(vector);
    Some(vector)
}

#[test]
fn firmware_state_masks_everything() {
    let mut pic = Pic::new(1 << 9);
    for irq in 0..16 {
        pic.set_line(irq, true);
        assert_eq!(pic.pending(), None);
    }
    assert_eq!((pic.read(0x21), pic.read(0xA1)), (0xFB, 0xFF));
    pic.write(0x21, 0xFA);
    assert_eq!(pic.pending(), Some(0x08));
}

#[test]
fn linux_probe_reads_back_the_mask() {
    let mut pic = Pic::new(0);
    pic.write(0xA1, 0xFF);
    pic.write(0x21, 0xFB);
    assert_eq!(pic.read(0x21), 0xFB);
}

#[test]
fn an_edge_is_latched_and_given_once() {
    let mut pic = pair();
    pic.set_line(4, true);
    pic.set_line(4, false);
    assert_eq!(take(&mut pic), Some(0x34));
    assert_eq!(take(&mut pic), None);
    pic.write(0x20, 0x20);
    assert_eq!(take(&mut pic), None);
    pic.set_line(4, true);
    assert_eq!(take(&mut pic), Some(0x34));
}

#[test]
fn priority_nesting_and_nonspecific_eoi() {
    let mut pic = pair();
    pic.set_line(5, true);
    assert_eq!(take(&mut pic), Some(0x35));
    pic.set_line(6, true);
    assert_eq!(take(&mut pic), None);
    pic.set_line(1, true);
    assert_eq!(take(&mut pic), Some(0x31));
    pic.write(0x20, 0x0B);
    assert_eq!(pic.read(0x20), 0x22);
    pic.write(0x20, 0x20);
    assert_eq!(pic.read(0x20), 0x20);
    assert_eq!(take(&mut pic), None);
    pic.write(0x20, 0x20);
    assert_eq!(take(&mut pic), Some(0x36));
}

#[test]
fn the_slave_through_the_cascade() {
    let mut pic = pair();
    pic.set_line(12, true);
    pic.set_line(8, true);
    pic.write(0x20, 0x0A);
    assert_eq!(pic.read(0x20), 4);
    assert_eq!(take(&mut pic), Some(0x38));
    // Blocked at the slave until its EOI, then at the master until that one's.
    assert_eq!(take(&mut pic), None);
    pic.write(0xA0, 0x20);
    assert_eq!(take(&mut pic), None);
    pic.write(0x20, 0x62);
    assert_eq!(take(&mut pic), Some(0x3C));
}

#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    let mut pic = pair();
    pic.write(0x20, 0x11);
    [0x30, 0x04, 0x11]
        .into_iter()
        .for_each(|icw| pic.write(0x21, icw));
    pic.set_line(12, true);
    assert_eq!(take(&mut pic), Some(0x3C));
    pic.set_line(13, true);
    assert_eq!(take(&mut pic), None);
    pic.set_line(8, true);
    assert_eq!(take(&mut pic), Some(0x38));
}

#[test]
fn a_level_comes_back_until_it_drops() {
    let mut pic = pair();
    pic.set_line(9, true);
    assert_eq!(take(&mut pic), Some(0x39));
    pic.write(0xA0, 0x20);
    pic.write(0x20, 0x20);
    assert_eq!(pic.pending(), Some(0x39));
    pic.set_line(9, false);
    assert_eq!(pic.pending(), None);
}

#[test]
fn elcr_takes_only_what_may_be_level() {
    let mut pic = pair();
    pic.write(0x4D0, 0xFF);
    pic.write(0x4D1, 0xFF);
    assert_eq!((pic.read(0x4D0), pic.read(0x4D1)), (0xF8, 0xDE));
}

#[test]
fn an_input_that_becomes_level_forgets_its_edge() {
    let mut pic = pair();
    pic.set_line(5, true);
    pic.set_line(5, false);
    assert_eq!(pic.pending(), Some(0x35));
    pic.write(0x4D0, 0x20);
    assert_eq!(pic.pending(), None);
    pic.set_line(5, true);
    assert_eq!(pic.pending(), Some(0x35));
}

#[test]
fn masks_and_special_mask_mode() {
    let mut pic = pair();
    pic.write(0x21, 0x10);
    pic.set_line(4, true);
    assert_eq!(pic.pending(), None);
    pic.write(0x21, 0);
    assert_eq!(take(&mut pic), Some(0x34));
    // In service and now masked: in special mask mode all others may come.
    pic.write(0x21, 0x10);
    pic.set_line(6, true);
    assert_eq!(pic.pending(), None);
    pic.write(0x20, 0x68);
    assert_eq!(take(&mut pic), Some(0x36));
    // A non-specific EOI does not end a masked one.
    pic.write(0x20, 0x20);
    pic.write(0x20, 0x20);
    pic.write(0x20, 0x0B);
    assert_eq!(pic.read(0x20), 0x10);
    pic.write(0x20, 0x64);
    assert_eq!(pic.read(0x20), 0);
}

#[test]
fn rotation() {
    let mut pic = pair();
    // Input 5 becomes the lowest: 6 is now the highest.
    pic.write(0x20, 0xC5);
    pic.set_line(0, true);
    pic.set_line(6, true);
    assert_eq!(take(&mut pic), Some(0x36));
    pic.write(0x20, 0xA0); // rotate on non-specific EOI: 6 is the lowest
    pic.set_line(6, false);
    pic.set_line(6, true);
    assert_eq!(take(&mut pic), Some(0x30));
    pic.write(0x20, 0xE0); // rotate on specific EOI: 0 is the lowest
    pic.set_line(0, false);
    pic.set_line(0, true);
    assert_eq!(take(&mut pic), Some(0x36));
}

#[test]
fn auto_eoi_and_its_rotation() {
    let mut pic = pair();
    pic.write(0x20, 0x11);
    [0x30, 0x04, 0x03]
        .into_iter()
        .for_each(|icw| pic.write(0x21, icw));
    pic.write(0x20, 0x80);
    pic.set_line(3, true);
    assert_eq!(take(&mut pic), Some(0x33));
    pic.write(0x20, 0x0B);
    assert_eq!(pic.read(0x20), 0);
    pic.set_line(3, false);
    pic.set_line(3, true);
    pic.set_line(4, true);
    assert_eq!(take(&mut pic), Some(0x34));
}

#[test]
fn poll_acknowledges() {
    let mut pic = pair();
    pic.set_line(7, true);
    pic.write(0x20, 0x0C);
    assert_eq!(pic.read(0x20), 0x87);
    assert_eq!(pic.pending(), None);
    pic.write(0x20, 0x0C);
    assert_eq!(pic.read(0x21), 0);
    pic.write(0x20, 0x0B);
    assert_eq!(pic.read(0x20), 0x80);
}

#[test]
fn what_was_delivered_is_what_is_acknowledged() {
    let mut pic = pair();
    pic.set_line(5, true);
    assert_eq!(pic.pending(), Some(0x35));
    pic.set_line(0, true);
    pic.accept(0x35);
    assert_eq!(pic.pending(), Some(0x30));
    pic.write(0x20, 0x0B);
    assert_eq!(pic.read(0x20), 0x20);
}

#[test]
fn single_mode_and_no_icw4() {
    let mut pic = pair();
    pic.write(0x20, 0x12);
    pic.write(0x21, 0x57);
    pic.write(0x21, 0xFE);
    assert_eq!(pic.read(0x21), 0xFE);
    pic.set_line(0, true);
    assert_eq!(pic.pending(), Some(0x50));
}
