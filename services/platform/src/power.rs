//! The machine's end: off (ACPI 6.5, 16.1.7 and 7.4), or again (ACPI 6.5, 4.8.3.6).

use crate::fadt::Fadt;
use crate::hardware::{Hardware, Register, Width};
use crate::s5::SleepType;

/// QEMU's isa-debug-exit. On a PC nothing answers there.
pub const DEBUG_EXIT: u16 = 0xf4;
/// The value that stands for code 0; lower ones are the kernel's and root's own failures.
const CODE_BASE: u32 = 0x10;
/// The largest code: the emulator's exit status has 7 bits.
const MAX_CODE: u32 = 0x7f - CODE_BASE;

/// PM1 control: SCI enabled, so the machine is in ACPI mode (ACPI 6.5, table 4.14).
const SCI_EN: u32 = 1;
/// PM1 control: SLP_TYP.
const SLP_TYP: u32 = 7 << 10;
/// PM1 control: SLP_EN.
const SLP_EN: u32 = 1 << 13;

/// How long to wait for something that ends the machine.
const PATIENCE_US: u64 = 50_000;

/// Puts the machine into ACPI mode, if it is not (ACPI 6.5, 16.3.1): firmware's SMI handler does it.
pub fn enter_acpi_mode(machine: &mut impl Hardware, fadt: &Fadt) -> Option<()> {
    const STEP_US: u64 = 1000;
    let control = fadt.pm1a_control?;
    let in_acpi_mode =
        |machine: &mut _| control.read(machine, Width::Word).map(|v| v & SCI_EN != 0);
    if in_acpi_mode(machine)? || fadt.smi_command == 0 || fadt.acpi_enable == 0 {
        return Some(());
    }
    machine.port_out(fadt.smi_command, Width::Byte, u32::from(fadt.acpi_enable))?;
    for _ in 0..300 {
        if in_acpi_mode(machine)? {
            return Some(());
        }
        machine.delay(STEP_US);
    }
    None
}

/// Switches the machine off; under an emulator with a debug-exit device, code other than 0 ends that with it. Comes
/// back only if nothing worked.
pub fn power_off(
    machine: &mut impl Hardware,
    fadt: Option<&Fadt>,
    s5: Option<SleepType>,
    code: u32,
) {
    if code != 0 {
        let value = CODE_BASE + code.min(MAX_CODE);
        if machine.port_out(DEBUG_EXIT, Width::Long, value).is_some() {
            // It ends at once if the device is there.
            machine.delay(1000);
        }
    }
    if let (Some(fadt), Some(s5)) = (fadt, s5) {
        let _ = sleep(machine, fadt, s5);
    }
}

fn sleep(machine: &mut impl Hardware, fadt: &Fadt, s5: SleepType) -> Option<()> {
    // A machine that does not answer the request for ACPI mode may switch off all the same.
    let _ = enter_acpi_mode(machine, fadt);
    let mut set = |register: Option<Register>, sleep_type: u8, enable: u32| {
        let register = register?;
        let rest = register.read(machine, Width::Word)? & !(SLP_TYP | SLP_EN);
        let value = rest | u32::from(sleep_type & 7) << 10 | enable;
        register.write(machine, Width::Word, value)
    };
    // First the type in both, then the bit in both.
    for enable in [0, SLP_EN] {
        set(fadt.pm1a_control, s5.a, enable)?;
        if fadt.pm1b_control.is_some() {
            set(fadt.pm1b_control, s5.b, enable)?;
        }
    }
    machine.delay(PATIENCE_US);
    Some(())
}

