//! Pages shared with other servers, as references: the one place where an address from the start page becomes one.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use ipc_schema::abi::vm::VcpuState;
use ipc_schema::disk::Channel;
use ipc_schema::interrupt_page::InterruptPage;
use ipc_schema::link::LinkPage;
use ipc_schema::ring::RingPage;
use ipc_schema::state_page::StatePage;
use virtio::Memory;
use virtio::memory::Range;

use crate::start::{Region, StartError, StartInfo};

/// Types of which every bit pattern is valid and every field is atomic: another server may write at any time.
///
/// # Safety
///
/// The type has no padding that is read, no niche, and all of it can change under a shared reference.
unsafe trait SharedPage: Sized + 'static {}
// SAFETY: all fields are atomics.
unsafe impl SharedPage for RingPage {}
// SAFETY: all fields are atomics.
unsafe impl SharedPage for InterruptPage {}
// SAFETY: all fields are atomics.
unsafe impl SharedPage for StatePage {}
// SAFETY: all fields are atomics.
unsafe impl SharedPage for Channel {}

// SAFETY: all fields are atomics.
unsafe impl SharedPage for LinkPage {}

fn memory<'r>(parts: impl Iterator<Item = (u64, &'r Region)>) -> &'static Memory {
    let range = |(gpa, region): (u64, &Region)| Range {
        gpa,
        len: region.len,
        host: region.as_ptr(),
    };
    let ranges: Vec<Range> = parts.map(range).collect();
    // SAFETY: root has mapped each region here, readable and writable, for as long as this server lives. It is the guest's memory, or a
    // link's, and what of it is taken for a Rust object is a page of atomics.
    Box::leak(Box::new(unsafe { Memory::new(&ranges) }))
}

impl StartInfo {
    fn page<T: SharedPage>(&self, name: &str) -> Result<&'static T, StartError> {
        let region = self.checked(name, size_of::<T>() as u64, align_of::<T>() as u64)?;
        // SAFETY: root mapped `len` bytes at `va` for as long as this server lives, as large and as aligned as T
        // (checked); T is valid for all contents and made for changes from elsewhere. A region that root mapped
        // read-only faults at the first store, it does not corrupt.
        Ok(unsafe { &*core::ptr::with_exposed_provenance::<T>(region as usize) })
    }

    /// The address of a region of at least `size` bytes at a multiple of `align`.
    fn checked(&self, name: &str, size: u64, align: u64) -> Result<u64, StartError> {
        let region = self.region(name)?;
        if region.len < size || !region.va.is_multiple_of(align) || region.va == 0 {
            return Err(StartError::SmallRegion(name.into(), region.len, size));
        }
        Ok(region.va)
    }

    /// A byte ring.
    pub fn ring(&self, name: &str) -> Result<&'static RingPage, StartError> {
        self.page(name)
    }

    /// A device's interrupt page.
    pub fn interrupt_page(&self, name: &str) -> Result<&'static InterruptPage, StartError> {
        self.page(name)
    }

    /// A device's state page.
    pub fn state_page(&self, name: &str) -> Result<&'static StatePage, StartError> {
        self.page(name)
    }

    /// A channel between `store` and a device model.
    pub fn disk_channel(&self, name: &str) -> Result<&'static Channel, StartError> {
        self.page(name)
    }

    /// The indices of a link between the switch and a device model.
    pub fn link(&self, name: &str) -> Result<&'static LinkPage, StartError> {
        self.page(name)
    }

    /// The guest's memory: regions `guest` and `guest-high`. It stays for the server's life, so it is asked for once.
    pub fn guest_memory(&self) -> Result<&'static Memory, StartError> {
        /// Guest-physical address of the memory that did not fit below PCI's.
        const HIGH_RAM: u64 = 1 << 32;
        let low = self.region("guest")?;
        let high = self.region("guest-high").ok();
        let parts = [Some((0, low)), high.map(|high| (HIGH_RAM, high))];
        Ok(memory(parts.into_iter().flatten()))
    }

    /// What a virtio device shares with guest, VMM and successor: the guest's memory and the pages `irq` and `state`.
    pub fn virtio_pages(&self) -> Result<virtio::device::Pages<'static>, StartError> {
        Ok(virtio::device::Pages {
            memory: self.guest_memory()?,
            irq: self.interrupt_page("irq")?,
            state: self.state_page("state")?,
        })
    }

    /// A region that another server writes too, by offsets in it. It stays for the server's life, so it is asked for once.
    pub fn memory(&self, name: &str) -> Result<&'static Memory, StartError> {
        Ok(memory([(0, self.region(name)?)].into_iter()))
    }

    /// A whole region as words.
    pub fn words(&self, name: &str) -> Result<&'static [AtomicU64], StartError> {
        let region = self.region(name)?;
        let va = self.checked(name, 0, align_of::<AtomicU64>() as u64)?;
        // SAFETY: root mapped `len` bytes at `va` for as long as this server lives, aligned for words (checked); atomics are valid for
        // all contents and made for changes from elsewhere.
        Ok(unsafe {
            core::slice::from_raw_parts(
                core::ptr::with_exposed_provenance(va as usize),
                (region.len / 8) as usize,
            )
        })
    }

    /// A read-only region that nobody changes: a file of the boot archive.
    pub fn file(&self, name: &str) -> Result<&'static [u8], StartError> {
        let region = self.region(name)?;
        let va = self.checked(name, 0, 1)?;
        // SAFETY: root mapped the file read-only for as long as this server lives; it hands out no writable mapping of
        // the archive, so that the bytes never change.
        Ok(unsafe {
            core::slice::from_raw_parts(
                core::ptr::with_exposed_provenance(va as usize),
                region.len as usize,
            )
        })
    }

    /// The state page of a Vcpu. To be asked for once a Vcpu.
    pub fn vcpu_page(&self, name: &str) -> Result<VcpuPage, StartError> {
        let va = self.checked(
            name,
            size_of::<VcpuState>() as u64,
            align_of::<VcpuState>() as u64,
        )?;
        let page = core::ptr::with_exposed_provenance_mut::<VcpuState>(va as usize);
        NonNull::new(page)
            .map(VcpuPage)
            .ok_or_else(|| StartError::NoRegion(name.into()))
    }
}

