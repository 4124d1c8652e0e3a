//! The registers of a modern virtio PCI device (virtio 1.2, 4.1.4) in one I/O BAR; [`ipc_schema::virtio`] says where each structure is.

use alloc::vec::Vec;
use ipc_schema::virtio::{
    COMMON_LEN, DEVICE, ISR, MAX_QUEUES, NO_VECTOR, NOTIFY, NOTIFY_LEN, NOTIFY_MULTIPLIER, feature,
    status,
};

use crate::split::{MAX_SIZE, Place};

/// Words of saved state beside the queues', and a queue's.
const WORDS: usize = 3;
const QUEUE_WORDS: usize = 4;

/// A queue's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Where it is.
    pub place: Place,
    /// Its MSI-X vector.
    pub vector: u16,
    /// On.
    pub enabled: bool,
}

/// What a write asks of the model.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Forget everything: queues, requests, features. The pin has fallen.
    Reset,
    /// The driver accepts these features, all of them offered; a model that cannot do so calls [`Transport::refuse`].
    FeaturesOk(u64),
    /// The driver drives: queues may be served.
    DriverOk,
    /// This queue is on.
    QueueEnabled(u16),
    /// This queue is off: its requests are to be forgotten.
    QueueReset(u16),
    /// There may be something in this queue.
    Notify(u16),
    /// A write to the device-specific configuration.
    Config {
        /// Offset in it.
        offset: u16,
        /// Bytes.
        width: u8,
        /// Value.
        value: u32,
    },
}

/// How the guest is to be interrupted.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// By this MSI-X vector.
    Vector(u16),
    /// By the pin, which now asserts ([`Transport::pin`]).
    Pin,
}

/// The registers of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    offered: u64,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    config_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
    isr: u8,
    max_size: u16,
    queues: Vec<Registers>,
    /// Something of what is saved may have changed since [`Transport::take_changed`].
    changed: bool,
}

impl Transport {
    /// A device that was just reset, with so many queues (at most [`MAX_QUEUES`]) of at most `max_size` descriptors each (a power of
    /// two up to [`MAX_SIZE`], else the next below). `VERSION_1` is offered beside `features`.
    #[must_use]
    pub fn new(features: u64, queues: u16, max_size: u16) -> Self {
        let max_size = 1 << max_size.clamp(1, MAX_SIZE).ilog2();
        let mut transport = Self {
            offered: features | feature::VERSION_1,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
            isr: 0,
            max_size,
            queues: alloc::vec![Self::off(max_size); queues.min(MAX_QUEUES).into()],
            changed: false,
        };
        transport.reset();
        transport
    }

    fn off(size: u16) -> Registers {
        Registers {
            place: Place {
                size,
                ..Place::default()
            },
            vector: NO_VECTOR,
            enabled: false,
        }
    }

    fn reset(&mut self) {
        (self.accepted, self.device_select, self.driver_select) = (0, 0, 0);
        (self.config_vector, self.status, self.queue_select) = (NO_VECTOR, 0, 0);
        self.isr = 0;
        let off = Self::off(self.max_size);
        self.queues.fill(off);
    }

    /// Whether [`Transport::save`] may give something else than when this was asked last. What only notifies or reads changes nothing.
    #[inline]
    pub const fn take_changed(&mut self) -> bool {
        core::mem::replace(&mut self.changed, false)
    }

    /// Features that the driver has accepted.
    #[must_use]
    pub const fn features(&self) -> u64 {
        self.accepted
    }

    /// Whether the driver drives and the device is not lost.
    #[must_use]
    pub const fn running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// A queue's registers.
    #[must_use]
    pub fn queue(&self, queue: u16) -> Option<&Registers> {
        self.queues.get(usize::from(queue))
    }

    /// Whether the pin asserts.
    #[must_use]
    pub const fn pin(&self) -> bool {
        self.isr != 0
    }

    /// The model refuses the features: the driver will not find `FEATURES_OK` (2.2.2).
    pub const fn refuse(&mut self) {
        self.changed = true;
        self.status &= !status::FEATURES_OK;
    }

