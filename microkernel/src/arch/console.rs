//! Last words: text on the serial line, the debug console and the framebuffer, for when there is no one else to speak.

use super::hardware::BOOT;
use crate::mem::Global;
use core::cell::Cell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};
use x86_64::instructions::port::Port;

/// Port of the emulators' debug console; reads back its own number where it exists.
pub const DEBUG_PORT: u16 = 0xe9;
const COM1: u16 = 0x3f8;

/// A linear framebuffer (address 0: none).
#[derive(Clone, Copy)]
pub struct Framebuffer {
    /// Kernel address of its first byte.
    pub address: u64,
    /// Pixels in a row.
    pub width: u64,
    /// Rows.
    pub height: u64,
    /// Pixels from row to row.
    pub stride: u64,
    /// Bytes a pixel.
    pub pixel: u64,
}
static SCREEN: Global<Cell<Framebuffer>> = Global(Cell::new(Framebuffer {
    address: 0,
    width: 0,
    height: 0,
    stride: 0,
    pixel: 0,
}));

/// Tells where the screen is.
pub fn set_framebuffer(f: Framebuffer) {
    SCREEN.set(f);
}

/// Looks for the debug console.
pub fn init() {
    // SAFETY: reading this port does nothing on any machine.
    BOOT.debug_port
        .set(unsafe { Port::<u8>::new(DEBUG_PORT).read() } == DEBUG_PORT as u8);
}

struct Serial;
impl Write for Serial {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for b in s.bytes() {
            // SAFETY: COM1's line status and data; nobody else drives it any more.
            unsafe {
                for _ in 0..100_000 {
                    if Port::<u8>::new(COM1 + 5).read() & 0x20 != 0 {
                        break;
                    }
                }
                Port::<u8>::new(COM1).write(b);
            }
        }
        Ok(())
    }
}

struct Screen {
    column: u64,
    row: u64,
}
impl Screen {
    fn glyph(&self, c: u8) {
        use font8x8::legacy::BASIC_LEGACY;
        let f = SCREEN.get();
        let Some(rows) = BASIC_LEGACY.get(usize::from(c & 0x7f)) else {
            return;
        };
        for (dy, bits) in rows.iter().enumerate() {
            for dx in 0..8 {
                let (x, y) = (self.column * 8 + dx, self.row * 10 + dy as u64);
                if x < f.width && y < f.height {
                    let colour = if bits & (1 << dx) != 0 { 0xff } else { 0 };
                    for i in 0..f.pixel {
                        // SAFETY: inside the framebuffer, whose geometry the loader gave.
                        unsafe {
                            ((f.address + (y * f.stride + x) * f.pixel + i) as *mut u8)
                                .write_volatile(colour)
                        };
                    }
                }
            }
        }
    }
}
impl Write for Screen {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let f = SCREEN.get();
        for b in s.bytes() {
            if b == b'\n' || (self.column + 1) * 8 > f.width {
                self.column = 0;
                self.row += 1;
            }
            if b >= b' ' {
                self.glyph(b);
                self.column += 1;
            }
        }
        Ok(())
    }
}

/// Says why the kernel stops, and stops. The words are for the person who has to change something.
pub fn fatal(message: fmt::Arguments) -> ! {
    x86_64::instructions::interrupts::disable();
    crate::sync::halt_others();
    let _ = write!(Serial, "\r\nVireo: {message}\r\n");
    if SCREEN.get().address != 0 {
        let _ = writeln!(Screen { column: 0, row: 1 }, "Vireo: {message}");
    }
    defmt::error!("stopped: {}", defmt::Display2Format(&message));
    loop {
        x86_64::instructions::hlt();
    }
}

#[defmt::global_logger]
struct Logger;

/// The record being written: defmt hands it over in pieces.
struct Frame {
    bytes: [Cell<u8>; crate::object::log::RECORD],
    len: Cell<usize>,
}
static FRAME: Global<Frame> = Global(Frame {
    bytes: [const { Cell::new(0) }; crate::object::log::RECORD],
    len: Cell::new(0),
});

/// Which processor writes a record.
static WRITING: AtomicBool = AtomicBool::new(false);

// SAFETY: `WRITING` lets one processor in; interrupts are off, and NMI and machine-check handlers don't log: no two frames interleave.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        // Not for ever: the last words of a kernel that broke while it logged are worth a spoilt record.
        for _ in 0..1 << 20 {
            if !WRITING.swap(true, Ordering::Acquire) {
                break;
            }
            core::hint::spin_loop();
        }
        FRAME.len.set(0);
    }
    unsafe fn flush() {}
    unsafe fn release() {
        let frame = &FRAME.bytes[..FRAME.len.get().min(FRAME.bytes.len())];
        crate::object::log::RING.add(crate::object::log::KERNEL, frame.iter().map(Cell::get));
        WRITING.store(false, Ordering::Release);
    }
    unsafe fn write(bytes: &[u8]) {
        for &b in bytes {
            if let Some(c) = FRAME.bytes.get(FRAME.len.get()) {
                c.set(b);
                FRAME.len.set(FRAME.len.get() + 1);
            }
        }
    }
}
defmt::timestamp!("{=u64}", super::now());
