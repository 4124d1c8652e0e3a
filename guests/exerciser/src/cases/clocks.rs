//! The PC's clocks and the PICs: PIT, ACPI PM timer, real-time clock.

use exerciser::boot::BootInfo;
use exerciser::clock::{self, PM_HZ, pm, pm_since};
use exerciser::cpu::{self, inb, outb, tsc};
use exerciser::idt::PIC;
use exerciser::legacy::{self, PIT_HZ, rtc, set_rtc};
use exerciser::{apic, idt, ioapic};

use crate::check::{Case, Check, Stop, ensure, equal};

pub const CASES: &[Case] = &[
    Case::new("pm-timer", pm_timer),
    Case::new("pic-registers", pic_registers),
    Case::new("pit-counts", pit_counts),
    Case::new("pit-pic", pit_pic),
    Case::new("pit-pic-hlt", pit_pic_hlt),
    Case::new("pit-ioapic", pit_ioapic),
    Case::new("pit-one-shot", pit_one_shot),
    Case::new("pit-speaker-channel", pit_channel_2),
    Case::new("rtc-time", rtc_time),
    Case::new("rtc-periodic", rtc_periodic),
    Case::new("rtc-periodic-pic", rtc_periodic_pic),
    Case::new("rtc-update", rtc_update),
];

const VECTOR: u8 = 0x61;

/// The PM timer, which most of these measure by.
fn need_pm() -> Result<u32, Stop> {
    pm().ok_or(Stop::Skip("no ACPI PM timer"))
}

/// The PM timer and the TSC run alike (the TSC's frequency was measured by it at the start).
fn pm_timer(info: &BootInfo) -> Check {
    ensure!(info.acpi.is_some(), "no ACPI tables");
    let first = need_pm()?;
    let start = tsc();
    let mut last = first;
    let mut ticks = 0u64;
    while tsc() - start < clock::micros(20_000) {
        let now = pm().unwrap_or(last);
        let step = pm_since(last, now);
        ensure!(step < 1 << 23, "went back from {last:#x} to {now:#x}");
        ticks += u64::from(step);
        last = now;
    }
    let expected = (tsc() - start) * PM_HZ / clock::hz();
    ensure!(
        ticks.abs_diff(expected) <= expected / 10,
        "{ticks} ticks where the TSC says {expected}"
    );
    Ok(())
}

fn pic_registers(_: &BootInfo) -> Check {
    for mask in [0x55, 0xaa, 0xff] {
        outb(0x21, mask);
        outb(0xa1, !mask | 4);
        equal!((inb(0x21), inb(0xa1)), (mask, !mask | 4), "masks");
    }
    legacy::mask_all();
    equal!(legacy::in_service(), 0, "in service after initialisation");
    // OCW3 poll and special mask are not used here; reading twice must not disturb.
    equal!(legacy::in_service(), 0, "in service");
    Ok(())
}

fn pit_counts(_: &BootInfo) -> Check {
    legacy::pit(0, 2, 0);
    let first = legacy::pit_count(0);
    clock::wait_for(2, || false);
    let second = legacy::pit_count(0);
    let fell = u64::from(first.wrapping_sub(second));
    // 2 ms are 2,386 counts; it turns over after 65,536.
    ensure!(
        (2000..60_000).contains(&fell),
        "fell by {fell} in 2 ms or more"
    );
    // Status read-back: mode 2, both bytes, count loaded (8254 data sheet, read-back command).
    outb(0x43, 0xe2);
    let status = inb(0x40);
    equal!(status & 0x3f, 0x34, "read-back status");
    Ok(())
}

/// Waits for `ticks` of channel 0 at 1 kHz that arrive as `vector`.
fn pit_ticks(vector: u8, ticks: usize, sleep: bool) -> Check {
    legacy::pit(0, 2, (PIT_HZ / 1000) as u16);
    let start = need_pm()?;
    let came = if sleep {
        for _ in 0..ticks * 4 {
            if idt::count(vector) < ticks {
                cpu::sleep();
            }
        }
        idt::count(vector) >= ticks
    } else {
        clock::wait_open(3000, || idt::count(vector) >= ticks)
    };
    let took = u64::from(pm_since(start, need_pm()?));
    legacy::mask_all();
    ensure!(came, "{} of {ticks} ticks", idt::count(vector));
    // The first tick of mode 2 may already be half-way.
    let least = (ticks as u64 - 2) * PM_HZ / 1000 * 9 / 10;
    ensure!(took >= least, "{ticks} ticks of 1 ms in {took} PM ticks");
    ensure!(took < PM_HZ, "{ticks} ticks of 1 ms in {took} PM ticks");
    Ok(())
}

