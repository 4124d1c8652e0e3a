//! What the driver sets by the control queue (virtio 1.2, 5.1.6.5): which frames it wants, its address, how many pairs of queues.
//!
//! Every command says what is to be, not what is to change, so that one which a predecessor carried out and did not come to answer is
//! carried out again to the same effect. What is set is committed before a command is answered.

use alloc::vec::Vec;

use virtio::{Chain, Error, Memory};

use crate::{Span, feature, gather};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Answers (5.1.6.5).
pub const OK: u8 = 0;
/// As above: not carried out.
pub const ERR: u8 = 1;

/// Classes of commands, and their commands.
pub mod class {
    /// Which frames are wanted (5.1.6.5.1): one byte, on or off.
    pub const RX: u8 = 0;
    /// Addresses (5.1.6.5.2).
    pub const MAC: u8 = 1;
    /// Pairs of queues (5.1.6.5.6).
    pub const MQ: u8 = 4;
    /// Of [`RX`]: up to this one [`crate::feature::CTRL_RX`] has them, behind it [`crate::feature::CTRL_RX_EXTRA`].
    pub const RX_ALLMULTI: u8 = 1;
    /// Of [`RX`]: the last.
    pub const RX_NOBCAST: u8 = 5;
    /// Of [`MAC`]: the tables of addresses that are wanted.
    pub const MAC_TABLE_SET: u8 = 0;
    /// Of [`MAC`]: the card's own.
    pub const MAC_ADDR_SET: u8 = 1;
    /// Of [`MQ`].
    pub const MQ_VQ_PAIRS_SET: u8 = 0;
}

/// Modes: bit n is what command n of [`class::RX`] sets.
mod mode {
    pub const PROMISC: u8 = 1;
    pub const ALLMULTI: u8 = 1 << 1;
    pub const ALLUNI: u8 = 1 << 2;
    pub const NOMULTI: u8 = 1 << 3;
    pub const NOUNI: u8 = 1 << 4;
    pub const NOBCAST: u8 = 1 << 5;
    /// A table was too long to be kept: all of its kind are wanted.
    pub const MANY_UNI: u8 = 1 << 6;
    pub const MANY_MULTI: u8 = 1 << 7;
}

const BROADCAST: Mac = [0xFF; 6];
/// Addresses of each table that are kept.
const MAX_MACS: usize = 16;
/// Bytes of class and command, and of a table's length.
const HEAD: u64 = 2;
const COUNT: u64 = 4;

/// What is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The card's address.
    pub mac: Mac,
    /// Pairs of queues in use, one at least.
    pub pairs: u16,
    modes: u8,
    /// Further addresses that are wanted: those of one, those of many.
    unicast: Vec<Mac>,
    multicast: Vec<Mac>,
}

impl Settings {
    /// After a reset: everything is wanted, one pair is in use.
    #[must_use]
    pub const fn new(mac: Mac) -> Self {
        Self {
            mac,
            pairs: 1,
            modes: mode::PROMISC,
            unicast: Vec::new(),
            multicast: Vec::new(),
        }
    }

    /// Whether a frame to this address is wanted.
    #[inline]
    #[must_use]
    pub fn wants(&self, to: Mac) -> bool {
        let on = |modes| self.modes & modes != 0;
        if on(mode::PROMISC) {
            return true;
        }
        if to == self.mac {
            return !on(mode::NOUNI);
        }
        if to == BROADCAST {
            return !on(mode::NOBCAST);
        }
        if to[0] & 1 != 0 {
            let all = on(mode::ALLMULTI | mode::MANY_MULTI);
            return !on(mode::NOMULTI) && (all || self.multicast.contains(&to));
        }
        let all = on(mode::ALLUNI | mode::MANY_UNI);
        !on(mode::NOUNI) && (all || self.unicast.contains(&to))
    }

    /// For a successor.
    #[must_use]
    pub fn words(&self) -> Vec<u64> {
        let counts = [self.unicast.len(), self.multicast.len()].map(|n| n as u64);
        let mut words = alloc::vec![
            word(self.mac) | u64::from(self.pairs) << 48,
            u64::from(self.modes) | counts[0] << 8 | counts[1] << 16,
        ];
        words.extend(self.unicast.iter().chain(&self.multicast).map(|m| word(*m)));
        words
    }

    /// What a predecessor had set, of a card with at most so many pairs. `None`: it makes no sense.
    #[must_use]
    pub fn from_words(words: &[u64], most: u16) -> Option<Self> {
        let (&[first, second], macs) = words.split_first_chunk::<2>()?;
        let count = usize::from((second >> 8) as u8);
        let (unicast, multicast) = macs.split_at_checked(count)?;
        let all = |macs: &[u64]| macs.iter().map(|&word| mac(word)).collect();
        let settings = Self {
            mac: mac(first),
            pairs: (first >> 48) as u16,
            modes: second as u8,
            unicast: all(unicast),
            multicast: all(multicast),
        };
        let sound = (1..=most).contains(&settings.pairs)
            && unicast.len() <= MAX_MACS
            && multicast.len() <= MAX_MACS
            && settings.words() == words;
        sound.then_some(settings)
    }

