//! The loaders against hand-made files, damaged files and (where the machine has one) Debian's own kernel.

use super::*;
use alloc::string::ToString;
use alloc::vec::Vec;
use proptest::prelude::*;
use samples::{Segment, bzimage, elf64, multiboot_elf, multiboot_flat, note, put, pvh, text};

mod samples;

const MIB: u64 = 1 << 20;

fn request<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>) -> Request<'a> {
    Request {
        kernel,
        initrd,
        cmdline: "console=ttyS0 quiet",
        rsdp: 0xE_0000,
        tsc_khz: 1_000_000,
    }
}

fn string(memory: &GuestMemory, mut at: u64) -> alloc::string::String {
    let mut s = Vec::new();
    loop {
        match memory.read_u8(at).unwrap() {
            0 => return alloc::string::String::from_utf8(s).unwrap(),
            b => s.push(b),
        }
        at += 1;
    }
}

/// What the operator says of the rate is said, and a line that fits is not made one that does not.
#[test]
fn linux_is_told_the_rate_of_its_clock() {
    let mut request = request(&[], None);
    let whole = "console=ttyS0 quiet tsc_early_khz=1000000";
    assert_eq!(request.linux_cmdline(whole.len() as u64), whole);
    assert_eq!(
        request.linux_cmdline(whole.len() as u64 - 1),
        request.cmdline
    );
    request.cmdline = "tsc_early_khz=5";
    assert_eq!(request.linux_cmdline(2047), "tsc_early_khz=5");
}