    /// Interrupts for buffers used in a queue.
    pub fn interrupt(&mut self, queue: u16) -> Interrupt {
        let vector = self.queue(queue).map_or(NO_VECTOR, |q| q.vector);
        self.raise(vector, 1)
    }

    /// The device-specific configuration has changed.
    pub fn config_changed(&mut self) -> Interrupt {
        self.changed = true;
        self.generation = self.generation.wrapping_add(1);
        self.raise(self.config_vector, 2)
    }

    /// The driver has broken the device (2.1.2). Told once it drives; before, there is no interrupt to be had.
    pub fn needs_reset(&mut self) -> Option<Interrupt> {
        let first = self.status & status::NEEDS_RESET == 0;
        self.changed |= first;
        self.status |= status::NEEDS_RESET;
        let told = first && self.status & status::DRIVER_OK != 0;
        told.then(|| self.raise(self.config_vector, 2))
    }

    /// Whether the device is lost until the driver resets it.
    #[must_use]
    pub const fn lost(&self) -> bool {
        self.status & status::NEEDS_RESET != 0
    }

    /// What the driver has set is not known any more, for a reason that is none of its: the device needs a reset (2.1.1). All vectors are to
    /// be told, and the pin asserts, since by which of them the driver wants to hear of it is lost, too: the others find nothing.
    #[must_use]
    pub fn lose(&mut self) -> core::ops::RangeInclusive<u16> {
        self.reset();
        self.changed = true;
        self.status = status::NEEDS_RESET;
        self.isr = 2;
        0..=self.queues.len() as u16
    }

    /// The interrupt that said so may have been lost with a predecessor.
    pub fn still_needs_reset(&mut self) -> Option<Interrupt> {
        let told = self.lost() && self.status & status::DRIVER_OK != 0;
        told.then(|| self.raise(self.config_vector, 2))
    }

    fn raise(&mut self, vector: u16, bit: u8) -> Interrupt {
        if vector == NO_VECTOR {
            self.changed |= self.isr & bit == 0;
            self.isr |= bit;
            return Interrupt::Pin;
        }
        Interrupt::Vector(vector)
    }

    /// The common configuration as bytes (4.1.4.3).
    fn image(&self) -> [u8; COMMON_LEN as usize] {
        let mut image = [0; COMMON_LEN as usize];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(to) = image.get_mut(at..at + bytes.len()) {
                to.copy_from_slice(bytes);
            }
        };
        put(0x00, &self.device_select.to_le_bytes());
        put(0x04, &half(self.offered, self.device_select).to_le_bytes());
        put(0x08, &self.driver_select.to_le_bytes());
        put(0x0C, &half(self.accepted, self.driver_select).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.status, self.generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        // A queue that is not there has size 0.
        if let Some(queue) = self.queue(self.queue_select) {
            put(0x18, &queue.place.size.to_le_bytes());
            put(0x1A, &queue.vector.to_le_bytes());
            put(0x1C, &u16::from(queue.enabled).to_le_bytes());
            put(0x1E, &self.queue_select.to_le_bytes());
            put(0x20, &queue.place.descriptors.to_le_bytes());
            put(0x28, &queue.place.driver.to_le_bytes());
            put(0x30, &queue.place.device.to_le_bytes());
            put(0x38, &self.queue_select.to_le_bytes());
        }
        image
    }

    /// Reads `width` bytes at `offset`; `config` is the device-specific configuration. What is not there reads as 0.
    pub fn read(&mut self, offset: u16, width: u8, config: &[u8]) -> u32 {
        if offset < COMMON_LEN {
            return bytes(&self.image(), offset, width);
        }
        if offset == ISR {
            // Reading it clears it, and the pin falls (4.1.4.5).
            self.changed |= self.isr != 0;
            return core::mem::take(&mut self.isr).into();
        }
        match offset.checked_sub(DEVICE) {
            Some(offset) => bytes(config, offset, width),
            None => 0,
        }
    }

