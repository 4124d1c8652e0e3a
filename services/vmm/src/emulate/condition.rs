//! The conditions of SETcc and CMOVcc (Intel SDM vol. 1, appendix B).

use iced_x86::Mnemonic;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;

/// What happens if the condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conditional {
    /// CMOVcc.
    Move,
    /// SETcc.
    Set,
}

/// For a SETcc or CMOVcc: which, and whether its condition holds under `rflags`.
pub(super) fn of(mnemonic: Mnemonic, rflags: u64) -> Option<(Conditional, bool)> {
    use Mnemonic as M;
    let (what, number) = match mnemonic {
        M::Seto => (Conditional::Set, 0),
        M::Setno => (Conditional::Set, 1),
        M::Setb => (Conditional::Set, 2),
        M::Setae => (Conditional::Set, 3),
        M::Sete => (Conditional::Set, 4),
        M::Setne => (Conditional::Set, 5),
        M::Setbe => (Conditional::Set, 6),
        M::Seta => (Conditional::Set, 7),
        M::Sets => (Conditional::Set, 8),
        M::Setns => (Conditional::Set, 9),
        M::Setp => (Conditional::Set, 10),
        M::Setnp => (Conditional::Set, 11),
        M::Setl => (Conditional::Set, 12),
        M::Setge => (Conditional::Set, 13),
        M::Setle => (Conditional::Set, 14),
        M::Setg => (Conditional::Set, 15),
        M::Cmovo => (Conditional::Move, 0),
        M::Cmovno => (Conditional::Move, 1),
        M::Cmovb => (Conditional::Move, 2),
        M::Cmovae => (Conditional::Move, 3),
        M::Cmove => (Conditional::Move, 4),
        M::Cmovne => (Conditional::Move, 5),
        M::Cmovbe => (Conditional::Move, 6),
        M::Cmova => (Conditional::Move, 7),
        M::Cmovs => (Conditional::Move, 8),
        M::Cmovns => (Conditional::Move, 9),
        M::Cmovp => (Conditional::Move, 10),
        M::Cmovnp => (Conditional::Move, 11),
        M::Cmovl => (Conditional::Move, 12),
        M::Cmovge => (Conditional::Move, 13),
        M::Cmovle => (Conditional::Move, 14),
        M::Cmovg => (Conditional::Move, 15),
        _ => return None,
    };
    Some((what, holds(number, rflags)))
}

/// Condition `number` as the opcode's low four bits have it: pairs, the odd one of which is the opposite.
fn holds(number: u8, rflags: u64) -> bool {
    let is = |flag| rflags & flag != 0;
    let less = is(SF) != is(OF);
    let even = match number >> 1 {
        0 => is(OF),
        1 => is(CF),
        2 => is(ZF),
        3 => is(CF) || is(ZF),
        4 => is(SF),
        5 => is(PF),
        6 => less,
        _ => less || is(ZF),
    };
    even != (number & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    macro_rules! real {
        ($flags:expr, $($condition:literal)*) => {[$({
            let answer: u8;
            // SAFETY: reads flags that it has set itself, and puts them back.
            unsafe {
                core::arch::asm!(
                    "pushfq", "push {f}", "popfq", concat!("set", $condition, " {a}"), "popfq",
                    a = out(reg_byte) answer, f = in(reg) $flags,
                )
            };
            answer != 0
        }),*]};
    }

    #[test]
    fn every_condition_under_all_flags_as_the_processor_has_it() {
        for bits in 0..32u64 {
            let flags = [CF, PF, ZF, SF, OF]
                .iter()
                .enumerate()
                .filter(|(i, _)| bits >> i & 1 != 0)
                .fold(2, |all, (_, flag)| all | flag);
            let real = real!(flags, "o" "no" "b" "ae" "e" "ne" "be" "a" "s" "ns" "p" "np" "l" "ge" "le" "g");
            for (number, expected) in (0u8..).zip(real) {
                for (opcode, what) in [(0x40, Conditional::Move), (0x90, Conditional::Set)] {
                    let code = [0x0F, opcode | number, 0x07];
                    let mnemonic = Decoder::new(64, &code, DecoderOptions::NONE)
                        .decode()
                        .mnemonic();
                    assert_eq!(
                        of(mnemonic, flags),
                        Some((what, expected)),
                        "{code:02x?} {flags:#x}"
                    );
                }
            }
        }
        assert_eq!(of(Mnemonic::Mov, 0), None);
    }
}
