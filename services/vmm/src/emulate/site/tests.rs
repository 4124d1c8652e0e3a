//! Remembered places: whatever a walk or a decoder would notice, they notice.

use super::super::length::{Expected, Lengths, instruction_length};
use super::super::testing::{CODE, Paging, machine};
use super::*;
use proptest::prelude::*;

/// Cpuid at [`CODE`] in 64-bit mode, its place remembered.
fn remembered() -> (GuestMemory, VcpuState, Site<u8, 1>) {
    let (memory, state) = machine(Paging::Long4, &[0x0F, 0xA2]);
    let mut site = Site::none(0);
    assert_eq!(site.find(&memory, &state), None);
    site.note(&memory, &state, &[0x0F, 0xA2], 2);
    assert_eq!(site.find(&memory, &state), Some(2));
    (memory, *state, site)
}

#[test]
fn rewritten_code_is_noticed_and_what_follows_it_does_not_matter() {
    let (memory, state, site) = remembered();
    let (_, gpa) = walk::four_levels(&memory, &state, state.rip).unwrap();
    memory.write_u8(gpa + 2, 0xCC).unwrap();
    assert_eq!(site.find(&memory, &state), Some(2));
    memory.write_u8(gpa, 0x66).unwrap();
    assert_eq!(site.find(&memory, &state), None);
    memory.write_u8(gpa, 0x0F).unwrap();
    assert_eq!(site.find(&memory, &state), Some(2));
}

#[test]
fn each_page_table_entry_counts() {
    let (memory, state, site) = remembered();
    let (tables, _) = walk::four_levels(&memory, &state, state.rip).unwrap();
    for (at, entry) in tables {
        memory.write_u64(at, entry ^ 1 << 12).unwrap();
        assert_eq!(site.find(&memory, &state), None, "{at:#x}");
        memory.write_u64(at, entry).unwrap();
        assert_eq!(site.find(&memory, &state), Some(2));
    }
}

#[test]
fn each_part_of_the_state_counts() {
    let (memory, state, site) = remembered();
    type Change = fn(&mut VcpuState);
    let changes: [Change; 6] = [
        |s| s.rip += 1,
        |s| s.cr0 ^= 1 << 31,
        |s| s.cr3 ^= 1 << 12,
        |s| s.cr4 ^= 1 << 12,
        |s| s.efer ^= 1 << 10,
        |s| s.cs.attributes ^= 1 << 9,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut state = state;
        change(&mut state);
        assert_eq!(site.find(&memory, &state), None, "{i}");
    }
}

#[test]
fn only_what_can_be_checked_in_full_is_remembered() {
    for paging in Paging::ALL {
        let (memory, state) = machine(paging, &[0x0F, 0xA2]);
        let mut site = Site::<u8, 1>::none(0);
        site.note(&memory, &state, &[0x0F, 0xA2], 2);
        let long = Mode::of(&state) == Mode::Long && state.cr4 & 1 << 12 == 0;
        assert_eq!(site.find(&memory, &state).is_some(), long, "{paging:?}");
    }
    // Nine bytes need two words.
    let (memory, state) = machine(Paging::Long4, &[0x66; 9]);
    let mut site = Site::<u8, 1>::none(0);
    site.note(&memory, &state, &[0x66; 9], 9);
    assert_eq!(site.find(&memory, &state), None);
    let mut site = Site::<u8, 2>::none(0);
    site.note(&memory, &state, &[0x66; 9], 9);
    assert_eq!(site.find(&memory, &state), Some(9));
    let (_, gpa) = walk::four_levels(&memory, &state, state.rip).unwrap();
    memory.write_u8(gpa + 8, 0x67).unwrap();
    assert_eq!(site.find(&memory, &state), None);
}

#[test]
fn a_memory_that_is_smaller_has_nothing_of_it() {
    let (_, state, site) = remembered();
    assert_eq!(site.find(&GuestMemory::owned(&[(0, 4096)]), &state), None);
    assert_eq!(site.find(&GuestMemory::owned(&[]), &state), None);
}

proptest! {
    /// Whatever the guest does between two exits, remembering gives what looking afresh gives.
    #[test]
    fn agrees_with_the_walk(steps in prop::collection::vec((0usize..6, any::<u64>()), 1..40)) {
        let (memory, mut state) = machine(Paging::Long4, &[0x0F, 0xA2]);
        let (tables, gpa) = walk::four_levels(&memory, &state, CODE).unwrap();
        let mut lengths = Lengths::default();
        for (what, random) in steps {
            match what {
                0 => memory.write_u8(gpa + random % 4, [0x0F, 0xA2, 0x66, 0x90][(random >> 8) as usize % 4]).unwrap(),
                1 => memory.write(gpa, &[0x0F, 0xA2]).unwrap(),
                2 => memory.write(gpa, &[0x66, 0x0F, 0xA2]).unwrap(),
                3 => {
                    let (at, entry) = tables[random as usize % 4];
                    let bit = [0, 12, 13, 5][(random >> 8) as usize % 4];
                    memory.write_u64(at, entry ^ 1 << bit).unwrap();
                }
                4 => tables.iter().for_each(|&(at, entry)| memory.write_u64(at, entry).unwrap()),
                _ => state.rip = CODE + random % 3,
            }
            prop_assert_eq!(
                lengths.find(&memory, &state, Expected::Cpuid),
                instruction_length(&memory, &state, Expected::Cpuid)
            );
        }
    }
}
