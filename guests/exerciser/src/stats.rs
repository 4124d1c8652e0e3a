//! The figures of a measurement: each sample less the empty loop, then least, median, greatest.

/// Least, median and greatest of a set of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The least sample.
    pub min: u64,
    /// The middle one; of an even number, the lower of the two.
    pub median: u64,
    /// The greatest sample.
    pub max: u64,
}

/// Sorts `samples` and sums them up, each less `empty` (0 if it was smaller). `None` without
/// samples.
pub fn summarise(samples: &mut [u64], empty: u64) -> Option<Summary> {
    samples.sort_unstable();
    let middle = samples.len().checked_sub(1)? / 2;
    let less = |sample: &u64| sample.saturating_sub(empty);
    Some(Summary {
        min: samples.first().map(less)?,
        median: samples.get(middle).map(less)?,
        max: samples.last().map(less)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_up() {
        assert_eq!(summarise(&mut [], 0), None);
        assert_eq!(
            summarise(&mut [9, 5, 7], 5),
            Some(Summary {
                min: 0,
                median: 2,
                max: 4
            })
        );
        assert_eq!(
            summarise(&mut [4, 1, 3, 2], 0),
            Some(Summary {
                min: 1,
                median: 2,
                max: 4
            })
        );
        assert_eq!(
            summarise(&mut [3], 9),
            Some(Summary {
                min: 0,
                median: 0,
                max: 0
            })
        );
    }
}
