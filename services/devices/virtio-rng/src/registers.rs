//! The registers of a modern virtio-pci device with one queue: common configuration (virtio 1.2, 4.1.4.3) and ISR (4.1.4.5).

/// Offset of the ISR status, and where notifications begin and end.
const ISR: u16 = 0x40;
/// First offset of notifications.
const NOTIFY: u16 = 0x80;
/// Behind their last.
const NOTIFY_END: u16 = 0xC0;
/// Most descriptors of the queue.
pub const MAX_SIZE: u16 = 64;
/// No MSI-X vector (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xFFFF;
/// Vectors there are: the queue's and the configuration's.
const VECTORS: u16 = 2;
/// Feature bits: version 1, in the upper word.
const VERSION_1: u32 = 1;

/// Bits of the device status (2.1).
pub mod status {
    /// The driver has accepted its features.
    pub const FEATURES_OK: u8 = 8;
    /// The driver drives.
    pub const DRIVER_OK: u8 = 4;
    /// The device is lost until it is reset.
    pub const NEEDS_RESET: u8 = 64;
}

/// The queue, as the driver has set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Descriptors, a power of two.
    pub size: u16,
    /// Its MSI-X vector.
    pub vector: u16,
    /// On.
    pub enabled: bool,
    /// Guest-physical address of the descriptors.
    pub descriptors: u64,
    /// Of the available ring.
    pub driver: u64,
    /// Of the used ring.
    pub device: u64,
}

impl Queue {
    const RESET: Self = Self {
        size: MAX_SIZE,
        vector: NO_VECTOR,
        enabled: false,
        descriptors: 0,
        driver: 0,
        device: 0,
    };

    /// Whether it can be served: alignments are those of 2.7.
    pub(crate) fn ready(&self) -> bool {
        self.enabled
            && self.size.is_power_of_two()
            && self.size <= MAX_SIZE
            && self.descriptors.is_multiple_of(16)
            && self.driver.is_multiple_of(2)
            && self.device.is_multiple_of(4)
    }
}

/// What an access asks for beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// The queue is to be looked at.
    Serve,
}

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    device_select: u32,
    driver_select: u32,
    features: [u32; 2],
    config_vector: u16,
    /// Device status.
    pub status: u8,
    queue_select: u16,
    /// The only queue.
    pub queue: Queue,
    isr: u8,
}

/// Words of state.
const STATE_WORDS: usize = 6;

impl Default for Registers {
    fn default() -> Self {
        Self {
            device_select: 0,
            driver_select: 0,
            features: [0; 2],
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queue: Queue::RESET,
            isr: 0,
        }
    }
}

impl Registers {
    /// Whether the driver drives and the device is not lost.
    #[must_use]
    pub fn running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// Whether the pin is to assert.
    #[must_use]
    pub fn pin(&self) -> bool {
        self.isr != 0
    }

    /// A queue interrupt: the vector to signal, or else the pin asserts (4.1.5.1.3 and 4.1.4.5).
    pub fn interrupt(&mut self) -> Option<u16> {
        Self::raise(&mut self.isr, self.queue.vector, 1)
    }

    /// The guest has broken the device (2.1.2).
    pub fn needs_reset(&mut self) -> Option<u16> {
        self.status |= status::NEEDS_RESET;
        Self::raise(&mut self.isr, self.config_vector, 2)
    }

    fn raise(isr: &mut u8, vector: u16, bit: u8) -> Option<u16> {
        if vector == NO_VECTOR {
            *isr |= bit;
            return None;
        }
        Some(vector)
    }

