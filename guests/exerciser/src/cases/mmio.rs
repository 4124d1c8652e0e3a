//! Loads and stores to the IOAPIC and the local APIC in many instruction forms.
//!
//! Each form runs twice: on ordinary memory, where the processor itself does it, and on a
//! device register that holds bits 24 to 31. Registers, flags and those bits must agree.

use core::cell::UnsafeCell;

use exerciser::boot::BootInfo;
use exerciser::exec::{self, Registers};
use exerciser::{apic, ioapic};

use crate::check::{Case, Check, compare, ensure, equal, pattern};

pub const CASES: &[Case] = &[
    Case::new("mmio-forms", forms),
    Case::new("mmio-strings", strings),
    Case::new("mmio-addressing", addressing),
    Case::new("mmio-ioapic", io_apic),
    Case::new("mmio-lapic", local_apic),
    Case::vireo("mmio-lapic-off", local_apic_off),
];

/// Instructions on the 32 bits at [RDI].
const FORMS: &[&[u8]] = &[
    &[0x89, 0x07],                      // MOV [RDI], EAX
    &[0x8b, 0x07],                      // MOV EAX, [RDI]
    &[0x44, 0x8b, 0x0f],                // MOV R9D, [RDI]
    &[0xc7, 0x07, 0, 0, 0, 0x5a],       // MOV [RDI], imm32
    &[0x48, 0x63, 0x07],                // MOVSXD RAX, [RDI]
    &[0x0f, 0xc3, 0x07],                // MOVNTI [RDI], EAX
    &[0x87, 0x07],                      // XCHG
    &[0x01, 0x07],                      // ADD [RDI], EAX
    &[0x09, 0x07],                      // OR
    &[0x21, 0x07],                      // AND
    &[0x29, 0x07],                      // SUB
    &[0x31, 0x07],                      // XOR
    &[0x11, 0x07],                      // ADC with carry set: bit 0 is not kept
    &[0x39, 0x07],                      // CMP [RDI], EAX
    &[0x85, 0x07],                      // TEST
    &[0x03, 0x07],                      // ADD EAX, [RDI]
    &[0x0b, 0x07],                      // OR EAX
    &[0x23, 0x07],                      // AND EAX
    &[0x2b, 0x07],                      // SUB EAX
    &[0x33, 0x07],                      // XOR EAX
    &[0x3b, 0x07],                      // CMP EAX
    &[0x81, 0x07, 0, 0, 0, 0x11],       // ADD [RDI], imm32
    &[0x81, 0x0f, 0, 0, 0, 0x11],       // OR
    &[0x81, 0x27, 0, 0, 0, 0x71],       // AND
    &[0x81, 0x2f, 0, 0, 0, 0x11],       // SUB
    &[0x81, 0x37, 0, 0, 0, 0x11],       // XOR
    &[0x81, 0x3f, 0, 0, 0, 0x11],       // CMP
    &[0xf7, 0x07, 0, 0, 0, 0x80],       // TEST [RDI], imm32
    &[0xf0, 0x09, 0x07],                // LOCK OR
    &[0xf0, 0x81, 0x27, 0, 0, 0, 0x3c], // LOCK AND imm32
    &[0x83, 0x27, 0xfe],                // AND [RDI], imm8 sign-extended
];

/// Less usual ones.
const RARE: &[&[u8]] = &[
    &[0xf7, 0x1f],             // NEG
    &[0x0f, 0xba, 0x27, 30],   // BT [RDI], 30
    &[0x0f, 0xba, 0x2f, 31],   // BTS
    &[0x0f, 0xba, 0x37, 30],   // BTR
    &[0x0f, 0xba, 0x3f, 29],   // BTC
    &[0xf0, 0x0f, 0xb1, 0x0f], // LOCK CMPXCHG [RDI], ECX
    &[0x0f, 0xc1, 0x07],       // XADD
    &[0x0f, 0x44, 0x07],       // CMOVZ EAX, [RDI]
    &[0x0f, 0x45, 0x07],       // CMOVNZ
];

struct Cell(UnsafeCell<[u32; 4]>);
// SAFETY: touched by the main flow only.
unsafe impl Sync for Cell {}
static CELL: Cell = Cell(UnsafeCell::new([0; 4]));

/// The ordinary memory's address.
fn cell() -> u64 {
    CELL.0.get() as u64
}

/// Writes it.
fn set(value: u32) {
    // SAFETY: the main flow alone uses it.
    unsafe { CELL.0.get().write_volatile([value; 4]) };
}

/// Reads it.
fn get() -> u32 {
    // SAFETY: as above.
    unsafe { CELL.0.get().read_volatile()[0] }
}

/// A device register that keeps its bits 24 to 31, and only those.
struct Target {
    address: u64,
    write: fn(u32),
    read: fn() -> u32,
}

