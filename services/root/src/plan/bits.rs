//! What the bits of the servers' Notifications mean.

/// Bits of the manager's Notification.
pub mod manager_bits {
    /// The driver of the serial port.
    pub const DRIVER: u64 = 1;
    /// Root has events.
    pub const EVENTS: u64 = 2;

    /// The UART of VM number `vm`; VMs beyond 55 share the last bit.
    #[must_use]
    pub fn uart(vm: usize) -> u64 {
        1 << (8 + vm.min(55))
    }
}

/// Bits of a VMM's Notification.
pub mod vmm_bits {
    /// Some device's interrupt page has changed.
    pub const DEVICES: u64 = 1;
    /// The power button has been pressed.
    pub const POWER: u64 = 2;
}

/// Bits of a device's or driver's Notification.
pub mod device_bits {
    /// Console: input or room.
    pub const CONSOLE: u64 = 1;
    /// Doorbell of a device, interrupt of a driver.
    pub const BELL: u64 = 2;

    /// Root asks whether it is alive.
    pub const ASKED: u64 = ipc_schema::state_page::ASKED;
    /// `store` has answered, or the switch has sent or taken frames.
    pub const BACK: u64 = 1 << 63;

    /// A virtio device's queue: such a device's low bits are its queues'.
    #[must_use]
    pub fn queue(number: u16) -> u64 {
        1u64.checked_shl(number.into()).unwrap_or(0)
    }
}
