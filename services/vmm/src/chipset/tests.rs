//! The platform as a whole: what reaches which processor, and the sequences that kernels rely on.

mod processors;
mod random;
mod ways;

use super::*;

const TSC_HZ: u64 = 1_000_000_000;
const IOAPIC: u64 = map::IOAPIC_BASE;
const LAPIC: u64 = map::LAPIC_BASE;

fn platform(vcpus: u32) -> Chipset {
    Chipset::new(&Config {
        vcpus,
        tsc_hz: TSC_HZ,
        apic_hz: TSC_HZ,
        debug_exit: false,
    })
}

impl Chipset {
    fn outb(&mut self, port: u16, value: u8, now: u64) -> Effect {
        self.pio_write(port, 1, u32::from(value), now)
    }
    fn inb(&mut self, port: u16, now: u64) -> u8 {
        self.pio_read(port, 1, now) as u8
    }
    fn outbs(&mut self, writes: &[(u16, u8)], now: u64) {
        for &(port, value) in writes {
            assert_eq!(self.outb(port, value, now), Effect::None);
        }
    }
    fn msr(&mut self, cpu: u32, msr: u32, value: u64, now: u64) {
        assert_eq!(self.wrmsr(cpu, msr, value, now), Ok(Effect::None));
    }
    /// x2APIC mode, software-enabled, the 8259 pair masked at LINT0.
    fn x2apic(&mut self, cpu: u32) {
        let base = self.rdmsr(cpu, 0x1B, 0).unwrap();
        self.msr(cpu, 0x1B, base | 0x400, 0);
        self.msr(cpu, 0x80F, 0x1FF, 0);
        self.msr(cpu, 0x835, 0x1_0700, 0);
    }
    fn redirect(&mut self, pin: u8, entry: u64, now: u64) {
        for (index, value) in [
            (0x11 + 2 * pin, entry >> 32),
            (0x10 + 2 * pin, entry & 0xFFFF_FFFF),
        ] {
            assert_eq!(
                self.mmio_write(0, IOAPIC, 4, u64::from(index), now),
                Some(Effect::None)
            );
            assert_eq!(
                self.mmio_write(0, IOAPIC + 0x10, 4, value, now),
                Some(Effect::None)
            );
        }
    }
    fn take(&mut self, cpu: u32) -> Option<u8> {
        let pending = self.pending(cpu)?;
        self.accept(cpu, pending.vector, pending.external);
        Some(pending.vector)
    }
    fn eoi(&mut self, cpu: u32, now: u64) {
        self.msr(cpu, 0x80B, 0, now);
    }
    /// PIT counter 0 in mode 2, `hz` times a second.
    fn start_pit(&mut self, hz: u64, now: u64) {
        let [low, high, ..] = (1_193_182 / hz).to_le_bytes();
        self.outbs(&[(0x43, 0x34), (0x40, low), (0x40, high)], now);
    }
    /// The 8259 pair as Linux sets it up: vectors 0x30 and 0x38, mask as given.
    fn start_pic(&mut self, mask: u8) {
        self.outbs(&[(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1)], 0);
        self.outbs(&[(0xA0, 0x11), (0xA1, 0x38), (0xA1, 2), (0xA1, 1)], 0);
        self.outbs(&[(0x21, mask), (0xA1, 0xFF)], 0);
    }
}

/// Linux's `check_timer`: ten ticks of the PIT through IOAPIC pin 2.
#[test]
fn the_timer_works_through_the_ioapic() {
    let mut platform = platform(1);
    platform.x2apic(0);
    platform.start_pic(0xFF);
    platform.start_pit(250, 0);
    assert_eq!(platform.next_deadline(), NEVER);
    platform.redirect(2, 0x30, 0);
    let mut ticks = 0;
    let mut now = 0;
    while now < TSC_HZ / 26 {
        now = platform.next_deadline();
        platform.tick(now);
        if let Some(vector) = platform.take(0) {
            assert_eq!(vector, 0x30);
            ticks += 1;
            platform.eoi(0, now);
        }
    }
    assert_eq!(ticks, 10);
}