/// The destination of the last IOAPIC pin (IOWIN, with IOREGSEL pointing there), and the
/// local APIC's logical destination.
fn targets() -> [Target; 2] {
    [
        Target {
            address: ioapic::BASE + 0x10,
            write: |value| ioapic::write(ioapic::low(ioapic::pins() - 1) + 1, value),
            read: || ioapic::read(ioapic::low(ioapic::pins() - 1) + 1),
        },
        Target {
            address: apic::BASE + u64::from(apic::reg::LDR),
            write: |value| apic::write(apic::reg::LDR, value),
            read: || apic::read(apic::reg::LDR),
        },
    ]
}

/// Runs `code` on memory and on the device, and compares.
fn differ(code: &[u8], target: &Target, old: u32, before: Registers) -> Check {
    const KEPT: u32 = 0xff00_0000;
    set(old);
    let mut expected = Registers {
        rdi: cell(),
        ..before
    };
    exec::run(code, &mut expected)?;
    expected.rdi = expected
        .rdi
        .wrapping_sub(cell())
        .wrapping_add(target.address);
    let value = get();
    (target.write)(old);
    let mut after = Registers {
        rdi: target.address,
        ..before
    };
    exec::run(code, &mut after)?;
    let seen = (target.read)();
    equal!(
        seen & KEPT,
        value & KEPT,
        "register after {code:02x?} on {old:#x}"
    );
    compare(code, &after, &expected)
}

fn forms(_: &BootInfo) -> Check {
    for target in targets() {
        for code in FORMS.iter().chain(RARE) {
            for (old, eax) in [
                (0x5a00_0000, 0x3300_0000),
                (0x9a00_0000, 0x9a00_0000),
                (0, 0xff00_0000),
            ] {
                let before = Registers {
                    rax: 0xabcd_0000_0000_0000 | eax,
                    rcx: 0x6600_0000,
                    ..pattern()
                };
                differ(code, &target, old, before)?;
            }
        }
    }
    Ok(())
}

/// MOVS, STOS, LODS between memory and the device.
fn strings(_: &BootInfo) -> Check {
    for target in targets() {
        let base = Registers {
            rax: 0x7e00_0000,
            rcx: 1,
            ..pattern()
        };
        for code in [&[0xab][..], &[0xf3, 0xab]] {
            differ(code, &target, 0x1200_0000, base)?;
        }
        set(0x4d00_0000);
        (target.write)(0);
        let mut after = Registers {
            rsi: cell(),
            rdi: target.address,
            ..base
        };
        exec::run(&[0xa5], &mut after)?;
        equal!((target.read)(), 0x4d00_0000, "register after MOVSD");
        equal!(
            (after.rsi, after.rdi),
            (cell() + 4, target.address + 4),
            "pointers after MOVSD"
        );
        (target.write)(0xb200_0000);
        let mut after = Registers {
            rdi: cell(),
            rsi: target.address,
            ..base
        };
        exec::run(&[0xf3, 0xa5], &mut after)?;
        equal!(get(), 0xb200_0000, "memory after REP MOVSD");
        equal!(
            (after.rcx, after.rsi),
            (0, target.address + 4),
            "registers after REP MOVSD"
        );
        let mut after = Registers {
            rsi: target.address,
            ..base
        };
        exec::run(&[0xad], &mut after)?;
        equal!(after.rax, 0xb200_0000, "RAX after LODSD");
    }
    Ok(())
}

