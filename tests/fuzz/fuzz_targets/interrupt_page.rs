//! The interrupt page: both sides against a model of lines, or of a function's vectors and pin, and against a page that is scribbled over.
#![no_main]

use fuzz::{Bytes, scribble, target};
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader, InterruptWriter};

target!(run);

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let page = Box::new(InterruptPage::new());
    let function = bytes.flag();
    let (allowed, wanted) = if function {
        (u64::MAX, u64::MAX)
    } else {
        let lines = bytes.u64();
        (lines, lines)
    };
    let mut writer = InterruptWriter::new(&page);
    let reader = if function {
        InterruptReader::function(&page)
    } else {
        InterruptReader::new(&page, allowed)
    };
    let (mut levels, mut rises) = (0u64, 0u64);
    let mut sane = true;
    while !bytes.is_empty() {
        match bytes.u8() % 6 {
            0 | 1 if function => {
                let high = bytes.flag();
                let moved = writer.set_intx(high);
                if sane {
                    assert_eq!(moved, (levels & 1 != 0) != high);
                    // The pin, and how often it has risen.
                    levels = match (moved, high) {
                        (true, true) => levels + 3,
                        (true, false) => levels - 1,
                        (false, _) => levels,
                    };
                }
            }
            0 | 1 => {
                let (gsi, high) = (u32::from(bytes.u8()), bytes.flag());
                let bit = 1u64.checked_shl(gsi).unwrap_or(0);
                let moved = writer.set_level(gsi, high);
                if sane {
                    assert_eq!(moved, bit != 0 && (levels & bit != 0) != high);
                    levels = if high { levels | bit } else { levels & !bit };
                    rises |= if moved && high { bit } else { 0 };
                }
            }
            2 => {
                let vector = u32::from(bytes.u16()) % 300;
                let bit = 1u64.checked_shl(vector).unwrap_or(0);
                let new = writer.set_msi(vector);
                if sane {
                    assert_eq!(new, bit & !rises != 0);
                    rises |= bit;
                }
            }
            3 => {
                let lines = reader.look();
                assert_eq!(
                    lines.levels & !allowed | lines.rises & !wanted,
                    0,
                    "a line that is not its own"
                );
                if sane {
                    assert_eq!(lines.pin().level(), levels & allowed & 1 != 0);
                    assert_eq!(
                        (lines.levels, lines.rises),
                        (levels & allowed, rises & wanted)
                    );
                    rises = 0;
                }
                if reader.look().rises != 0 {
                    panic!("a rise is told once");
                }
            }
            4 => {
                writer = InterruptWriter::new(&page);
                let _ = writer.ends(bytes.u8().into());
            }
            _ => {
                sane = false;
                scribble(&*page, &mut bytes);
            }
        }
    }
}