/// PIT, first PIC, virtual wire through LINT0.
fn pit_pic(_: &BootInfo) -> Check {
    apic::write(apic::reg::LVT_LINT0, apic::EXTINT);
    legacy::unmask_only(0);
    pit_ticks(PIC, 6, false)?;
    cpu::open_window();
    equal!(
        legacy::in_service(),
        0,
        "in service after the end of interrupt"
    );
    Ok(())
}

fn pit_pic_hlt(_: &BootInfo) -> Check {
    apic::write(apic::reg::LVT_LINT0, apic::EXTINT);
    legacy::unmask_only(0);
    pit_ticks(PIC, 6, true)
}

fn pit_ioapic(info: &BootInfo) -> Check {
    let wiring = info.wiring(0);
    ioapic::route(wiring.gsi, VECTOR, 0);
    let result = pit_ticks(VECTOR, 6, false);
    ioapic::mask(wiring.gsi);
    // A tick that came before the mask may wait still.
    cpu::open_window();
    idt::clear_log();
    clock::wait_open(4, || false);
    equal!(idt::logged(), 0, "interrupts of a masked pin");
    result
}

/// Mode 0: one interrupt, when the count has run out.
fn pit_one_shot(info: &BootInfo) -> Check {
    let wiring = info.wiring(0);
    legacy::pit(0, 0, 0);
    ioapic::route(wiring.gsi, VECTOR, 0);
    cpu::open_window();
    idt::clear_log();
    let start = need_pm()?;
    legacy::pit(0, 0, (PIT_HZ / 200) as u16);
    ensure!(
        clock::wait_open(2000, || idt::logged() > 0),
        "no interrupt within 2 s"
    );
    let took = u64::from(pm_since(start, need_pm()?));
    ensure!(took >= PM_HZ / 200 * 9 / 10, "5 ms took {took} PM ticks");
    clock::wait_open(12, || false);
    equal!((idt::logged(), idt::count(VECTOR)), (1, 1), "interrupts");
    Ok(())
}

/// Channel 2 behind port 0x61, as calibrations use it, against TSC and PM timer.
fn pit_channel_2(_: &BootInfo) -> Check {
    for millis in [5, 20] {
        let (start, pm_start) = (tsc(), need_pm()?);
        legacy::pit2_start((PIT_HZ * millis / 1000) as u16);
        ensure!(!legacy::pit2_done(), "output high at the start");
        ensure!(
            clock::wait_for(2000, legacy::pit2_done),
            "output never high"
        );
        let (took, pm_took) = (tsc() - start, u64::from(pm_since(pm_start, need_pm()?)));
        let expected = clock::micros(millis * 1000);
        ensure!(
            took >= expected * 9 / 10,
            "{millis} ms took {took} TSC ticks, expected {expected}"
        );
        ensure!(
            pm_took >= PM_HZ * millis / 1000 * 9 / 10,
            "{millis} ms took {pm_took} PM ticks"
        );
        ensure!(
            took < expected * 20,
            "{millis} ms took {took} TSC ticks, expected {expected}"
        );
    }
    // Gate and speaker bits read back; with the gate closed the count stands.
    outb(0x61, inb(0x61) & !3);
    equal!(inb(0x61) & 3, 0, "gate and speaker");
    Ok(())
}

/// A value of the clock in binary.
fn rtc_value(register: u8) -> u8 {
    let value = rtc(register);
    if rtc(0x0b) & 4 != 0 {
        value
    } else {
        (value >> 4) * 10 + (value & 15)
    }
}

