//! The page through which a device server interrupts its VM: written by the server, read by the VMM.
//!
//! The server sets a bit here and then signals the vCPU's Notification, which ends `run`; the VMM looks at each of
//! its devices' pages and feeds its interrupt controllers. Lines are numbered by GSI (global system interrupt).
//!
//! An edge-triggered input (every ISA interrupt) must not miss a line that went low and high again between two
//! looks, so rises are latched in a word of their own.
//!
//! A PCI function has no lines but its interrupt pin (INTx) and MSI-X vectors. A vector that is signalled is what a rise is, so the
//! second word then holds vectors; bit 0 of the first is the pin, and what is above it counts how often that has risen, for who needs
//! edges of it ([`Pin`]): a look costs two loads, whatever the device is.
//!
//! A function that waits for more at a queue says so in a word of its own: when the guest halts, the VMM rings for it.
//!
//! Trust: the VMM passes the lines and vectors that the device was given; bits beyond these are ignored. A hostile
//! server can thus make noise on its own lines only. The server trusts nothing here but uses it as a hint.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Interrupt lines of a page, numbered by GSI.
pub const LINES: u32 = 64;
/// MSI-X vectors of a page.
pub const MSI_VECTORS: u32 = 64;
/// A function's interrupt pin, as a bit of the levels.
const INTX: u64 = 1;
/// What each rise of it adds to the levels.
const ROSE: u64 = 2;
const USED_BYTES: usize = 64 + 4 * 64;

/// The layout of the shared page. A page of zeroes is valid: all lines low, nothing pending.
#[repr(C, align(4096))]
pub struct InterruptPage {
    /// Level of each line, bit n for GSI n; or of a function's pin, bit 0. Written by the server.
    levels: AtomicU64,
    /// Lines that rose since the VMM last looked; or a function's MSI-X vectors that were signalled. Set by the server, taken by the VMM.
    rises: AtomicU64,
    /// Queues of a function whose doorbells rang and that it has not looked at yet, bit n for queue n. Set by the server, taken by the VMM.
    held: AtomicU64,
    _reserved: [AtomicU64; 5],
    /// How often the guest ended an interrupt of each line, modulo 2^32. Written by the VMM.
    ends: [AtomicU32; 64],
    _unused: [AtomicU64; (4096 - USED_BYTES) / 8],
}

const _: () = assert!(size_of::<InterruptPage>() == 4096);

impl InterruptPage {
    /// All lines low; the same as a page of zeroes.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            levels: AtomicU64::new(0),
            rises: AtomicU64::new(0),
            held: AtomicU64::new(0),
            _reserved: [const { AtomicU64::new(0) }; 5],
            ends: [const { AtomicU32::new(0) }; 64],
            _unused: [const { AtomicU64::new(0) }; (4096 - USED_BYTES) / 8],
        }
    }
}

impl Default for InterruptPage {
    fn default() -> Self {
        Self::new()
    }
}

/// The device server's side. One for a page; a server with several threads keeps it under its lock.
pub struct InterruptWriter<'a> {
    page: &'a InterruptPage,
    levels: u64,
}

impl<'a> InterruptWriter<'a> {
    /// Takes the writing side, with the levels that a predecessor left.
    #[must_use]
    pub fn new(page: &'a InterruptPage) -> Self {
        Self {
            page,
            levels: page.levels.load(Ordering::Relaxed),
        }
    }

    /// Drives line `gsi`. True if the VMM must be signalled: the level changed. Lines out of range do nothing.
    #[must_use]
    pub fn set_level(&mut self, gsi: u32, high: bool) -> bool {
        let bit = 1u64.checked_shl(gsi).unwrap_or(0);
        if (self.levels & bit != 0) == high || bit == 0 {
            return false;
        }
        self.levels ^= bit;
        if high {
            self.page.rises.fetch_or(bit, Ordering::Relaxed);
        }
        self.page.levels.store(self.levels, Ordering::Release);
        true
    }

    /// Line `gsi` goes high and low again, or low and high: an edge. True if the VMM must be signalled: always, but for lines out of
    /// range.
    #[must_use]
    #[inline]
    pub fn pulse(&mut self, gsi: u32) -> bool {
        let bit = 1u64.checked_shl(gsi).unwrap_or(0);
        self.page.rises.fetch_or(bit, Ordering::Release);
        bit != 0
    }