    /// Carries out a command of a driver that has accepted these features, on a card with so many pairs. False, and nothing changed, if it
    /// is none.
    pub fn obey(&mut self, command: &Command<'_>, features: u64, most: u16) -> Result<bool, Error> {
        let Some([class, number]) = command.get::<2>(0)? else {
            return Ok(false);
        };
        let has = |feature| features & feature != 0;
        let len = command.len - HEAD;
        match (class, number) {
            (class::RX, number) if number <= class::RX_NOBCAST && len == 1 => {
                let wanted = match number <= class::RX_ALLMULTI {
                    true => feature::CTRL_RX,
                    false => feature::CTRL_RX_EXTRA,
                };
                let on = match command.get::<1>(HEAD)? {
                    Some([on @ (0 | 1)]) if has(wanted) => on,
                    _ => return Ok(false),
                };
                self.modes = self.modes & !(1 << number) | on << number;
            }
            (class::MAC, class::MAC_TABLE_SET) if has(feature::CTRL_RX) => {
                let Some((unicast, next)) = command.table(HEAD)? else {
                    return Ok(false);
                };
                let Some((multicast, end)) = command.table(next)? else {
                    return Ok(false);
                };
                if end != command.len {
                    return Ok(false);
                }
                self.modes &= !(mode::MANY_UNI | mode::MANY_MULTI);
                self.unicast = unicast.unwrap_or_else(|| {
                    self.modes |= mode::MANY_UNI;
                    Vec::new()
                });
                self.multicast = multicast.unwrap_or_else(|| {
                    self.modes |= mode::MANY_MULTI;
                    Vec::new()
                });
            }
            (class::MAC, class::MAC_ADDR_SET) if has(feature::CTRL_MAC_ADDR) && len == 6 => {
                match command.get::<6>(HEAD)? {
                    Some(mac) if mac[0] & 1 == 0 => self.mac = mac,
                    _ => return Ok(false),
                }
            }
            (class::MQ, class::MQ_VQ_PAIRS_SET) if has(feature::MQ) && len == 2 => {
                match command.get::<2>(HEAD)?.map(u16::from_le_bytes) {
                    Some(pairs) if (1..=most).contains(&pairs) => self.pairs = pairs,
                    _ => return Ok(false),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn word([a, b, c, d, e, f]: Mac) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

fn mac(word: u64) -> Mac {
    let [a, b, c, d, e, f, _, _] = word.to_le_bytes();
    [a, b, c, d, e, f]
}

/// A command as it lies in the guest's memory.
pub struct Command<'a> {
    memory: &'a Memory,
    spans: Vec<Span>,
    /// Bytes of it.
    len: u64,
    /// Where the answer goes.
    answer: u64,
}

/// Addresses of a table, or `None` if there are too many; and where the table ends.
type Table = (Option<Vec<Mac>>, u64);

impl<'a> Command<'a> {
    /// The command in a buffer; one that has no room for an answer is none that can be answered.
    pub fn new(memory: &'a Memory, chain: &mut Chain<'_>) -> Result<Self, Error> {
        let (mut spans, mut len, mut answer) = (Vec::new(), 0, None);
        for part in chain {
            let part = part?;
            if part.len == 0 {
                continue;
            }
            if part.writable {
                answer = answer.or(Some(part.gpa));
            } else {
                len += u64::from(part.len);
                let (gpa, len) = (part.gpa, part.len);
                spans.push(Span { gpa, len });
            }
        }
        Ok(Self {
            memory,
            spans,
            len,
            answer: answer.ok_or(Error::Length)?,
        })
    }

    /// Answers it.
    pub fn answer(&self, done: bool) -> Result<(), Error> {
        self.memory
            .write(self.answer, &[if done { OK } else { ERR }])
    }

    /// Bytes from an offset on; `None` if there are not so many.
    fn get<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>, Error> {
        let mut bytes = [0; N];
        if offset + N as u64 > self.len {
            return Ok(None);
        }
        gather(self.memory, &self.spans, offset, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// The table at an offset (5.1.6.5.2); `None` if it is longer than the command.
    fn table(&self, offset: u64) -> Result<Option<Table>, Error> {
        let Some(count) = self.get::<4>(offset)?.map(u32::from_le_bytes) else {
            return Ok(None);
        };
        let first = offset + COUNT;
        let end = first + 6 * u64::from(count);
        if end > self.len {
            return Ok(None);
        }
        if count as usize > MAX_MACS {
            return Ok(Some((None, end)));
        }
        let mut all = Vec::new();
        for number in 0..u64::from(count) {
            all.extend(self.get::<6>(first + 6 * number)?);
        }
        Ok(Some((Some(all), end)))
    }
}
