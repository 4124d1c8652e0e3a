//! Forbidden acts and the faults that they must lead to (Intel SDM vol. 3, 6.15; AMD APM vol. 2, 8.2).

use core::fmt;

/// Exception vectors.
pub mod vector {
    /// Invalid opcode: here also where an act had no consequence.
    pub const UD: u64 = 6;
    /// Device not available: the FPU is not a server's.
    pub const NM: u64 = 7;
    /// General protection.
    pub const GP: u64 = 13;
    /// Page fault.
    pub const PF: u64 = 14;
}

/// Page fault error code.
pub mod page {
    /// The page is there, the right is not.
    pub const PRESENT: u64 = 1;
    /// It was a write.
    pub const WRITE: u64 = 2;
    /// At user level.
    pub const USER: u64 = 4;
    /// It was an instruction fetch.
    pub const FETCH: u64 = 16;
    /// A reserved bit was set: a broken page table, never a right that is missing.
    pub const RESERVED: u64 = 8;
}

/// The fault that must come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Exception vector.
    pub vector: u64,
    /// Error code, in the bits of `mask`.
    pub error: u64,
    /// Bits of the error code that count.
    pub mask: u64,
    /// Address of a page fault, else 0.
    pub address: u64,
    /// First instruction of the act.
    pub from: u64,
    /// One past its last.
    pub to: u64,
}

impl Expected {
    /// A page fault at `address`, with all of the error code given.
    #[must_use]
    pub const fn page(address: u64, error: u64) -> Self {
        Self {
            vector: vector::PF,
            error,
            mask: u64::MAX,
            address,
            from: 0,
            to: 0,
        }
    }

    /// Another fault, with its error code (0 if it has none).
    #[must_use]
    pub const fn other(vector: u64, error: u64) -> Self {
        Self {
            vector,
            error,
            mask: u64::MAX,
            address: 0,
            from: 0,
            to: 0,
        }
    }

    /// A page fault for which it does not matter whether a page is there: that is the kernel's secret.
    #[must_use]
    pub const fn whether_present_or_not(self) -> Self {
        Self {
            mask: !page::PRESENT,
            ..self
        }
    }

    /// Of the error code only what kind of selector it holds (Intel SDM vol. 3, 6.13): QEMU's TCG has another index there
    /// than processors have.
    #[must_use]
    pub const fn without_index(self) -> Self {
        Self { mask: 7, ..self }
    }

    /// With the addresses of the code that does it.
    #[must_use]
    pub const fn within(self, from: u64, to: u64) -> Self {
        Self { from, to, ..self }
    }
}

/// What came, as in a fault message: vector, error code, address, rip.
pub type Fault = [u64; 4];

/// Why a probe failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The act had no consequence: it went on to its end.
    NoFault,
    /// Nothing came in time.
    Silence,
    /// Another fault than expected.
    Other {
        /// What came.
        is: Fault,
        /// What should have come.
        expected: Expected,
    },
    /// It could not be tried.
    NotTried(&'static str),
    /// Another part of the processor than it should have: percent.
    Share {
        /// What it had.
        is: u64,
        /// What it should have had.
        expected: u64,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFault => f.write_str("it was allowed"),
            Self::Silence => f.write_str("nothing came of it in time"),
            Self::NotTried(why) => write!(f, "not tried: {why}"),
            Self::Share { is, expected } => write!(f, "{is} % of the processor, not {expected} %"),
            Self::Other {
                is: [vector, error, address, rip],
                expected: e,
            } => write!(
                f,
                "vector {vector} error {error:#x} address {address:#x} rip {rip:#x}, not vector {} error {:#x} address {:#x} rip {:#x}",
                e.vector, e.error, e.address, e.from
            ),
        }
    }
}

/// Judges the fault that came; `None`: none came in time.
pub fn judge(expected: &Expected, fault: Option<Fault>) -> Result<(), Failure> {
    let is = fault.ok_or(Failure::Silence)?;
    let [vector, error, address, rip] = is;
    // After each act stands an UD2, the last two bytes of its code.
    let last = expected.to.saturating_sub(2);
    if vector == vector::UD && rip == last {
        return Err(Failure::NoFault);
    }
    let right = vector == expected.vector
        && error & expected.mask == expected.error & expected.mask
        && address == expected.address
        && (expected.from..expected.to).contains(&rip);
    if right {
        Ok(())
    } else {
        let expected = *expected;
        Err(Failure::Other { is, expected })
    }
}

/// Judges what part of the time `all` was `used`: it must be `expected` percent, give or take 3.
pub fn judge_share(used: u64, all: u64, expected: u64) -> Result<(), Failure> {
    const TOLERANCE: u64 = 3;
    let percent = u128::from(used) * 100 / u128::from(all.max(1));
    let is = u64::try_from(percent).unwrap_or(u64::MAX);
    if is.abs_diff(expected) <= TOLERANCE {
        Ok(())
    } else {
        Err(Failure::Share { is, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const READ: Expected = Expected::page(0x1000, page::USER).within(0x40_0000, 0x40_0010);

    #[test]
    fn the_right_fault_only() {
        let fault = [vector::PF, page::USER, 0x1000, 0x40_0003];
        assert_eq!(judge(&READ, Some(fault)), Ok(()));
        let wrong = [
            [vector::GP, page::USER, 0x1000, 0x40_0003],
            [vector::PF, page::USER | page::PRESENT, 0x1000, 0x40_0003],
            [vector::PF, page::USER, 0x1001, 0x40_0003],
            [vector::PF, page::USER, 0x1000, 0x40_0010],
            [vector::UD, 0, 0, 0x40_0003],
        ];
        for is in wrong {
            let expected = READ;
            let failure = Failure::Other { is, expected };
            assert_eq!(judge(&READ, Some(is)), Err(failure));
            assert!(failure.to_string().contains("not vector 14"));
        }
        assert_eq!(judge(&READ, None), Err(Failure::Silence));
    }

    #[test]
    fn no_fault_is_told_apart() {
        let end = [vector::UD, 0, 0, 0x40_000e];
        assert_eq!(judge(&READ, Some(end)), Err(Failure::NoFault));
    }

    #[test]
    fn whether_the_kernel_has_a_page_there_does_not_matter() {
        let kernel = READ.whether_present_or_not();
        for error in [page::USER, page::USER | page::PRESENT] {
            assert_eq!(judge(&kernel, Some([14, error, 0x1000, 0x40_0000])), Ok(()));
        }
        for error in [
            page::PRESENT,
            page::USER | page::RESERVED,
            page::USER | page::WRITE,
        ] {
            assert!(judge(&kernel, Some([14, error, 0x1000, 0x40_0000])).is_err());
        }
    }

    #[test]
    fn shares() {
        assert_eq!(judge_share(330, 1000, 30), Ok(()));
        assert_eq!(judge_share(270, 1000, 30), Ok(()));
        let share = |is, expected| Err(Failure::Share { is, expected });
        assert_eq!(judge_share(340, 1000, 30), share(34, 30));
        assert_eq!(judge_share(260, 1000, 30), share(26, 30));
        assert_eq!(judge_share(u64::MAX, 0, 30), share(u64::MAX, 30));
    }
}
