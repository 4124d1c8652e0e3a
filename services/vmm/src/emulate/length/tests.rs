//! Lengths: prefixes, page ends, rewritten code, and the full decoder's opinion.

use super::super::testing::{CODE, Paging, Tables, machine};
use super::*;
use iced_x86::{Decoder, DecoderOptions, Mnemonic as M};
use proptest::prelude::*;

const ALL: [(Expected, &[u8]); 19] = [
    (Expected::Cpuid, &[0x0F, 0xA2]),
    (Expected::Rdmsr, &[0x0F, 0x32]),
    (Expected::Wrmsr, &[0x0F, 0x30]),
    (Expected::Hlt, &[0xF4]),
    (Expected::Vmcall, &[0x0F, 0x01, 0xD9]),
    (Expected::Vmcall, &[0x0F, 0x01, 0xC1]),
    (Expected::Wbinvd, &[0x0F, 0x09]),
    (Expected::Wbinvd, &[0x0F, 0x08]),
    (Expected::Xsetbv, &[0x0F, 0x01, 0xD1]),
    (Expected::Rdpmc, &[0x0F, 0x33]),
    (Expected::Rdtsc, &[0x0F, 0x31]),
    (Expected::Rdtscp, &[0x0F, 0x01, 0xF9]),
    (Expected::Pause, &[0xF3, 0x90]),
    (Expected::Clts, &[0x0F, 0x06]),
    (Expected::MovCr, &[0x0F, 0x22, 0xC0]),
    (Expected::MovCr, &[0x0F, 0x20, 0xDF]),
    (Expected::Monitor, &[0x0F, 0x01, 0xC8]),
    (Expected::Monitor, &[0x0F, 0x01, 0xC9]),
    (Expected::Cpuid, &[0x66, 0xF3, 0x2E, 0x0F, 0xA2]),
];

#[test]
fn each_instruction_is_recognised_and_no_other() {
    for paging in Paging::ALL {
        for (expected, bytes) in ALL {
            let (memory, state) = machine(paging, bytes);
            for (other, _) in ALL {
                let got = instruction_length(&memory, &state, other);
                let wanted = if other == expected {
                    Ok(bytes.len() as u8)
                } else {
                    Err(EmulateError::Retry)
                };
                assert_eq!(got, wanted, "{paging:?} {other:?} {bytes:02x?}");
            }
        }
    }
}

#[test]
fn rewritten_code_is_seen_at_once() {
    let (memory, state) = machine(Paging::Long4, &[0x0F, 0xA2]);
    assert_eq!(instruction_length(&memory, &state, Expected::Cpuid), Ok(2));
    memory.write(0x8000, &[0x48, 0x0F, 0xA2]).unwrap();
    assert_eq!(instruction_length(&memory, &state, Expected::Cpuid), Ok(3));
    memory.write(0x8000, &[0xF0, 0x0F, 0xA2]).unwrap();
    assert_eq!(
        instruction_length(&memory, &state, Expected::Cpuid),
        Err(EmulateError::Retry)
    );
    memory.write(0x8000, &[0x90, 0x0F, 0xA2]).unwrap();
    assert_eq!(
        instruction_length(&memory, &state, Expected::Cpuid),
        Err(EmulateError::Retry)
    );
    // The page is unmapped.
    memory.fill(0x1_0000, 0x8000, 0).unwrap();
    assert_eq!(
        instruction_length(&memory, &state, Expected::Cpuid),
        Err(EmulateError::Retry)
    );
}

#[test]
fn code_at_the_end_of_a_page() {
    let memory = GuestMemory::owned(&[(0, 0x4_0000)]);
    let mut tables = Tables::new(&memory, Paging::Long4, 0x1_0000);
    assert!(tables.map(CODE, 0x8000, 12, 3));
    let mut state = tables.state();
    memory.write(0x8FFE, &[0x0F, 0xA2]).unwrap();
    state.rip = CODE + 0xFFE;
    assert_eq!(instruction_length(&memory, &state, Expected::Cpuid), Ok(2));
    memory.write(0x8FFE, &[0x66, 0x0F]).unwrap();
    // The next page is not mapped: nothing to be sure of.
    assert_eq!(
        instruction_length(&memory, &state, Expected::Cpuid),
        Err(EmulateError::Retry)
    );
    // Now it is, somewhere else in memory.
    assert!(tables.map(CODE + 0x1000, 0x3000, 12, 3));
    memory.write(0x3000, &[0xA2]).unwrap();
    assert_eq!(instruction_length(&memory, &state, Expected::Cpuid), Ok(3));
    // At the very end of RAM.
    assert!(tables.map(CODE + 0x2000, 0x3_F000, 12, 3));
    memory.write(0x3_FFFE, &[0x0F, 0xA2]).unwrap();
    state.rip = CODE + 0x2FFE;
    assert_eq!(instruction_length(&memory, &state, Expected::Cpuid), Ok(2));
}

