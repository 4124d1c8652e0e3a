//! The walker against an independent builder of page tables.

use super::super::testing::{ALL_RIGHTS, PRESENT, Paging, Tables, USER, WRITABLE};
use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

fn memory() -> GuestMemory {
    GuestMemory::owned(&[(0, 0x10_0000)])
}

proptest! {
    #[test]
    fn finds_what_was_built(
        mode in 0usize..4,
        pages in prop::collection::vec((any::<u64>(), any::<u64>(), 0usize..3), 1..12),
        probes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 8),
        strays in prop::collection::vec(any::<u64>(), 8),
    ) {
        let paging = Paging::ALL[mode];
        let memory = memory();
        let mut tables = Tables::new(&memory, paging, 0x1000);
        let bits = paging.linear_bits();
        let top = (1u64 << bits) - 1;
        let mut built: Vec<(u64, u64, u32)> = Vec::new();
        for (linear, gpa, size) in pages {
            let size = paging.sizes()[size % paging.sizes().len()];
            // Legacy paging reaches 40 bits with 4 MiB pages only.
            let reach = match (paging, size) { (Paging::Legacy, 12) => 32, (Paging::Legacy, _) => 40, _ => 52 };
            let gpa = gpa & ((1 << reach) - 1) & !((1 << size) - 1);
            let linear = linear & top & !((1 << size) - 1);
            if tables.map(linear, gpa, size, ALL_RIGHTS) {
                built.push((linear, gpa, size));
            }
        }
        let state = tables.state();
        // A linear address is sign-extended.
        let canonical = |a: u64| if bits == 32 { a } else { ((a << (64 - bits)) as i64 >> (64 - bits)) as u64 };
        for (which, offset) in probes {
            let (linear, gpa, size) = built[which.index(built.len())];
            let offset = offset & ((1 << size) - 1);
            prop_assert_eq!(code(&memory, &state, canonical(linear + offset)), Ok(gpa + offset));
            prop_assert_eq!(data(&memory, &state, canonical(linear + offset), Intent::Write), Ok(gpa + offset));
        }
        for stray in strays {
            let stray = stray & top;
            let expected = built.iter().find(|(l, _, s)| stray >> s == l >> s);
            let got = code(&memory, &state, canonical(stray));
            prop_assert_eq!(got, expected.map(|(l, g, _)| g + (stray - l)).ok_or(WalkError::NotPresent));
        }
    }

    #[test]
    fn any_tables_and_registers_do(
        words in prop::collection::vec(any::<u64>(), 64), linear in any::<u64>(),
        cr3 in any::<u64>(), cr4 in any::<u64>(), efer in any::<u64>(), rflags in any::<u64>(), user in any::<bool>(),
    ) {
        let memory = memory();
        for page in 0..64u64 {
            for (i, word) in (0u64..).zip(&words) {
                memory.write_u64(page * 0x1000 + i * 64, word & 0x3_FFFF).unwrap();
            }
        }
        let mut state = super::super::testing::state();
        (state.cr0, state.cr3, state.cr4, state.efer, state.rflags) = (0x8001_0001, cr3 & 0x3_FFFF, cr4, efer, rflags);
        state.cpl = if user { 3 } else { 0 };
        let _ = code(&memory, &state, linear);
        let _ = data(&memory, &state, linear, Intent::Write);
        state.cr3 = cr3;
        let _ = code(&memory, &state, linear);
        let _ = data(&memory, &state, linear, Intent::Read);
    }
}

#[test]
fn tables_outside_ram_are_told_apart() {
    let memory = memory();
    let mut state = Tables::new(&memory, Paging::Long4, 0x1000).state();
    state.cr3 = 0xFEE0_0000;
    assert_eq!(code(&memory, &state, 0), Err(WalkError::TableOutsideRam));
    state.cr3 = 0x1000;
    assert_eq!(code(&memory, &state, 0), Err(WalkError::NotPresent));
}

