//! The interrupt page: both sides against a model of lines and vectors, and against a page that is scribbled over.
#![no_main]

use fuzz::{Bytes, scribble, target};
use ipc_schema::interrupt_page::{InterruptPage, InterruptReader, InterruptWriter, MSI_VECTORS};

target!(run);

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let page = Box::new(InterruptPage::new());
    let allowed = bytes.u64();
    let mut writer = InterruptWriter::new(&page);
    let reader = InterruptReader::new(&page, allowed);
    let (mut levels, mut rises) = (0u64, 0u64);
    let mut vectors = [false; MSI_VECTORS as usize];
    let mut sane = true;
    while !bytes.is_empty() {
        match bytes.u8() % 6 {
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
                let new = writer.set_msi(vector);
                if sane {
                    let slot = vectors.get_mut(vector as usize);
                    assert_eq!(new, slot.as_ref().is_some_and(|v| !**v));
                    if let Some(slot) = slot {
                        *slot = true;
                    }
                }
            }
            3 => {
                let lines = reader.look();
                assert_eq!(
                    (lines.levels | lines.rises) & !allowed,
                    0,
                    "a line that is not its own"
                );
                if sane {
                    assert_eq!(
                        (lines.levels, lines.rises),
                        (levels & allowed, rises & allowed)
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