#[test]
fn real_mode_uses_the_segment() {
    let memory = GuestMemory::owned(&[(0, 0x4_0000)]);
    let mut state = super::super::testing::state();
    state.cs.base = 0x1_0000;
    state.rip = 0x10;
    // In 16-bit code 48 is DEC AX, not a prefix.
    memory.write(0x1_0010, &[0x48, 0xF4]).unwrap();
    assert_eq!(
        instruction_length(&memory, &state, Expected::Hlt),
        Err(EmulateError::Retry)
    );
    memory.write(0x1_0010, &[0x66, 0xF4]).unwrap();
    assert_eq!(instruction_length(&memory, &state, Expected::Hlt), Ok(2));
}

#[test]
fn code_in_a_device_is_not_retried_for_ever() {
    let (memory, mut state) = machine(Paging::Long4, &[]);
    state.rip = super::super::testing::DEVICE;
    assert!(matches!(
        instruction_length(&memory, &state, Expected::Hlt),
        Err(EmulateError::Unsupported(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn agrees_with_the_full_decoder(
        prefixes in prop::collection::vec(prop_oneof![
            prop::sample::select(&[0x66u8, 0x67, 0xF2, 0xF3, 0x2E, 0x3E, 0x64, 0x26, 0x36, 0x65][..]), 0x40u8..0x50
        ], 0..5),
        which in 0usize..18, noise in any::<[u8; 4]>(), replace in any::<bool>(), paging in 0usize..4,
    ) {
        let (expected, bytes) = ALL[which];
        let mut code = prefixes;
        if replace { code.extend_from_slice(&noise[..2]) } else { code.extend_from_slice(bytes) }
        code.extend_from_slice(&noise);
        let (memory, state) = machine(Paging::ALL[paging], &code);
        let bitness = Mode::of(&state).bitness();
        let instruction = Decoder::new(bitness, &code, DecoderOptions::NONE).decode();
        let mnemonics: &[M] = match expected {
            Expected::Cpuid => &[M::Cpuid],
            Expected::Rdmsr => &[M::Rdmsr],
            Expected::Wrmsr => &[M::Wrmsr],
            Expected::Hlt => &[M::Hlt],
            Expected::Vmcall => &[M::Vmcall, M::Vmmcall],
            Expected::Wbinvd => &[M::Invd, M::Wbinvd, M::Wbnoinvd],
            Expected::Xsetbv => &[M::Xsetbv],
            Expected::Rdpmc => &[M::Rdpmc],
            Expected::Rdtsc => &[M::Rdtsc],
            Expected::Rdtscp => &[M::Rdtscp],
            Expected::Pause => &[M::Pause],
            Expected::Clts => &[M::Clts],
            Expected::MovCr => &[M::Mov],
            Expected::Monitor => &[M::Monitor, M::Mwait],
        };
        let is = mnemonics.contains(&instruction.mnemonic());
        match instruction_length(&memory, &state, expected) {
            Ok(len) => {
                // Mandatory prefixes turn some of these into others or into #UD, and then there was no such exit: a
                // length is only wrong if the decoder sees the same instruction with another one.
                if is && !instruction.is_invalid() {
                    prop_assert_eq!(usize::from(len), instruction.len(), "{:02x?}", code);
                }
            }
            Err(_) => prop_assert!(!is || expected == Expected::MovCr, "{:02x?}", code),
        }
    }

    #[test]
    fn any_bytes_do(code in any::<[u8; 20]>(), which in 0usize..18, offset in 0u64..0x1000, paging in 0usize..4) {
        let (memory, mut state) = machine(Paging::ALL[paging], &code);
        state.rip = CODE + offset;
        let _ = instruction_length(&memory, &state, ALL[which].0);
    }
}
