//! The local APIC's timer in its three modes, and HLT woken by it.

use exerciser::boot::BootInfo;
use exerciser::clock::{self, micros};
use exerciser::cpu::{self, tsc};
use exerciser::{apic, exec, idt};

use super::apic_modes::in_x2apic;
use crate::check::{Case, Check, Stop, ensure, equal};

pub const CASES: &[Case] = &[
    Case::new("timer-one-shot", |_| one_shot()),
    Case::new("timer-periodic", |_| periodic()),
    Case::new("timer-masked", masked),
    Case::new("timer-hlt", hlt),
    Case::new("timer-deadline", |_| deadline()),
    Case::vireo("timer-deadline-cleared", deadline_cleared),
    Case::new("timer-deadline-past", deadline_past),
    Case::new("timer-deadline-hlt", deadline_hlt),
];

/// The same in x2APIC mode.
pub const X2APIC_CASES: &[Case] = &[
    Case::new("x2apic-timer-one-shot", |_| in_x2apic(one_shot)),
    Case::new("x2apic-timer-periodic", |_| in_x2apic(periodic)),
    Case::new("x2apic-timer-deadline", |_| in_x2apic(deadline)),
];

const VECTOR: u8 = 0x70;

/// Timer counts in a millisecond, from 4 ms of its running.
fn counts_per_ms() -> Result<u32, Stop> {
    apic::start_timer(apic::MASKED, VECTOR, u32::MAX);
    let start = tsc();
    let first = apic::read(apic::reg::TIMER_CURRENT);
    clock::wait_for(4, || false);
    let last = apic::read(apic::reg::TIMER_CURRENT);
    let took = tsc() - start;
    apic::stop_timer();
    ensure!(
        last < first,
        "the current count does not fall: {first:#x}, {last:#x}"
    );
    let counts = u64::from(first - last) * micros(1000) / took.max(1);
    ensure!(
        (10..100_000_000).contains(&counts),
        "{counts} counts a millisecond"
    );
    Ok(counts as u32)
}

/// Sleeps some 2 ms by HLT.
pub fn nap() {
    if let Ok(counts) = counts_per_ms() {
        let before = idt::logged();
        apic::start_timer(0, VECTOR, counts * 2);
        while idt::logged() == before {
            cpu::sleep();
        }
        apic::stop_timer();
    }
}

fn one_shot() -> Check {
    let counts = counts_per_ms()?;
    for millis in [1u32, 5] {
        idt::clear_log();
        let start = tsc();
        apic::start_timer(0, VECTOR, counts * millis);
        ensure!(
            clock::wait_open(2000, || idt::count(VECTOR) > 0),
            "no interrupt within 2 s"
        );
        let took = idt::event(0).map_or(0, |event| event.tsc) - start;
        // The count was measured; a fifth is for the measurement.
        ensure!(
            took >= micros(u64::from(millis) * 800),
            "{millis} ms took {took} of {} ticks/ms",
            micros(1000)
        );
        clock::wait_open(u64::from(millis) * 3, || false);
        equal!(idt::logged(), 1, "interrupts of a one-shot timer");
        equal!(
            apic::read(apic::reg::TIMER_CURRENT),
            0,
            "current count after the shot"
        );
    }
    apic::stop_timer();
    Ok(())
}

fn periodic() -> Check {
    let counts = counts_per_ms()?;
    let start = tsc();
    apic::start_timer(apic::PERIODIC, VECTOR, counts * 2);
    let came = clock::wait_open(5000, || idt::count(VECTOR) >= 8);
    let took = tsc() - start;
    apic::stop_timer();
    ensure!(came, "{} of 8 interrupts within 5 s", idt::count(VECTOR));
    ensure!(
        took >= micros(8 * 2000 * 4 / 5),
        "8 periods of 2 ms in {took} of {} ticks/ms",
        micros(1000)
    );
    cpu::open_window();
    idt::clear_log();
    clock::wait_open(6, || false);
    equal!(idt::logged(), 0, "interrupts after the timer was stopped");
    Ok(())
}

fn masked(_: &BootInfo) -> Check {
    let counts = counts_per_ms()?;
    apic::start_timer(apic::MASKED, VECTOR, counts);
    clock::wait_open(5, || false);
    equal!(idt::logged(), 0, "interrupts of a masked timer");
    Ok(())
}

