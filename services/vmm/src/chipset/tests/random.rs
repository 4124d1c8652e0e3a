//! Hostile guests: random streams of accesses. Whatever they do, nothing panics or overflows, and what the VMM relies on
//! holds after every step.

use proptest::prelude::*;

use super::super::*;

/// One thing that a guest, a device server or the host does.
#[derive(Clone, Debug)]
enum Step {
    In(u16, u8),
    Out(u16, u8, u32),
    Load(u32, u64, u8),
    Store(u32, u64, u8, u64),
    Rdmsr(u32, u32),
    Wrmsr(u32, u32, u64),
    /// Level of a line, and whether it has risen since the last time.
    Line(u32, bool, bool),
    Msi(u64, u32),
    Accept(u32),
    Tpr(u32, u8),
    Button,
    Gpe(u8),
    Tick,
    Wait(u64),
}

const PORTS: [u16; 40] = [
    0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x40, 0x43, 0x42, 0x61, 0x60,
    0x64, 0x80, 0x92, 0xED, 0xF4, 0xCF8, 0xCF9, 0xCFC, 0xCFD, 0xCFE, 0xCFF, 0x600, 0x601, 0x602,
    0x603, 0x604, 0x605, 0x608, 0x60B, 0x620, 0x623, 0x624, 0xFFFF, 0xFFFE, 0x3F,
];

fn cpu() -> impl Strategy<Value = u32> {
    prop_oneof![9 => 0..3u32, 1 => any::<u32>()]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![9 => proptest::sample::select(&PORTS[..]), 1 => any::<u16>()]
}

fn width() -> impl Strategy<Value = u8> {
    prop_oneof![9 => proptest::sample::select(&[1u8, 2, 4, 8][..]), 1 => any::<u8>()]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..0x40u64).prop_map(|register| map::LAPIC_BASE + register * 16),
        1 => (0..0x1000u64).prop_map(|offset| map::LAPIC_BASE + offset),
        4 => proptest::sample::select(&[0u64, 0x10, 0x10, 0x40][..]).prop_map(|offset| map::IOAPIC_BASE + offset),
        1 => any::<u64>(),
    ]
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![
        1 => Just(map::MSR_APIC_BASE),
        2 => Just(map::MSR_TSC_DEADLINE),
        8 => 0x800..0x840u32,
        1 => any::<u32>(),
    ]
}

/// Values that registers make something of: small ones, entries, single bits, and anything.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..0x100u64,
        0..0x2_0000u64,
        0..0x10_0000u64,
        (0..64u32).prop_map(|bit| 1 << bit),
        Just(0xFEE0_0800u64),
        Just(0xFEE0_0C00u64),
        any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (port(), width()).prop_map(|(port, width)| Step::In(port, width)),
        8 => (port(), width(), value()).prop_map(|(port, width, value)| Step::Out(port, width, value as u32)),
        2 => (cpu(), address(), width()).prop_map(|(cpu, address, width)| Step::Load(cpu, address, width)),
        8 => (cpu(), address(), width(), value())
            .prop_map(|(cpu, address, width, value)| Step::Store(cpu, address, width, value)),
        2 => (cpu(), msr()).prop_map(|(cpu, msr)| Step::Rdmsr(cpu, msr)),
        8 => (cpu(), msr(), value()).prop_map(|(cpu, msr, value)| Step::Wrmsr(cpu, msr, value)),
        8 => (prop_oneof![9 => 0..26u32, 1 => any::<u32>()], any::<bool>(), any::<bool>())
            .prop_map(|(gsi, rose, level)| Step::Line(gsi, rose, level)),
        1 => (0..0x1_0000u64, any::<u32>()).prop_map(|(low, data)| Step::Msi(0xFEE0_0000 + low * 16, data)),
        1 => (any::<u64>(), any::<u32>()).prop_map(|(address, data)| Step::Msi(address, data)),
        6 => cpu().prop_map(Step::Accept),
        1 => (cpu(), any::<u8>()).prop_map(|(cpu, tpr)| Step::Tpr(cpu, tpr)),
        1 => Just(Step::Button),
        1 => any::<u8>().prop_map(Step::Gpe),
        4 => Just(Step::Tick),
        4 => prop_oneof![9 => 0..10_000_000u64, 1 => any::<u64>()].prop_map(Step::Wait),
    ]
}

