//! The firmware's memory map in the form that the common part takes.

use bootloader_api::info::MemoryRegionKind;
use bootloader_x86_64_common::legacy_memory_region::LegacyMemoryRegion;
use uefi_raw::table::boot::{MemoryDescriptor, MemoryType};
use x86_64::PhysAddr;

/// One region of the map.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    start: u64,
    pages: u64,
    kind: MemoryType,
}

impl Region {
    /// From the firmware's descriptor.
    pub fn new(descriptor: &MemoryDescriptor) -> Self {
        Self {
            start: descriptor.phys_start,
            pages: descriptor.page_count,
            kind: descriptor.ty,
        }
    }

    /// First address.
    pub fn first(&self) -> u64 {
        self.start
    }

    /// One past the last address.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.pages.saturating_mul(4096))
    }
}

impl LegacyMemoryRegion for Region {
    fn start(&self) -> PhysAddr {
        crate::phys(self.start)
    }

    fn len(&self) -> u64 {
        self.pages * 4096
    }

    fn kind(&self) -> MemoryRegionKind {
        match self.kind {
            MemoryType::CONVENTIONAL => MemoryRegionKind::Usable,
            other => MemoryRegionKind::UnknownUefi(other.0),
        }
    }

    /// Loader and boot-services memory is free once the kernel runs; runtime services are not
    /// (UEFI 2.10, table 7.10).
    fn usable_after_bootloader_exit(&self) -> bool {
        matches!(
            self.kind,
            MemoryType::CONVENTIONAL
                | MemoryType::LOADER_CODE
                | MemoryType::LOADER_DATA
                | MemoryType::BOOT_SERVICES_CODE
                | MemoryType::BOOT_SERVICES_DATA
        )
    }
}
