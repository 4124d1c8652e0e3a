//! What a death leaves behind: cause, backtrace, last log records.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ipc_schema::abi::{ThreadRegs, layout};
use ipc_schema::proto::{Cause, MAX_BACKTRACE, MAX_LOG_BYTES, Registers};

const INVALID_OPCODE: u64 = 6;
/// UD2 (Intel SDM vol. 2): how a server ends itself.
const UD2: [u8; 2] = [0x0f, 0x0b];

/// Why a server died, from the fault message's words and the bytes at its instruction pointer.
#[must_use]
pub fn cause(words: [u64; 4], code: Option<[u8; 2]>) -> Cause {
    let [vector, error, address, _] = words;
    if vector == INVALID_OPCODE && code == Some(UD2) {
        return Cause::Panic;
    }
    Cause::Fault {
        vector: vector as u8,
        error,
        address,
    }
}

/// The same registers in the protocol's type.
#[must_use]
pub fn registers(regs: &ThreadRegs) -> Registers {
    Registers {
        gpr: regs.gpr,
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

/// Number of rbp in [`ThreadRegs::gpr`].
const RBP: usize = 5;

/// Follows the chain of frame pointers: instruction pointer and return addresses, innermost first. `word` reads the
/// dead server's memory. Ends at the outermost frame, at nonsense, or at [`MAX_BACKTRACE`] addresses.
pub fn backtrace(regs: &ThreadRegs, mut word: impl FnMut(u64) -> Option<u64>) -> Vec<u64> {
    let mut addresses = Vec::from([regs.rip]);
    let mut frame = regs.gpr.get(RBP).copied().unwrap_or(0);
    let mut floor = layout::STACK_TOP - layout::STACK_SIZE;
    while addresses.len() < MAX_BACKTRACE {
        // Frames lie in the stack, each above the last: a chain that has been overwritten cannot make us loop.
        if frame < floor || frame > layout::STACK_TOP - 16 || !frame.is_multiple_of(8) {
            break;
        }
        let (Some(next), Some(back)) = (word(frame), word(frame + 8)) else {
            break;
        };
        if back == 0 {
            break;
        }
        addresses.push(back);
        floor = frame + 16;
        frame = next;
    }
    addresses
}

/// The last records that fit into a message.
#[derive(Debug, Default)]
pub struct Tail {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// Bytes that a record costs beside its own.
const RECORD: usize = 4;

impl Tail {
    /// Adds a record; the oldest ones go when there is no more room.
    pub fn add(&mut self, frame: &[u8]) {
        self.bytes += frame.len() + RECORD;
        self.frames.push_back(frame.to_vec());
        while self.bytes > MAX_LOG_BYTES {
            match self.frames.pop_front() {
                Some(old) => self.bytes -= old.len() + RECORD,
                None => break,
            }
        }
    }

    /// The records, oldest first.
    #[must_use]
    pub fn into_frames(self) -> Vec<Vec<u8>> {
        self.frames.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOP: u64 = layout::STACK_TOP;

    fn regs(rbp: u64) -> ThreadRegs {
        let mut regs = ThreadRegs {
            rip: 0x40_1234,
            ..ThreadRegs::default()
        };
        regs.gpr[RBP] = rbp;
        regs
    }

    #[test]
    fn a_chain_of_frames() {
        let word = |at: u64| match TOP - at {
            96 => Some(TOP - 48),
            88 => Some(0x40_0010),
            48 => Some(TOP - 16),
            40 => Some(0x40_0020),
            16 => Some(0),
            8 => Some(0x40_0030),
            _ => None,
        };
        assert_eq!(
            backtrace(&regs(TOP - 96), word),
            [0x40_1234, 0x40_0010, 0x40_0020, 0x40_0030]
        );
        assert_eq!(backtrace(&regs(0), word), [0x40_1234]);
        assert_eq!(backtrace(&regs(TOP - 8), word), [0x40_1234]);
        assert_eq!(backtrace(&regs(u64::MAX - 7), word), [0x40_1234]);
    }

    #[test]
    fn a_ring_of_frames_ends() {
        let all = backtrace(&regs(TOP - 96), |at| {
            Some(if at % 16 == 0 { TOP - 96 } else { 1 })
        });
        assert_eq!(all.len(), 2);
        let deep = backtrace(&regs(TOP - 4096), |at| {
            Some(if at % 16 == 0 { at + 16 } else { 1 })
        });
        assert_eq!(deep.len(), MAX_BACKTRACE);
    }

    #[test]
    fn panics_are_told_from_faults() {
        assert_eq!(cause([6, 0, 0, 0], Some(UD2)), Cause::Panic);
        let fault = Cause::Fault {
            vector: 6,
            error: 0,
            address: 0,
        };
        assert_eq!(cause([6, 0, 0, 0], Some([0x0f, 0x0c])), fault);
        assert_eq!(
            cause([14, 6, 99, 0], None),
            Cause::Fault {
                vector: 14,
                error: 6,
                address: 99
            }
        );
    }

    proptest! {
        #[test]
        fn any_stack_ends(rbp in TOP - 4096..TOP, words in proptest::collection::vec(any::<u64>(), 8)) {
            let all = backtrace(&regs(rbp), |at| words.get((at / 8 % 8) as usize).copied());
            prop_assert!(all.len() <= MAX_BACKTRACE);
        }

        #[test]
        fn tails_fit(lens in proptest::collection::vec(0usize..256, 0..60)) {
            let mut tail = Tail::default();
            for len in &lens {
                tail.add(&vec![*len as u8; *len]);
            }
            let frames = tail.into_frames();
            prop_assert!(frames.iter().map(|f| f.len() + RECORD).sum::<usize>() <= MAX_LOG_BYTES);
            let last: Vec<usize> = lens.iter().rev().take(frames.len()).rev().copied().collect();
            prop_assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), last);
        }
    }
}
