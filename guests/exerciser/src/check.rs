//! What a case is, how it says why it fails, and the loop over all of them.

use core::cell::UnsafeCell;
use core::fmt;

use exerciser::boot::BootInfo;
use exerciser::exec::{self, Fault, Registers};
use exerciser::text::Text;
use exerciser::{apic, cpu, idt, ioapic, legacy, say};

use crate::cases;

/// Why a case did not pass.
pub enum Stop {
    /// The machine is wrong; [`fail`] keeps the reason.
    Fail,
    /// The machine does not have what the case is about.
    Skip(&'static str),
}

/// A case's result.
pub type Check = Result<(), Stop>;

/// The reason of the last failure: kept here, so that a [`Check`] is small.
struct Why(UnsafeCell<Text>);
// SAFETY: touched by the main flow only.
unsafe impl Sync for Why {}
static WHY: Why = Why(UnsafeCell::new(Text::new()));

/// A failure with its reason.
pub fn fail(why: fmt::Arguments<'_>) -> Stop {
    // SAFETY: the main flow alone uses it, and no borrow outlives this statement.
    unsafe { *WHY.0.get() = Text::from_fmt(why) };
    Stop::Fail
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        fail(format_args!("unexpected {fault:x?}"))
    }
}

/// A named test.
pub struct Case {
    /// Its name on the command line and in the report.
    pub name: &'static str,
    /// Whether it holds on Vireo alone.
    pub vireo: bool,
    /// The test.
    pub run: fn(&BootInfo) -> Check,
}

impl Case {
    /// A case for any machine.
    pub const fn new(name: &'static str, run: fn(&BootInfo) -> Check) -> Self {
        Self {
            name,
            vireo: false,
            run,
        }
    }

    /// A case about what Vireo promises beyond what other machines do.
    pub const fn vireo(name: &'static str, run: fn(&BootInfo) -> Check) -> Self {
        Self {
            name,
            vireo: true,
            run,
        }
    }
}

/// Fails the case unless the condition holds; the rest says why, as in `format!`.
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::check::fail(format_args!($($why)+)));
        }
    };
}
pub(crate) use ensure;

/// Fails the case unless both are equal.
macro_rules! equal {
    ($left:expr, $right:expr, $($what:tt)+) => {
        match (&$left, &$right) {
            (left, right) => $crate::check::ensure!(
                left == right, "{}: {:x?} is not {:x?} (hex)", format_args!($($what)+), left, right
            ),
        }
    };
}
pub(crate) use equal;

/// Registers that are all different and easily told in a report; arithmetic flags all set.
pub fn pattern() -> Registers {
    let value = |index: u64| 0x1111_1111_1111_1111 * index + 0x8000_0000_0000_0000;
    Registers {
        rax: value(0),
        rbx: value(1),
        rcx: value(2),
        rdx: value(3),
        rsi: value(4),
        rdi: value(5),
        rbp: value(6),
        r8: value(7),
        r9: 0x99,
        r10: 0xaa,
        r11: 0xbb,
        r12: 0xcc,
        r13: 0xdd,
        r14: 0xee,
        r15: 0,
        rflags: 0x8d7,
    }
}

/// LEA R15, [R15 + 1]: shows that the code went on at the right place.
pub const MARK: [u8; 4] = [0x4d, 0x8d, 0x7f, 0x01];

/// Runs `code` and [`MARK`], and compares every register with `expected` (R15 one more).
pub fn probe(code: &[u8], before: Registers, mut expected: Registers) -> Check {
    let mut bytes = [0; 64];
    let (head, tail) = bytes.split_at_mut(code.len());
    head.copy_from_slice(code);
    tail[..4].copy_from_slice(&MARK);
    let mut after = before;
    exec::run(&bytes[..code.len() + 4], &mut after)?;
    expected.r15 = expected.r15.wrapping_add(1);
    expected.rflags |= 2;
    compare(code, &after, &expected)
}

/// Names the first register that differs.
pub fn compare(code: &[u8], after: &Registers, expected: &Registers) -> Check {
    let list = |r: &Registers| {
        [
            ("rax", r.rax),
            ("rbx", r.rbx),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("rbp", r.rbp),
            ("r8", r.r8),
            ("r9", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
            ("rflags", r.rflags & !(1 << 16)),
        ]
    };
    for ((name, left), (_, right)) in list(after).into_iter().zip(list(expected)) {
        equal!(left, right, "{name} after {code:02x?}");
    }
    Ok(())
}

/// Runs `code`, which must fault at its first byte with `vector` and change no register.
pub fn faults(code: &[u8], before: Registers, vector: u8) -> Check {
    let mut after = before;
    match exec::run(code, &mut after) {
        Ok(()) => ensure!(
            false,
            "{code:02x?} (rax {:#x}) went through, expected exception {vector}",
            before.rax
        ),
        Err(fault) => {
            ensure!(
                fault.vector == vector,
                "{code:02x?}: exception {} instead of {vector}",
                fault.vector
            );
            equal!(fault.offset, 0, "place of the fault of {code:02x?}");
            if vector == exec::GP {
                equal!(fault.error, 0, "error code of {code:02x?}");
            }
            compare(
                code,
                &after,
                &Registers {
                    rflags: before.rflags | 2,
                    ..before
                },
            )?;
        }
    }
    Ok(())
}

/// Puts the interrupt hardware where every case may expect it; xAPIC or x2APIC mode stays.
pub fn quiet() {
    apic::init();
    ioapic::mask_all();
    legacy::mask_all();
    for _ in 0..4 {
        cpu::open_window();
    }
    // Only now that nothing waits: see `not_in_qemu` in `cases/apic_modes.rs`.
    cpu::set_cr8(0);
    idt::clear_log();
}

/// Runs the selected cases; how many failed.
pub fn run_all(info: &BootInfo) -> u32 {
    let vireo = cpu::on_vireo() || info.command_line.has("vireo");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for case in cases::ALL.iter().flat_map(|group| group.iter()) {
        if !info.command_line.selects(case.name) {
            continue;
        }
        if info.command_line.has("verbose") {
            say!("CASE {}", case.name);
        }
        quiet();
        let result = if case.vireo && !vireo {
            Err(Stop::Skip("only Vireo promises this"))
        } else {
            (case.run)(info)
        };
        match result {
            Ok(()) => {
                say!("PASS {}", case.name);
                passed += 1;
            }
            Err(Stop::Fail) => {
                // SAFETY: as in `fail`.
                let why = unsafe { *WHY.0.get() };
                say!("FAIL {}: {}", case.name, why.as_str());
                failed += 1;
            }
            Err(Stop::Skip(why)) => {
                say!("SKIP {}: {}", case.name, why);
                skipped += 1;
            }
        }
    }
    quiet();
    if passed + failed == 0 {
        say!("NOTE no case ran");
        failed += 1;
    }
    say!("NOTE {skipped} skipped");
    say!("EXERCISER {passed} passed, {failed} failed");
    failed
}