/// Virtual wire: the PIT through the 8259 pair and LINT0, an ExtINT that the task priority does not hold back.
#[test]
fn the_timer_works_through_the_8259() {
    let mut platform = platform(2);
    platform.start_pic(0xFE);
    platform.start_pit(1000, 0);
    platform.set_tpr(0, 0xFF);
    for _ in 0..5 {
        let now = platform.next_deadline();
        platform.tick(now);
        let expected = Pending {
            vector: 0x30,
            priority: EXTERNAL_PRIORITY,
            external: true,
        };
        assert_eq!(
            (platform.pending(0), platform.pending(1)),
            (Some(expected), None)
        );
        platform.accept(0, expected.vector, expected.external);
        assert_eq!(platform.pending(0), None);
        platform.outbs(&[(0x20, 0x20)], now);
    }
    // Masked at LINT0, it stays with the 8259 pair.
    platform.tick(platform.next_deadline());
    assert!(platform.pending(0).is_some());
    assert_eq!(
        platform.mmio_write(0, LAPIC + 0x350, 4, 0x1_0700, 0),
        Some(Effect::None)
    );
    assert_eq!(platform.pending(0), None);
}

/// Linux's last resort: the 8259 pair's output at IOAPIC pin 0, as ExtINT.
#[test]
fn the_timer_works_through_pin_0() {
    let mut platform = platform(2);
    platform.x2apic(0);
    platform.x2apic(1);
    platform.start_pic(0xFE);
    platform.start_pit(1000, 0);
    platform.redirect(0, 0x0100_0000_0000_0700, 0);
    platform.tick(platform.next_deadline());
    assert_eq!((platform.take(0), platform.take(1)), (None, Some(0x30)));
}

/// The same pin as an ordinary, edge-triggered input: one interrupt whenever the 8259 pair's output rises.
#[test]
fn pin_0_may_have_a_vector_of_its_own() {
    let mut platform = platform(1);
    platform.x2apic(0);
    platform.start_pic(0xEF);
    platform.redirect(0, 0x55, 0);
    for level in [true, false] {
        platform.set_line(4, level);
    }
    assert_eq!(platform.take(0), Some(0x55));
    platform.eoi(0, 0);
    assert_eq!(platform.take(0), None);
}

#[test]
fn a_pit_that_nobody_sees_wakes_nobody_and_counts_on() {
    let mut platform = platform(1);
    platform.x2apic(0);
    platform.start_pic(0xFF);
    platform.start_pit(1000, 0);
    assert_eq!(platform.next_deadline(), NEVER);
    let later = 10 * TSC_HZ + 400_000;
    platform.outbs(&[(0x43, 0)], later);
    let count = u16::from_le_bytes([platform.inb(0x40, later), platform.inb(0x40, later)]);
    let counted = u128::from(later) * 1_193_182 / u128::from(TSC_HZ) - 1;
    assert_eq!(u128::from(count), 1193 - counted % 1193);
    // At the IOAPIC, edges while masked are lost; the next one comes.
    platform.redirect(2, 0x40, later);
    assert_eq!(platform.pending(0), None);
    let next = platform.next_deadline();
    assert!(next > later && next < later + TSC_HZ / 1000);
    platform.redirect(2, 0x1_0040, later);
    assert_eq!(platform.next_deadline(), NEVER);
    // The 8259 latches an edge that comes while it is masked.
    platform.msr(0, 0x835, 0x700, later);
    assert_eq!(platform.pending(0), None);
    platform.outbs(&[(0x21, 0xFE)], later);
    assert_eq!(platform.take(0), Some(0x30));
}

