//! The rows.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use exerciser::cmdline::CommandLine;
use exerciser::cpu::{self, inl, outl, tsc};
use exerciser::{apic, exec, idt, ioapic, legacy, say};

use crate::measure::{Given, least, row, ticks, timed};

/// The UART's scratch register.
const SCRATCH: u32 = 0x3ff;
/// The test device: interrupt line, command register, doorbell.
const TESTDEV: u16 = 0x5000;
const COMMAND: u16 = 0x500c;
const DOORBELL: u16 = 0x5010;
const STAMPED_PULSE: u32 = 10;
/// Its interrupt.
const GSI: u32 = 5;
/// The vector of every interrupt here.
const VECTOR: u8 = 0x60;
/// Ticks from arming a deadline to the deadline: more than arming takes.
const GAP: u64 = 60_000;

/// When the last interrupt came (TSC), 0 if none did.
#[unsafe(no_mangle)]
static TICK: AtomicU64 = AtomicU64::new(0);

// The shortest handler: notes the time, ends the interrupt (x2APIC), returns.
global_asm!(
    ".globl tick_entry",
    "tick_entry:",
    "push rax",
    "push rdx",
    "rdtsc",
    "push rcx",
    "mov dword ptr [rip + TICK], eax",
    "mov dword ptr [rip + TICK + 4], edx",
    "mov ecx, 0x80b",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "pop rcx",
    "pop rdx",
    "pop rax",
    "iretq",
);

unsafe extern "C" {
    static tick_entry: u8;
}

/// Polls until the handler has run, with interrupts on; when it ran, 0 if it never did.
fn spin() -> u64 {
    // SAFETY: the handler restores all registers.
    unsafe { asm!("sti", options(nostack)) };
    for _ in 0..100_000_000u32 {
        if TICK.load(Relaxed) != 0 {
            break;
        }
    }
    // SAFETY: as above.
    unsafe { asm!("cli", options(nostack)) };
    TICK.swap(0, Relaxed)
}

/// Whether the test device answers.
fn has_testdev() -> bool {
    outl(TESTDEV, 0x5a);
    inl(TESTDEV) == 0x5a
}

/// Whether x2APIC mode could be entered; the handler and some rows need it.
fn enter_x2apic() -> bool {
    apic::has_x2apic() && apic::enable_x2apic().is_ok()
}

/// Measures all that is selected and possible.
pub fn run(line: CommandLine<'_>) {
    legacy::mask_all();
    apic::init();
    ioapic::mask_all();
    let empty = least(|| ticks!(Given::default(),));
    say!("BENCH-EMPTY {empty}");
    plain_rows(line, empty);
    let x2apic = enter_x2apic();
    if x2apic {
        apic::init();
        idt::set_entry(VECTOR, &raw const tick_entry as u64);
    }
    for (name, needs_testdev, measure) in SPECIAL {
        if !line.selects(name) {
            continue;
        }
        if *needs_testdev && !has_testdev() {
            say!("SKIP {name}: no test device");
        } else if !x2apic && *name != "exit_doorbell" {
            say!("SKIP {name}: no x2APIC");
        } else {
            measure(name, empty);
        }
    }
}

/// Rows that every machine has.
fn plain_rows(line: CommandLine<'_>, empty: u64) {
    let port = |edx| Given {
        edx,
        ..Given::default()
    };
    let register = Given {
        rdi: ioapic::BASE,
        eax: 1,
        ..Given::default()
    };
    if line.selects("exit_cpuid_vmm") {
        row("exit_cpuid_vmm", empty, || {
            ticks!(Given::default(), "cpuid")
        });
    }
    if line.selects("exit_port_routed") {
        row("exit_port_routed", empty, || {
            ticks!(port(SCRATCH), "in al, dx")
        });
    }
    if line.selects("exit_port_routed_out") {
        row("exit_port_routed_out", empty, || {
            ticks!(port(SCRATCH), "out dx, al")
        });
    }
    if line.selects("exit_port_vmm") {
        row("exit_port_vmm", empty, || ticks!(port(0x61), "in al, dx"));
    }
    if line.selects("exit_mmio_vmm") {
        row("exit_mmio_vmm", empty, || {
            ticks!(register, "mov dword ptr [rdi], eax")
        });
    }
    if line.selects("exit_mmio_load_vmm") {
        row("exit_mmio_load_vmm", empty, || {
            ticks!(register, "mov eax, dword ptr [rdi]")
        });
    }
}

