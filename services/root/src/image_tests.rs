//! ELF files made by hand, good and bad.

use super::*;
use proptest::prelude::*;

/// One program header: type, flags, address, data, bytes of memory.
type Header = (u32, u32, u64, Vec<u8>, u64);

fn file(entry: u64, headers: &[Header]) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    out.extend(entry.to_le_bytes());
    out.extend(64u64.to_le_bytes());
    out.extend([0; 8]);
    out.extend([0, 0, 0, 0, 64, 0, 56, 0]);
    out.extend((headers.len() as u16).to_le_bytes());
    out.extend([64, 0, 0, 0, 0, 0]);
    let mut offset = 64 + 56 * headers.len() as u64;
    for (kind, flags, va, data, mem) in headers {
        out.extend(kind.to_le_bytes());
        out.extend(flags.to_le_bytes());
        for field in [offset, *va, *va, data.len() as u64, *mem, 4] {
            out.extend(field.to_le_bytes());
        }
        offset += data.len() as u64;
    }
    for header in headers {
        out.extend(&header.3);
    }
    out
}

fn note(version: u32) -> Header {
    let mut data = vec![6, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0];
    data.extend(b"VIREO\0\0\0");
    data.extend(version.to_le_bytes());
    (PT_NOTE, PF_R, 0x40_2000, data, 24)
}

fn text() -> Header {
    (PT_LOAD, PF_R | PF_X, 0x40_0000, b"code".to_vec(), 0x1800)
}

#[test]
fn a_good_one() {
    let data = (PT_LOAD, PF_R | PF_W, 0x40_3010, b"data".to_vec(), 0x2000);
    let bytes = file(0x40_0002, &[data, text(), note(ABI_VERSION)]);
    let image = Image::parse(&bytes, false).unwrap();
    assert_eq!((image.entry, image.segments.len()), (0x40_0002, 2));
    let code = image.segments[0];
    assert_eq!(
        (code.va, code.len, code.data, code.rights),
        (0x40_0000, 0x2000, &b"code"[..], rights::READ | rights::EXEC)
    );
    let data = image.segments[1];
    assert_eq!(
        (data.va, data.len, data.lead, data.rights),
        (0x40_3000, 0x3000, 0x10, rights::READ | rights::WRITE)
    );
    // Code is all instances', data each one's own; but of one that shares nothing.
    assert_eq!((image.own, image.common), (0x3000, 0x2000));
    assert_eq!((code.place, data.place), (Place::Common(0), Place::Own(0)));
    let image = Image::parse(&bytes, true).unwrap();
    assert_eq!((image.own, image.common), (0x5000, 0));
    let places: Vec<Place> = image.segments.iter().map(|s| s.place).collect();
    assert_eq!(places, [Place::Own(0), Place::Own(0x2000)]);
}

#[test]
fn each_error() {
    let with = |entry, headers: &[Header]| Image::parse(&file(entry, headers), false).map(|_| ());
    let good = 0x40_0000;
    let load = |flags, va, mem| (PT_LOAD, flags, va, b"data".to_vec(), mem);
    assert_eq!(with(good, &[text(), note(ABI_VERSION)]), Ok(()));
    assert_eq!(with(good, &[text()]), Err(ImageError::NoAbiNote));
    assert_eq!(with(good, &[text(), note(7)]), Err(ImageError::Abi(7)));
    assert_eq!(
        with(0x40_2000, &[text(), note(ABI_VERSION)]),
        Err(ImageError::BadEntry(0x40_2000))
    );
    assert_eq!(
        with(good, &[note(ABI_VERSION)]),
        Err(ImageError::BadEntry(good))
    );
    let cases = [
        (
            load(PF_R | PF_W | PF_X, 0x41_0000, 4),
            ImageError::WritableCode(0x41_0000),
        ),
        (load(PF_R, 0x40_1ff0, 4), ImageError::SharedPage(0x40_1000)),
        (load(PF_R, 0x3f_f000, 4), ImageError::BadSegment(0x3f_f000)),
        (load(PF_R, 0x41_0000, 3), ImageError::BadSegment(0x41_0000)),
        (
            load(PF_R, 0x41_0000, MAX_SIZE),
            ImageError::BadSegment(0x41_0000),
        ),
        (load(PF_R, u64::MAX, 4), ImageError::BadSegment(u64::MAX)),
        (load(PF_W, 0x41_0000, 4), ImageError::BadSegment(0x41_0000)),
        (
            (PT_INTERP, PF_R, 0x41_0000, vec![], 0),
            ImageError::NotStatic,
        ),
    ];
    for (header, error) in cases {
        assert_eq!(with(good, &[text(), header, note(ABI_VERSION)]), Err(error));
    }
    assert_eq!(
        Image::parse(b"no", false).map(|_| ()),
        Err(ImageError::NotElf)
    );
    let mut arm = file(good, &[text(), note(ABI_VERSION)]);
    arm[18] = 183;
    assert_eq!(
        Image::parse(&arm, false).map(|_| ()),
        Err(ImageError::NotStatic)
    );
}

#[test]
fn parts_do_not_overlap() {
    let parts = Parts::new(0x3001, 0x7fff, 0x1_0001, 0);
    assert_eq!(
        (parts.image, parts.stack, parts.stack_len, parts.heap),
        (0x4000, 0x4000, 0x8000, 0xc000)
    );
    assert_eq!((parts.heap_len, parts.start_len), (0x1_1000, 0x1000));
    assert_eq!(parts.total(), 0xc000 + 0x1_1000 + 0x1000);
}

proptest! {
    #[test]
    fn damaged_files_never_panic(at in 0usize..300, value in any::<u8>()) {
        let mut bytes = file(0x40_0000, &[text(), note(ABI_VERSION)]);
        if let Some(b) = bytes.get_mut(at) {
            *b = value;
        }
        if let Ok(image) = Image::parse(&bytes, false) {
            for s in &image.segments {
                prop_assert!(s.va >= layout::IMAGE && s.lead + s.data.len() as u64 <= s.len);
                prop_assert!(s.va + s.len <= layout::IMAGE + MAX_SIZE);
                match s.place {
                    Place::Own(at) => prop_assert!(at + s.len <= image.own),
                    Place::Common(at) => prop_assert!(at + s.len <= image.common && s.rights & rights::WRITE == 0),
                }
            }
        }
    }
}