#[test]
fn missed_ticks_are_one_interrupt() {
    let mut platform = platform(1);
    platform.x2apic(0);
    platform.redirect(2, 0x40, 0);
    platform.start_pit(1000, 0);
    platform.msr(0, 0x83E, 0xB, 0);
    platform.msr(0, 0x832, 0x2_0050, 0);
    platform.msr(0, 0x838, 1_000_000, 0);
    let now = 100 * TSC_HZ + 1;
    platform.tick(now);
    for vector in [0x50, 0x40] {
        assert_eq!(platform.take(0), Some(vector));
        platform.eoi(0, now);
    }
    assert_eq!(platform.take(0), None);
    assert!(platform.next_deadline() > now);
    platform.tick(now);
    assert_eq!(platform.pending(0), None);
}

#[test]
fn tsc_deadline_drives_the_deadline() {
    let mut platform = platform(2);
    platform.x2apic(0);
    platform.x2apic(1);
    for (cpu, deadline) in [(0, 9000), (1, 5000)] {
        platform.msr(cpu, 0x832, 0x4_00EC, 0);
        platform.msr(cpu, map::MSR_TSC_DEADLINE, deadline, 0);
    }
    assert_eq!(platform.next_deadline(), 5000);
    platform.take_kicks();
    platform.tick(5000);
    assert_eq!((platform.pending(0), platform.take(1)), (None, Some(0xEC)));
    let kicks = platform.take_kicks();
    assert!(kicks.contains(1) && !kicks.contains(0));
    assert_eq!(platform.next_deadline(), 9000);
    platform.msr(0, map::MSR_TSC_DEADLINE, 0, 6000);
    assert_eq!(platform.next_deadline(), NEVER);
}

#[test]
fn the_power_button_is_a_level_triggered_sci() {
    let mut platform = platform(1);
    platform.x2apic(0);
    platform.redirect(9, 0x8059, 0);
    platform.outbs(&[(map::PM1A_EVENT + 3, 1)], 0);
    platform.power_button();
    assert_eq!(platform.take(0), Some(0x59));
    // Not cleared: it comes again after the EOI. Cleared: it does not.
    platform.eoi(0, 0);
    assert_eq!(platform.take(0), Some(0x59));
    assert_eq!(platform.pio_read(map::PM1A_EVENT, 2, 0), 0x100);
    assert_eq!(
        platform.pio_write(map::PM1A_EVENT, 2, 0x100, 0),
        Effect::None
    );
    platform.eoi(0, 0);
    assert_eq!(platform.take(0), None);
    // However often the registers are looked at meanwhile.
    platform.power_button();
    assert_eq!(platform.take(0), Some(0x59));
    for _ in 0..2 {
        assert_eq!(platform.inb(map::PM1A_EVENT + 1, 0), 1);
        platform.eoi(0, 0);
        assert_eq!(platform.take(0), Some(0x59));
    }
    platform.outbs(&[(map::PM1A_EVENT + 1, 1)], 0);
    platform.eoi(0, 0);
    assert_eq!(platform.take(0), None);
    // The same line at the 8259 pair.
    platform.start_pic(0xFB);
    platform.msr(0, 0x835, 0x700, 0);
    platform.outbs(&[(0xA1, 0xFD)], 0);
    platform.power_button();
    assert_eq!(platform.take(0), Some(0x39));
}

#[test]
fn power_off_reset_and_debug_exit() {
    let mut platform = platform(1);
    let control = u32::from(map::S5_SLEEP_TYPE) << 10 | 1 << 13;
    assert_eq!(
        platform.pio_write(map::PM1A_CONTROL, 2, control, 0),
        Effect::PowerOff
    );
    assert_eq!(
        platform.outb(map::PM1A_CONTROL + 1, (control >> 8) as u8, 0),
        Effect::PowerOff
    );
    assert_eq!(
        platform.pio_write(map::PM1A_CONTROL, 2, 0x2000, 0),
        Effect::None
    );
    assert_eq!(platform.outb(map::RESET, 0x02, 0), Effect::None);
    assert_eq!(
        platform.outb(map::RESET, map::RESET_VALUE, 0),
        Effect::Reset
    );
    assert_eq!(platform.outb(0x92, 1, 0), Effect::Reset);
    assert_eq!(platform.outb(0x64, 0xFE, 0), Effect::Reset);
    assert_eq!(platform.pio_write(0xF4, 4, 7, 0), Effect::None);
    let mut test = Chipset::new(&Config {
        vcpus: 1,
        tsc_hz: 1,
        apic_hz: 1,
        debug_exit: true,
    });
    assert_eq!(
        test.pio_write(0xF4, 4, 0x1_0007, 0),
        Effect::DebugExit(0x1_0007)
    );
    assert_eq!(test.pio_write(0xF4, 1, 0x107, 0), Effect::DebugExit(7));
}