#[test]
fn without_paging_addresses_are_physical() {
    let memory = memory();
    let mut state = super::super::testing::state();
    state.cr0 = 1;
    assert_eq!(code(&memory, &state, 0x1_2345_6789), Ok(0x2345_6789));
    assert_eq!(data(&memory, &state, 0x1234, Intent::Write), Ok(0x1234));
}

#[test]
fn data_accesses_have_the_processors_rights() {
    let memory = memory();
    for paging in Paging::ALL {
        let mut tables = Tables::new(&memory, paging, 0x1000);
        assert!(tables.map(0x1000, 0x8000, 12, PRESENT));
        assert!(tables.map(0x2000, 0x8000, 12, PRESENT | USER));
        assert!(tables.map(0x3000, 0x8000, 12, PRESENT | WRITABLE));
        assert!(tables.map(0x4000, 0x8000, 12, ALL_RIGHTS));
        let mut s = tables.state();
        let check = |s: &VcpuState, linear, intent, error: Option<u32>| {
            let expected = error.map_or(Ok(0x8000), |e| Err(Exception::page_fault(linear, e)));
            assert_eq!(
                data(&memory, s, linear, intent),
                expected,
                "{paging:?} {linear:#x} {intent:?}"
            );
        };
        // Supervisor, WP set (as `state` has it).
        check(&s, 0x1000, Intent::Read, None);
        check(&s, 0x1000, Intent::Write, Some(0b011));
        check(&s, 0x2000, Intent::Write, Some(0b011));
        check(&s, 0x4000, Intent::Write, None);
        check(&s, 0x9000, Intent::Write, Some(0b010));
        check(&s, 0x9000, Intent::Read, Some(0));
        // Without WP the supervisor writes anything.
        s.cr0 &= !CR0_WP;
        check(&s, 0x1000, Intent::Write, None);
        s.cr0 |= CR0_WP;
        // SMAP, and its suspension by RFLAGS.AC.
        s.cr4 |= CR4_SMAP;
        check(&s, 0x4000, Intent::Read, Some(0b001));
        check(&s, 0x3000, Intent::Read, None);
        s.rflags |= RFLAGS_AC;
        check(&s, 0x4000, Intent::Read, None);
        // User.
        s.cpl = 3;
        check(&s, 0x1000, Intent::Read, Some(0b101));
        check(&s, 0x2000, Intent::Read, None);
        check(&s, 0x2000, Intent::Write, Some(0b111));
        check(&s, 0x3000, Intent::Write, Some(0b111));
        check(&s, 0x4000, Intent::Write, None);
        check(&s, 0x9000, Intent::Write, Some(0b110));
        memory.fill(0x1000, 0x8_0000, 0).unwrap();
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_as_by_the_processor() {
    let memory = memory();
    for (paging, levels) in [
        (Paging::Long4, 4),
        (Paging::Long5, 5),
        (Paging::Pae, 2),
        (Paging::Legacy, 2),
    ] {
        memory.fill(0x1000, 0x8_0000, 0).unwrap();
        let mut tables = Tables::new(&memory, paging, 0x1000);
        assert!(tables.map(0x40_3000, 0x8_8000, 12, ALL_RIGHTS));
        let s = tables.state();
        let count = |bit: u64| {
            let step = if paging == Paging::Legacy { 4 } else { 8 };
            (0x1000..0x1_0000)
                .step_by(step)
                .filter(|&at| {
                    let entry = u64::from(memory.read_u32(at).unwrap());
                    entry & PRESENT != 0 && entry & bit != 0
                })
                .count()
        };
        assert_eq!(code(&memory, &s, 0x40_3000), Ok(0x8_8000));
        assert_eq!((count(ACCESSED), count(DIRTY)), (0, 0));
        data(&memory, &s, 0x40_3000, Intent::Read).unwrap();
        assert_eq!((count(ACCESSED), count(DIRTY)), (levels, 0), "{paging:?}");
        data(&memory, &s, 0x40_3000, Intent::Write).unwrap();
        assert_eq!((count(ACCESSED), count(DIRTY)), (levels, 1), "{paging:?}");
    }
}
