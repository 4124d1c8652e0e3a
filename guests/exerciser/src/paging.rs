//! Page tables: 4 KiB pages in a window of their own, and the RAM above 4 GiB.

use core::arch::asm;
use core::cell::UnsafeCell;

/// First address of the window: level-4 entry 128, which nothing else uses.
pub const WINDOW: u64 = 0x4000_0000_0000;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Frames there are for tests, one behind the other.
pub const FRAMES: usize = 8;

#[repr(C, align(4096))]
struct Pages<const N: usize>(UnsafeCell<[[u64; 512]; N]>);
// SAFETY: touched by the main flow only.
unsafe impl<const N: usize> Sync for Pages<N> {}

static TABLES: Pages<32> = Pages(UnsafeCell::new([[0; 512]; 32]));
static SPARE: Pages<FRAMES> = Pages(UnsafeCell::new([[0; 512]; FRAMES]));

unsafe extern "C" {
    static mut boot_pml4: [u64; 512];
}

/// The physical (and identity-mapped) address of test frame `index`.
pub fn frame(index: usize) -> u64 {
    assert!(index < FRAMES, "no such frame");
    SPARE.0.get() as u64 + index as u64 * PAGE
}

/// Writes bytes into test frame `index` at `offset`, as far as they fit.
pub fn fill(index: usize, offset: usize, bytes: &[u8]) {
    let start = frame(index) as usize;
    for (byte, at) in bytes.iter().zip(offset..PAGE as usize) {
        // SAFETY: inside the frame, which no Rust value occupies.
        unsafe { core::ptr::with_exposed_provenance_mut::<u8>(start + at).write_volatile(*byte) };
    }
}

/// The table that `entry` points to, made if it is absent.
fn descend(entry: &mut u64) -> Option<&mut [u64; 512]> {
    if *entry & 1 == 0 {
        // SAFETY: the main flow alone uses the tables, and this borrow ends in this block.
        let tables = unsafe { &mut *TABLES.0.get() };
        // Table 0's first entry is the count of tables in use, itself included.
        let used = tables[0][0].max(1);
        let table = tables.get_mut(used as usize)? as *mut [u64; 512] as u64;
        tables[0][0] = used + 1;
        *entry = table | 3;
    }
    let table = core::ptr::with_exposed_provenance_mut((*entry & 0xf_ffff_ffff_f000) as usize);
    // SAFETY: a table made by boot.s or above, identity-mapped, not borrowed elsewhere.
    Some(unsafe { &mut *table })
}

/// Maps the page at `address` to `physical` (a page of 2 MiB if `large`), or unmaps it; no
/// INVLPG. False if tables ran out.
pub fn map(address: u64, physical: Option<u64>, large: bool) -> bool {
    let index = |level: u64| (address >> (12 + 9 * level) & 511) as usize;
    // SAFETY: the main flow alone uses the tables.
    let Some(root) = (unsafe { (&raw mut boot_pml4).as_mut() }) else {
        return false;
    };
    let Some(table) = descend(&mut root[index(3)]) else {
        return false;
    };
    let Some(table) = descend(&mut table[index(2)]) else {
        return false;
    };
    let bits = if large { 0x83 } else { 3 };
    let value = physical.map_or(0, |physical| physical | bits);
    let entry = if large {
        &mut table[index(1)]
    } else {
        let Some(table) = descend(&mut table[index(1)]) else {
            return false;
        };
        &mut table[index(0)]
    };
    // SAFETY: a plain store, but one that the processor's table walk sees.
    unsafe { (&raw mut *entry).write_volatile(value) };
    true
}

/// INVLPG.
pub fn invalidate(address: u64) {
    // SAFETY: forgets translations only.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// MOV CR3 with its own value: forgets all translations.
pub fn reload() {
    // SAFETY: the same tables stay in force.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
}