    /// Writes `width` bytes at `offset`.
    pub fn write(&mut self, offset: u16, width: u8, value: u32) -> Effect {
        if let Some(at) = offset.checked_sub(DEVICE) {
            let offset = at;
            return Effect::Config {
                offset,
                width,
                value,
            };
        }
        if let Some(at) = offset.checked_sub(NOTIFY) {
            let queue = at / NOTIFY_MULTIPLIER;
            let there = at < NOTIFY_LEN && self.queue(queue).is_some_and(|q| q.enabled);
            return match there && self.running() {
                true => Effect::Notify(queue),
                false => Effect::Nothing,
            };
        }
        if offset >= COMMON_LEN {
            return Effect::Nothing;
        }
        self.changed = true;
        let mut image = self.image();
        let to = image.iter_mut().skip(offset.into()).take(width.into());
        for (to, byte) in to.zip(value.to_le_bytes()) {
            *to = byte;
        }
        self.common(offset, &image)
    }

    /// A write to the common configuration, which would then be `image`. An access reaches the register that it begins in.
    fn common(&mut self, offset: u16, image: &[u8]) -> Effect {
        let word = |at: usize, len: usize| {
            let bytes = image.iter().skip(at).take(len).rev();
            bytes.fold(0u64, |word, &byte| word << 8 | u64::from(byte))
        };
        let half = |at| word(at, 2) as u16;
        let vectors = self.queues.len() as u16 + 1;
        let vector = |vector| if vector < vectors { vector } else { NO_VECTOR };
        match offset {
            0x00..0x04 => self.device_select = word(0x00, 4) as u32,
            0x08..0x0C => self.driver_select = word(0x08, 4) as u32,
            0x0C..0x10 if self.status & status::FEATURES_OK == 0 && self.driver_select < 2 => {
                let shift = 32 * self.driver_select;
                self.accepted = self.accepted & !(0xFFFF_FFFF << shift) | word(0x0C, 4) << shift;
            }
            0x10..0x12 => self.config_vector = vector(half(0x10)),
            0x14 => return self.set_status(word(0x14, 1) as u8),
            0x16..0x18 => self.queue_select = half(0x16),
            0x18..0x40 => {
                let (number, max_size) = (self.queue_select, self.max_size);
                let agreed = self.status & status::FEATURES_OK != 0;
                let resets = self.accepted & feature::RING_RESET != 0;
                let any = agreed && self.accepted & feature::RING_PACKED != 0;
                let fits = |size: u16| fits(size, max_size, any);
                let Some(queue) = self.queues.get_mut(usize::from(number)) else {
                    return Effect::Nothing;
                };
                match offset {
                    0x1A..0x1C => queue.vector = vector(half(0x1A)),
                    0x3A..0x3C if queue.enabled && resets && half(0x3A) == 1 => {
                        *queue = Self::off(max_size);
                        return Effect::QueueReset(number);
                    }
                    // Once it is on it stays as it is (4.1.4.3.2).
                    _ if queue.enabled => {}
                    0x18..0x1A if fits(half(0x18)) => {
                        queue.place.size = half(0x18);
                    }
                    0x1C..0x1E if agreed && half(0x1C) == 1 => {
                        queue.enabled = true;
                        return Effect::QueueEnabled(number);
                    }
                    0x20..0x28 => queue.place.descriptors = word(0x20, 8),
                    0x28..0x30 => queue.place.driver = word(0x28, 8),
                    0x30..0x38 => queue.place.device = word(0x30, 8),
                    _ => {}
                }
            }
            _ => {}
        }
        Effect::Nothing
    }

    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        // The driver clears no bit but by a reset (2.1.1), and the device sets the last one itself.
        let mut rises = value & !self.status & !status::NEEDS_RESET;
        let agreeable =
            self.accepted & !self.offered == 0 && self.accepted & feature::VERSION_1 != 0;
        if !agreeable {
            rises &= !status::FEATURES_OK;
        }
        // Agreement comes first, in a write of its own (3.1.1), so that the model can have its say.
        if self.status & status::FEATURES_OK == 0 {
            rises &= !status::DRIVER_OK;
        }
        self.status |= rises;
        match rises {
            r if r & status::DRIVER_OK != 0 => Effect::DriverOk,
            r if r & status::FEATURES_OK != 0 => Effect::FeaturesOk(self.accepted),
            _ => Effect::Nothing,
        }
    }

    /// The state that must outlive the server; what the queues have done is in the guest's memory.
    #[must_use]
    pub fn save(&self) -> Vec<u64> {
        let mut words = alloc::vec![
            self.accepted,
            u64::from(self.device_select) | u64::from(self.driver_select) << 32,
            u64::from(self.status)
                | u64::from(self.generation) << 8
                | u64::from(self.isr) << 16
                | u64::from(self.config_vector) << 32
                | u64::from(self.queue_select) << 48,
        ];
        for queue in &self.queues {
            let Place {
                size,
                descriptors,
                driver,
                device,
            } = queue.place;
            let rest =
                u64::from(size) | u64::from(queue.vector) << 16 | u64::from(queue.enabled) << 32;
            words.extend([descriptors, driver, device, rest]);
        }
        words
    }

    /// How many words [`Transport::save`] gives.
    #[must_use]
    pub const fn words(&self) -> usize {
        WORDS + QUEUE_WORDS * self.queues.len()
    }

    /// Which bits of a saved word cannot be found again: all, but for interrupts that the driver has not taken, which a successor raises
    /// anew.
    #[must_use]
    pub const fn lasts(word: usize) -> u64 {
        if word == 2 { !(0xFF << 16) } else { u64::MAX }
    }

    /// Takes what a predecessor with the same features and queues has saved; false, and nothing taken, if it makes no sense.
    #[must_use]
    pub fn restore(&mut self, words: &[u64]) -> bool {
        let mut new = self.clone();
        if words.len() != self.words() {
            return false;
        }
        let (&[accepted, selects, rest], queues) = words
            .split_first_chunk::<WORDS>()
            .unwrap_or((&[0; WORDS], &[]));
        new.accepted = accepted;
        (new.device_select, new.driver_select) = (selects as u32, (selects >> 32) as u32);
        (new.status, new.generation) = (rest as u8, (rest >> 8) as u8);
        new.isr = (rest >> 16) as u8;
        (new.config_vector, new.queue_select) = ((rest >> 32) as u16, (rest >> 48) as u16);
        let (queues, _) = queues.as_chunks::<QUEUE_WORDS>();
        for (queue, &[descriptors, driver, device, rest]) in new.queues.iter_mut().zip(queues) {
            queue.place = Place {
                size: rest as u16,
                descriptors,
                driver,
                device,
            };
            queue.vector = (rest >> 16) as u16;
            queue.enabled = rest >> 32 & 1 != 0;
        }
        // Whatever was lost on the way was no state of ours.
        let vectors = new.queues.len() as u16 + 1;
        let vector = |v: u16| v == NO_VECTOR || v < vectors;
        let agreed = new.status & status::FEATURES_OK != 0;
        let any = agreed && new.accepted & feature::RING_PACKED != 0;
        let size = |size: u16| fits(size, new.max_size, any);
        let sound = new.save() == words
            && vector(new.config_vector)
            && new.isr & !3 == 0
            && (agreed || new.status & status::DRIVER_OK == 0)
            && (!agreed || new.accepted & !new.offered == 0)
            && (!agreed || new.accepted & feature::VERSION_1 != 0)
            && new
                .queues
                .iter()
                .all(|q| vector(q.vector) && size(q.place.size) && (agreed || !q.enabled));
        if sound {
            *self = new;
        }
        sound
    }
}

/// Whether a queue may have so many descriptors: a power of two, unless queues are packed (2.7, 2.8).
const fn fits(size: u16, most: u16, any: bool) -> bool {
    size != 0 && size <= most && (any || size.is_power_of_two())
}

/// One word of two.
const fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// `width` bytes at `offset`.
fn bytes(from: &[u8], offset: u16, width: u8) -> u32 {
    let from = from.iter().skip(offset.into()).take(width.min(4).into());
    from.zip([0, 8, 16, 24])
        .fold(0, |value, (&byte, shift)| value | u32::from(byte) << shift)
}

#[cfg(test)]
mod tests;
