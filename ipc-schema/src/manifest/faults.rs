//! What can be wrong with a description, and where.

use super::PortRange;
#[cfg(doc)]
use super::{
    MACHINE_OVERHEAD, MAX_CPUS, MAX_NAME, MAX_QUEUES, MAX_VCPUS, MAX_VM_NAME, MIN_VM_MEMORY,
    PCI_SLOTS, PortName, System,
};
#[cfg(doc)]
use crate::disk::{BLOCK, MAX_BLOCKS};

/// What of a [`System`] a problem is about; indices count from 0 in the order of the vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The system as a whole.
    System,
    /// A VM.
    Vm(usize),
    /// A device of a VM.
    Device(usize, usize),
    /// A driver.
    Driver(usize),
    /// A further server.
    Server(usize),
    /// A disk.
    Disk(usize),
}

/// What is wrong with a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A name is empty, longer than [`MAX_NAME`], or holds more than `a-z A-Z 0-9 - _ .` (a VM's:
    /// [`MAX_VM_NAME`] and no dot).
    BadName,
    /// The other place has the same name.
    DuplicateName(Place),
    /// VM memory below [`MIN_VM_MEMORY`] or no multiple of 4096.
    BadMemory,
    /// All VMs together need more than the machine has beside [`MACHINE_OVERHEAD`]: both in bytes.
    MemoryDoesNotFit {
        /// What the VMs up to this one need.
        needed: u64,
        /// What there is for VMs.
        available: u64,
    },
    /// No virtual processor, or more than [`MAX_VCPUS`].
    BadVcpus,
    /// A port range that is empty or ends past 0xffff, or not of the device's size.
    BadPorts,
    /// The other place has some of the same ports.
    PortTaken(Place),
    /// The VMM itself serves some of these ports, or the debug-exit port.
    PortOfVmm(PortRange),
    /// An interrupt line above 15, or the cascade line 2.
    BadIrq,
    /// The other place has the same interrupt line.
    IrqTaken(Place),
    /// Zero shares, a reservation above the limit or above 100 % a vCPU, or a limit of 0.
    BadShare,
    /// A processor that Vireo never uses: [`MAX_CPUS`] or above.
    BadCpu,
    /// A place on the PCI bus that is the host bridge's, or not below [`PCI_SLOTS`].
    BadSlot,
    /// The other place has the same one.
    SlotTaken(Place),
    /// A disk's size is no multiple of [`BLOCK`], is none without an image, or is more than [`MAX_BLOCKS`] blocks; or its memory is no
    /// multiple of [`BLOCK`] or larger than it.
    BadDiskSize,
    /// A serial that is too long or has unprintable characters.
    BadSerial,
    /// There is no such disk.
    UnknownDisk,
    /// The other place has the same disk, and it is not read-only.
    DiskTaken(Place),
    /// No virtqueue, or more than [`MAX_QUEUES`]; of a network card, no pair, or more than [`MAX_PAIRS`](super::MAX_PAIRS).
    BadQueues,
    /// An Ethernet address that is a group's, or none.
    BadMac,
    /// The other place has the same Ethernet address in the same network.
    MacTaken(Place),
    /// A virtio console without ports, or one of them has no sound name: see [`PortName`].
    BadPortNames,
    /// Two virtio consoles of a VM have a port of the same name.
    PortNameTaken,
}

/// The first problem found in a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckError {
    /// What it is about.
    pub place: Place,
    /// What is wrong there.
    pub fault: Fault,
}