/// The page that a VMM shares with the kernel for one Vcpu. The kernel uses it only while the Vcpu runs, for which
/// [`crate::object::vcpu::Vcpu::run`] borrows it mutably: no reference lives across.
pub struct VcpuPage(NonNull<VcpuState>);

impl VcpuPage {
    /// The guest's registers.
    #[inline(always)]
    #[must_use]
    pub fn state(&self) -> &VcpuState {
        // SAFETY: mapped as long as this server lives, all contents valid (integers); the kernel writes only in `run`,
        // which needs `&mut self`. There is one `VcpuPage` a page, by the contract of `vcpu_page`.
        unsafe { self.0.as_ref() }
    }

    /// The guest's registers, to be changed. Say so in the `dirty` groups of the next `run`.
    #[inline(always)]
    pub fn state_mut(&mut self) -> &mut VcpuState {
        // SAFETY: as in `state`.
        unsafe { self.0.as_mut() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::start::Region;

    #[test]
    fn small_and_crooked_regions_are_refused() {
        let page: &'static RingPage = Box::leak(Box::new(RingPage::new()));
        let va = core::ptr::from_ref(page).expose_provenance() as u64;
        let region = |name: &str, va, len| Region {
            name: name.into(),
            va,
            len,
        };
        let start = StartInfo {
            regions: alloc::vec![
                region("good", va, 4096),
                region("small", va, 4095),
                region("odd", va + 8, 4096)
            ],
            ..StartInfo::default()
        };
        assert!(core::ptr::eq(start.ring("good").unwrap(), page));
        assert!(start.ring("small").is_err());
        assert!(start.ring("odd").is_err());
        assert!(start.ring("none").is_err());
        assert_eq!(start.file("small").unwrap().len(), 4095);
    }
}