/// A row with a need: its name, whether that is the test device, its measurement.
type Special = (&'static str, bool, fn(&str, u64));

/// Rows that need the test device or the x2APIC.
const SPECIAL: &[Special] = &[
    ("exit_doorbell", true, doorbell),
    ("exit_msr_vmm", false, msr),
    ("exit_msr_eoi", false, eoi),
    ("irq_self_ipi", false, self_ipi),
    ("irq_to_guest", true, irq_to_guest),
    ("guest_timer_tick", false, timer_tick),
    ("exit_hlt_wake", false, hlt_wake),
];

/// OUT to the doorbell, its bit clear: each sample waits until the device has seen the last.
fn doorbell(name: &str, empty: u64) {
    let given = Given {
        edx: u32::from(DOORBELL),
        ..Given::default()
    };
    row(name, empty, || {
        let before = inl(COMMAND);
        let took = ticks!(given, "out dx, eax");
        for _ in 0..10_000 {
            if inl(COMMAND) != before {
                break;
            }
        }
        took
    });
}

/// RDMSR of the x2APIC's ID.
fn msr(name: &str, empty: u64) {
    let given = Given {
        ecx: 0x802,
        ..Given::default()
    };
    row(name, empty, || ticks!(given, "rdmsr"));
}

/// WRMSR to the x2APIC's EOI, nothing in service.
fn eoi(name: &str, empty: u64) {
    let given = Given {
        ecx: 0x80b,
        ..Given::default()
    };
    row(name, empty, || ticks!(given, "wrmsr"));
}

/// From before the WRMSR that sends a self-IPI to the handler's first instruction.
fn self_ipi(name: &str, empty: u64) {
    let given = Given {
        ecx: 0x83f,
        eax: u32::from(VECTOR),
        ..Given::default()
    };
    row(name, empty, || {
        let (before, _) = timed!(given, "sti", "wrmsr", "cli");
        spin().wrapping_sub(before)
    });
}

/// Instructions between the two looks at the clock that are not the interrupt's: the device server's RDTSC, the handler's two
/// PUSHes before its own.
const STAMPS: u64 = 3;

/// From the device server's storing of the pending bit (in the middle of a routed OUT) to the handler's first instruction. Both
/// look at one clock: the TSC of a guest under test is the host's.
fn irq_to_guest(name: &str, _: u64) {
    ioapic::route(GSI, VECTOR, 0);
    let given = Given {
        edx: u32::from(COMMAND),
        eax: STAMPED_PULSE,
        ..Given::default()
    };
    row(name, STAMPS, || {
        timed!(given, "sti", "out dx, eax", "cli");
        let handled = spin();
        u64::from((handled as u32).wrapping_sub(inl(TESTDEV)))
    });
    ioapic::mask(GSI);
}

/// Switches the timer to TSC-deadline mode.
fn deadline_mode(name: &str) -> bool {
    if !apic::has_deadline() {
        say!("SKIP {name}: no TSC-deadline timer");
        return false;
    }
    apic::write(apic::reg::LVT_TIMER, apic::DEADLINE | u32::from(VECTOR));
    exec::wrmsr(apic::TSC_DEADLINE, 0).is_ok()
}

/// The deadline [`GAP`] ticks from now, ready to be written.
fn next_deadline() -> (u64, Given) {
    let end = tsc() + GAP;
    (
        end,
        Given {
            ecx: apic::TSC_DEADLINE,
            eax: end as u32,
            edx: (end >> 32) as u32,
            rdi: 0,
        },
    )
}

/// A tick of a guest's timer: the WRMSR that arms it, and how long after the deadline the
/// handler starts while the guest computes. The wait between is not counted.
fn timer_tick(name: &str, empty: u64) {
    if !deadline_mode(name) {
        return;
    }
    row(name, empty, || {
        let (end, given) = next_deadline();
        let armed = ticks!(given, "wrmsr");
        armed + spin().saturating_sub(end)
    });
    apic::stop_timer();
}

/// How long after the deadline the handler starts while the guest sleeps in HLT.
fn hlt_wake(name: &str, _: u64) {
    if !deadline_mode(name) {
        return;
    }
    row(name, 0, || {
        let (end, given) = next_deadline();
        timed!(given, "wrmsr");
        cpu::sleep();
        spin().saturating_sub(end)
    });
    apic::stop_timer();
}
