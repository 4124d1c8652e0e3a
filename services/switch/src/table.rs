//! Which address was seen at which port.

use alloc::collections::BTreeMap;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Most addresses that a port's devices have. Who claims more is not believed, and what is for them goes everywhere.
pub const MAX_PER_PORT: u16 = 64;

/// Addresses by network.
#[derive(Default)]
pub struct Table {
    seen: BTreeMap<(u32, Mac), u16>,
    counts: BTreeMap<u16, u16>,
}

/// Whether frames for it are for many.
#[must_use]
pub const fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

impl Table {
    /// A frame from this address came in at this port.
    pub fn learn(&mut self, network: u32, mac: Mac, port: u16) {
        if is_group(mac) || self.seen.get(&(network, mac)) == Some(&port) {
            return;
        }
        let count = self.counts.entry(port).or_default();
        if *count >= MAX_PER_PORT {
            return;
        }
        *count += 1;
        if let Some(before) = self.seen.insert((network, mac), port)
            && let Some(count) = self.counts.get_mut(&before)
        {
            *count -= 1;
        }
    }

    /// The port that this address was last seen at.
    #[must_use]
    pub fn find(&self, network: u32, mac: Mac) -> Option<u16> {
        self.seen.get(&(network, mac)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_move_and_do_not_fill_the_table() {
        let mut table = Table::default();
        let mac = |n: u16| [2, 0, 0, 0, (n >> 8) as u8, n as u8];
        table.learn(1, mac(1), 0);
        table.learn(2, mac(1), 1);
        assert_eq!(
            (table.find(1, mac(1)), table.find(2, mac(1))),
            (Some(0), Some(1))
        );
        assert_eq!(table.find(3, mac(1)), None);
        table.learn(1, mac(1), 2);
        assert_eq!(table.find(1, mac(1)), Some(2));
        table.learn(1, [1, 0, 0, 0, 0, 1], 2);
        assert_eq!(
            table.find(1, [1, 0, 0, 0, 0, 1]),
            None,
            "a group is nowhere"
        );
        for n in 0..1000 {
            table.learn(1, mac(n), 3);
        }
        assert_eq!(table.seen.len(), usize::from(MAX_PER_PORT) + 1);
        assert_eq!(table.find(1, mac(1)), Some(3), "stolen, as anywhere");
        assert_eq!(table.find(1, mac(999)), None);
        // Where it went from there is room again.
        table.learn(1, mac(5000), 2);
        assert_eq!(table.counts[&2], 1);
    }
}
