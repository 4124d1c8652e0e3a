//! Arithmetic on a memory operand, and the flags that it leaves (Intel SDM vol. 2, each instruction's "Flags Affected").

use super::registers::mask;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// An operation of two operands, the first of which is the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Addition.
    Add,
    /// Addition with carry.
    Adc,
    /// Subtraction.
    Sub,
    /// Subtraction with borrow.
    Sbb,
    /// Subtraction for the flags alone.
    Cmp,
    /// Conjunction.
    And,
    /// Conjunction for the flags alone.
    Test,
    /// Disjunction.
    Or,
    /// Exclusive disjunction.
    Xor,
    /// Increment: leaves CF alone.
    Inc,
    /// Decrement: leaves CF alone.
    Dec,
    /// Two's complement.
    Neg,
    /// Complement: leaves all flags alone.
    Not,
    /// Copies a bit to CF.
    Bt,
    /// And sets it.
    Bts,
    /// And clears it.
    Btr,
    /// And flips it.
    Btc,
}

impl Operation {
    /// False if only the flags are its result.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test | Self::Bt)
    }

    /// Result and new RFLAGS for operands of `width` bytes.
    pub fn apply(self, width: u8, a: u64, b: u64, flags: u64) -> (u64, u64) {
        let all = mask(width);
        let sign = all ^ (all >> 1);
        let (a, b) = (a & all, b & all);
        let carry = flags & CF;
        let subtract = |a: u64, b: u64, borrow: u64| {
            let r = a.wrapping_sub(b).wrapping_sub(borrow) & all;
            let cf = u128::from(a) < u128::from(b) + u128::from(borrow);
            (
                r,
                cf,
                (a ^ b) & (a ^ r) & sign != 0,
                (a ^ b ^ r) & 0x10 != 0,
            )
        };
        let add = |a: u64, b: u64, carry: u64| {
            let r = a.wrapping_add(b).wrapping_add(carry) & all;
            let cf = u128::from(a) + u128::from(b) + u128::from(carry) > u128::from(all);
            (
                r,
                cf,
                !(a ^ b) & (a ^ r) & sign != 0,
                (a ^ b ^ r) & 0x10 != 0,
            )
        };
        let (result, cf, of, af) = match self {
            Self::Add => add(a, b, 0),
            Self::Adc => add(a, b, carry),
            Self::Sub | Self::Cmp => subtract(a, b, 0),
            Self::Sbb => subtract(a, b, carry),
            Self::And | Self::Test => (a & b, false, false, false),
            Self::Or => (a | b, false, false, false),
            Self::Xor => (a ^ b, false, false, false),
            Self::Neg => subtract(0, a, 0),
            Self::Inc => {
                let (r, _, of, af) = add(a, 1, 0);
                (r, carry != 0, of, af)
            }
            Self::Dec => {
                let (r, _, of, af) = subtract(a, 1, 0);
                (r, carry != 0, of, af)
            }
            Self::Not => return (!a & all, flags),
            Self::Bt | Self::Bts | Self::Btr | Self::Btc => {
                let bit = 1 << (b & (u64::from(width) * 8 - 1));
                let result = match self {
                    Self::Bts => a | bit,
                    Self::Btr => a & !bit,
                    Self::Btc => a ^ bit,
                    _ => a,
                };
                // The other flags are undefined, ZF is unchanged: all are left.
                return (result, flags & !CF | u64::from(a & bit != 0));
            }
        };
        let mut new = flags & !ARITHMETIC;
        for (condition, flag) in [
            (cf, CF),
            ((result as u8).count_ones() & 1 == 0, PF),
            (af, AF),
            (result == 0, ZF),
            (result & sign != 0, SF),
            (of, OF),
        ] {
            if condition {
                new |= flag;
            }
        }
        (result, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::arch::asm;
    use proptest::prelude::*;

    /// The processor's own answer: the same instruction, executed. `$r` picks the operands' width.
    macro_rules! real {
        ($mnemonic:literal, $r:literal, $a:expr, $b:expr, $flags:expr) => {{
            let (mut a, b, mut flags) = ($a, $b, $flags & ARITHMETIC | 2);
            // SAFETY: arithmetic on registers; the flags are saved and restored around it.
            unsafe {
                asm!(
                    "pushfq", "push {f}", "popfq",
                    concat!($mnemonic, " {a", $r, "}, {b", $r, "}"),
                    "pushfq", "pop {f}", "popfq",
                    a = inout(reg) a, b = in(reg) b, f = inout(reg) flags,
                )
            };
            (a, flags & ARITHMETIC)
        }};
    }
    macro_rules! real_one {
        ($mnemonic:literal, $r:literal, $a:expr, $flags:expr) => {{
            let (mut a, mut flags) = ($a, $flags & ARITHMETIC | 2);
            // SAFETY: as above.
            unsafe {
                asm!(
                    "pushfq", "push {f}", "popfq",
                    concat!($mnemonic, " {a", $r, "}"),
                    "pushfq", "pop {f}", "popfq",
                    a = inout(reg) a, f = inout(reg) flags,
                )
            };
            (a, flags & ARITHMETIC)
        }};
    }

    macro_rules! check_width {
        ($width:literal, $r:literal, $a:expr, $b:expr, $flags:expr) => {{
            let (a, b, flags): (u64, u64, u64) = ($a, $b, $flags);
            let all = mask($width);
            for (op, (r, f), defined) in [
                (Operation::Add, real!("add", $r, a, b, flags), ARITHMETIC),
                (Operation::Adc, real!("adc", $r, a, b, flags), ARITHMETIC),
                (Operation::Sub, real!("sub", $r, a, b, flags), ARITHMETIC),
                (Operation::Sbb, real!("sbb", $r, a, b, flags), ARITHMETIC),
                (
                    Operation::And,
                    real!("and", $r, a, b, flags),
                    ARITHMETIC & !AF,
                ),
                (
                    Operation::Or,
                    real!("or", $r, a, b, flags),
                    ARITHMETIC & !AF,
                ),
                (
                    Operation::Xor,
                    real!("xor", $r, a, b, flags),
                    ARITHMETIC & !AF,
                ),
                (Operation::Inc, real_one!("inc", $r, a, flags), ARITHMETIC),
                (Operation::Dec, real_one!("dec", $r, a, flags), ARITHMETIC),
                (Operation::Neg, real_one!("neg", $r, a, flags), ARITHMETIC),
                (Operation::Not, real_one!("not", $r, a, flags), ARITHMETIC),
            ] {
                let (result, new) = op.apply($width, a, b, flags);
                prop_assert_eq!(result, r & all, "{:?} {}", op, $width);
                prop_assert_eq!(new & defined, f & defined, "{:?} {} flags", op, $width);
                prop_assert_eq!(new & !ARITHMETIC, flags & !ARITHMETIC);
            }
            let (_, f) = real!("cmp", $r, a, b, flags);
            prop_assert_eq!(Operation::Cmp.apply($width, a, b, flags).1 & ARITHMETIC, f);
            let (_, f) = real!("test", $r, a, b, flags);
            prop_assert_eq!(
                Operation::Test.apply($width, a, b, flags).1 & ARITHMETIC & !AF,
                f & !AF
            );
        }};
    }

    macro_rules! check_bits {
        ($width:literal, $r:literal, $a:expr, $b:expr, $flags:expr) => {{
            let (a, b, flags): (u64, u64, u64) = ($a, $b, $flags);
            for (op, (r, f)) in [
                (Operation::Bt, real!("bt", $r, a, b, flags)),
                (Operation::Bts, real!("bts", $r, a, b, flags)),
                (Operation::Btr, real!("btr", $r, a, b, flags)),
                (Operation::Btc, real!("btc", $r, a, b, flags)),
            ] {
                let (result, new) = op.apply($width, a, b, flags);
                prop_assert_eq!(result, r & mask($width), "{:?} {}", op, $width);
                prop_assert_eq!(new & (CF | ZF), f & CF | flags & ZF);
            }
        }};
    }

    proptest! {
        #[test]
        fn agrees_with_the_processor(
            a in prop_oneof![any::<u64>(), 0u64..4, (0u64..4).prop_map(|n| (1 << 31) - 2 + n), Just(0x8080_8000_8000_0080u64)],
            b in prop_oneof![any::<u64>(), 0u64..4, Just(u64::MAX)],
            flags in any::<u64>(),
        ) {
            check_width!(1, ":l", a, b, flags);
            check_width!(2, ":x", a, b, flags);
            check_width!(4, ":e", a, b, flags);
            check_width!(8, ":r", a, b, flags);
            check_bits!(2, ":x", a, b, flags);
            check_bits!(4, ":e", a, b, flags);
            check_bits!(8, ":r", a, b, flags);
        }
    }
}
