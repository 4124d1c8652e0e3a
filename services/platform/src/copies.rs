//! What the crate `acpi` reads: copies of the firmware's tables, in which nothing leads it astray.
//!
//! The crate (5.2; later ones need an unstable feature of the compiler) believes what it reads. It takes a table's length for
//! mapped, structures for whole, and the entries of a MADT for a tiling of it: an entry of length 0 would hold it
//! forever, one that is too long would send it past the end. So every table that it asks for is copied and checked here
//! first. One that cannot be read, or that it could not, is replaced by zeros, which it takes for a table of another kind.
//!
//! This is the only module with `unsafe` code: the crate's interface is made of pointers.
#![allow(unsafe_code, reason = "the crate `acpi` reads through pointers")]

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ptr::{self, NonNull};

use acpi::sdt::SdtHeader;
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};

use crate::hardware::{Hardware, bytes, u32_at};

/// Bytes of a table's header (ACPI 6.5, 5.2.6).
pub const HEADER: usize = size_of::<SdtHeader>();
/// Longest table that is copied; real DSDTs stay below half of it.
const MAX_TABLE: usize = 1 << 20;
/// Most tables that are looked at: firmware has some dozens.
const MAX_TABLES: usize = 512;
/// Zeros behind each copy: what the crate takes for a structure that begins in the table ends before their end.
const PADDING: usize = 512;

/// The letters of a signature; zeros where the table could not be read.
#[must_use]
pub fn letters(header: &SdtHeader) -> [u8; 4] {
    bytes(header.signature.as_str().as_bytes(), 0).unwrap_or_default()
}

/// Whether the bytes of a table, or of an RSDP, add up to 0.
#[must_use]
pub fn checksum_good(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

/// Makes length and checksum right again.
fn seal(table: &mut [u8]) -> Option<()> {
    let len = u32::try_from(table.len()).ok()?;
    table.get_mut(4..8)?.copy_from_slice(&len.to_le_bytes());
    let sum = table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    let checksum = table.get_mut(9)?;
    *checksum = checksum.wrapping_sub(sum);
    Some(())
}

/// Where the entries of a MADT end that can be gone through (ACPI 6.5, 5.2.12): at its end, or before the first one that
/// is damaged.
fn madt_end(table: &[u8]) -> Option<usize> {
    let mut end = size_of::<acpi::madt::Madt>();
    table.get(..end)?;
    while let Some([_, len]) = bytes(table, end) {
        let next = end + usize::from(len);
        if len < 2 || next > table.len() {
            break;
        }
        end = next;
    }
    Some(end)
}

/// Makes a table fit for the crate. `None`: it is not.
fn fit(table: &mut Vec<u8>) -> Option<()> {
    /// Offset of the FADT's length of PM1 control registers, 2 or 4 (ACPI 6.5, 5.2.9). The crate makes bits of it.
    const PM1_CNT_LEN: usize = 89;
    let signature: [u8; 4] = bytes(table, 0)?;
    if !signature.is_ascii() || signature.contains(&0) {
        return None;
    }
    match &signature {
        b"APIC" => table.truncate(madt_end(table)?),
        b"FACP" if table.get(PM1_CNT_LEN).is_some_and(|&len| len >= 32) => return None,
        b"RSDT" if table.len() > HEADER + 4 * MAX_TABLES => return None,
        b"XSDT" if table.len() > HEADER + 8 * MAX_TABLES => return None,
        _ => {}
    }
    // The names of its makers are nothing to refuse a table for, as the crate does if they are no text.
    for name in [10..16, 16..24] {
        let name = table.get_mut(name)?;
        if !name.is_ascii() {
            name.fill(b' ');
        }
    }
    seal(table)
}

/// Copies the table at `address`, if it is whole.
fn table(machine: &mut impl Hardware, address: u64) -> Option<Vec<u8>> {
    let mut header = [0; HEADER];
    machine.copy(address, &mut header)?;
    let len = usize::try_from(u32_at(&header, 4)?).ok()?;
    if !(HEADER..=MAX_TABLE).contains(&len) {
        return None;
    }
    let mut table = vec![0; len];
    machine.copy(address, &mut table)?;
    // The header is as it was: nothing behind this depends on it.
    if u32_at(&table, 4) != u32_at(&header, 4) || !checksum_good(&table) {
        return None;
    }
    fit(&mut table)?;
    Some(table)
}

/// Gives the crate copies where it asks for memory.
pub struct Copies<'a, H>(&'a RefCell<&'a mut H>);

impl<H> Clone for Copies<'_, H> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<H: Hardware> AcpiHandler for Copies<'_, H> {
    /// Whatever size the crate asks for, it gets the whole table: it asks for headers first, and sums up the tables from them.
    unsafe fn map_physical_region<T>(&self, address: usize, _: usize) -> PhysicalMapping<Self, T> {
        const { assert!(align_of::<T>() == 1 && size_of::<T>() <= PADDING) };
        let mut copy = table(*self.0.borrow_mut(), address as u64).unwrap_or_default();
        let len = copy.len().max(HEADER);
        copy.resize(len + PADDING, 0);
        let start = NonNull::from(Box::leak(copy.into_boxed_slice())).cast::<T>();
        // SAFETY: there are initialised bytes enough for a `T` at `start`, which any address is right for, and `len` and
        // more for the table; they are nobody else's until `unmap_physical_region` frees them.
        unsafe { PhysicalMapping::new(address, start, len, len, self.clone()) }
    }

    fn unmap_physical_region<T>(region: &PhysicalMapping<Self, T>) {
        let len = region.mapped_length() + PADDING;
        let start = region.virtual_start().cast::<u8>().as_ptr();
        // SAFETY: `map_physical_region` leaked a box of so many bytes here, and the crate calls this once for each, as the
        // mapping goes (a mapping that it makes out of another takes that one's place).
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(start, len)) });
    }
}

/// The tables that the root table at `address` names, an XSDT or an RSDT.
pub fn open<'a, H: Hardware>(
    machine: &'a RefCell<&'a mut H>,
    extended: bool,
    address: u64,
) -> Option<AcpiTables<Copies<'a, H>>> {
    let address = usize::try_from(address).ok()?;
    // SAFETY: the address is only handed to `Copies`, to which every address is good.
    unsafe { AcpiTables::from_rsdt(Copies(machine), u8::from(extended) * 2, address) }.ok()
}
