//! `\_S5`: what to write to the PM1 control registers to switch the machine off (ACPI 6.5, 7.4.2 and 20.2).
//!
//! The object is a package of constants, so it is found without interpreting AML: the definition is the bytes of
//! `Name (_S5, Package () {..})`, DefName (0x08), an optional root prefix, the name segment `_S5_`, DefPackage (0x12),
//! its length in PkgLength's encoding, the number of elements, and the elements. Each of these is checked, so that
//! other bytes that happen to be `_S5_` (a reference in a method) are passed over.

/// Values for SLP_TYP in the PM1a and PM1b control registers, 3 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepType {
    /// For PM1a.
    pub a: u8,
    /// For PM1b.
    pub b: u8,
}

const NAME_OP: u8 = 0x08;
const PACKAGE_OP: u8 = 0x12;
const ROOT: u8 = b'\\';

/// Finds the object in a definition block (DSDT or SSDT, without its header).
#[must_use]
pub fn find(aml: &[u8]) -> Option<SleepType> {
    let names = aml.windows(4).enumerate().filter(|(_, w)| w == b"_S5_");
    names.map(|(at, _)| at).find_map(|at| {
        let (before, from) = aml.split_at_checked(at)?;
        let before = before.strip_suffix(&[ROOT]).unwrap_or(before);
        before.strip_suffix(&[NAME_OP])?;
        package(from.get(4..)?)
    })
}

fn package(aml: &[u8]) -> Option<SleepType> {
    let rest = aml.strip_prefix(&[PACKAGE_OP])?;
    let (len, encoded) = package_length(rest)?;
    // The length counts itself.
    let body = rest.get(encoded..len)?;
    let (&count, elements) = body.split_first()?;
    if count == 0 {
        return None;
    }
    let (a, rest) = integer(elements)?;
    // One element only: both registers get the low and high byte of it, as old firmware has it (ACPI 1.0).
    let b = if count == 1 { a >> 8 } else { integer(rest)?.0 };
    let (a, b) = (u8::try_from(a & 0xff).ok()?, u8::try_from(b & 0xff).ok()?);
    (a < 8 && b < 8).then_some(SleepType { a, b })
}

/// PkgLength (ACPI 6.5, 20.2.4): the length and how many bytes encode it.
fn package_length(aml: &[u8]) -> Option<(usize, usize)> {
    let (&lead, rest) = aml.split_first()?;
    let more = usize::from(lead >> 6);
    if more == 0 {
        return Some((usize::from(lead & 0x3f), 1));
    }
    if lead & 0x30 != 0 {
        return None;
    }
    let bytes = rest.get(..more)?.iter().rev();
    let high = bytes.fold(0usize, |sum, b| sum << 8 | usize::from(*b));
    Some((high << 4 | usize::from(lead & 0xf), more + 1))
}

/// A constant integer (ACPI 6.5, 20.2.3) and what follows it.
fn integer(aml: &[u8]) -> Option<(u64, &[u8])> {
    let (&op, rest) = aml.split_first()?;
    let len = match op {
        0x00 => return Some((0, rest)),
        0x01 => return Some((1, rest)),
        0xff => return Some((u64::MAX, rest)),
        0x0a => 1,
        0x0b => 2,
        0x0c => 4,
        0x0e => 8,
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(len)?;
    let value = value.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn of(a: u8, b: u8) -> Option<SleepType> {
        Some(SleepType { a, b })
    }

    #[test]
    fn as_firmware_has_it() {
        // QEMU q35: Name (_S5, Package (0x04) { Zero, Zero, Zero, Zero })
        assert_eq!(find(b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"), of(0, 0));
        // Bytes, root prefix, two-byte length, in the middle of other code.
        let aml =
            b"\x10\x4d\x0a\\_S5_\x5b\x80\x08\\_S5_\x12\x4a\x00\x04\x0a\x07\x0a\x05\x00\x00\x10";
        assert_eq!(find(aml), of(7, 5));
        // Word constants, One.
        assert_eq!(find(b"\x08_S5_\x12\x06\x02\x0b\x05\x00\x01"), of(5, 1));
        // ACPI 1.0: one element with both.
        assert_eq!(find(b"\x08_S5_\x12\x05\x01\x0b\x05\x06"), of(5, 6));
    }

    #[test]
    fn what_is_not_the_object() {
        assert_eq!(find(b""), None);
        assert_eq!(find(b"_S5_\x12\x06\x04\x00\x00\x00\x00"), None, "no name");
        assert_eq!(find(b"\x08_S5_\x13\x06\x04\x00\x00\x00\x00"), None);
        assert_eq!(find(b"\x08_S5_\x12\x06\x00\x00\x00\x00\x00"), None, "empty");
        assert_eq!(find(b"\x08_S5_\x12\x0a\x04\x00\x00"), None, "cut short");
        assert_eq!(find(b"\x08_S5_\x12\x03\x04\x00"), None, "too few elements");
        assert_eq!(
            find(b"\x08_S5_\x12\x07\x02\x0a\x08\x0a\x08"),
            None,
            "4 bits"
        );
        assert_eq!(find(b"\x08_S5_\x12\x08\x02ABCDABCD"), None, "references");
        // The first is none, the second is.
        assert_eq!(
            find(b"\x08_S5_\x70\x08_S5_\x12\x06\x04\x01\x01\x00\x00"),
            of(1, 1)
        );
    }

    proptest! {
        #[test]
        fn any_bytes(before in proptest::collection::vec(any::<u8>(), 0..20), after in proptest::collection::vec(any::<u8>(), 0..20)) {
            let aml = [&before[..], b"\x08_S5_\x12", &after].concat();
            if let Some(s) = find(&aml) {
                prop_assert!(s.a < 8 && s.b < 8);
            }
        }
    }
}
