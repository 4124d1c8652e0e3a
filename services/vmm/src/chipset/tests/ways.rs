//! Ways of lines: what is remembered of them can be seen in nothing. A platform that is made to forget them before every step does the
//! same; and what one knows is what working it out gives. The guest is one that uses its interrupt controllers, so that most lines have
//! a way, and lose and change it.

use proptest::prelude::*;

use super::super::*;
use super::random::accept;

/// One thing that a guest or a device server does.
#[derive(Clone, Debug)]
enum Use {
    /// A device drives a line.
    Line(u32, bool, bool),
    /// A redirection entry, most often an edge-triggered one.
    Entry(u8, u64),
    /// Masks of the 8259 pair, or its ELCR.
    Pair(u16, u8),
    /// An APIC register, in memory or by MSR.
    Apic(u32, u32, u64),
    /// IA32_APIC_BASE.
    Base(u32, u64),
    Msi(u32, u32),
    Accept(u32),
}

fn entry() -> impl Strategy<Value = u64> {
    let destination = prop_oneof![4 => 0..4u64, 1 => Just(0xFF)];
    let bits = prop_oneof![
        12 => Just(0u64),
        4 => Just(0x800),
        2 => Just(0x100),
        2 => Just(0x900),
        2 => Just(0x8000),
        2 => Just(0x1_0000),
        1 => Just(0x400),
        1 => Just(0x500),
        1 => Just(0x700),
    ];
    let vector = prop_oneof![15 => 0x20..0xFFu64, 1 => 0..0x20u64];
    (destination, bits, vector).prop_map(|(to, bits, vector)| to << 56 | bits | vector)
}

fn usage() -> impl Strategy<Value = Use> {
    let register = prop_oneof![
        3 => Just((0x0Fu32, 0x1FFu64)),
        1 => Just((0x0F, 0xFF)),
        2 => (0..8u64).prop_map(|id| (0x0D, id << 24)),
        1 => Just((0x0E, 0xFFFF_FFFF)),
        1 => Just((0x0E, 0x0FFF_FFFF)),
        6 => Just((0x0B, 0)),
        1 => prop_oneof![Just(0x8700u64), Just(0x8030), Just(0x500), Just(0x1_0700)]
            .prop_map(|entry| (0x35, entry)),
        2 => prop_oneof![Just(0x4500u64), Just(0xC_4500), Just(0x4_4030), Just(0x4400)]
            .prop_map(|icr| (0x30, icr)),
    ];
    prop_oneof![
        24 => (3..20u32, any::<bool>(), any::<bool>()).prop_map(|(gsi, rose, level)| Use::Line(gsi, rose, level)),
        2 => (0..26u32, any::<bool>(), any::<bool>()).prop_map(|(gsi, rose, level)| Use::Line(gsi, rose, level)),
        8 => (3..20u8, entry()).prop_map(|(pin, entry)| Use::Entry(pin, entry)),
        1 => (0..24u8, entry()).prop_map(|(pin, entry)| Use::Entry(pin, entry)),
        1 => (proptest::sample::select(&[0x21u16, 0xA1, 0x4D0, 0x4D1, 0x20, 0xA0][..]), proptest::sample::select(&[0xFFu8, 0xFF, 0xFB, 0x10, 0x20, 0][..]))
            .prop_map(|(port, value)| Use::Pair(port, value)),
        10 => (0..3u32, register).prop_map(|(cpu, (register, value))| Use::Apic(cpu, register, value)),
        1 => (0..3u32, proptest::sample::select(&[0xFEE0_0800u64, 0xFEE0_0C00, 0xFEE0_0000, 0xFEE0_0800][..]))
            .prop_map(|(cpu, base)| Use::Base(cpu, base)),
        1 => (0..0x1_0000u32, prop_oneof![Just(0x30u32), Just(0x500), Just(0x131)]).prop_map(|(low, data)| Use::Msi(low << 4, data)),
        10 => (0..3u32).prop_map(Use::Accept),
    ]
}

/// Does it, the effects too; what comes of it.
fn use_it(platform: &mut Chipset, step: &Use) -> Vec<Effect> {
    let mut effects = Vec::new();
    match *step {
        Use::Line(gsi, rose, level) => platform.line(gsi, rose, level),
        Use::Entry(pin, entry) => {
            for (index, half) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry)] {
                effects.extend(platform.mmio_write(0, map::IOAPIC_BASE, 4, index.into(), 0));
                let half = half & 0xFFFF_FFFF;
                effects.extend(platform.mmio_write(0, map::IOAPIC_BASE + 0x10, 4, half, 0));
            }
        }
        Use::Pair(port, value) => effects.push(platform.pio_write(port, 1, value.into(), 0)),
        Use::Apic(cpu, register, value) => {
            let at = map::LAPIC_BASE + u64::from(register) * 16;
            effects.extend(platform.mmio_write(cpu, at, 4, value, 0));
            effects.extend(platform.wrmsr(cpu, map::MSR_X2APIC_FIRST + register, value, 0));
        }
        Use::Base(cpu, base) => effects.extend(platform.wrmsr(cpu, map::MSR_APIC_BASE, base, 0)),
        Use::Msi(low, data) => platform.msi(0xFEE0_0000 + u64::from(low), data),
        Use::Accept(cpu) => accept(platform, cpu),
    }
    effects.extend((0..10).map(|_| platform.next_effect()));
    effects
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ways_are_what_working_out_gives(vcpus in 1..4u32, steps in proptest::collection::vec(usage(), 1..200)) {
        let config = Config { vcpus, tsc_hz: 1_000_000_000, apic_hz: 1_000_000_000, debug_exit: false };
        let [mut quick, mut plain] = core::array::from_fn(|_| {
            let mut chipset = Chipset::new(&config);
            for cpu in 0..vcpus {
                let _ = chipset.mmio_write(cpu, map::LAPIC_BASE + 0xF0, 4, 0x1FF, 0);
            }
            chipset
        });
        let mut taken = 0;
        for step in &steps {
            if let Use::Line(gsi, ..) = step {
                taken += usize::from(quick.bus.ways.get(*gsi).is_some());
            }
            plain.bus.ways.forget();
            prop_assert_eq!(use_it(&mut quick, step), use_it(&mut plain, step));
            for gsi in 0..26 {
                if quick.bus.ways.knows(gsi) {
                    prop_assert_eq!(quick.bus.ways.get(gsi), quick.work_out(gsi), "line {} after {:?}", gsi, step);
                }
            }
            let bare = |chipset: &Chipset| {
                let mut bus = chipset.bus.clone();
                bus.ways = Default::default();
                let lines = (chipset.external_lines, chipset.own_lines, chipset.intr);
                std::format!("{bus:?} {:?} {:?} {lines:?}", chipset.ioapic, chipset.pic)
            };
            prop_assert_eq!(bare(&quick), bare(&plain), "after {:?}", step);
        }
        prop_assume!(steps.len() < 50 || taken > 0);
    }
}