fn rtc_time(_: &BootInfo) -> Check {
    equal!(rtc(0x0d) & 0x80, 0x80, "valid RAM and time");
    clock::wait_for(3, || rtc(0x0a) & 0x80 == 0);
    let [second, minute, hour, day, month, year] = [0, 2, 4, 7, 8, 9].map(rtc_value);
    ensure!(
        second < 60
            && minute < 60
            && hour < 24
            && (1..=31).contains(&day)
            && (1..=12).contains(&month)
            && year < 100,
        "{year}-{month}-{day} {hour}:{minute}:{second}"
    );
    equal!(rtc(0x0a) & 0x7f, 0x26, "register A");
    ensure!(
        rtc(0x0b) & 2 != 0,
        "not in 24-hour mode: register B {:#x}",
        rtc(0x0b)
    );
    let (old, port) = (rtc(0x0b), inb(0x70));
    let _ = port;
    // Time can be set while SET holds it.
    set_rtc(0x0b, old | 0x80);
    let minute = rtc(2);
    set_rtc(2, 0x12);
    let seen = rtc(2);
    set_rtc(2, minute);
    set_rtc(0x0b, old);
    equal!(seen, 0x12, "minutes written");
    equal!(rtc(0x0b), old, "register B");
    Ok(())
}

/// Switches clock interrupts (bits of register B) on with the rate 1,024 Hz.
fn rtc_start(bits: u8) {
    set_rtc(0x0a, 0x26);
    rtc(0x0c);
    set_rtc(0x0b, rtc(0x0b) & 0x8f | bits);
}

/// Switches them off again.
fn rtc_stop() {
    set_rtc(0x0b, rtc(0x0b) & 0x8f);
    rtc(0x0c);
}

/// Register C of the interrupts, all ORed: read in the handler, as it must be.
static CAUSES: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(0);

/// The handler: reading register C ends the clock's request.
fn read_cause(_: &mut idt::Frame) {
    CAUSES.fetch_or(rtc(0x0c), core::sync::atomic::Ordering::Relaxed);
}

/// Runs the clock's interrupts on `vector` until `count` came; PM ticks from first to last.
fn rtc_run(vector: u8, bits: u8, count: usize, millis: u64) -> Result<u64, Stop> {
    CAUSES.store(0, core::sync::atomic::Ordering::Relaxed);
    idt::set_handler(vector, Some(read_cause));
    rtc_start(bits);
    let first = clock::wait_open(millis, || idt::count(vector) > 0);
    let start = need_pm()?;
    let came = first && clock::wait_open(millis, || idt::count(vector) >= count);
    let took = u64::from(pm_since(start, need_pm()?));
    rtc_stop();
    cpu::open_window();
    idt::set_handler(vector, None);
    ensure!(came, "{} of {count} interrupts", idt::count(vector));
    let causes = CAUSES.load(core::sync::atomic::Ordering::Relaxed);
    equal!(causes & (0x80 | bits), 0x80 | bits, "register C");
    Ok(took)
}

fn rtc_periodic(info: &BootInfo) -> Check {
    let wiring = info.wiring(8);
    ioapic::route(wiring.gsi, VECTOR, 0);
    let took = rtc_run(VECTOR, 0x40, 16, 2000)?;
    ioapic::mask(wiring.gsi);
    let least = 15 * PM_HZ / 1024 / 2;
    ensure!(
        took >= least,
        "15 periods in {took} PM ticks, at least {least} expected"
    );
    ensure!(took < PM_HZ, "15 periods in {took} PM ticks");
    idt::clear_log();
    clock::wait_open(5, || false);
    equal!(idt::logged(), 0, "interrupts after they were switched off");
    Ok(())
}

/// The same through both PICs.
fn rtc_periodic_pic(_: &BootInfo) -> Check {
    apic::write(apic::reg::LVT_LINT0, apic::EXTINT);
    legacy::unmask_only(8);
    rtc_run(PIC + 8, 0x40, 5, 2000)?;
    equal!(
        legacy::in_service(),
        0,
        "in service after the end of interrupt"
    );
    legacy::mask_all();
    Ok(())
}

/// The update-ended interrupt comes once a second.
fn rtc_update(info: &BootInfo) -> Check {
    let wiring = info.wiring(8);
    ioapic::route(wiring.gsi, VECTOR, 0);
    let took = rtc_run(VECTOR, 0x10, 2, 2500)?;
    ioapic::mask(wiring.gsi);
    ensure!(
        took.abs_diff(PM_HZ) < PM_HZ / 5,
        "a second took {took} PM ticks"
    );
    Ok(())
}
