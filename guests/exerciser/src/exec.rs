//! Runs instructions given as bytes, with chosen registers, and returns the registers after
//! them, or the fault, or (with RFLAGS.TF) the place of every single step.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::cpu::TF;
use crate::idt::Frame;

/// The general registers and flags; boot.s knows this layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the processor's names")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    /// RFLAGS; bit 1 is always set.
    pub rflags: u64,
}

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its vector.
    pub vector: u8,
    /// Its error code, 0 if it has none.
    pub error: u64,
    /// Where it was, from the first byte of the code.
    pub offset: u64,
    /// CR2 at that time.
    pub cr2: u64,
}

/// #UD.
pub const UD: u8 = 6;
/// #GP.
pub const GP: u8 = 13;
/// #PF.
pub const PF: u8 = 14;

unsafe extern "C" {
    fn exec_enter(registers: *mut Registers, code: u64);
    static exec_out: u8;
    static exec_sp: u64;
}

/// Where [`run`] puts code: one page.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);
// SAFETY: touched by the main flow only; handlers never run code through it.
unsafe impl Sync for Page {}
static CODE: Page = Page(UnsafeCell::new([0; 4096]));

/// No fault.
const NONE: u64 = u64::MAX;
static ARMED: AtomicU64 = AtomicU64::new(0);
static VECTOR: AtomicU64 = AtomicU64::new(NONE);
static ERROR: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);
static CR2: AtomicU64 = AtomicU64::new(0);
static START: AtomicU64 = AtomicU64::new(0);
static LENGTH: AtomicU64 = AtomicU64::new(0);
static REGISTERS: AtomicUsize = AtomicUsize::new(0);
static STEPS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
static STEPPED: AtomicUsize = AtomicUsize::new(0);

/// The address where [`run`] puts the first byte.
pub fn base() -> u64 {
    CODE.0.get() as u64
}

/// Copies `code` to [`base`], runs it and comes back, by a RET that is added or by its fault.
/// The registers left there are in `registers`. Interrupts are off again afterwards.
pub fn run(code: &[u8], registers: &mut Registers) -> Result<(), Fault> {
    assert!(code.len() < 4000, "code for exec is too long");
    // SAFETY: the page is ours alone, and the code fits with its RET.
    unsafe {
        let page = CODE.0.get().cast::<u8>();
        for (index, byte) in code.iter().chain(&[0xc3]).enumerate() {
            page.add(index).write_volatile(*byte);
        }
        run_at(base(), code.len() as u64, registers)
    }
}

/// Runs the code of `length` bytes at `address`, which ends in a RET.
///
/// # Safety
/// The code leaves Rust's memory, the stack pointer and the segment registers alone.
pub unsafe fn run_at(address: u64, length: u64, registers: &mut Registers) -> Result<(), Fault> {
    registers.rflags |= 2;
    VECTOR.store(NONE, Relaxed);
    START.store(address, Relaxed);
    LENGTH.store(length, Relaxed);
    STEPPED.store(0, Relaxed);
    REGISTERS.store(registers as *mut Registers as usize, Relaxed);
    ARMED.store(1, Relaxed);
    // SAFETY: boot.s keeps the calling convention; the code is the caller's promise.
    unsafe { exec_enter(registers, address) };
    ARMED.store(0, Relaxed);
    match VECTOR.load(Relaxed) {
        NONE => Ok(()),
        vector => Err(Fault {
            vector: vector as u8,
            error: ERROR.load(Relaxed),
            offset: RIP.load(Relaxed).wrapping_sub(address),
            cr2: CR2.load(Relaxed),
        }),
    }
}

/// The places, from the first byte of the code, where the last run single-stepped.
pub fn steps() -> impl Iterator<Item = u64> {
    let start = START.load(Relaxed);
    STEPS
        .iter()
        .take(STEPPED.load(Relaxed))
        .map(move |step| step.load(Relaxed).wrapping_sub(start))
}

/// An exception came: if code is running here, it is that code's result and the run ends.
pub(crate) fn recover(frame: &mut Frame) -> bool {
    if ARMED.swap(0, Relaxed) == 0 {
        return false;
    }
    VECTOR.store(frame.vector, Relaxed);
    ERROR.store(frame.error, Relaxed);
    RIP.store(frame.rip, Relaxed);
    CR2.store(crate::cpu::cr2(), Relaxed);
    let after = Registers {
        rax: frame.rax,
        rbx: frame.rbx,
        rcx: frame.rcx,
        rdx: frame.rdx,
        rsi: frame.rsi,
        rdi: frame.rdi,
        rbp: frame.rbp,
        r8: frame.r8,
        r9: frame.r9,
        r10: frame.r10,
        r11: frame.r11,
        r12: frame.r12,
        r13: frame.r13,
        r14: frame.r14,
        r15: frame.r15,
        rflags: frame.rflags,
    };
    // SAFETY: `run_at` stored the address of registers that it still borrows mutably while the
    // code runs, and boot.s has not stored to them yet.
    unsafe { (REGISTERS.load(Relaxed) as *mut Registers).write(after) };
    frame.rip = &raw const exec_out as u64;
    // SAFETY: boot.s wrote it before it called the code.
    frame.rsp = unsafe { (&raw const exec_sp).read_volatile() };
    frame.rflags = 2;
    // The code may have changed its segments.
    frame.cs = 0x08;
    frame.ss = 0x10;
    true
}

/// A #DB came: if it is a step of code that runs here, notes it and goes on.
pub(crate) fn trace(frame: &mut Frame) -> bool {
    if ARMED.load(Relaxed) == 0 || frame.rflags & TF == 0 {
        return false;
    }
    let inside = frame.rip.wrapping_sub(START.load(Relaxed)) <= LENGTH.load(Relaxed);
    if inside {
        if let Some(step) = STEPS.get(STEPPED.fetch_add(1, Relaxed)) {
            step.store(frame.rip, Relaxed);
        }
    } else if STEPPED.load(Relaxed) > 0 {
        frame.rflags &= !TF;
    }
    true
}

/// RDMSR, or the fault it makes.
pub fn rdmsr(msr: u32) -> Result<u64, Fault> {
    let mut registers = Registers {
        rcx: u64::from(msr),
        ..Registers::default()
    };
    run(&[0x0f, 0x32], &mut registers)?;
    Ok(registers.rdx << 32 | registers.rax)
}

/// WRMSR, or the fault it makes.
pub fn wrmsr(msr: u32, value: u64) -> Result<(), Fault> {
    let (rax, rdx) = (value & 0xffff_ffff, value >> 32);
    let mut registers = Registers {
        rcx: u64::from(msr),
        rax,
        rdx,
        ..Registers::default()
    };
    run(&[0x0f, 0x30], &mut registers)
}
