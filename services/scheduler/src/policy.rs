//! From demands to priorities, budgets and periods.
//!
//! Classes are strictly ranked. Within a class all are at one priority, where the kernel goes round: each runs until its
//! budget is used up, then it is the next one's turn. So the length of the budget is the weight. A Budget whose period is
//! as long as its budget is never exhausted, it only makes way for the others; one with a longer period waits for the
//! period's end, and so cannot get more than budget / period: a limit.
//!
//! A class's round is divided by "water-filling": everybody gets its shares' part of it, but no less than its reservation and no
//! more than its limit; what that takes from or leaves to the others is divided by their shares.

use alloc::vec::Vec;

use ipc_schema::proto::{Class, Refusal};

/// Length of a turn, on average over a class, in microseconds.
const TURN_US: u64 = 10_000;
/// Shortest turn: below it a switch costs more than a turn does.
const MIN_TURN_US: u64 = 500;
/// Longest round: who waits for its turn should not wait longer than this.
const MAX_ROUND_US: u64 = 1_000_000;
/// A whole processor, in parts.
const WHOLE: u64 = 1_000_000;
/// Parts in a percent.
const PERCENT: u64 = WHOLE / 100;
/// Most percent that can be promised: one processor.
pub const PROCESSOR: u32 = 100;

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// What it is for.
    pub class: Class,
    /// Weight within the class.
    pub shares: u32,
    /// Percent of a processor guaranteed.
    pub reservation: u32,
    /// Percent of a processor at most.
    pub limit: Option<u32>,
}

/// What it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Priority, 0 lowest to 31.
    pub priority: u8,
    /// Microseconds in a period.
    pub budget_us: u64,
    /// The period in microseconds.
    pub period_us: u64,
}

/// Whether a demand can be met beside those that have been promised something.
pub fn admit(demand: &Demand, others: &[Demand]) -> Result<(), Refusal> {
    let limit = demand.limit.unwrap_or(PROCESSOR);
    if demand.shares == 0 || limit == 0 || demand.reservation > limit {
        return Err(Refusal::Malformed);
    }
    // What can always wait cannot be promised anything.
    if demand.reservation > 0 && demand.class == Class::Background {
        return Err(Refusal::Unsupported);
    }
    let promised = others.iter().map(|o| u64::from(o.reservation)).sum::<u64>();
    if promised + u64::from(demand.reservation) > u64::from(PROCESSOR) {
        return Err(Refusal::Busy);
    }
    Ok(())
}

impl Demand {
    /// Least and most parts of a processor.
    fn bounds(&self) -> (u64, u64) {
        let most = self.limit.unwrap_or(PROCESSOR).min(PROCESSOR);
        let least = self.reservation.min(most);
        (u64::from(least) * PERCENT, u64::from(most) * PERCENT)
    }

    /// Its part when a share is `level` / 2^32 parts.
    fn part(&self, level: u64) -> u64 {
        let (least, most) = self.bounds();
        let wanted = (u128::from(self.shares) * u128::from(level)) >> 32;
        u64::try_from(wanted).unwrap_or(u64::MAX).clamp(least, most)
    }
}

/// How a processor is divided among the demands of one class, in parts of [`WHOLE`], as if nobody else were there.
fn divide(class: &[Demand]) -> Vec<u64> {
    let sum = |level: u64| class.iter().map(|d| d.part(level)).sum::<u64>();
    // The highest level that does not take more than there is. At 2^52 one share is a whole processor.
    let (mut fits, mut too_much) = (0u64, (1u64 << 52) + 1);
    while too_much - fits > 1 {
        let level = fits + (too_much - fits) / 2;
        if sum(level) <= WHOLE {
            fits = level;
        } else {
            too_much = level;
        }
    }
    class.iter().map(|d| d.part(fits)).collect()
}

/// Settings for one class: all at `priority`.
fn class_settings(class: &[Demand], priority: u8) -> Vec<Setting> {
    let parts = divide(class);
    let smallest = parts
        .iter()
        .copied()
        .filter(|&p| p > 0)
        .min()
        .unwrap_or(WHOLE);
    let average = TURN_US.saturating_mul(class.len() as u64);
    // Long enough for the smallest part to be a turn.
    let round = average.max((MIN_TURN_US * WHOLE).div_ceil(smallest));
    let round = round.min(MAX_ROUND_US.max(average));
    let setting = |(demand, part): (&Demand, u64)| {
        let budget_us = (part.saturating_mul(round) / WHOLE).max(MIN_TURN_US);
        let period_us = match demand.limit {
            Some(limit) if limit < PROCESSOR => (budget_us * 100).div_ceil(u64::from(limit.max(1))),
            _ => budget_us,
        };
        Setting {
            priority,
            budget_us,
            period_us,
        }
    };
    class.iter().zip(parts).map(setting).collect()
}

/// Settings for all, in their order.
#[must_use]
pub fn settings(all: &[Demand]) -> Vec<Setting> {
    let mut made: Vec<Option<Setting>> = all.iter().map(|_| None).collect();
    // Class by class: that of the first that has none yet.
    while let Some((next, _)) = all.iter().zip(&made).find(|(_, s)| s.is_none()) {
        let class = next.class;
        let of_class = |d: &&Demand| d.class == class;
        let members: Vec<Demand> = all.iter().filter(of_class).copied().collect();
        let places = all.iter().zip(&mut made).filter(|(d, _)| of_class(d));
        for ((_, place), setting) in places.zip(class_settings(&members, class.priority())) {
            *place = Some(setting);
        }
    }
    made.into_iter().flatten().collect()
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
