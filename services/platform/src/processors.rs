//! Bringing up the processors beside the first (Intel SDM vol. 3, 9.4.4; AMD APM vol. 2, 15.27): one after the other, each
//! within bounds, so that one that does not come holds nothing up for long.

use alloc::vec::Vec;

use ipc_schema::manifest::MAX_CPUS;
use ipc_schema::proto::CpuState;

/// Between INIT and the start-up message, in microseconds.
const INIT_US: u64 = 10_000;
/// Between two looks at a processor that is coming up, in microseconds.
const POLL_US: u64 = 500;
/// How long one processor may take to come up, in microseconds.
const PATIENCE_US: u64 = 1_000_000;
/// How long all that do not come may take together, in microseconds: root waits for this server.
const ALL_PATIENCE_US: u64 = 3_000_000;

/// Why the kernel did not do something: what `abi::Status` says of it, in words.
pub type Why = &'static str;

/// The steps of starting a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// INIT.
    Init,
    /// The start-up message.
    Startup,
    /// Time-stamp counters compared, and admission.
    Admit,
}

/// Where a processor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does not wait yet.
    NotYet,
    /// It waits to be admitted.
    Waiting,
    /// It runs threads.
    Online,
}

/// What this server does to processors. Each is named by its number in the kernel.
pub trait Processors {
    /// The local APIC id of the processor that this runs on.
    fn own_apic_id(&mut self) -> Result<u32, Why>;
    /// Makes the Cpu of another; answers its number.
    fn add(&mut self, apic_id: u32) -> Result<u32, Why>;
    /// One step.
    fn step(&mut self, number: u32, step: Step) -> Result<(), Why>;
    /// Where it stands.
    fn standing(&mut self, number: u32) -> Result<Standing, Why>;
    /// Lets at least so many microseconds pass.
    fn delay(&mut self, microseconds: u64);
    /// Tells people that it is online, or why not.
    fn tell(&mut self, apic_id: u32, outcome: Result<u32, Why>);
}

/// A processor that has a Cpu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its number in the kernel.
    pub number: u32,
    /// Its local APIC id.
    pub apic_id: u32,
    /// Whether it came up.
    pub state: CpuState,
}

/// Starts those that the firmware says are enabled, beside the one that this runs on; answers those that have a Cpu now.
pub fn start(machine: &mut impl Processors, enabled: &[u32]) -> Vec<Processor> {
    let own = match machine.own_apic_id() {
        Ok(own) => own,
        Err(why) => {
            machine.tell(0, Err(why));
            return Vec::new();
        }
    };
    let mut all: Vec<Processor> = Vec::new();
    // A processor may stand in the table twice, with its old and its x2APIC entry.
    let mut seen = Vec::from([own]);
    let mut left_us = ALL_PATIENCE_US;
    for &apic_id in enabled {
        if seen.contains(&apic_id) {
            continue;
        }
        seen.push(apic_id);
        if all.len() + 1 >= MAX_CPUS as usize {
            machine.tell(apic_id, Err("Vireo uses no more"));
            continue;
        }
        let number = match machine.add(apic_id) {
            Ok(number) => number,
            Err(why) => {
                machine.tell(apic_id, Err(why));
                continue;
            }
        };
        let came = bring_up(machine, number, &mut left_us);
        machine.tell(apic_id, came.map(|()| number));
        all.push(Processor {
            number,
            apic_id,
            state: if came.is_ok() {
                CpuState::Online
            } else {
                CpuState::Off
            },
        });
    }
    all
}

