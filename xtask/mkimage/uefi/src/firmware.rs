//! What is asked of the firmware while boot services are active.

use core::{ffi::c_void, ptr, slice};

use bootloader_api::info::{FrameBufferInfo, PixelFormat};
use bootloader_x86_64_common::RawFrameBufferInfo;
use uefi_raw::{
    Guid, Handle, Status, guid,
    protocol::{
        console::{GraphicsOutputProtocol, GraphicsPixelFormat},
        file_system::{FileAttribute, FileMode, FileProtocolV1, SimpleFileSystemProtocol},
        loaded_image::LoadedImageProtocol,
    },
    table::{
        boot::{AllocateType, BootServices, MemoryDescriptor, MemoryType},
        system::SystemTable,
    },
};
use x86_64::PhysAddr;

use crate::{Failure, memory::Region};

/// UEFI 2.10, 4.6.1.1.
const ACPI_20: Guid = guid!("8868e871-e4f1-11d3-bc22-0080c73c8881");
const ACPI_10: Guid = guid!("eb9d2d30-2d88-11d3-9a16-0090273fc14d");
/// Longest file name of ours, in UCS-2 units with the closing zero.
const NAME: usize = 32;
/// Pages for the memory map: 40 to 48 bytes an entry, so more than a thousand entries.
const MAP_PAGES: usize = 16;

/// The firmware, with boot services active.
pub struct Firmware {
    image: Handle,
    table: *mut SystemTable,
}

/// A status as a result.
fn check(status: Status) -> Result<(), Status> {
    if status.is_success() {
        Ok(())
    } else {
        Err(status)
    }
}

impl Firmware {
    /// # Safety
    /// Both come from the firmware's call of the entry point, and boot services are active until
    /// the value is consumed.
    pub unsafe fn new(image: Handle, table: *mut SystemTable) -> Self {
        Self { image, table }
    }

    fn boot(&self) -> &BootServices {
        // SAFETY: promised to `new`: the table and its boot services are valid.
        unsafe { &*(*self.table).boot_services }
    }

    /// Shows text on the firmware's console.
    pub fn print(&self, text: &str) {
        for c in text.encode_utf16() {
            let pair = [c, 0];
            // SAFETY: the table is valid, and the console protocol gets a string that ends in zero.
            unsafe {
                let out = (*self.table).stdout;
                if !out.is_null() {
                    let _ = ((*out).output_string)(out, pair.as_ptr());
                }
            }
        }
    }

    /// A protocol of a handle.
    fn protocol<T>(&self, handle: Handle, guid: &Guid) -> Result<*mut T, Status> {
        let mut found: *mut c_void = ptr::null_mut();
        // SAFETY: boot services are active; the firmware writes one pointer.
        check(unsafe { (self.boot().handle_protocol)(handle, guid, &mut found) })?;
        Ok(found.cast())
    }

