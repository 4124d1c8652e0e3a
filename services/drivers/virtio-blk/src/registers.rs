//! The registers of a virtio function over PCI (4.1.4), as the crate wants to use them; interrupts by MSI-X alone.

extern crate alloc;

use driver_virtio_blk::pci::{Place, Places};
use runtime::StartInfo;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Offsets in common configuration (4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const CONFIG_VECTOR: usize = 0x10;
    pub const STATUS: usize = 0x14;
    pub const GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
}

/// No message for this.
const NO_VECTOR: u16 = 0xffff;

/// Registers that are mapped.
#[derive(Clone, Copy)]
struct Block {
    va: u64,
    len: u64,
}

impl Block {
    fn new(start: &StartInfo, place: Place) -> Option<Self> {
        let region = start.region(&alloc::format!("bar:{}", place.bar)).ok()?;
        let (offset, len) = (u64::from(place.offset), u64::from(place.len));
        let end = offset.checked_add(len)?;
        (end <= region.len).then_some(Self {
            va: region.va + offset,
            len,
        })
    }

    /// The register at an offset; `T` is as wide as it.
    fn at<T>(self, offset: usize) -> *mut T {
        let end = offset as u64 + size_of::<T>() as u64;
        let aligned = (self.va + offset as u64).is_multiple_of(align_of::<T>() as u64);
        assert!(
            end <= self.len && aligned,
            "no register at {offset:#x} of {:#x}",
            self.len
        );
        core::ptr::with_exposed_provenance_mut((self.va + offset as u64) as usize)
    }

    fn read<T: Copy>(self, offset: usize) -> T {
        // SAFETY: registers that root has mapped here for this server's life, inside them and aligned (`at`); T is an integer.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    fn write<T: Copy>(self, offset: usize, value: T) {
        // SAFETY: as in `read`; no memory of Rust's is changed by it. What the device does in memory because of it is the queue's matter.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    fn write_long(self, offset: usize, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }
}

/// The registers of the function.
pub struct Registers {
    common: Block,
    notify: Block,
    multiplier: usize,
    device: Block,
    /// Where queue 0 is notified.
    notify_at: usize,
}

impl Registers {
    /// `None`: they are not where the configuration space says.
    #[must_use]
    pub fn new(start: &StartInfo, places: &Places) -> Option<Self> {
        Some(Self {
            common: Block::new(start, places.common)?,
            notify: Block::new(start, places.notify)?,
            multiplier: places.multiplier as usize,
            device: Block::new(start, places.device)?,
            notify_at: 0,
        })
    }

    /// Resets the device. It is done when it says so (4.1.4.3.2).
    pub fn reset(&mut self) -> bool {
        self.set_status(DeviceStatus::empty());
        (0..1_000_000).any(|_| self.common.read::<u8>(common::STATUS) == 0)
    }

    /// Agrees on features: of those wanted, what the device has (3.1.1). `None`: it wants others.
    pub fn agree(&mut self, wanted: u64) -> Option<u64> {
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.set_status(status);
        let features = self.read_device_features() & wanted;
        self.write_driver_features(features);
        status |= DeviceStatus::FEATURES_OK;
        self.set_status(status);
        let agreed = self.get_status().contains(DeviceStatus::FEATURES_OK);
        agreed.then_some(features)
    }

    /// The disk's sectors.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        loop {
            let before = self.read_config_generation();
            let (low, high): (u32, u32) = (self.device.read(0), self.device.read(4));
            if self.read_config_generation() == before {
                return u64::from(low) | u64::from(high) << 32;
            }
        }
    }

    /// Most sectors that a discard may have (5.2.4); 0 if the device does not say.
    #[must_use]
    pub fn max_discard(&self) -> u64 {
        const MAX_DISCARD_SECTORS: usize = 36;
        let most = self.read_config_space::<u32>(MAX_DISCARD_SECTORS);
        most.map_or(0, u64::from)
    }

    fn select(&mut self, queue: u16) {
        self.common.write(common::QUEUE_SELECT, queue);
    }
}

impl Transport for Registers {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        let half = |number: u32| {
            self.common.write(common::DEVICE_FEATURE_SELECT, number);
            u64::from(self.common.read::<u32>(common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for (number, half) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            self.common.write(common::DRIVER_FEATURE_SELECT, number);
            self.common.write(common::DRIVER_FEATURE, half);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.select(queue);
        self.common.read::<u16>(common::QUEUE_SIZE).into()
    }

    fn notify(&mut self, queue: u16) {
        self.notify.write(self.notify_at, queue);
    }

    fn get_status(&self) -> DeviceStatus {
        let status = self.common.read::<u8>(common::STATUS);
        DeviceStatus::from_bits_truncate(status.into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.common.write(common::STATUS, status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _: u32) {
        // Of the legacy interface.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        self.select(queue);
        self.common.write(common::QUEUE_SIZE, size as u16);
        self.common.write_long(common::QUEUE_DESC, descriptors);
        self.common.write_long(common::QUEUE_DRIVER, driver);
        self.common.write_long(common::QUEUE_DEVICE, device);
        self.common.write(common::CONFIG_VECTOR, NO_VECTOR);
        self.common.write(common::QUEUE_VECTOR, 0u16);
        // 4.1.5.1.2.1: it reads back as none if the device cannot do it.
        assert!(
            self.common.read::<u16>(common::QUEUE_VECTOR) == 0,
            "the device has no message for its queue"
        );
        let notify = self.common.read::<u16>(common::QUEUE_NOTIFY_OFF);
        self.notify_at = usize::from(notify) * self.multiplier;
        self.common.write(common::QUEUE_ENABLE, 1u16);
    }

    fn queue_unset(&mut self, _: u16) {
        // A reset does it.
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.select(queue);
        self.common.read::<u16>(common::QUEUE_ENABLE) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        // A message needs none.
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        self.common.read::<u8>(common::GENERATION).into()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        let end = (offset + size_of::<T>()) as u64;
        if end > self.device.len {
            return Err(Error::ConfigSpaceTooSmall);
        }
        for (at, byte) in value.as_mut_bytes().iter_mut().enumerate() {
            *byte = self.device.read(offset + at);
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> virtio_drivers::Result<()> {
        // Nothing of a disk's is to be written.
        Err(Error::Unsupported)
    }
}
