//! Last words: text on the serial line, the debug console and the framebuffer, for when there is no one else to speak.

use super::{BOOT, port_in, port_out};
use crate::mem::Global;
use crate::object::log::{KERNEL, RECORD, RING};
use bootloader_api::info::FrameBuffer;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use font8x8::legacy::BASIC_LEGACY;

/// Port of the emulators' debug console; reads back its own number where it exists.
pub const DEBUG_PORT: u16 = 0xe9;
const COM1: u16 = 0x3f8;

/// Written at boot.
static SCREEN: Global<Cell<Option<&'static FrameBuffer>>> = Global(Cell::new(None));

/// Tells where the screen is; looks for the debug console.
pub fn init(screen: Option<&'static FrameBuffer>) {
    SCREEN.set(screen);
    BOOT.debug_port
        .set(port_in(DEBUG_PORT, 1) == u64::from(DEBUG_PORT));
}

/// Sends a byte on the serial line, which nobody else drives any more.
fn send(byte: u8) {
    for _ in 0..100_000 {
        if port_in(COM1 + 5, 1) & 0x20 != 0 {
            break;
        }
    }
    port_out(COM1, 1, u64::from(byte));
}

/// Draws text at the top of the screen.
fn draw<'a>(screen: &FrameBuffer, text: impl Iterator<Item = &'a u8>) {
    let (info, pixels) = (screen.info(), screen.buffer());
    let (mut x, mut y) = (0, 10);
    for &c in text {
        if x + 8 > info.width {
            (x, y) = (0, y + 10);
        }
        for (dy, row) in BASIC_LEGACY[usize::from(c & 0x7f)].iter().enumerate() {
            for dx in 0..8 {
                let at = ((y + dy) * info.stride + x + dx) * info.bytes_per_pixel;
                if let Some(pixel) = pixels.get(at..at + info.bytes_per_pixel) {
                    let colour = if row & (1 << dx) != 0 { 0xff } else { 0 };
                    let start = pixel.as_ptr().cast_mut();
                    // SAFETY: inside the framebuffer that the loader gave, which nobody else looks at any more.
                    unsafe { start.write_bytes(colour, pixel.len()) };
                }
            }
        }
        x += 8;
    }
}

/// Says why the kernel stops, and stops. The words are for the person who has to change something; each `#` in them stands for the next
/// of `values`, hexadecimal if it is large.
#[cold]
pub fn fatal(words: &str, values: &[u64]) -> ! {
    stop(&[words], values)
}

/// As [`fatal`], with words from several places.
#[cold]
#[inline(never)]
pub fn stop(words: &[&str], values: &[u64]) -> ! {
    x86_64::instructions::interrupts::disable();
    crate::sync::halt_others();
    let (mut text, mut len) = ([0; RECORD - 15], 0);
    let mut put = |b| {
        if let Some(place) = text.get_mut(len) {
            *place = b;
            len += 1;
        }
    };
    let mut values = values.iter();
    for b in words.iter().flat_map(|w| w.bytes()) {
        let Some(&value) = (b == b'#').then(|| values.next()).flatten() else {
            put(b);
            continue;
        };
        let mut base = 10;
        if value >= 10_000 {
            base = 16;
            put(b'0');
            put(b'x');
        }
        let mut unit = 1;
        while value / unit >= base {
            unit *= base;
        }
        while unit > 0 {
            put(b"0123456789abcdef"[(value / unit % base) as usize % 16]);
            unit /= base;
        }
    }
    let text = text.get(..len).unwrap_or(&text);
    let line = [b"\r\nVireo: ", text, b"\r\n"];
    line.into_iter().flatten().for_each(|&b| send(b));
    if let Some(screen) = SCREEN.get() {
        draw(screen, b"Vireo: ".iter().chain(text));
    }
    defmt::error!("stopped: {=[u8]:a}", text);
    loop {
        x86_64::instructions::hlt();
    }
}

#[defmt::global_logger]
struct Logger;

/// The record being written (defmt hands it over in pieces), and its length.
static RECORDING: Global<([Cell<u8>; RECORD], Cell<usize>)> =
    Global(([const { Cell::new(0) }; RECORD], Cell::new(0)));

/// Which processor writes a record.
static WRITING: AtomicBool = AtomicBool::new(false);

// SAFETY: `WRITING` lets one processor in; interrupts are off, and NMI and machine-check handlers don't log: no two records interleave.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        // Not for ever: the last words of a kernel that broke while it logged are worth a spoilt record.
        for _ in 0..1 << 20 {
            if !WRITING.swap(true, Ordering::Acquire) {
                break;
            }
            core::hint::spin_loop();
        }
        RECORDING.1.set(0);
    }
    unsafe fn flush() {}
    unsafe fn release() {
        let (bytes, len) = &*RECORDING;
        let record = &bytes[..len.get().min(bytes.len())];
        RING.add(KERNEL, record.iter().map(Cell::get));
        WRITING.store(false, Ordering::Release);
    }
    unsafe fn write(more: &[u8]) {
        let (bytes, len) = &*RECORDING;
        for &b in more {
            if let Some(place) = bytes.get(len.get()) {
                place.set(b);
                len.set(len.get() + 1);
            }
        }
    }
}
defmt::timestamp!("{=u64}", super::now());
