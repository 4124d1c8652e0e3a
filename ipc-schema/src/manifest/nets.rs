//! Checks of network cards.

use alloc::collections::BTreeMap;

use super::{CheckError, DeviceKind, Fault, MAX_PAIRS, MAX_QUEUES, Place, System};

impl System {
    /// Every network card has an address of its own in its network.
    pub(super) fn check_addresses(&self) -> Result<(), CheckError> {
        let mut taken = BTreeMap::new();
        for (v, vm) in self.vms.iter().enumerate() {
            for (d, device) in vm.devices.iter().enumerate() {
                let DeviceKind::VirtioNet { network, mac, .. } = device.kind else {
                    continue;
                };
                let place = Place::Device(v, d);
                let fault = if mac[0] & 1 != 0 || mac == [0; 6] {
                    Fault::BadMac
                } else {
                    match taken.insert((network, mac), place) {
                        Some(other) => Fault::MacTaken(other),
                        None => continue,
                    }
                };
                return Err(CheckError { place, fault });
            }
        }
        Ok(())
    }
}

impl DeviceKind {
    /// Whether it has queues enough, and none too many.
    pub(super) const fn queues_fit(self) -> bool {
        match self {
            Self::VirtioBlk { queues, .. } => 1 <= queues && queues <= MAX_QUEUES,
            Self::VirtioNet { pairs, .. } => 1 <= pairs && pairs <= MAX_PAIRS,
            _ => true,
        }
    }
}
