//! The chipset's register models: any stream of port, MMIO and MSR accesses, lines, messages and times.
#![no_main]

use fuzz::{Bytes, target};
use vmm::chipset::{Chipset, Config, EXTERNAL_PRIORITY, Effect, map};

target!(run, seeds);

const PORTS: [u16; 32] = [
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x64, 0x80, 0x92,
    0xed, 0xf4, 0xcf8, 0xcf9, 0xcfc, 0xcfd, 0xcfe, 0xcff, 0x600, 0x602, 0x604, 0x608, 0x60b, 0x620,
    0x622, 0xffff, 0x3f,
];
const CPUS: u32 = 3;

fn seeds() -> Vec<Vec<u8>> {
    // The PIC set up, a line raised, the interrupt taken; and the same by the APICs.
    let pic: Vec<u8> = [(0u8, 0x11u8), (1, 0x20), (1, 4), (1, 1), (1, 0)]
        .iter()
        .flat_map(|(port, value)| [1, *port, 0, 0, *value])
        .chain([6, 0, 1, 8, 0])
        .collect();
    vec![vec![0; 32], [&[0; 4][..], &pic].concat()]
}

fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let hz = |how: u8| [1_000_000_000, 3_000_000_007, 1, u64::MAX][usize::from(how) & 3];
    let config = Config {
        vcpus: CPUS,
        tsc_hz: hz(bytes.u8()),
        apic_hz: hz(bytes.u8()),
        debug_exit: bytes.flag(),
    };
    let mut chipset = Chipset::new(&config);
    let mut now = 0u64;
    let mut steps = 0;
    while !bytes.is_empty() && steps < 2000 {
        steps += 1;
        step(&mut chipset, &mut bytes, &mut now);
        promises(&mut chipset);
    }
}

fn step(chipset: &mut Chipset, bytes: &mut Bytes<'_>, now: &mut u64) {
    let what = bytes.u8();
    match what & 15 {
        0 | 1 => {
            let port = if what & 0x80 == 0 {
                bytes.pick(&PORTS)
            } else {
                bytes.u16()
            };
            let width = bytes.width(false);
            if what & 1 == 0 {
                let value = chipset.pio_read(port, width, *now);
                assert_eq!(
                    u64::from(value) >> (8 * u32::from(width)),
                    0,
                    "more than the width"
                );
            } else {
                let _ = chipset.pio_write(port, width, bytes.number() as u32, *now);
            }
        }
        2..5 => {
            let cpu = bytes.u8() as u32 % (CPUS + 1);
            let gpa = match what >> 4 & 3 {
                0 => map::LAPIC_BASE + (u64::from(bytes.u8()) << 4),
                1 => map::IOAPIC_BASE + (u64::from(bytes.u8() & 7) << 4),
                2 => map::LAPIC_BASE + u64::from(bytes.u16() & 0xfff),
                _ => bytes.number(),
            };
            let width = bytes.width(true);
            if what & 1 == 0 {
                let _ = chipset.mmio_read(cpu, gpa, width, *now);
            } else {
                let _ = chipset.mmio_write(cpu, gpa, width, bytes.number(), *now);
            }
        }
        5 => {
            let cpu = bytes.u8() as u32 % (CPUS + 1);
            let msr = match what >> 4 & 3 {
                0 => map::MSR_APIC_BASE,
                1 => map::MSR_TSC_DEADLINE,
                _ => 0x800 + u32::from(bytes.u8()),
            };
            if what & 0x80 == 0 {
                let _ = chipset.rdmsr(cpu, msr, *now);
            } else {
                let _ = chipset.wrmsr(cpu, msr, bytes.number(), *now);
            }
        }
        6 => chipset.set_line(u32::from(bytes.u8() & 31), bytes.flag()),
        7 => chipset.msi(map::LAPIC_BASE | bytes.number() & 0xf_ffff, bytes.u32()),
        8 | 9 => {
            let cpu = bytes.u8() as u32 % CPUS;
            if let Some(taken) = chipset.pending(cpu) {
                chipset.accept(cpu, taken.vector, taken.external);
                // The same class cannot come again before its end.
                if let (false, Some(next)) = (taken.external, chipset.pending(cpu)) {
                    assert!(next.external || next.priority > taken.priority);
                }
            }
        }
        10 => {
            let (cpu, tpr) = (bytes.u8() as u32 % CPUS, bytes.u8());
            chipset.set_tpr(cpu, tpr);
            assert_eq!(chipset.tpr(cpu), tpr);
        }
        11 => chipset.power_button(),
        12 => chipset.raise_gpe(bytes.u8()),
        13 => {
            chipset.tick(*now);
            assert!(
                chipset.next_deadline() > *now || *now == u64::MAX,
                "a storm"
            );
        }
        _ => *now = now.saturating_add(bytes.number()),
    }
}

/// What the VMM relies on after each access.
fn promises(chipset: &mut Chipset) {
    let effects = (0..10)
        .take_while(|_| chipset.next_effect() != Effect::None)
        .count();
    assert!(effects <= 9, "effects without end");
    for cpu in 0..CPUS {
        let Some(pending) = chipset.pending(cpu) else {
            continue;
        };
        if pending.external {
            assert_eq!(pending.priority, EXTERNAL_PRIORITY);
        } else {
            assert_eq!(pending.priority, pending.vector >> 4);
            assert!(pending.vector >= 16 && pending.priority > chipset.tpr(cpu) >> 4);
        }
        assert!(chipset.pending_any_tpr(cpu).is_some());
    }
}
