//! Checks of network cards.

use alloc::collections::BTreeMap;

use super::{CheckError, DeviceKind, Fault, Place, System};

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
