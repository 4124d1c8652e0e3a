//! What this server does to the machine, and the form in which firmware names registers.

/// Bytes of a port or register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Long,
}

impl Width {
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Long => 4,
        }
    }
}

/// The machine. `None`: this server has no capability for the place, or the kernel refused.
pub trait Hardware {
    /// Reads a port.
    fn port_in(&mut self, port: u16, width: Width) -> Option<u32>;
    /// Writes a port.
    fn port_out(&mut self, port: u16, width: Width, value: u32) -> Option<()>;
    /// Copies firmware's memory, which does not change meanwhile.
    fn copy(&mut self, address: u64, into: &mut [u8]) -> Option<()>;
    /// Reads a register in memory. `None` also if `address`, which firmware may have told, is no multiple of the width.
    fn register_in(&mut self, address: u64, width: Width) -> Option<u32>;
    /// Writes a register in memory; as [`Hardware::register_in`].
    fn register_out(&mut self, address: u64, width: Width, value: u32) -> Option<()>;
    /// Lets at least so many microseconds pass.
    fn delay(&mut self, microseconds: u64);
}

/// A register as the tables name it: Generic Address Structure (ACPI 6.5, 5.2.3.2), in the two address spaces that are
/// used for the fixed registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// In I/O space.
    Port(u16),
    /// In memory.
    Memory(u64),
}

impl Register {
    /// Reads it.
    pub fn read(self, machine: &mut impl Hardware, width: Width) -> Option<u32> {
        match self {
            Self::Port(port) => machine.port_in(port, width),
            Self::Memory(address) => machine.register_in(address, width),
        }
    }

    /// Writes it.
    pub fn write(self, machine: &mut impl Hardware, width: Width, value: u32) -> Option<()> {
        match self {
            Self::Port(port) => machine.port_out(port, width, value),
            Self::Memory(address) => machine.register_out(address, width, value),
        }
    }
}

/// `N` bytes of a table at an offset.
pub(crate) fn bytes<const N: usize>(table: &[u8], offset: usize) -> Option<[u8; N]> {
    table.get(offset..)?.first_chunk().copied()
}

/// A little-endian field of a table.
pub(crate) fn u32_at(table: &[u8], offset: usize) -> Option<u32> {
    bytes(table, offset).map(u32::from_le_bytes)
}

/// A little-endian field of a table.
pub(crate) fn u64_at(table: &[u8], offset: usize) -> Option<u64> {
    bytes(table, offset).map(u64::from_le_bytes)
}
