//! Which pair of queues a frame belongs to (virtio 1.2, 5.1.6.5.6.1): that in which its guest has last sent one of the same flow.
//!
//! A flow is both ways of a conversation: two addresses, and two ports where there are some. What is remembered of it is a number in a
//! small table, so that flows may share one; a successor begins with an empty one. It decides by which queue, never whether a frame comes.

/// Bytes of a frame that are looked at: Ethernet with a VLAN tag, IPv6, ports.
pub const LOOK: usize = 14 + 4 + 40 + 4;
/// Flows that can be told apart; a power of two.
const FLOWS: usize = 256;
/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86DD;
const VLAN: u16 = 0x8100;
/// Protocols with ports where TCP has them.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where flows were sent from.
pub struct Flows {
    /// A pair of queues and one more; 0: not seen yet.
    pairs: [u8; FLOWS],
}

impl Flows {
    /// None seen.
    #[must_use]
    pub const fn new() -> Self {
        Self { pairs: [0; FLOWS] }
    }

    /// The guest has sent a frame that begins like this by a pair's queue.
    pub fn sent(&mut self, frame: &[u8], pair: u16) {
        let number = flow(frame);
        if let Some(to) = self.pairs.get_mut(number) {
            *to = u8::try_from(pair + 1).unwrap_or(0);
        }
    }

    /// The pair, of so many (one at least), for a frame that begins like this.
    #[must_use]
    pub fn of(&self, frame: &[u8], pairs: u16) -> u16 {
        let number = flow(frame);
        let seen = self.pairs.get(number).copied().unwrap_or(0);
        match u16::from(seen).checked_sub(1) {
            Some(pair) if pair < pairs => pair,
            _ => number as u16 % pairs.max(1),
        }
    }
}

impl Default for Flows {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of a frame's flow, below [`FLOWS`]; the same for both ways.
fn flow(frame: &[u8]) -> usize {
    // Of each end something that is added up, so that it does not matter which is which.
    let ends = internet(frame).unwrap_or_else(|| sum(frame, 0, 6) ^ sum(frame, 6, 6));
    let mixed = ends.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as usize % FLOWS
}

/// Both ends of a frame of IP; `None` if it is of something else, or too short.
fn internet(frame: &[u8]) -> Option<u64> {
    let half = |at: usize| {
        let bytes = frame.get(at..at + 2)?;
        Some(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]))
    };
    let (mut kind, mut at) = (half(12)?, 14);
    if kind == VLAN {
        (kind, at) = (half(16)?, 18);
    }
    let (protocol, addresses, len, ports) = match kind {
        IPV4 => {
            let header = usize::from(frame.get(at)? & 0xF) * 4;
            // Only the first fragment has ports: none is looked for in any.
            let whole = half(at + 6)? & 0x3FFF == 0;
            let protocol = if whole { *frame.get(at + 9)? } else { 0 };
            (protocol, at + 12, 4, at + header)
        }
        IPV6 => (*frame.get(at + 6)?, at + 8, 16, at + 40),
        _ => return None,
    };
    frame.get(addresses..addresses + 2 * len)?;
    let hosts = sum(frame, addresses, len) ^ sum(frame, addresses + len, len);
    let ports = match protocol {
        TCP | UDP => half(ports).zip(half(ports + 2)),
        _ => None,
    };
    // The ports' sum too: both are often the same.
    let ports = ports.map_or(0, |(one, two)| {
        u64::from(one ^ two) << 20 | (u64::from(one) + u64::from(two))
    });
    Some(hosts ^ ports << 24)
}

/// Bytes taken together to one word.
fn sum(frame: &[u8], at: usize, len: usize) -> u64 {
    let bytes = frame.get(at..at + len).unwrap_or(&[]);
    let add = |sum: u64, byte: &u8| sum.wrapping_mul(0x100_0001).wrapping_add(u64::from(*byte));
    bytes.iter().fold(0, add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame of TCP between two ends of one byte and a port each.
    fn tcp(v4: bool, from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
        let mut frame = vec![0; 14];
        if v4 {
            frame[12..14].copy_from_slice(&IPV4.to_be_bytes());
            frame.extend([
                0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, from.0,
            ]);
            frame.extend([10, 0, 0, to.0]);
        } else {
            frame[12..14].copy_from_slice(&IPV6.to_be_bytes());
            frame.extend([0x60, 0, 0, 0, 0, 20, TCP, 64]);
            for end in [from.0, to.0] {
                frame.extend([0; 15]);
                frame.push(end);
            }
        }
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame
    }

    #[test]
    fn fragments_stay_together() {
        let first = tcp(true, (1, 5000), (2, 80));
        for (flags, rest) in [(0x20, [1, 2, 3, 4]), (0x00, [9, 9, 9, 9])] {
            let mut one = first.clone();
            one[20] = flags;
            one[21] = u8::from(flags == 0) * 100;
            let mut other = one.clone();
            other[34..38].copy_from_slice(&rest);
            assert_eq!(flow(&one), flow(&other));
        }
    }

    #[test]
    fn flows_are_spread() {
        let numbers = |v4| (0..64).map(move |p| flow(&tcp(v4, (1, 40_000 + 2 * p), (2, 80))));
        for v4 in [true, false] {
            let mut all: Vec<_> = numbers(v4).collect();
            let odd = all.iter().filter(|n| **n % 2 == 1).count();
            assert!((16..=48).contains(&odd), "{odd} of 64");
            all.sort_unstable();
            all.dedup();
            assert!(all.len() > 40, "{} of 64", all.len());
        }
    }

    proptest! {
        /// An answer comes by the queue that was last asked by, if there is such a one still.
        #[test]
        fn answers_come_where_the_guest_sends(v4: bool, a: (u8, u16), b: (u8, u16), pair in 0u16..15, pairs in 1u16..16) {
            let mut flows = Flows::new();
            prop_assert!(flows.of(&tcp(v4, b, a), pairs) < pairs);
            flows.sent(&tcp(v4, a, b), pair);
            let got = flows.of(&tcp(v4, b, a), pairs);
            prop_assert!(got < pairs);
            if pair < pairs {
                prop_assert_eq!(got, pair);
            }
        }

        /// Whatever a frame is: it has a pair.
        #[test]
        fn any_frame(frame in prop::collection::vec(any::<u8>(), 0..LOOK + 8), kind in 0usize..4, pairs in 0u16..16) {
            let mut frame = frame;
            if frame.len() > 18 {
                let kind = [IPV4, IPV6, VLAN, 0x0806][kind];
                frame[12..14].copy_from_slice(&kind.to_be_bytes());
            }
            let mut flows = Flows::new();
            prop_assert!(flows.of(&frame, pairs) < pairs.max(1));
            flows.sent(&frame, pairs);
            let _ = flows.of(&frame, pairs);
        }
    }
}