/// Starts the machine again: by the firmware's reset register, else by the chipset's port 0xCF9, else by the keyboard
/// controller. Comes back only if nothing worked.
pub fn reset(machine: &mut impl Hardware, fadt: Option<&Fadt>) {
    if let Some((register, value)) = fadt.and_then(|f| f.reset)
        && register
            .write(machine, Width::Byte, u32::from(value))
            .is_some()
    {
        machine.delay(PATIENCE_US);
    }
    // Intel ICH, reset control register: system reset chosen, then done with a hard reset.
    const RESET_CONTROL: u16 = 0xcf9;
    for value in [0x2, 0x6] {
        if machine
            .port_out(RESET_CONTROL, Width::Byte, value)
            .is_some()
        {
            machine.delay(PATIENCE_US);
        }
    }
    // 8042: wait until it takes a command, then pulse the reset line.
    const KEYBOARD: u16 = 0x64;
    for _ in 0..100 {
        match machine.port_in(KEYBOARD, Width::Byte) {
            Some(status) if status & 2 == 0 => break,
            Some(_) => machine.delay(100),
            None => return,
        }
    }
    if machine.port_out(KEYBOARD, Width::Byte, 0xfe).is_some() {
        machine.delay(PATIENCE_US);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Machine, fadt as parse, qemu_fadt};

    const S5: Option<SleepType> = Some(SleepType { a: 5, b: 6 });

    fn off(machine: &mut Machine, fadt: &Fadt, code: u32) -> Vec<(u16, u32)> {
        power_off(machine, Some(fadt), S5, code);
        machine.written()
    }

    #[test]
    fn by_s5() {
        let fadt = parse(&qemu_fadt());
        let mut machine = Machine::with_ports();
        machine.set_port(0x604, 1 | 7 << 10 | 1 << 9);
        let written = off(&mut machine, &fadt, 0);
        assert_eq!(written, [(0x604, 0x1601), (0x604, 0x3601)]);
    }

    #[test]
    fn both_registers_and_acpi_mode() {
        let mut fadt = parse(&qemu_fadt());
        fadt.pm1b_control = Some(Register::Port(0x704));
        let mut machine = Machine::with_ports();
        // Firmware answers the SMI.
        machine.on_write(0xb2, 2, (0x604, 1));
        let written = off(&mut machine, &fadt, 0);
        let steps = [
            (0xb2, 2),
            (0x604, 0x1401),
            (0x704, 0x1800),
            (0x604, 0x3401),
            (0x704, 0x3800),
        ];
        assert_eq!(written, steps);
    }

    #[test]
    fn firmware_that_does_not_answer_is_not_waited_for_long() {
        let fadt = parse(&qemu_fadt());
        let mut machine = Machine::with_ports();
        let written = off(&mut machine, &fadt, 0);
        assert_eq!(written, [(0xb2, 2), (0x604, 0x1400), (0x604, 0x3400)]);
        assert!(machine.waited < 1_000_000);
    }

    #[test]
    fn codes_go_to_the_debug_exit_port_first() {
        let fadt = parse(&qemu_fadt());
        for (code, value) in [(1, 0x11), (0x6f, 0x7f), (0x70, 0x7f), (u32::MAX, 0x7f)] {
            let mut machine = Machine::with_ports();
            let written = off(&mut machine, &fadt, code);
            assert_eq!(written[0], (0xf4, value));
            assert_eq!(written.last(), Some(&(0x604, 0x3400)), "no such device");
        }
    }

    #[test]
    fn three_ways_to_reset() {
        let fadt = parse(&qemu_fadt());
        let mut machine = Machine::with_ports();
        reset(&mut machine, Some(&fadt));
        let ways = [(0xcf9, 0xf), (0xcf9, 2), (0xcf9, 6), (0x64, 0xfe)];
        assert_eq!(machine.written(), ways);
        let mut machine = Machine::with_ports();
        reset(&mut machine, None);
        assert_eq!(machine.written(), ways[1..]);
        // Without the capabilities it just comes back.
        reset(&mut Machine::default(), Some(&fadt));
        power_off(&mut Machine::default(), Some(&fadt), S5, 3);
        power_off(&mut Machine::with_ports(), None, None, 0);
    }
}