/// Does `step` at `now`. Then checks what must always hold.
fn apply(platform: &mut Chipset, step: &Step, now: &mut u64) {
    match *step {
        Step::In(port, width) => {
            platform.pio_read(port, width, *now);
        }
        Step::Out(port, width, value) => {
            let _ = platform.pio_write(port, width, value, *now);
        }
        Step::Load(cpu, address, width) => {
            platform.mmio_read(cpu, address, width, *now);
        }
        Step::Store(cpu, address, width, value) => {
            let _ = platform.mmio_write(cpu, address, width, value, *now);
        }
        Step::Rdmsr(cpu, msr) => {
            let _ = platform.rdmsr(cpu, msr, *now);
        }
        Step::Wrmsr(cpu, msr, value) => {
            let _ = platform.wrmsr(cpu, msr, value, *now);
        }
        Step::Line(gsi, rose, level) => platform.line(gsi, rose, level),
        Step::Msi(address, data) => platform.msi(address, data),
        Step::Accept(cpu) => accept(platform, cpu),
        Step::Tpr(cpu, tpr) => {
            platform.set_tpr(cpu, tpr);
            assert!(platform.bus.get(cpu).is_none() || platform.tpr(cpu) == tpr);
        }
        Step::Button => platform.power_button(),
        Step::Gpe(event) => platform.raise_gpe(event),
        Step::Tick => {
            platform.tick(*now);
            assert!(
                platform.next_deadline() > *now || *now == u64::MAX,
                "a storm"
            );
        }
        Step::Wait(time) => *now = now.saturating_add(time),
    }
    for gsi in (0..26).filter(|&gsi| platform.bus.ways.knows(gsi)) {
        let way = platform.bus.ways.get(gsi);
        assert_eq!(way, platform.work_out(gsi), "line {gsi} after {step:?}");
    }
    // Effects end: at most INIT, start and NMI for each processor.
    let effects = (0..10)
        .take_while(|_| platform.next_effect() != Effect::None)
        .count();
    assert!(effects <= 9);
    for cpu in 0..3 {
        if let Some(pending) = platform.pending(cpu) {
            if pending.external {
                assert_eq!(pending.priority, EXTERNAL_PRIORITY);
            } else {
                assert_eq!(pending.priority, pending.vector >> 4);
                assert!(pending.vector >= 16 && pending.priority > platform.tpr(cpu) >> 4);
            }
            assert!(platform.pending_any_tpr(cpu).is_some());
        }
    }
}

/// Takes what is pending; the same class cannot come again before its end.
pub(super) fn accept(platform: &mut Chipset, cpu: u32) {
    let Some(taken) = platform.pending(cpu) else {
        return;
    };
    platform.accept(cpu, taken.vector, taken.external);
    if let (false, Some(next)) = (taken.external, platform.pending(cpu)) {
        assert!(next.external || next.priority > taken.priority);
    }
}