fn hlt(_: &BootInfo) -> Check {
    let counts = counts_per_ms()?;
    for round in 0..10 {
        idt::clear_log();
        let start = tsc();
        apic::start_timer(0, VECTOR, counts * 2);
        cpu::sleep();
        let took = tsc() - start;
        equal!(
            (idt::logged(), idt::count(VECTOR)),
            (1, 1),
            "interrupts in round {round}"
        );
        ensure!(
            took >= micros(1600),
            "slept {took} of {} ticks/ms",
            micros(1000)
        );
    }
    apic::stop_timer();
    Ok(())
}

/// Switches the timer to TSC-deadline mode.
fn arm_mode() -> Check {
    if !apic::has_deadline() {
        return Err(Stop::Skip("no TSC-deadline timer"));
    }
    apic::write(apic::reg::LVT_TIMER, apic::DEADLINE | u32::from(VECTOR));
    Ok(())
}

fn deadline() -> Check {
    arm_mode()?;
    for wait in [0, 10, 200, 1000, 5000] {
        idt::clear_log();
        let end = tsc() + micros(wait);
        exec::wrmsr(apic::TSC_DEADLINE, end)?;
        ensure!(
            clock::wait_open(2000, || idt::logged() > 0),
            "{wait} us: no interrupt within 2 s"
        );
        let came = idt::event(0).map_or(0, |event| event.tsc);
        ensure!(
            came >= end,
            "{wait} us: came {} ticks too early",
            end - came
        );
        ensure!(
            came - end < micros(500_000),
            "{wait} us: came {} ticks too late",
            came - end
        );
        cpu::open_window();
        equal!((idt::logged(), idt::count(VECTOR)), (1, 1), "interrupts");
    }
    // Zero disarms; the initial count has no meaning in this mode.
    for wait in [3000, 30_000, 300_000] {
        idt::clear_log();
        let end = tsc() + micros(wait);
        exec::wrmsr(apic::TSC_DEADLINE, end)?;
        let back = exec::rdmsr(apic::TSC_DEADLINE)?;
        exec::wrmsr(apic::TSC_DEADLINE, 0)?;
        apic::write(apic::reg::TIMER_INITIAL, 1);
        let disarmed = tsc();
        clock::wait_open(wait / 1000 + 3, || false);
        // An emulator that the host did not let run for so long: once more, with more time.
        if disarmed < end {
            equal!(back, end, "deadline read back");
            equal!(idt::logged(), 0, "interrupts after disarming");
            break;
        }
    }
    apic::stop_timer();
    Ok(())
}

/// A deadline that passed reads as 0 (SDM vol. 3, 11.5.4.1; Bochs keeps it).
fn deadline_cleared(_: &BootInfo) -> Check {
    arm_mode()?;
    exec::wrmsr(apic::TSC_DEADLINE, tsc() + micros(100))?;
    let came = clock::wait_open(2000, || idt::logged() > 0);
    let left = exec::rdmsr(apic::TSC_DEADLINE)?;
    apic::stop_timer();
    ensure!(came, "no interrupt within 2 s");
    equal!(left, 0, "deadline after it passed");
    // Outside this mode the MSR reads as 0 and takes nothing.
    exec::wrmsr(apic::TSC_DEADLINE, tsc() + micros(100))?;
    equal!(
        exec::rdmsr(apic::TSC_DEADLINE)?,
        0,
        "deadline outside its mode"
    );
    Ok(())
}

fn deadline_past(_: &BootInfo) -> Check {
    arm_mode()?;
    exec::wrmsr(apic::TSC_DEADLINE, 1)?;
    let came = clock::wait_open(500, || idt::logged() > 0);
    apic::stop_timer();
    ensure!(came, "no interrupt for a deadline in the past");
    Ok(())
}

fn deadline_hlt(_: &BootInfo) -> Check {
    arm_mode()?;
    for round in 0..20 {
        idt::clear_log();
        let end = tsc() + micros(1000);
        exec::wrmsr(apic::TSC_DEADLINE, end)?;
        cpu::sleep();
        let now = tsc();
        ensure!(now >= end, "woke {} ticks too early", end - now);
        equal!(idt::count(VECTOR), 1, "interrupts in round {round}");
    }
    apic::stop_timer();
    Ok(())
}