    /// Signals an MSI-X vector of a function. True if the VMM must be signalled: it has taken the last such signal. Vectors out of
    /// range do nothing.
    #[must_use]
    #[inline]
    pub fn set_msi(&mut self, vector: u32) -> bool {
        let bit = 1u64.checked_shl(vector).unwrap_or(0);
        self.page.rises.fetch_or(bit, Ordering::Release) & bit == 0 && bit != 0
    }

    /// Drives a function's interrupt pin. True if the VMM must be signalled: the level changed.
    #[must_use]
    #[inline]
    pub fn set_intx(&mut self, high: bool) -> bool {
        if (self.levels & INTX != 0) == high {
            return false;
        }
        self.levels = match high {
            true => self.levels.wrapping_add(ROSE) | INTX,
            false => self.levels & !INTX,
        };
        self.page.levels.store(self.levels, Ordering::Release);
        true
    }

    /// A function waits for more at these of its queues, and is to be rung when the guest has nothing else to do; at no others.
    #[inline]
    pub fn hold(&mut self, queues: u64) {
        self.page.held.store(queues, Ordering::Release);
    }

    /// How often the guest ended an interrupt of line `gsi`, modulo 2^32: a hint, for level-triggered devices.
    #[must_use]
    pub fn ends(&self, gsi: u32) -> u32 {
        self.page
            .ends
            .get(gsi as usize)
            .map_or(0, |count| count.load(Ordering::Acquire))
    }
}

/// A function's interrupt pin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pin(u64);

impl Pin {
    /// One that has risen so often (modulo 2^63), and asserts or not.
    #[must_use]
    pub const fn new(rises: u64, level: bool) -> Self {
        Self(rises << 1 | level as u64)
    }

    /// Whether it asserts.
    #[must_use]
    pub const fn level(self) -> bool {
        self.0 & INTX != 0
    }

    /// Whether it has risen since it was `before`, even if it fell again, or if whoever drives it has lost count.
    #[must_use]
    pub const fn rose(self, before: Self) -> bool {
        (self.0 ^ before.0) & !INTX != 0 || self.level() && !before.level()
    }
}

/// What the VMM saw at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Levels now, bit n for GSI n; of a function, its [pin](Self::pin).
    pub levels: u64,
    /// Lines that rose since the last look, even if they fell again.
    pub rises: u64,
}

impl Lines {
    /// A function's pin.
    #[must_use]
    pub const fn pin(self) -> Pin {
        Pin(self.levels)
    }
}

/// The VMM's side.
pub struct InterruptReader<'a> {
    page: &'a InterruptPage,
    levels: u64,
    rises: u64,
}

impl<'a> InterruptReader<'a> {
    /// Reads a device's page; only lines in `allowed` (bit n for GSI n) count.
    #[must_use]
    pub fn new(page: &'a InterruptPage, allowed: u64) -> Self {
        Self {
            page,
            levels: allowed,
            rises: allowed,
        }
    }

    /// Reads the page of a PCI function: [`Lines::pin`] is its pin, [`Lines::rises`] are its MSI-X vectors.
    #[must_use]
    pub fn function(page: &'a InterruptPage) -> Self {
        Self {
            page,
            levels: u64::MAX,
            rises: u64::MAX,
        }
    }

    /// Levels, and the rises since the last look. Two loads when nothing happened.
    #[must_use]
    pub fn look(&self) -> Lines {
        let levels = self.page.levels.load(Ordering::Acquire);
        let mut rises = self.page.rises.load(Ordering::Relaxed);
        if rises != 0 {
            rises = self.page.rises.swap(0, Ordering::Acquire);
        }
        Lines {
            levels: levels & self.levels,
            rises: rises & self.rises,
        }
    }