    /// The common configuration as bytes.
    fn image(&self) -> [u8; 64] {
        let mut image = [0; 64];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(to) = image.get_mut(at..at + bytes.len()) {
                to.copy_from_slice(bytes);
            }
        };
        let offered = if self.device_select == 1 {
            VERSION_1
        } else {
            0
        };
        let accepted = self.features.get(self.driver_select as usize);
        put(0x00, &self.device_select.to_le_bytes());
        put(0x04, &offered.to_le_bytes());
        put(0x08, &self.driver_select.to_le_bytes());
        put(0x0C, &accepted.copied().unwrap_or(0).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &1u16.to_le_bytes());
        put(0x14, &[self.status]);
        put(0x16, &self.queue_select.to_le_bytes());
        // Another queue is not available: its size is 0.
        if self.queue_select == 0 {
            let queue = &self.queue;
            put(0x18, &queue.size.to_le_bytes());
            put(0x1A, &queue.vector.to_le_bytes());
            put(0x1C, &u16::from(queue.enabled).to_le_bytes());
            put(0x20, &queue.descriptors.to_le_bytes());
            put(0x28, &queue.driver.to_le_bytes());
            put(0x30, &queue.device.to_le_bytes());
        }
        image
    }

    /// Reads `width` bytes at `offset`.
    pub fn read(&mut self, offset: u16, width: u8) -> u32 {
        if offset == ISR {
            // Reading it clears it, and the pin falls.
            return core::mem::take(&mut self.isr).into();
        }
        let image = self.image();
        let from = usize::from(offset);
        let mut bytes = [0; 4];
        for (to, byte) in bytes
            .iter_mut()
            .zip(image.iter().skip(from))
            .take(width.into())
        {
            *to = *byte;
        }
        u32::from_le_bytes(bytes)
    }

    /// Writes `width` bytes at `offset`.
    pub fn write(&mut self, offset: u16, width: u8, value: u32) -> Then {
        if (NOTIFY..NOTIFY_END).contains(&offset) {
            return Then::Serve;
        }
        let mut image = self.image();
        let to = image.iter_mut().skip(offset.into()).take(width.into());
        for (to, byte) in to.zip(value.to_le_bytes()) {
            *to = byte;
        }
        let word = |at: usize, len: usize| {
            let bytes = image.iter().skip(at).take(len).rev();
            bytes.fold(0u64, |word, &byte| word << 8 | u64::from(byte))
        };
        let half = |at| word(at, 2) as u16;
        let mine = self.queue_select == 0;
        // Once it is on it stays as it is (4.1.4.3.2).
        let open = mine && !self.queue.enabled;
        match offset {
            0x00..0x04 => self.device_select = word(0, 4) as u32,
            0x08..0x0C => self.driver_select = word(8, 4) as u32,
            0x0C..0x10 if self.status & status::FEATURES_OK == 0 => {
                if let Some(to) = self.features.get_mut(self.driver_select as usize) {
                    *to = word(0x0C, 4) as u32;
                }
            }
            0x10..0x12 => self.config_vector = vector(half(0x10)),
            0x14 => return self.set_status(word(0x14, 1) as u8),
            0x16..0x18 => self.queue_select = half(0x16),
            0x18..0x1A if open => self.queue.size = half(0x18),
            0x1A..0x1C if mine => self.queue.vector = vector(half(0x1A)),
            0x1C..0x1E if mine && half(0x1C) == 1 => self.queue.enabled = true,
            0x20..0x28 if open => self.queue.descriptors = word(0x20, 8),
            0x28..0x30 if open => self.queue.driver = word(0x28, 8),
            0x30..0x38 if open => self.queue.device = word(0x30, 8),
            _ => {}
        }
        Then::Nothing
    }

    fn set_status(&mut self, mut value: u8) -> Then {
        if value == 0 {
            *self = Self::default();
            return Then::Nothing;
        }
        // Without version 1, or with what was not offered, there is no agreement (2.2.2).
        if self.features != [0, VERSION_1] {
            value &= !status::FEATURES_OK;
        }
        self.status = value | self.status & status::NEEDS_RESET;
        if self.running() {
            Then::Serve
        } else {
            Then::Nothing
        }
    }

    /// For the state page.
    #[must_use]
    pub fn state(&self) -> [u64; STATE_WORDS] {
        let q = &self.queue;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let halves = |w: [u16; 4]| w.iter().rev().fold(0, |all, &h| all << 16 | u64::from(h));
        let [low, high] = self.features;
        let select = pair(self.device_select, self.driver_select);
        let small = u16::from(self.status) | u16::from(self.isr) << 8;
        [
            select,
            pair(low, high),
            halves([
                self.config_vector,
                small,
                self.queue_select,
                q.enabled.into(),
            ]),
            // Addresses of the queue have low bits to spare only if they are sound: so on their own.
            q.descriptors,
            q.driver,
            q.device,
        ]
    }

    /// What the state page holds beside: the queue's size and vector.
    #[must_use]
    pub fn more_state(&self) -> u64 {
        u64::from(self.queue.size) | u64::from(self.queue.vector) << 16
    }

    /// From the words of [`Self::state`] and [`Self::more_state`].
    #[must_use]
    pub fn restore(words: &[u64]) -> Option<Self> {
        let &[select, features, small, descriptors, driver, device, more] = words else {
            return None;
        };
        let half = |word: u64, i: u32| (word >> (16 * i)) as u16;
        let [status, isr] = half(small, 1).to_le_bytes();
        Some(Self {
            device_select: select as u32,
            driver_select: (select >> 32) as u32,
            features: [features as u32, (features >> 32) as u32],
            config_vector: half(small, 0),
            status,
            queue_select: half(small, 2),
            queue: Queue {
                size: half(more, 0),
                vector: half(more, 1),
                enabled: half(small, 3) != 0,
                descriptors,
                driver,
                device,
            },
            isr,
        })
    }
}

/// A vector that there is, or none: the driver reads back which (4.1.5.1.2.1).
const fn vector(value: u16) -> u16 {
    if value < VECTORS { value } else { NO_VECTOR }
}
