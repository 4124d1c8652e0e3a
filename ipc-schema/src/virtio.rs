//! What the VMM and the device models must agree on about virtio devices: where the structures lie in the I/O BAR, and who a device is.
//!
//! Job: constants only. Place: the VMM describes a PCI function with them, the models' transport answers by them. Sections are those of
//! virtio 1.2.

/// Bytes of the I/O BAR that holds all structures of a device.
pub const BAR_SIZE: u16 = 0x100;
/// Common configuration (4.1.4.3).
pub const COMMON: u16 = 0x00;
/// Bytes of it that are assigned to registers of the device.
pub const COMMON_LEN: u16 = 0x40;
/// ISR status (4.1.4.5).
pub const ISR: u16 = 0x40;
/// Bytes of it.
pub const ISR_LEN: u16 = 1;
/// Notifications (4.1.4.4): queue n's are at `NOTIFY + NOTIFY_MULTIPLIER * n`.
pub const NOTIFY: u16 = 0x80;
/// Bytes of notifications.
pub const NOTIFY_LEN: u16 = 0x40;
/// `notify_off_multiplier` (4.1.4.4): each queue has a half of its own, which a doorbell covers.
pub const NOTIFY_MULTIPLIER: u16 = 2;
/// Most queues of a device.
pub const MAX_QUEUES: u16 = NOTIFY_LEN / NOTIFY_MULTIPLIER;
/// Most pairs of queues of a network card, which has a queue for control beside.
pub const MAX_PAIRS: u16 = (MAX_QUEUES - 1) / 2;
/// Device-specific configuration (4.1.4.6).
pub const DEVICE: u16 = 0xC0;
/// Most bytes of it.
pub const DEVICE_LEN: u16 = 0x40;
/// No MSI-X vector (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xFFFF;
/// PCI vendor (4.1.2).
pub const VENDOR: u16 = 0x1AF4;
/// PCI device number of the device with ID 0 (4.1.2).
pub const DEVICE_0: u16 = 0x1040;

/// What tells one kind of device from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Device ID (5).
    pub id: u16,
    /// PCI class, subclass and programming interface.
    pub class: u32,
    /// Bytes of device-specific configuration.
    pub config_len: u16,
}

impl Identity {
    /// Its PCI device number (4.1.2).
    #[must_use]
    pub const fn device(&self) -> u16 {
        DEVICE_0 + self.id
    }

    /// MSI-X vectors of a device with so many queues: one each, and one for changes of the configuration.
    #[must_use]
    pub const fn vectors(queues: u16) -> u16 {
        queues.saturating_add(1)
    }
}

/// Network device (5.1.4: up to and with `speed` and `duplex`, and what follows for hashes).
pub const NET: Identity = Identity {
    id: 1,
    class: 0x02_00_00,
    config_len: 24,
};
/// Block device (5.2.4: up to the fields of secure erase).
pub const BLOCK: Identity = Identity {
    id: 2,
    class: 0x01_80_00,
    config_len: 60,
};
/// Console (5.3.4).
pub const CONSOLE: Identity = Identity {
    id: 3,
    class: 0x07_80_00,
    config_len: 12,
};
/// Entropy source (5.4): without configuration.
pub const ENTROPY: Identity = Identity {
    id: 4,
    class: 0xFF_00_00,
    config_len: 0,
};

/// Queues of a network card with so many pairs (5.1.2).
#[must_use]
pub const fn net_queues(pairs: u16) -> u16 {
    pairs.saturating_mul(2).saturating_add(1)
}

/// Bits of the device status (2.1).
pub mod status {
    /// The driver knows the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver can drive it.
    pub const DRIVER: u8 = 2;
    /// The driver drives.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device is lost until it is reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// Feature bits of all devices (6).
pub mod feature {
    /// Indirect descriptors (2.7.5.3).
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Event index (2.7.7, 2.7.10).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// No legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// Packed virtqueues (2.8).
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in the order in which they were made available (2.7.11).
    pub const IN_ORDER: u64 = 1 << 35;
    /// One queue can be reset (2.6.1).
    pub const RING_RESET: u64 = 1 << 40;
}
