//! The platform of one VM: interrupt controllers, timers, power management and PCI configuration space.

pub mod map;