#[test]
fn linux_is_loaded_as_its_protocol_says() {
    let kernel = bzimage();
    let initrd = alloc::vec![0x5A; 0x1234];
    let memory = GuestMemory::owned(&[(0, 64 * MIB)]);
    memory.fill(0, 64 * MIB, 0xEE).unwrap();
    let entry = load(&memory, &request(&kernel, Some(&initrd))).unwrap();
    assert_eq!(entry.format, Format::LinuxBzImage);
    assert_eq!(entry.rip, 0x100_0200);
    let mut got = alloc::vec![0; 0x10000];
    memory.read(0x100_0000, &mut got).unwrap();
    assert_eq!(got, kernel[1024..]);

    let params = entry.rsi;
    let u32_at = |o: u64| memory.read_u32(params + o).unwrap();
    assert_eq!(u32_at(0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(memory.read_u8(params + 0x210).unwrap(), 0xFF);
    assert_eq!(memory.read_u64(params + 0x70).unwrap(), 0xE_0000);
    assert_eq!(
        string(&memory, u64::from(u32_at(0x228))),
        "console=ttyS0 quiet tsc_early_khz=1000000"
    );
    let (image, size) = (u64::from(u32_at(0x218)), u32_at(0x21C));
    assert_eq!((image, size), (64 * MIB - 0x2000, 0x1234));
    assert_eq!((u32_at(0xC0), u32_at(0xC4), u32_at(0xC8)), (0, 0, 0));
    let mut got = alloc::vec![0; 0x1234];
    memory.read(image, &mut got).unwrap();
    assert_eq!(got, initrd);
    // What is not header is zero.
    assert_eq!(u32_at(0x0), 0);
    assert_eq!(memory.read_u8(params + 0x1EF).unwrap(), 0);

    let mut map = Vec::new();
    for i in 0..u64::from(memory.read_u8(params + 0x1E8).unwrap()) {
        let at = params + 0x2D0 + 20 * i;
        map.push((
            memory.read_u64(at).unwrap(),
            memory.read_u64(at + 8).unwrap(),
            memory.read_u32(at + 16).unwrap(),
        ));
    }
    assert_eq!(
        map,
        [
            (0, 0x9_FC00, 1),
            (0x9_FC00, 0x400, 2),
            (0xA_0000, 0x6_0000, 2),
            (MIB, 63 * MIB, 1),
            (0xE000_0000, MIB, 2)
        ]
    );

    // 64-bit mode, identity-mapped: judged by the page walker, not by our own constants.
    let mut state = crate::emulate::testing::state();
    entry.apply(&mut state);
    for address in [0u64, 0x1234, 0x100_0200, 0xFFFF_FFFF] {
        assert_eq!(
            crate::emulate::walk::code(&memory, &state, address),
            Ok(address)
        );
    }
    assert!(crate::emulate::walk::code(&memory, &state, 1 << 32).is_err());
    assert_eq!(crate::emulate::Mode::of(&state), crate::emulate::Mode::Long);
    assert_eq!(state.gpr[6], params);
    // The descriptors in memory say what the segment registers hold.
    let descriptor = memory.read_u64(entry.gdtr.base + 0x10).unwrap();
    assert_eq!(
        (descriptor >> 40 & 0xFF | descriptor >> 44 & 0xF00) as u16,
        entry.cs.attributes
    );
    let descriptor = memory.read_u64(entry.gdtr.base + 0x18).unwrap();
    assert_eq!(
        (descriptor >> 40 & 0xFF | descriptor >> 44 & 0xF00) as u16,
        entry.data.attributes
    );
}

#[test]
fn linux_moves_when_its_place_is_not_there() {
    let kernel = bzimage();
    let memory = GuestMemory::owned(&[(0, 8 * MIB)]);
    let entry = load(&memory, &request(&kernel, None)).unwrap();
    assert_eq!(entry.rip, 2 * MIB + 0x200);

    let mut fixed = bzimage();
    fixed[0x234] = 0;
    assert_eq!(
        load(&memory, &request(&fixed, None)),
        Err(LoadError::NoRoomForKernel {
            address: 0x100_0000,
            size: 0x40_0000
        })
    );
}

#[test]
fn linux_initrd_stays_below_the_kernels_limit_and_off_the_kernel() {
    let mut kernel = bzimage();
    put(&mut kernel, 0x22C, &0x13F_FFFFu32.to_le_bytes());
    let memory = GuestMemory::owned(&[(0, 64 * MIB)]);
    let initrd = alloc::vec![1; 0x1000];
    let entry = load(&memory, &request(&kernel, Some(&initrd))).unwrap();
    // The kernel takes 0x1000000..0x1400000, so the RAM disk goes below it.
    assert_eq!(memory.read_u32(entry.rsi + 0x218).unwrap(), 0xFF_F000);
    let initrd = alloc::vec![1; 0x100_0000];
    assert!(matches!(
        load(&memory, &request(&kernel, Some(&initrd))),
        Err(LoadError::NoRoomForInitrd { .. })
    ));
}

#[test]
fn linux_errors_name_the_cause() {
    let memory = GuestMemory::owned(&[(0, 64 * MIB)]);
    let fails = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut kernel = bzimage();
        change(&mut kernel);
        load(&memory, &request(&kernel, None)).unwrap_err()
    };
    assert_eq!(
        fails(&|k| put(k, 0x206, &[0x0B, 0x02])),
        LoadError::LinuxTooOld { version: 0x20B }
    );
    assert_eq!(fails(&|k| k[0x236] = 0), LoadError::LinuxNot64Bit);
    assert!(matches!(
        fails(&|k| k.truncate(0x8000)),
        LoadError::Truncated { .. }
    ));
    assert!(matches!(
        fails(&|k| k.truncate(0x210)),
        LoadError::Truncated { .. }
    ));
    assert!(matches!(
        fails(&|k| k[0x230] = 3),
        LoadError::BadField {
            field: "kernel_alignment",
            ..
        }
    ));
    assert!(matches!(
        fails(&|k| put(k, 0x260, &[0; 4])),
        LoadError::BadField {
            field: "init_size",
            ..
        }
    ));
    assert_eq!(
        fails(&|k| k[0x238..0x23C].fill(0)),
        LoadError::CommandLineTooLong { len: 19, max: 0 }
    );
    assert_eq!(fails(&|k| k[0x202] = b'h'), LoadError::UnknownFormat);
    assert!(
        fails(&|k| put(k, 0x206, &[0x0B, 0x02]))
            .to_string()
            .contains("2.11")
    );
}

#[test]
fn pvh_gets_its_start_info() {
    let kernel = pvh();
    let initrd = alloc::vec![7; 0x2001];
    let memory = GuestMemory::owned(&[(0, 32 * MIB)]);
    memory.fill(0x100_0000, 0x4000, 0xEE).unwrap();
    let entry = load(&memory, &request(&kernel, Some(&initrd))).unwrap();
    assert_eq!((entry.format, entry.rip), (Format::Pvh, 0x100_0800));
    assert_eq!(
        (entry.cr0, entry.cr4, entry.efer, entry.rflags),
        (0x11, 0, 0, 2)
    );
    assert_eq!(memory.read_u32(0x100_0FFC).unwrap(), 0xABAB_ABAB);
    // bss is cleared, and nothing behind it.
    assert_eq!(memory.read_u64(0x100_1000).unwrap(), 0);
    assert_eq!(memory.read_u64(0x100_2FF8).unwrap(), 0);
    assert_eq!(memory.read_u8(0x100_3000).unwrap(), 0xEE);
    let u64_at = |o: u64| memory.read_u64(entry.rbx + o).unwrap();
    let u32_at = |o: u64| memory.read_u32(entry.rbx + o).unwrap();
    assert_eq!(
        (u32_at(0), u32_at(4), u32_at(8), u32_at(12)),
        (0x336E_C578, 1, 0, 1)
    );
    let line = string(&memory, u64_at(24));
    assert_eq!(line, "console=ttyS0 quiet tsc_early_khz=1000000");
    assert_eq!(u64_at(32), 0xE_0000);
    let module = u64_at(16);
    assert_eq!(memory.read_u64(module).unwrap(), 32 * MIB - 0x3000);
    assert_eq!(memory.read_u64(module + 8).unwrap(), 0x2001);
    let (map, entries) = (u64_at(40), u64::from(u32_at(48)));
    assert_eq!(entries, 5);
    let last = map + 24 * 3;
    assert_eq!(memory.read_u64(last).unwrap(), MIB);
    assert_eq!(memory.read_u64(last + 8).unwrap(), 31 * MIB);
    assert_eq!(memory.read_u32(last + 16).unwrap(), 1);
}

#[test]
fn pvh_errors_name_the_cause() {
    let memory = GuestMemory::owned(&[(0, 32 * MIB)]);
    let load_of =
        |segments: &[Segment]| load(&memory, &request(&elf64(0, segments), None)).unwrap_err();
    let entry = note(18, &0x20_0000u32.to_le_bytes());
    assert_eq!(
        load_of(&[note(18, &0x20_0000u32.to_le_bytes())]),
        LoadError::Elf("no segment to load")
    );
    assert_eq!(
        load_of(&[text(0, 0xE_0000, 0x1000, &[1]), entry]),
        LoadError::NoRoomForKernel {
            address: 0xE_0000,
            size: 0x1000
        }
    );
    assert_eq!(
        load_of(&[
            text(0, 0x10_0000, 0x1000, &[1]),
            note(18, &0x20_0000u32.to_le_bytes())
        ]),
        LoadError::BadEntry { address: 0x20_0000 }
    );
    assert!(matches!(
        load_of(&[text(0, u64::MAX - 5, 0x1000, &[1]), note(18, &[0; 4])]),
        LoadError::NoRoomForKernel { .. }
    ));
    assert!(matches!(
        load_of(&[text(0, 0x10_0000, 1, &[1, 2]), note(18, &[0; 4])]),
        LoadError::Elf(_)
    ));
    assert!(matches!(
        load_of(&[note(18, &[0; 3])]),
        LoadError::BadField { .. }
    ));
    // A guest with no RAM left beside its kernel.
    let small = GuestMemory::owned(&[(0, 2 * MIB)]);
    let file = elf64(
        0,
        &[
            text(0, 0, 0x9_FC00, &[]),
            text(0, 0x10_0000, 0x10_0000, &[]),
            note(18, &0x10_0000u32.to_le_bytes()),
        ],
    );
    assert_eq!(
        load(&small, &request(&file, None)),
        Err(LoadError::NoRoomForBootInformation)
    );
}

#[test]
fn multiboot_by_address_fields() {
    let kernel = multiboot_flat();
    let memory = GuestMemory::owned(&[(0, 16 * MIB)]);
    memory.fill(0x20_0000, 0x4000, 0xEE).unwrap();
    let initrd = [9; 10];
    let entry = load(&memory, &request(&kernel, Some(&initrd))).unwrap();
    assert_eq!(
        (entry.format, entry.rip, entry.rax),
        (Format::Multiboot, 0x20_0040, 0x2BAD_B002)
    );
    assert_eq!(memory.read_u32(0x20_0100).unwrap(), 0x1BAD_B002);
    assert_eq!(memory.read_u8(0x20_0FFF).unwrap(), 0xCC);
    assert_eq!(memory.read_u8(0x20_1000).unwrap(), 0);
    assert_eq!(memory.read_u8(0x20_2FFF).unwrap(), 0);
    assert_eq!(memory.read_u8(0x20_3000).unwrap(), 0xEE);
    let u32_at = |o: u64| memory.read_u32(entry.rbx + o).unwrap();
    assert_eq!(u32_at(0), 0b10_0100_1101);
    assert_eq!((u32_at(4), u32_at(8)), (639, 15 * 1024));
    assert_eq!(string(&memory, u32_at(16).into()), "console=ttyS0 quiet");
    assert_eq!(u32_at(20), 1);
    let module = u64::from(u32_at(24));
    let (from, to) = (
        memory.read_u32(module).unwrap(),
        memory.read_u32(module + 4).unwrap(),
    );
    assert_eq!((from % 4096, to - from), (0, 10));
    assert_eq!(
        string(&memory, memory.read_u32(module + 8).unwrap().into()),
        ""
    );
    assert_eq!(string(&memory, u32_at(64).into()), "Vireo");
    // Walk the map as a kernel does.
    let (mut at, end) = (
        u64::from(u32_at(48)),
        u64::from(u32_at(48)) + u64::from(u32_at(44)),
    );
    let mut ram = 0;
    while at < end {
        if memory.read_u32(at + 20).unwrap() == 1 {
            ram += memory.read_u64(at + 12).unwrap();
        }
        at += u64::from(memory.read_u32(at).unwrap()) + 4;
    }
    assert_eq!((at, ram), (end, 0x9_FC00 + 15 * MIB));
}

#[test]
fn multiboot_elf_entry_is_translated() {
    let memory = GuestMemory::owned(&[(0, 16 * MIB)]);
    let entry = load(&memory, &request(&multiboot_elf(), None)).unwrap();
    assert_eq!((entry.format, entry.rip), (Format::Multiboot, 0x10_0010));
    assert_eq!(memory.read_u32(entry.rbx).unwrap() & 8, 0);
}

#[test]
fn multiboot_header_rules() {
    let good = multiboot_flat();
    assert_eq!(detect(&good), Ok(Format::Multiboot));
    let mut bad = good.clone();
    bad[0x208] ^= 1;
    assert_eq!(detect(&bad), Err(LoadError::UnknownFormat));
    // Just inside, and just outside, the first 8 KiB.
    for (at, found) in [(8192 - 12, true), (8192 - 8, false), (8192, false)] {
        let mut f = alloc::vec![0; 0x4000];
        f[at..at + 12].copy_from_slice(&good[0x200..0x20C]);
        assert_eq!(detect(&f).is_ok(), found, "{at}");
    }
    let memory = GuestMemory::owned(&[(0, 16 * MIB)]);
    let mut unknown = good;
    let flags = 0x1_0008u32;
    put(&mut unknown, 0x204, &flags.to_le_bytes());
    put(
        &mut unknown,
        0x208,
        &0u32
            .wrapping_sub(0x1BAD_B002)
            .wrapping_sub(flags)
            .to_le_bytes(),
    );
    assert_eq!(
        load(&memory, &request(&unknown, None)),
        Err(LoadError::MultibootFeature { flags: 8 })
    );
}

/// The newest kernel that xtask has fetched, or the one that `VIREO_TEST_KERNEL` names.
fn real_kernel() -> Option<Vec<u8>> {
    if let Ok(path) = std::env::var("VIREO_TEST_KERNEL") {
        return Some(std::fs::read(path).expect("VIREO_TEST_KERNEL"));
    }
    let mut folders =
        alloc::vec![std::path::PathBuf::from(std::env::var("HOME").ok()?).join(".cache/vireo")];
    let mut depth = 0;
    while let Some(folder) = folders.pop() {
        depth += 1;
        if depth > 200 {
            return None;
        }
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if entry.file_name().to_string_lossy().starts_with("vmlinu") {
                return std::fs::read(path).ok();
            }
        }
    }
    None
}