    /// The guest has nothing to do: the queues at which a function waits for more. They are told once.
    #[must_use]
    #[inline]
    pub fn take_held(&self) -> u64 {
        match self.page.held.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.page.held.swap(0, Ordering::Acquire),
        }
    }

    /// Tells the device that the guest ended an interrupt of line `gsi`.
    pub fn end(&self, gsi: u32) {
        if let Some(count) = self.page.ends.get(gsi as usize) {
            // The VMM is the only writer, so load and store are enough; a scribbling server confuses itself only.
            count.store(
                count.load(Ordering::Relaxed).wrapping_add(1),
                Ordering::Release,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_rises() {
        let page = InterruptPage::new();
        let mut writer = InterruptWriter::new(&page);
        let reader = InterruptReader::new(&page, 1 << 4 | 1 << 63);
        assert_eq!(reader.look(), Lines::default());
        assert!(writer.set_level(4, true));
        assert!(!writer.set_level(4, true), "no change, no signal");
        assert_eq!(
            reader.look(),
            Lines {
                levels: 1 << 4,
                rises: 1 << 4
            }
        );
        assert_eq!(
            reader.look(),
            Lines {
                levels: 1 << 4,
                rises: 0
            }
        );
        // Low and high between two looks: the edge must not be lost.
        assert!(writer.set_level(4, false) && writer.set_level(4, true));
        assert_eq!(
            reader.look(),
            Lines {
                levels: 1 << 4,
                rises: 1 << 4
            }
        );
        assert!(writer.pulse(63) && !writer.pulse(64));
        assert_eq!(
            reader.look(),
            Lines {
                levels: 1 << 4,
                rises: 1 << 63
            }
        );
    }

    #[test]
    fn a_device_reaches_only_its_lines() {
        let page = InterruptPage::new();
        let mut writer = InterruptWriter::new(&page);
        assert!(writer.set_level(9, true));
        assert!(!writer.set_level(64, true) && !writer.set_level(u32::MAX, true));
        assert_eq!(InterruptReader::new(&page, 1 << 4).look(), Lines::default());
    }

    #[test]
    fn a_successor_knows_the_levels() {
        let page = InterruptPage::new();
        assert!(InterruptWriter::new(&page).set_level(4, true));
        let mut successor = InterruptWriter::new(&page);
        assert!(!successor.set_level(4, true));
        assert!(successor.set_level(4, false));
    }

    #[test]
    fn vectors_and_the_pin_of_a_function() {
        let page = InterruptPage::new();
        let mut writer = InterruptWriter::new(&page);
        let reader = InterruptReader::function(&page);
        assert!(writer.set_msi(0) && !writer.set_msi(0) && writer.set_msi(63));
        assert!(!writer.set_msi(64) && !writer.set_msi(u32::MAX));
        let lines = |pin: Pin, rises| Lines {
            levels: pin.0,
            rises,
        };
        let low = Pin::new(0, false);
        assert_eq!(reader.look(), lines(low, 1 << 63 | 1));
        assert!(writer.set_intx(true) && !writer.set_intx(true));
        let high = Pin::new(1, true);
        assert_eq!(reader.look(), lines(high, 0), "the pin is no vector");
        assert!(high.rose(low) && high.level() && !low.level());
        assert!(writer.set_msi(0), "the VMM has taken the last one");
        let mut successor = InterruptWriter::new(&page);
        assert!(successor.set_intx(false));
        let fell = Pin::new(1, false);
        assert_eq!(reader.look(), lines(fell, 1));
        assert!(!fell.rose(high));
        // Up and down between two looks.
        assert!(successor.set_intx(true) && successor.set_intx(false));
        assert!(reader.look().pin().rose(fell) && !reader.look().pin().level());
    }

    #[test]
    fn queues_that_wait() {
        let page = InterruptPage::new();
        let mut writer = InterruptWriter::new(&page);
        let reader = InterruptReader::function(&page);
        assert_eq!(reader.take_held(), 0);
        writer.hold(0b10);
        assert_eq!((reader.take_held(), reader.take_held()), (0b10, 0));
        writer.hold(0b10);
        writer.hold(0);
        assert_eq!(reader.take_held(), 0);
        assert_eq!(reader.look(), Lines::default());
    }

    #[test]
    fn ends() {
        let page = InterruptPage::new();
        let writer = InterruptWriter::new(&page);
        let reader = InterruptReader::new(&page, u64::MAX);
        reader.end(4);
        reader.end(4);
        reader.end(64);
        assert_eq!((writer.ends(4), writer.ends(5), writer.ends(64)), (2, 0, 0));
    }
}
