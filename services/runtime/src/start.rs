//! The start page: what root tells a server about itself.
//!
//! At `layout::START_INFO`: the length of the rest as a little-endian `u32`, the size of the heap in bytes as another,
//! then [`StartInfo`] in postcard. The heap's size stands before it because decoding needs the heap.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::forward;
use crate::ipc::{Endpoint, Notification};
use crate::slots::{Slot, Slots};
use crate::time::WallClock;

/// Bytes before the postcard.
pub const HEADER: usize = 8;
/// Slots in a server's capability table when nothing else is said.
pub const DEFAULT_SLOTS: u32 = 256;

/// A range of this server's address space that root has mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// By what name to ask for it.
    pub name: String,
    /// Its address.
    pub va: u64,
    /// Its length in bytes; what is mapped is rounded up to pages.
    pub len: u64,
}

impl Region {
    /// Its first byte. What may be done there is what root mapped it for.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.va as usize)
    }
}

/// Everything that a server is told at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartInfo {
    /// `ABI_VERSION` of root and kernel.
    pub abi_version: u32,
    /// The server's number: source of its log records, badge of its faults.
    pub id: u8,
    /// Its package, as `device-uart`.
    pub package: String,
    /// Its instance, as `linux.uart0`.
    pub instance: String,
    /// TSC cycles a second.
    pub tsc_hz: u64,
    /// The time of day.
    pub wall_clock: WallClock,
    /// How many times it has been restarted.
    pub restarts: u32,
    /// Slots in its capability table.
    pub slots: u32,
    /// First slot that root has left empty.
    pub first_free_slot: u32,
    /// Threads that forward calls from other processors, whose capabilities are just below `first_free_slot`: see
    /// [`crate::forward`].
    pub forwarders: u32,
    /// Named capabilities.
    pub caps: Vec<(String, u32)>,
    /// Named ranges of memory.
    pub regions: Vec<Region>,
    /// Configuration, in postcard, of a type that depends on the server.
    pub config: Vec<u8>,
}

/// Something that the start page does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// No capability of that name.
    NoCap(String),
    /// No region of that name.
    NoRegion(String),
    /// The region is smaller than what is to be in it: name, bytes there, bytes needed.
    SmallRegion(String, u64, u64),
    /// The configuration is not of the expected type.
    BadConfig,
    /// The page cannot be decoded.
    BadPage,
    /// Root and kernel are of another ABI version.
    Abi(u32),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCap(name) => write!(f, "root gave no capability `{name}`"),
            Self::NoRegion(name) => write!(f, "root gave no region `{name}`"),
            Self::SmallRegion(name, is, need) => {
                write!(f, "region `{name}` has {is} bytes, not {need}")
            }
            Self::BadConfig => f.write_str("the configuration is of another type"),
            Self::BadPage => f.write_str("the start page is garbled"),
            Self::Abi(version) => write!(f, "the kernel has ABI version {version}"),
        }
    }
}

impl core::error::Error for StartError {}

impl StartInfo {
    /// The page's bytes.
    pub fn encode(&self, heap_bytes: u32) -> Result<Vec<u8>, postcard::Error> {
        let body = postcard::to_allocvec(self)?;
        let len = u32::try_from(body.len()).map_err(|_| postcard::Error::SerializeBufferFull)?;
        let mut page = Vec::with_capacity(HEADER + body.len());
        page.extend_from_slice(&len.to_le_bytes());
        page.extend_from_slice(&heap_bytes.to_le_bytes());
        page.extend_from_slice(&body);
        Ok(page)
    }

    /// Reads what [`StartInfo::encode`] wrote, without the header.
    pub fn decode(body: &[u8]) -> Result<Self, StartError> {
        let (version, _) =
            postcard::take_from_bytes::<u32>(body).map_err(|_| StartError::BadPage)?;
        if version != ipc_schema::abi::ABI_VERSION {
            return Err(StartError::Abi(version));
        }
        postcard::from_bytes(body).map_err(|_| StartError::BadPage)
    }