/// Every way to say the address.
fn addressing(_: &BootInfo) -> Check {
    for target in targets() {
        let at = target.address;
        let bytes = at.to_le_bytes();
        let mut offset = [0xa1, 0, 0, 0, 0, 0, 0, 0, 0];
        offset[1..].copy_from_slice(&bytes);
        let mut absolute = [0x67, 0x8b, 0x04, 0x25, 0, 0, 0, 0];
        absolute[4..].copy_from_slice(&bytes[..4]);
        let junk = 0x5555_0000_0000_0000;
        let r = pattern();
        for (code, before) in [
            (&offset[..], r),                                           // MOV EAX, moffs64
            (&absolute, r),                                             // [disp32], 32-bit address
            (&[0x8b, 0x47, 0x10][..], Registers { rdi: at - 16, ..r }), // [RDI + disp8]
            (
                &[0x8b, 0x87, 0xf0, 0xff, 0xff, 0xff],
                Registers { rdi: at + 16, ..r },
            ),
            (
                &[0x8b, 0x04, 0x8b],
                Registers {
                    rbx: at - 64,
                    rcx: 16,
                    ..r
                },
            ), // [RBX + RCX * 4]
            (
                &[0x43, 0x8b, 0x44, 0xd1, 0xf8],
                Registers {
                    r9: at - 72,
                    r10: 10,
                    ..r
                },
            ), // [R9 + R10 * 8 - 8]
            (
                &[0x67, 0x8b, 0x07],
                Registers {
                    rdi: at | junk,
                    ..r
                },
            ), // [EDI]
            (
                &[0x67, 0x8b, 0x44, 0x0f, 0x04],
                Registers {
                    rdi: at | junk,
                    rcx: u64::from(u32::MAX) - 3,
                    ..r
                },
            ),
            (&[0x65, 0x8b, 0x07], Registers { rdi: at, ..r }), // GS:[RDI], base 0
            (&[0x41, 0x8b, 0x03], Registers { r11: at, ..r }), // [R11]
        ] {
            (target.write)(0x6b00_0000);
            let mut after = before;
            exec::run(code, &mut after)?;
            compare(
                code,
                &after,
                &Registers {
                    rax: 0x6b00_0000,
                    ..before
                },
            )?;
        }
        let mut store = [0xa3, 0, 0, 0, 0, 0, 0, 0, 0];
        store[1..].copy_from_slice(&bytes);
        (target.write)(0);
        exec::run(
            &store,
            &mut Registers {
                rax: 0x2c00_0000,
                ..r
            },
        )?;
        equal!(
            (target.read)(),
            0x2c00_0000,
            "register after MOV moffs64, EAX"
        );
    }
    Ok(())
}

fn io_apic(_: &BootInfo) -> Check {
    let pins = ioapic::pins();
    ensure!((16..=240).contains(&pins), "{pins} pins");
    let version = ioapic::read(1) & 0xff;
    ensure!(version == 0x11 || version == 0x20, "version {version:#x}");
    for pin in 0..pins {
        ensure!(
            ioapic::read(ioapic::low(pin)) & ioapic::MASKED != 0,
            "pin {pin} is not masked"
        );
        let low = ioapic::MASKED | ioapic::LEVEL | ioapic::LOW | 0x60;
        ioapic::write(ioapic::low(pin), low);
        ioapic::write(ioapic::low(pin) + 1, pin << 24);
        equal!(ioapic::read(ioapic::low(pin)), low, "pin {pin}, low half");
        // Delivery status and remote IRR cannot be written.
        ioapic::write(
            ioapic::low(pin),
            ioapic::MASKED | ioapic::REMOTE_IRR | 1 << 12 | 0x31,
        );
        equal!(
            ioapic::read(ioapic::low(pin)),
            ioapic::MASKED | 0x31,
            "read-only bits of pin {pin}"
        );
        equal!(
            ioapic::read(ioapic::low(pin) + 1),
            pin << 24,
            "pin {pin}, high half"
        );
        ioapic::write(ioapic::low(pin) + 1, 0);
    }
    Ok(())
}

fn local_apic(_: &BootInfo) -> Check {
    use apic::reg;
    equal!(apic::read(reg::ID) >> 24, 0, "APIC ID");
    let version = apic::read(reg::VERSION);
    ensure!(
        (0x10..=0x1f).contains(&(version & 0xff)),
        "version {version:#x}"
    );
    ensure!(
        version >> 16 & 0xff >= 3,
        "highest LVT entry in {version:#x}"
    );
    for value in [0x10, 0xf0, 0] {
        apic::write(reg::TPR, value);
        equal!(apic::read(reg::TPR), value, "TPR");
        equal!(
            exerciser::cpu::cr8(),
            u64::from(value >> 4),
            "CR8 beside TPR"
        );
        equal!(apic::read(reg::PPR) & 0xf0, value, "PPR");
    }
    for register in [
        reg::LVT_TIMER,
        reg::LVT_LINT0,
        reg::LVT_LINT1,
        reg::LVT_ERROR,
    ] {
        apic::write(register, apic::MASKED | 0x77);
        equal!(
            apic::read(register) & (apic::MASKED | 0xff),
            apic::MASKED | 0x77,
            "LVT at {register:#x}"
        );
    }
    apic::write(reg::SVR, 0x1ef);
    equal!(apic::read(reg::SVR) & 0x1ff, 0x1ef, "SVR");
    apic::write(reg::ESR, 0);
    equal!(apic::read(reg::ESR), 0, "ESR");
    Ok(())
}

/// Switched off by software, all LVT entries mask themselves (SDM vol. 3, 11.4.7.2); QEMU's
/// do not.
fn local_apic_off(_: &BootInfo) -> Check {
    use apic::reg;
    apic::write(reg::LVT_LINT1, 0x77);
    apic::write(reg::SVR, 0x0ff);
    let masked = apic::read(reg::LVT_LINT1);
    apic::init();
    equal!(
        masked & apic::MASKED,
        apic::MASKED,
        "LVT mask while the APIC is off"
    );
    Ok(())
}
