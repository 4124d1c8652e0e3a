//! The IOAPIC (82093AA data sheet) at its usual address.

/// Where its registers are.
pub const BASE: u64 = 0xfec0_0000;
/// Redirection entry: masked.
pub const MASKED: u32 = 1 << 16;
/// Redirection entry: level-triggered.
pub const LEVEL: u32 = 1 << 15;
/// Redirection entry: remote IRR.
pub const REMOTE_IRR: u32 = 1 << 14;
/// Redirection entry: active low.
pub const LOW: u32 = 1 << 13;

/// Reads a register through IOREGSEL and IOWIN.
pub fn read(register: u32) -> u32 {
    let base = core::ptr::with_exposed_provenance_mut::<u32>(BASE as usize);
    // SAFETY: the IOAPIC's registers, mapped to themselves; never Rust memory.
    unsafe {
        base.write_volatile(register);
        base.add(4).read_volatile()
    }
}

/// Writes a register through IOREGSEL and IOWIN.
pub fn write(register: u32, value: u32) {
    let base = core::ptr::with_exposed_provenance_mut::<u32>(BASE as usize);
    // SAFETY: as in `read`.
    unsafe {
        base.write_volatile(register);
        base.add(4).write_volatile(value);
    }
}

/// The number of the register with the low half of a pin's redirection entry.
pub fn low(gsi: u32) -> u32 {
    0x10 + 2 * gsi
}

/// Pins it has.
pub fn pins() -> u32 {
    (read(1) >> 16 & 0xff) + 1
}

/// Sends `gsi` to this processor as `vector`, with trigger and polarity `flags`.
pub fn route(gsi: u32, vector: u8, flags: u32) {
    write(low(gsi), MASKED);
    write(low(gsi) + 1, 0);
    write(low(gsi), flags | u32::from(vector));
}

/// Masks a pin.
pub fn mask(gsi: u32) {
    write(low(gsi), MASKED);
}

/// Masks all pins.
pub fn mask_all() {
    for gsi in 0..pins() {
        mask(gsi);
    }
}
