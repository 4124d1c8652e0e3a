//! Where a virtio function has its registers: the vendor-specific capabilities of its configuration space (4.1.4).

/// A structure in one of the function's ranges of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The range's number.
    pub bar: u8,
    /// Where it begins there.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// The structures of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Common configuration (4.1.4.3).
    pub common: Place,
    /// Notifications (4.1.4.4).
    pub notify: Place,
    /// Bytes between two queues' notifications.
    pub multiplier: u32,
    /// What the device says of itself (4.1.4.6).
    pub device: Place,
}

/// Status register's bit: there is a list of capabilities (PCI Local Bus 3.0, 6.2.3).
const LIST: u8 = 1 << 4;
/// A vendor-specific capability.
const VENDOR: u8 = 9;
/// Most capabilities that fit.
const MOST: usize = 48;

/// Bytes of common configuration that are used.
const COMMON: u32 = 0x38;
/// Bytes of device configuration that are used: the capacity.
const DEVICE: u32 = 8;

fn byte(config: &[u8], at: usize) -> Option<u8> {
    config.get(at).copied()
}

fn long(config: &[u8], at: usize) -> Option<u32> {
    let four = config.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*four))
}

/// Finds a function's structures, the first of each kind (4.1.4.1). `None`: they are not all there, or too short.
#[must_use]
pub fn places(config: &[u8]) -> Option<Places> {
    if byte(config, 6)? & LIST == 0 {
        return None;
    }
    let mut found: [Option<Place>; 5] = [None; 5];
    let mut multiplier = 0;
    let mut at = usize::from(byte(config, 0x34)? & !3);
    // A list that leads in a circle ends all the same.
    for _ in 0..MOST {
        if at == 0 {
            break;
        }
        let (id, next) = (byte(config, at)?, byte(config, at + 1)?);
        if id == VENDOR && byte(config, at + 2)? >= 16 {
            let kind = byte(config, at + 3)?;
            let place = Place {
                bar: byte(config, at + 4)?,
                offset: long(config, at + 8)?,
                len: long(config, at + 12)?,
            };
            if let Some(first) = found.get_mut(usize::from(kind))
                && first.is_none()
            {
                *first = Some(place);
                if kind == 2 {
                    multiplier = long(config, at + 16)?;
                }
            }
        }
        at = usize::from(next & !3);
    }
    let [_, common, notify, _, device] = found;
    let places = Places {
        common: common?,
        notify: notify?,
        multiplier,
        device: device?,
    };
    let long_enough = places.common.len >= COMMON && places.device.len >= DEVICE;
    let aligned = places.common.offset.is_multiple_of(4) && places.device.offset.is_multiple_of(4);
    (long_enough && aligned && places.notify.offset.is_multiple_of(2)).then_some(places)
}