fn bring_up(machine: &mut impl Processors, number: u32, left_us: &mut u64) -> Result<(), Why> {
    machine.step(number, Step::Init)?;
    machine.delay(INIT_US);
    machine.step(number, Step::Startup)?;
    let patience = PATIENCE_US.min(*left_us);
    let mut waited = 0;
    while machine.standing(number)? != Standing::Waiting {
        if waited >= patience {
            *left_us -= patience;
            return Err("it does not come up");
        }
        machine.delay(POLL_US);
        waited += POLL_US;
    }
    machine.step(number, Step::Admit)?;
    match machine.standing(number)? {
        Standing::Online => Ok(()),
        Standing::NotYet | Standing::Waiting => Err("it was not admitted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A machine whose processors come up after so many microseconds, or never.
    #[derive(Default)]
    struct Fake {
        /// Microseconds that each takes, by APIC id.
        takes: BTreeMap<u32, u64>,
        refused: Vec<u32>,
        unadmitted: Vec<u32>,
        /// Number, when INIT and start-up came.
        added: Vec<(u32, Option<u64>, Option<u64>, bool)>,
        time: u64,
        told: Vec<(u32, Result<u32, Why>)>,
    }

    impl Processors for Fake {
        fn own_apic_id(&mut self) -> Result<u32, Why> {
            Ok(4)
        }
        fn add(&mut self, apic_id: u32) -> Result<u32, Why> {
            assert!(self.added.iter().all(|(id, ..)| *id != apic_id));
            if self.refused.contains(&apic_id) {
                return Err("refused");
            }
            self.added.push((apic_id, None, None, false));
            Ok(self.added.len() as u32)
        }
        fn step(&mut self, number: u32, step: Step) -> Result<(), Why> {
            let time = self.time;
            let waits = self.standing(number)? == Standing::Waiting;
            let (id, init, startup, online) = &mut self.added[number as usize - 1];
            match step {
                Step::Init => *init = Some(time),
                Step::Startup => {
                    assert!(time - init.unwrap() >= 10_000);
                    *startup = Some(time);
                }
                Step::Admit if self.unadmitted.contains(id) => return Err("another clock"),
                Step::Admit => {
                    assert!(waits);
                    *online = true;
                }
            }
            Ok(())
        }
        fn standing(&mut self, number: u32) -> Result<Standing, Why> {
            let (id, _, startup, online) = self.added[number as usize - 1];
            let takes = self.takes.get(&id).copied();
            Ok(match (online, startup, takes) {
                (true, ..) => Standing::Online,
                (_, Some(at), Some(takes)) if self.time >= at + takes => Standing::Waiting,
                _ => Standing::NotYet,
            })
        }
        fn delay(&mut self, microseconds: u64) {
            self.time += microseconds;
        }
        fn tell(&mut self, apic_id: u32, outcome: Result<u32, Why>) {
            self.told.push((apic_id, outcome));
        }
    }

    fn fake(takes: &[(u32, u64)]) -> Fake {
        Fake {
            takes: takes.iter().copied().collect(),
            ..Fake::default()
        }
    }

    #[test]
    fn all_but_the_own_each_once() {
        let mut m = fake(&[(0, 0), (2, 3_000), (6, 999_000)]);
        let all = start(&mut m, &[4, 0, 2, 6, 4, 2]);
        let online = |number, apic_id| Processor {
            number,
            apic_id,
            state: CpuState::Online,
        };
        assert_eq!(all, [online(1, 0), online(2, 2), online(3, 6)]);
        assert_eq!(m.told, [(0, Ok(1)), (2, Ok(2)), (6, Ok(3))]);
        assert!(start(&mut fake(&[]), &[4]).is_empty());
    }

    #[test]
    fn one_that_does_not_come_costs_a_second() {
        let mut m = fake(&[(1, 0), (3, 0)]);
        let all = start(&mut m, &[1, 2, 3]);
        let states: Vec<_> = all.iter().map(|p| (p.apic_id, p.state)).collect();
        assert_eq!(
            states,
            [
                (1, CpuState::Online),
                (2, CpuState::Off),
                (3, CpuState::Online)
            ]
        );
        assert_eq!(m.told[1], (2, Err("it does not come up")));
        assert!((1_000_000..1_040_000).contains(&m.time), "{}", m.time);
    }

    #[test]
    fn many_that_do_not_come_cost_three() {
        let mut m = fake(&[(8, 0)]);
        let all = start(&mut m, &[1, 2, 3, 5, 6, 7, 8]);
        assert_eq!(all.len(), 7);
        assert!(m.time < 3_100_000, "{}", m.time);
        // One that is there at once still comes.
        assert_eq!(all[6].state, CpuState::Online);
    }

    #[test]
    fn refusals_are_told_and_do_not_stop_the_others() {
        let mut m = fake(&[(0, 0), (1, 0), (2, 0)]);
        m.refused.push(0);
        m.unadmitted.push(1);
        let all = start(&mut m, &[0, 1, 2]);
        assert_eq!(
            m.told,
            [(0, Err("refused")), (1, Err("another clock")), (2, Ok(2))]
        );
        let states: Vec<_> = all.iter().map(|p| (p.number, p.state)).collect();
        assert_eq!(states, [(1, CpuState::Off), (2, CpuState::Online)]);
    }

    #[test]
    fn no_more_than_vireo_uses() {
        let ids: Vec<u32> = (10..30).collect();
        let takes: Vec<_> = ids.iter().map(|&id| (id, 0)).collect();
        let mut m = fake(&takes);
        assert_eq!(start(&mut m, &ids).len(), 7);
        assert_eq!(m.told.len(), 20);
        assert_eq!(m.told[7], (17, Err("Vireo uses no more")));
    }
}
