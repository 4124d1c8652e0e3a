//! The machine's log as xtask decodes it, from its port and from the serial line: any bytes, in any pieces, give printable lines and
//! nothing else.
#![no_main]

use fuzz::{Bytes, target};
use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use xtask::build::bare::Binaries;
use xtask::emulator::log::LogDecoder;
use xtask::emulator::records::Records;

target!(run, seeds);

/// What the binaries could log: an index is an address in this list.
const FORMATS: [&str; 14] = [
    "plain",
    "{=u8} {=u16} {=u32} {=u64}",
    "{=i8} {=i64} {=bool}",
    "{=str}",
    "{=[u8]:02x}",
    "{=[u8; 4]}",
    "{=u8:#x} {=0..4}",
    "{=?} {=[?]}",
    "bt: {=str}",
    "{=char} {=f32} {=f64}",
    "{=istr}",
    "{=u64:us} {=u128}",
    "Unit",
    "Pair {=u8} {=?}",
];

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![b"\x00\x0c\x00\xff\x03vmm@linuxab\x04\x00\x00\x01\x00hi".to_vec()];
    seeds.push(b"\x07boot\r\n\x1eL0 0100\r\n\x1eB0 0x401000 0x401234\r\n\x1eL zz\r\n\x1e".to_vec());
    for index in 1..=FORMATS.len() as u8 {
        seeds.push([&[7, 24, 0, 0, index, 0][..], &[2; 22]].concat());
    }
    seeds
}

/// A binary with these formats in its defmt section.
fn binary() -> Option<PathBuf> {
    let mut elf = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let section = elf.add_section(Vec::new(), b".defmt".to_vec(), SectionKind::ReadOnlyData);
    elf.append_section_data(section, &[0; 64], 1);
    let mut symbol = |name: String, value: u64, section| {
        elf.add_symbol(Symbol {
            name: name.into_bytes(),
            value,
            size: 1,
            kind: SymbolKind::Data,
            scope: SymbolScope::Linkage,
            weak: false,
            section,
            flags: SymbolFlags::None,
        });
    };
    symbol("_defmt_version_ = 4".into(), 0, SymbolSection::Absolute);
    symbol("_defmt_encoding_ = raw".into(), 0, SymbolSection::Absolute);
    for (i, format) in (1..).zip(FORMATS) {
        let tag = if i == 11 { "defmt_str" } else { "defmt_info" };
        let name = format!(
            "{{\"package\":\"p\",\"tag\":\"{tag}\",\"data\":\"{format}\",\"disambiguator\":\"{i}\",\"crate_name\":\"c\"}}"
        );
        symbol(name, i, SymbolSection::Section(section));
    }
    let path = std::env::temp_dir().join(format!("vireo-fuzz-log-{}", std::process::id()));
    std::fs::write(&path, elf.write().ok()?).ok()?;
    Some(path)
}

fn decoder() -> LogDecoder {
    thread_local!(static BINARY: RefCell<Option<PathBuf>> = const { RefCell::new(None) });
    let kernel = BINARY.with_borrow_mut(|b| {
        b.get_or_insert_with(|| binary().expect("a temporary file"))
            .clone()
    });
    LogDecoder::new(&Binaries {
        kernel,
        servers: BTreeMap::new(),
    })
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let step = usize::from(bytes.u8() % 16) + 1;
    let log = bytes.0;
    let mut decoder = decoder();
    let lines: Vec<String> = log
        .chunks(step)
        .flat_map(|piece| decoder.feed(piece))
        .collect();
    assert!(lines.len() <= 40 * (log.len() + 1));
    for line in &lines {
        let control = |c: char| c.is_control() && c != '\t';
        assert!(!line.contains(control), "for the terminal: {line:?}");
    }
    if std::env::var_os("VIREO_FUZZ_SHOW").is_some() {
        lines.iter().for_each(|line| println!("{line}"));
    }
    serial(log, step, &mut decoder);
}

/// What is no record passes as it is, and where the bytes are cut makes no difference.
fn serial(bytes: &[u8], step: usize, decoder: &mut LogDecoder) {
    let (mut whole, mut pieces) = (Records::default(), Records::default());
    let mut count = 0;
    let mut shown = whole.feed(bytes, |record| {
        count += 1;
        assert!(
            decoder
                .from_console(record)
                .iter()
                .all(|line| !line.contains('\n'))
        );
        vec!["R".to_owned()]
    });
    shown.extend(whole.rest());
    let mut again: Vec<u8> = bytes
        .chunks(step)
        .flat_map(|piece| pieces.feed(piece, |_| vec!["R".to_owned()]))
        .collect();
    again.extend(pieces.rest());
    assert_eq!(shown, again);
    if count == 0 {
        assert_eq!(shown, bytes);
    }
}