    /// The slot of a named capability.
    pub fn cap(&self, name: &str) -> Result<Slot, StartError> {
        let found = self.caps.iter().find(|(n, _)| n == name);
        found
            .map(|(_, slot)| *slot)
            .ok_or_else(|| StartError::NoCap(name.into()))
    }

    /// A named capability to an Endpoint.
    pub fn endpoint(&self, name: &str) -> Result<Endpoint, StartError> {
        self.cap(name).map(Endpoint)
    }

    /// A named capability to a Notification.
    pub fn notification(&self, name: &str) -> Result<Notification, StartError> {
        self.cap(name).map(Notification)
    }

    /// A named range of memory.
    pub fn region(&self, name: &str) -> Result<&Region, StartError> {
        let found = self.regions.iter().find(|r| r.name == name);
        found.ok_or_else(|| StartError::NoRegion(name.into()))
    }

    /// The configuration.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, StartError> {
        match postcard::take_from_bytes(&self.config) {
            Ok((config, [])) => Ok(config),
            _ => Err(StartError::BadConfig),
        }
    }

    /// The slots of its forwarders' capabilities.
    #[must_use]
    pub fn forwarder_slots(&self) -> forward::Grants {
        let count = self.forwarders.min(forward::MAX as u32);
        forward::Grants {
            first: self
                .first_free_slot
                .saturating_sub(forward::Grants::slots(count)),
            count,
        }
    }

    /// The slots that are still empty.
    #[must_use]
    pub fn free_slots(&self) -> Slots {
        Slots::new(self.first_free_slot, self.slots)
    }
}

/// What the platform server is given; postcard in its [`StartInfo::config`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformConfig {
    /// Physical address of the RSDP; 0 if the loader knew none.
    pub rsdp: u64,
    /// Memory capabilities: name (`acpi:N`, `device:N`), first physical address, bytes.
    pub memories: Vec<(String, u64, u64)>,
    /// Ports capabilities: name (`ports:N`), first port, number of ports.
    pub ports: Vec<(String, u16, u32)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc_schema::abi::{ABI_VERSION, layout};

    fn sample() -> StartInfo {
        StartInfo {
            abi_version: ABI_VERSION,
            package: "device-uart".into(),
            caps: alloc::vec![("vmm".into(), 16)],
            regions: alloc::vec![Region {
                name: "irq".into(),
                va: layout::SHARED,
                len: 4096
            }],
            config: postcard::to_allocvec(&(5u8, "x")).unwrap(),
            slots: 64,
            first_free_slot: 17,
            ..StartInfo::default()
        }
    }

    #[test]
    fn round_trip_and_names() {
        let page = sample().encode(65536).unwrap();
        assert_eq!(page[4..8], 65536u32.to_le_bytes());
        assert_eq!(page[..4], (page.len() as u32 - 8).to_le_bytes());
        let start = StartInfo::decode(&page[HEADER..]).unwrap();
        assert_eq!(start, sample());
        assert_eq!(start.cap("vmm"), Ok(16));
        assert_eq!(
            start.cap("manager"),
            Err(StartError::NoCap("manager".into()))
        );
        assert_eq!(start.region("irq").unwrap().va, layout::SHARED);
        assert!(start.region("tx").is_err());
        assert_eq!(start.config::<(u8, String)>(), Ok((5, "x".into())));
        assert_eq!(start.config::<u8>(), Err(StartError::BadConfig));
        assert_eq!(start.free_slots().free(), 47);
    }

    #[test]
    fn another_abi_is_refused() {
        let page = StartInfo {
            abi_version: 99,
            ..sample()
        }
        .encode(0)
        .unwrap();
        assert_eq!(StartInfo::decode(&page[HEADER..]), Err(StartError::Abi(99)));
        assert_eq!(StartInfo::decode(&[]), Err(StartError::BadPage));
    }

    /// The linker script repeats addresses of the ABI.
    #[test]
    fn linker_script_agrees() {
        let script = include_str!("../link/server.ld");
        assert!(script.contains(&alloc::format!(". = {:#x};", layout::IMAGE)));
        assert!(script.contains(&alloc::format!("VIREO_STUB = {:#x};", layout::STUB)));
    }
}
