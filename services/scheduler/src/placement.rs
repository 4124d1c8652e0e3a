//! Which processor a group of Budgets goes to.
//!
//! Calls stay on the caller's processor, so a VM's VMM and devices share one. A group stays where it is for as long as anything of it
//! runs; a new one goes to the processor that bears the least, by shares, among those that can still promise its reservation. Of
//! equals it is the one with the lowest number: the same system is always placed the same way.

use ipc_schema::proto::Group;

use crate::policy::PROCESSOR;

/// The processor that the kernel was started on, where the system's own servers stay.
pub const FIRST: u32 = 0;

/// What a processor bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Its number.
    pub cpu: u32,
    /// Shares of the groups on it.
    shares: u64,
    /// Percent of it that are promised.
    reserved: u64,
}

impl Load {
    /// None.
    #[must_use]
    pub const fn new(cpu: u32) -> Self {
        Self {
            cpu,
            shares: 0,
            reserved: 0,
        }
    }

    /// One more.
    pub fn add(&mut self, shares: u32, reservation: u32) {
        self.shares += u64::from(shares);
        self.reserved += u64::from(reservation);
    }

    fn has_room(&self, group: &Group) -> bool {
        self.reserved + u64::from(group.reservation) <= u64::from(PROCESSOR)
    }
}

/// The processor for a group, out of `loads`; `now` is where it is already. Without room anywhere the least loaded is named, and
/// admission there says no.
#[must_use]
pub fn choose(loads: &[Load], group: &Group, now: Option<u32>) -> u32 {
    let there = |cpu: u32| loads.iter().any(|l| l.cpu == cpu);
    let pinned = now.or(group.cpu).filter(|&cpu| there(cpu));
    if let Some(cpu) = pinned {
        return cpu;
    }
    // Those with room come first, for `false` is the lesser.
    let best = loads
        .iter()
        .min_by_key(|l| (!l.has_room(group), l.shares, l.cpu));
    best.map_or(FIRST, |l| l.cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(cpu: u32, shares: u32, reservation: u32) -> Load {
        let mut load = Load::new(cpu);
        load.add(shares, reservation);
        load
    }

    fn group(reservation: u32, cpu: Option<u32>) -> Group {
        Group {
            id: 1,
            shares: 100,
            reservation,
            cpu,
        }
    }

    #[test]
    fn the_least_loaded_and_of_equals_the_first() {
        let loads = [load(0, 100, 0), load(1, 50, 0), load(2, 50, 0)];
        assert_eq!(choose(&loads, &group(0, None), None), 1);
        assert_eq!(
            choose(&[load(0, 0, 0), load(1, 0, 0)], &group(0, None), None),
            0
        );
    }

    #[test]
    fn reservations_need_room() {
        let loads = [load(0, 10, 60), load(1, 50, 40), load(2, 40, 90)];
        assert_eq!(choose(&loads, &group(50, None), None), 1);
        assert_eq!(choose(&loads, &group(40, None), None), 0);
        assert_eq!(choose(&loads, &group(70, None), None), 0, "nowhere");
    }

    #[test]
    fn where_it_is_and_where_it_is_to_be() {
        let loads = [load(0, 0, 0), load(1, 100, 0), load(3, 100, 100)];
        assert_eq!(choose(&loads, &group(0, Some(1)), None), 1);
        assert_eq!(
            choose(&loads, &group(50, Some(3)), None),
            3,
            "refused there"
        );
        assert_eq!(choose(&loads, &group(0, Some(1)), Some(3)), 3);
        assert_eq!(
            choose(&loads, &group(0, Some(2)), None),
            0,
            "no such processor"
        );
        assert_eq!(choose(&[], &group(0, None), None), FIRST);
    }
}