    /// Whole pages of loader data, zeroed, never given back.
    fn pages(&self, count: usize) -> Result<&'static mut [u8], Status> {
        let mut address = 0;
        // SAFETY: boot services are active; the firmware writes one address.
        check(unsafe {
            (self.boot().allocate_pages)(
                AllocateType::ANY_PAGES,
                MemoryType::LOADER_DATA,
                count,
                &mut address,
            )
        })?;
        let start = address as *mut u8;
        // SAFETY: the firmware gave us these pages, mapped one to one; nobody else has them.
        unsafe {
            ptr::write_bytes(start, 0, count * 4096);
            Ok(slice::from_raw_parts_mut(start, count * 4096))
        }
    }

    /// Reads a file of the volume that we were started from.
    pub fn read_file(&self, name: &str) -> Result<&'static mut [u8], Status> {
        let mut wide = [0; NAME];
        let room = wide.len() - 1;
        if name.len() > room {
            return Err(Status::INVALID_PARAMETER);
        }
        for (to, from) in wide.iter_mut().zip(name.encode_utf16()) {
            *to = from;
        }
        let image: *mut LoadedImageProtocol =
            self.protocol(self.image, &LoadedImageProtocol::GUID)?;
        // SAFETY: the firmware's own structure about us, valid while we run.
        let device = unsafe { (*image).device_handle };
        let volume: *mut SimpleFileSystemProtocol =
            self.protocol(device, &SimpleFileSystemProtocol::GUID)?;
        let mut root: *mut FileProtocolV1 = ptr::null_mut();
        let mut file: *mut FileProtocolV1 = ptr::null_mut();
        // SAFETY: protocols are called as UEFI 2.10, 13.4 and 13.5 say, with pointers to locals.
        unsafe {
            check(((*volume).open_volume)(volume, &mut root))?;
            let none = FileAttribute::empty();
            check(((*root).open)(
                root,
                &mut file,
                wide.as_ptr(),
                FileMode::READ,
                none,
            ))?;
        }
        let bytes = self.read_open_file(file);
        // SAFETY: both were opened above and are not used again.
        unsafe {
            let _ = ((*file).close)(file);
            let _ = ((*root).close)(root);
        }
        bytes
    }

    fn read_open_file(&self, file: *mut FileProtocolV1) -> Result<&'static mut [u8], Status> {
        let mut size = 0;
        // SAFETY: `file` is open. Position -1 is the end of the file (UEFI 2.10, 13.5.11).
        unsafe {
            check(((*file).set_position)(file, u64::MAX))?;
            check(((*file).get_position)(file, &mut size))?;
            check(((*file).set_position)(file, 0))?;
        }
        let size = usize::try_from(size).map_err(|_| Status::BAD_BUFFER_SIZE)?;
        let pages = self.pages(size.div_ceil(4096).max(1))?;
        let bytes = pages.get_mut(..size).ok_or(Status::BAD_BUFFER_SIZE)?;
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|r| !r.is_empty()) {
            let mut count = rest.len();
            // SAFETY: `file` is open, and `rest` has room for `count` bytes.
            check(unsafe { ((*file).read)(file, &mut count, rest.as_mut_ptr().cast()) })?;
            if count == 0 {
                return Err(Status::END_OF_FILE);
            }
            done += count;
        }
        Ok(bytes)
    }

    /// The framebuffer in the mode that the firmware has set; `None` without a linear one.
    pub fn framebuffer(&self) -> Option<RawFrameBufferInfo> {
        let mut found: *mut c_void = ptr::null_mut();
        let guid = GraphicsOutputProtocol::GUID;
        // SAFETY: boot services are active; the firmware writes one pointer.
        check(unsafe { (self.boot().locate_protocol)(&guid, ptr::null(), &mut found) }).ok()?;
        let gop: *const GraphicsOutputProtocol = found.cast();
        // SAFETY: the firmware's structures, valid while boot services are (UEFI 2.10, 12.9).
        let (mode, info) = unsafe { (&*(*gop).mode, &*(*(*gop).mode).info) };
        let pixel_format = match info.pixel_format {
            GraphicsPixelFormat::PIXEL_RED_GREEN_BLUE_RESERVED_8_BIT_PER_COLOR => PixelFormat::Rgb,
            GraphicsPixelFormat::PIXEL_BLUE_GREEN_RED_RESERVED_8_BIT_PER_COLOR => PixelFormat::Bgr,
            _ => return None,
        };
        Some(RawFrameBufferInfo {
            addr: crate::phys(mode.frame_buffer_base),
            info: FrameBufferInfo {
                byte_len: mode.frame_buffer_size,
                width: info.horizontal_resolution as usize,
                height: info.vertical_resolution as usize,
                pixel_format,
                bytes_per_pixel: 4,
                stride: info.pixels_per_scan_line as usize,
            },
        })
    }

    /// The ACPI root pointer: that of ACPI 2.0 or later, else that of 1.0.
    pub fn rsdp(&self) -> Option<PhysAddr> {
        // SAFETY: promised to `new`; the table names its own number of entries.
        let entries = unsafe {
            let table = &*self.table;
            let count = table.number_of_configuration_table_entries;
            slice::from_raw_parts(table.configuration_table, count)
        };
        let find = |guid: Guid| entries.iter().find(|e| e.vendor_guid == guid);
        let entry = find(ACPI_20).or_else(|| find(ACPI_10))?;
        Some(crate::phys(entry.vendor_table as u64))
    }

    /// Leaves boot services; gives the memory map, sorted by address. From here on the firmware
    /// is not called again.
    pub fn exit_boot_services(self) -> Result<&'static [Region], Failure> {
        let (raw, regions) = match (self.pages(MAP_PAGES), self.pages(MAP_PAGES)) {
            (Ok(raw), Ok(regions)) => (raw, regions),
            (Err(status), _) | (_, Err(status)) => {
                return Err((self, "no memory for the memory map", status));
            }
        };
        let mut last = Status::ABORTED;
        // The map can change under the first attempt; the firmware then wants it read again.
        for _ in 0..4 {
            let (mut size, mut key, mut stride, mut version) = (raw.len(), 0, 0, 0);
            // SAFETY: boot services are active; `raw` has room for `size` bytes and is aligned.
            last = unsafe {
                (self.boot().get_memory_map)(
                    &mut size,
                    raw.as_mut_ptr().cast::<MemoryDescriptor>(),
                    &mut key,
                    &mut stride,
                    &mut version,
                )
            };
            if !last.is_success() {
                continue;
            }
            // SAFETY: nothing that belongs to boot services is used after success.
            last = unsafe { (self.boot().exit_boot_services)(self.image, key) };
            if last.is_success() {
                return Ok(convert(
                    raw.get(..size).unwrap_or_default(),
                    stride,
                    regions,
                ));
            }
        }
        Err((self, "cannot leave boot services", last))
    }
}

/// Copies descriptors, which lie `stride` bytes apart, into `into`.
fn convert(raw: &[u8], stride: usize, into: &'static mut [u8]) -> &'static [Region] {
    let room = into.len() / size_of::<Region>();
    let out = into.as_mut_ptr().cast::<Region>();
    let mut count = 0;
    for bytes in raw.chunks_exact(stride.max(size_of::<MemoryDescriptor>())) {
        if count == room {
            break;
        }
        // SAFETY: a descriptor that the firmware wrote, at least as long as the type; `out` is
        // page-aligned and has room for `room` regions.
        unsafe {
            let descriptor = bytes.as_ptr().cast::<MemoryDescriptor>().read_unaligned();
            out.add(count).write(Region::new(&descriptor));
        }
        count += 1;
    }
    // SAFETY: the first `count` regions were written above.
    let regions = unsafe { slice::from_raw_parts_mut(out, count) };
    regions.sort_unstable_by_key(Region::first);
    regions
}