fn config() -> impl Strategy<Value = Config> {
    let hz = || prop_oneof![6 => 1_000_000..5_000_000_000u64, 1 => any::<u64>(), 1 => Just(1_000_000_000)];
    (1..4u32, hz(), hz(), any::<bool>()).prop_map(|(vcpus, tsc_hz, apic_hz, debug_exit)| Config {
        vcpus,
        tsc_hz,
        apic_hz,
        debug_exit,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_stream_panics(config in config(), steps in proptest::collection::vec(step(), 1..300)) {
        let config = Config { vcpus: 3, ..config };
        let mut platform = Chipset::new(&config);
        let mut now = 0;
        for step in &steps {
            apply(&mut platform, step, &mut now);
        }
    }

    /// How often the host looks at the time is not visible in any counter.
    #[test]
    fn ticks_do_not_change_time(
        steps in proptest::collection::vec(step(), 1..100),
        waits in proptest::collection::vec(0..5_000_000u64, 1..20),
        apic_hz in 1_000_000..2_000_000_000u64,
    ) {
        let config = Config { vcpus: 1, tsc_hz: 1_000_000_000, apic_hz, debug_exit: false };
        let mut now = 0;
        let mut lazy = Chipset::new(&config);
        let mut eager = Chipset::new(&config);
        for step in steps.iter().filter(|step| !matches!(step, Step::Tick | Step::Accept(_) | Step::Wait(_))) {
            apply(&mut lazy, step, &mut now);
            apply(&mut eager, step, &mut now);
        }
        for wait in waits {
            now += wait;
            eager.tick(now - wait / 2);
            eager.tick(now);
            for port in [0x40, 0x42, 0x61] {
                prop_assert_eq!(lazy.pio_read(port, 1, now), eager.pio_read(port, 1, now));
            }
            prop_assert_eq!(lazy.pio_read(0x608, 4, now), eager.pio_read(0x608, 4, now));
            let current = map::LAPIC_BASE + 0x390;
            prop_assert_eq!(lazy.mmio_read(0, current, 4, now), eager.mmio_read(0, current, 4, now));
            prop_assert_eq!(lazy.rdmsr(0, 0x839, now), eager.rdmsr(0, 0x839, now));
        }
    }
}

/// The same for long: state that only builds up over many steps. Deterministic, so a failure repeats.
#[test]
fn a_long_stream_keeps_the_promises() {
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..8u64 {
        let config = Config {
            vcpus: 3,
            tsc_hz: 1_000_000_000 + round * 333_333_333,
            apic_hz: if round & 1 == 0 {
                1_000_000_000
            } else {
                25_000_000
            },
            debug_exit: round & 2 != 0,
        };
        let mut platform = Chipset::new(&config);
        let mut now = round << 40;
        let mut delivered = 0u64;
        let mut ticks = 0u64;
        for _ in 0..40_000 {
            let (a, b, c) = (random(), random(), random());
            let cpu = (a >> 60) as u32 % 3;
            let width = [1, 2, 4, 8][(a >> 58) as usize & 3];
            let value = c >> (b >> 56 & 63);
            let step = match a % 20 {
                0 | 1 => Step::In(PORTS[(b % 40) as usize], width),
                2..5 => Step::Out(PORTS[(b % 40) as usize], width, value as u32),
                5 => Step::Load(cpu, map::LAPIC_BASE + (b & 0x3FF), width),
                6 | 7 => Step::Store(cpu, map::LAPIC_BASE + (b & 0x3F0), 4, value),
                8 => Step::Store(cpu, map::IOAPIC_BASE, 4, b & 0x3F),
                9 => Step::Store(cpu, map::IOAPIC_BASE + 0x10, 4, value),
                10 => Step::Wrmsr(cpu, 0x800 + (b & 0x3F) as u32, value),
                11 => Step::Wrmsr(
                    cpu,
                    map::MSR_TSC_DEADLINE,
                    now.wrapping_add(value & 0xFF_FFFF),
                ),
                12 => Step::Line((b % 26) as u32, c & 1 != 0, c & 2 != 0),
                13 => Step::Rdmsr(cpu, 0x800 + (b & 0x3F) as u32),
                14 if b & 15 == 0 => Step::Wrmsr(
                    cpu,
                    map::MSR_APIC_BASE,
                    [0xFEE0_0800, 0xFEE0_0C00, 0xFEE0_0000][(c % 3) as usize],
                ),
                14 => Step::Store(cpu, map::LAPIC_BASE + 0xF0, 4, 0x1FF),
                15 => Step::Tpr(cpu, if b & 7 == 0 { c as u8 } else { 0 }),
                16 => Step::Wait(b & 0xF_FFFF),
                17 => Step::Msi(0xFEE0_0000 | b & 0xF_FFFF, value as u32),
                _ => Step::Accept(cpu),
            };
            if matches!(step, Step::Accept(_)) && platform.pending(cpu).is_some() {
                delivered += 1;
            }
            apply(&mut platform, &step, &mut now);
            if a & 0x100 != 0 && platform.next_deadline() <= now {
                ticks += 1;
                apply(&mut platform, &Step::Tick, &mut now);
            }
            if a & 0x600 == 0 {
                let _ = platform.mmio_write(cpu, map::LAPIC_BASE + 0xB0, 4, 0, now);
                let _ = platform.wrmsr(cpu, 0x80B, 0, now);
                let _ = platform.pio_write(0x20, 1, 0x20, now);
                let _ = platform.pio_write(0xA0, 1, 0x20, now);
            }
        }
        // The stream did reach what it is to test.
        assert!(
            delivered > 500 && ticks > 100,
            "{delivered} delivered, {ticks} ticks"
        );
    }
}