#[test]
fn pci_configuration_by_ports() {
    let mut platform = platform(1);
    assert_eq!(platform.pio_write(0xCF8, 4, 0x8000_0008, 0), Effect::None);
    assert_eq!(platform.pio_read(0xCF8, 4, 0), 0x8000_0008);
    assert_eq!(platform.pio_read(0xCFE, 2, 0), 0x0600);
    assert_eq!(platform.pio_read(0xCFF, 1, 0), 0x06);
    // Narrower accesses of the address register are not for it: 0xCF9 is the reset register.
    assert_eq!(platform.outb(0xCF9, 0, 0), Effect::None);
    assert_eq!(platform.pio_write(0xCF8, 2, 0, 0), Effect::None);
    assert_eq!(platform.pio_read(0xCF8, 4, 0), 0x8000_0008);
    assert_eq!(platform.pio_read(0xCF8, 2, 0), 0xFFFF);
    assert_eq!(platform.pio_write(0xCF8, 4, 0x8000_0800, 0), Effect::None);
    assert_eq!(platform.pio_read(0xCFC, 4, 0), u32::MAX);
}

#[test]
fn nobody_answers_with_ones() {
    let mut platform = platform(1);
    for port in [0x00, 0x2E, 0x3F8, 0x87, 0x510, 0x610, 0x1234, 0xFFFF] {
        assert_eq!(platform.pio_read(port, 1, 0), 0xFF, "{port:#x}");
        assert_eq!(platform.pio_read(port, 2, 0), 0xFFFF, "{port:#x}");
        assert_eq!(platform.pio_read(port, 4, 0), u32::MAX, "{port:#x}");
        assert_eq!(platform.pio_write(port, 4, u32::MAX, 0), Effect::None);
    }
    for gpa in [0, 0xFED0_0000, 0xFEC0_1000, 0xFEE0_1000, u64::MAX] {
        assert_eq!(platform.mmio_read(0, gpa, 4, 0), None);
        assert_eq!(platform.mmio_write(0, gpa, 4, 0, 0), None);
    }
    // Wider accesses are bytes on consecutive ports.
    platform.outbs(&[(0x21, 0x5A)], 0);
    assert_eq!(platform.pio_read(0x20, 2, 0), 0x5A00);
    assert_eq!(platform.pio_write(0xA0, 2, 0xA500, 0), Effect::None);
    assert_eq!(platform.inb(0xA1, 0), 0xA5);
}

#[test]
fn the_power_management_timer() {
    let mut platform = platform(1);
    assert_eq!(platform.pio_read(map::PM_TIMER, 4, TSC_HZ), 3_579_545);
    assert_eq!(
        platform.pio_read(map::PM_TIMER, 2, TSC_HZ),
        3_579_545 & 0xFFFF
    );
    assert_eq!(
        platform.pio_read(map::PM_TIMER, 4, 5 * TSC_HZ),
        17_897_725 & 0xFF_FFFF
    );
    platform.x2apic(0);
    platform.redirect(9, 0x8059, 0);
    platform.outbs(&[(map::PM1A_EVENT + 2, 1)], 5 * TSC_HZ);
    assert_eq!(platform.take(0), Some(0x59), "its top bit changed before");
}