#[test]
fn a_real_kernel_if_there_is_one() {
    let Some(kernel) = real_kernel() else { return };
    let memory = GuestMemory::owned(&[(0, 256 * MIB)]);
    let entry = load(&memory, &request(&kernel, Some(&[1; 4096]))).unwrap();
    match entry.format {
        Format::LinuxBzImage => {
            // startup_64 begins with CLD (FC) and CLI (FA), perhaps behind ENDBR64.
            let code = memory.read_u64(entry.rip).unwrap();
            let code = if code as u32 == 0xFA1E_0FF3 {
                code >> 32
            } else {
                code
            };
            assert_eq!(code & 0xFFFF, 0xFAFC);
        }
        Format::Pvh => assert_eq!(memory.read_u8(entry.rip).unwrap(), 0xFC),
        Format::Multiboot => {}
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        which in 0usize..4,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        header_only in any::<bool>(),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut file = [bzimage, pvh, multiboot_flat, multiboot_elf][which]();
        for (at, value) in flips {
            let len = if header_only { file.len().min(0x280) } else { file.len() };
            file[at.index(len)] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let memory = GuestMemory::owned(&[(0, 8 * MIB), (1 << 32, MIB)]);
        if let Ok(entry) = load(&memory, &request(&file, Some(&[1; 100]))) {
            prop_assert!(memory.contains(entry.rip, 1));
        }
    }

    #[test]
    fn random_files_never_panic(file in prop::collection::vec(any::<u8>(), 0..2000), magic in 0usize..4) {
        let mut file = file;
        let (at, bytes): (usize, &[u8]) = [(0, &b""[..]), (0, b"\x7fELF\x02\x01\x01"), (0, b"\x7fELF\x01\x01\x01"), (0x202, b"HdrS")][magic];
        if file.len() > 0x210 {
            put(&mut file, at, bytes);
            put(&mut file, 0x1FE, &[0x55, 0xAA]);
        }
        let memory = GuestMemory::owned(&[(0, 4 * MIB)]);
        let _ = load(&memory, &request(&file, None));
    }
}
